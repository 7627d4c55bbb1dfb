//! What the host functions of one virtual machine work on.

use super::Action;
use super::context::{Context, Root};
use crate::limits::Limiter;
use crate::plugin::PluginConfig;
use crate::state::SharedRef;
use crate::state::metrics::{MetricKind, MetricName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use wasmtime::{Func, Memory};

/// Actions that one callback may leave behind; more of them get `InternalFailure`.
const ACTIONS: usize = 1024;

pub(crate) struct VmState {
    pub(crate) shared: SharedRef,
    pub(crate) module: Arc<str>,
    pub(crate) vm_id: String,
    pub(crate) worker: usize,
    pub(crate) uid: u64,
    pub(crate) vm_configuration: Vec<u8>,
    pub(crate) environment: BTreeMap<String, String>,
    allowed: BTreeSet<String>,
    pub(crate) limiter: Limiter,
    pub(crate) memory: Option<Memory>,
    pub(crate) malloc: Option<Func>,
    pub(crate) contexts: HashMap<u32, Context>,
    next_context: u32,
    current: u32,
    /// 0 is none.
    pub(crate) effective: u32,
    /// Why most host calls are not allowed right now, if they are not.
    pub(crate) phase: Option<&'static str>,
    /// Whether the callback asked for a local reply.
    pub(crate) stop_iteration: bool,
    pub(crate) actions: Vec<Action>,
    pub(crate) metrics: HashMap<u32, MetricName>,
    last_metric: [u32; 3],
    last_call: [u32; 3],
}

/// What a callout's number says of its kind, in its last two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    Http = 0,
    GrpcCall = 1,
    GrpcStream = 2,
}

impl VmState {
    pub(crate) fn new(plugin: &PluginConfig, worker: usize, uid: u64, shared: SharedRef) -> Self {
        Self {
            shared,
            module: Arc::clone(&plugin.module.name),
            vm_id: plugin.vm_id.clone(),
            worker,
            uid,
            vm_configuration: plugin.vm_configuration.clone(),
            environment: plugin.environment.clone(),
            allowed: plugin.allowed_capabilities.clone(),
            limiter: Limiter::new(&plugin.limits),
            memory: None,
            malloc: None,
            contexts: HashMap::new(),
            next_context: 1,
            current: 0,
            effective: 0,
            phase: None,
            stop_iteration: false,
            actions: Vec::new(),
            metrics: HashMap::new(),
            last_metric: [0, 1, 2],
            last_call: [0, 1, 2],
        }
    }

    pub(crate) fn allows(&self, capability: &str) -> bool {
        self.allowed.is_empty() || self.allowed.contains(capability)
    }

    pub(crate) fn enter(&mut self, context: u32) {
        self.current = context;
        self.effective = 0;
        self.stop_iteration = false;
    }

    pub(crate) fn add_context(&mut self, context: Context) -> u32 {
        while self.next_context == 0 || self.contexts.contains_key(&self.next_context) {
            self.next_context = self.next_context.wrapping_add(1);
        }
        let id = self.next_context;
        self.next_context = self.next_context.wrapping_add(1);
        self.contexts.insert(id, context);
        id
    }

    /// The context that host calls are for: the effective one, or the one of the callback if that
    /// is gone.
    pub(crate) fn current_id(&self) -> u32 {
        if self.effective != 0 && self.contexts.contains_key(&self.effective) {
            self.effective
        } else {
            self.current
        }
    }

    pub(crate) fn current(&mut self) -> Option<&mut Context> {
        let id = self.current_id();
        self.contexts.get_mut(&id)
    }

    /// Number of the root context that host calls are for.
    pub(crate) fn root_id(&mut self) -> u32 {
        let id = self.current_id();
        self.contexts.get(&id).map_or(id, |context| match context.parent {
            0 => id,
            parent => parent,
        })
    }

    pub(crate) fn root(&mut self) -> Option<&mut Root> {
        let id = self.root_id();
        self.contexts.get_mut(&id)?.as_root()
    }

    /// Whether there is still room for an action.
    pub(crate) fn act(&mut self, action: Action) -> bool {
        let room = self.actions.len() < ACTIONS;
        if room {
            self.actions.push(action);
        }
        room
    }

    /// Number of a metric: its kind in the last two bits, as in Envoy.
    pub(crate) fn next_metric(&mut self, kind: MetricKind) -> u32 {
        let last = match kind {
            MetricKind::Counter => &mut self.last_metric[0],
            MetricKind::Gauge => &mut self.last_metric[1],
            MetricKind::Histogram => &mut self.last_metric[2],
        };
        *last = last.wrapping_add(4);
        *last
    }

    pub(crate) fn next_call(&mut self, kind: CallKind) -> u32 {
        let last = match kind {
            CallKind::Http => &mut self.last_call[0],
            CallKind::GrpcCall => &mut self.last_call[1],
            CallKind::GrpcStream => &mut self.last_call[2],
        };
        *last = last.wrapping_add(4);
        *last
    }

    /// Name that log lines go under.
    pub(crate) fn source(&mut self) -> String {
        let module = Arc::clone(&self.module);
        self.current().map_or_else(|| module.to_string(), |context| context.plugin.name.clone())
    }
}
