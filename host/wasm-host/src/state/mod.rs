//! What all virtual machines of a host share: the clock, data, queues, metrics, logs, callouts.

pub(crate) mod events;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod queues;
pub(crate) mod shared_data;

use crate::foreign::ForeignFunction;
use crate::limits::HostLimits;
use crate::property::Value;
use crate::upstreams::Upstreams;
use events::Events;
use logs::Logs;
use metrics::Metrics;
use queues::Queues;
use shared_data::SharedData;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) type SharedRef = Arc<Mutex<Shared>>;

/// Locks; a panic elsewhere while it was held changes nothing about the value's use.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Shared {
    /// Wall clock of the guests, ns since 1970.
    pub(crate) wall_ns: u64,
    /// Monotonic clock of the guests, ns.
    pub(crate) monotonic_ns: u64,
    pub(crate) data: SharedData,
    pub(crate) queues: Queues,
    pub(crate) metrics: Metrics,
    pub(crate) logs: Logs,
    pub(crate) events: Events,
    pub(crate) upstreams: Box<dyn Upstreams>,
    pub(crate) foreign: HashMap<String, ForeignFunction>,
    pub(crate) limits: HostLimits,
    /// Attributes that are the same for every stream, and there without one.
    pub(crate) attributes: Arc<Value>,
    /// How many plugins configure each `vm_id`, which is how long its data lives.
    pub(crate) vm_ids: BTreeMap<String, usize>,
    random: u64,
}

impl Shared {
    pub(crate) fn new(
        wall_ns: u64,
        seed: u64,
        upstreams: Box<dyn Upstreams>,
        limits: HostLimits,
    ) -> Self {
        Self {
            wall_ns,
            monotonic_ns: 1_000_000_000,
            data: SharedData::new(limits.shared_bytes),
            queues: Queues::new(limits.shared_bytes),
            metrics: Metrics::new(limits.metrics),
            logs: Logs::new(limits.log_lines, limits.log_line_bytes),
            events: Events::default(),
            upstreams,
            foreign: HashMap::new(),
            limits,
            attributes: Arc::new(Value::map()),
            vm_ids: BTreeMap::new(),
            random: seed,
        }
    }

    /// SplitMix64: the same numbers for the same seed in every build.
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn hold_vm_id(&mut self, vm_id: &str) {
        *self.vm_ids.entry(vm_id.to_owned()).or_default() += 1;
    }

    /// With the last plugin of a `vm_id` go its data and queues.
    pub(crate) fn release_vm_id(&mut self, vm_id: &str) {
        if let Some(holders) = self.vm_ids.get_mut(vm_id) {
            *holders -= 1;
            if *holders == 0 {
                self.vm_ids.remove(vm_id);
                self.data.erase(vm_id);
                self.queues.erase(vm_id);
            }
        }
    }
}
