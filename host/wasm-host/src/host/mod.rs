//! The host: everything that Envoy's process is to its wasm filters.

mod clock;
mod exchange;
mod plugins;
mod read;
mod streams;

pub use exchange::{Request, Response};
pub use plugins::Reloads;

use crate::engine::{Engine, Module};
use crate::error::{HostError, LoadError};
use crate::foreign::ForeignFunction;
use crate::limits::HostLimits;
use crate::plugin::{ChainConfig, ChainId, PluginConfig, PluginId, StreamId, VmKey};
use crate::property::Value;
use crate::state::logs::LogLevel;
use crate::state::{Shared, SharedRef, lock};
use crate::stream::data::StreamRef;
use crate::upstreams::{NoUpstreams, Upstreams};
use crate::vm::report::Records;
use crate::vm::{Action, Called, Vm};
use plugins::Plugin;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// How a host is made.
pub struct HostOptions {
    /// Threads of the gateway: each has its own virtual machines. At least one.
    pub workers: usize,
    /// Where the guests' wall clock starts, ns since 1970.
    pub start_ns: u64,
    /// What random bytes and jitter come from.
    pub seed: u64,
    /// Least important lines that are kept, and what `proxy_get_log_level` says.
    pub log_level: LogLevel,
    /// Who answers callouts.
    pub upstreams: Box<dyn Upstreams>,
    /// Attributes that are there without a stream too, such as `node`.
    pub attributes: Value,
    /// Bounds on what the host keeps for guests.
    pub limits: HostLimits,
}

impl Default for HostOptions {
    /// One worker, no upstreams, everything logged, and 2026-01-01 as the time.
    fn default() -> Self {
        Self {
            workers: 1,
            start_ns: 1_767_225_600_000_000_000,
            seed: 0,
            log_level: LogLevel::Trace,
            upstreams: Box::new(NoUpstreams),
            attributes: Value::map(),
            limits: HostLimits::default(),
        }
    }
}

/// Runs plugins on workers and streams through chains of them. Nothing happens by itself: streams
/// go on when they are given something, and time when [`advance`](Self::advance) is called.
pub struct Host {
    engine: Engine,
    pub(crate) shared: SharedRef,
    workers: usize,
    vms: BTreeMap<u64, Vm>,
    /// Machine of each worker and identity, the latest.
    by_key: BTreeMap<(usize, VmKey), u64>,
    plugins: Vec<Option<Plugin>>,
    chains: Vec<ChainConfig>,
    pub(crate) streams: BTreeMap<u64, StreamRef>,
    records: Records,
    last_vm: u64,
    last_stream: u64,
    ticking: bool,
}

impl Host {
    /// A host without plugins.
    pub fn new(engine: &Engine, options: HostOptions) -> Self {
        let HostOptions { workers, start_ns, seed, log_level, upstreams, attributes, limits } =
            options;
        let records = Records::new(limits.call_records);
        let mut shared = Shared::new(start_ns, seed, upstreams, limits);
        shared.logs.level = log_level;
        shared.attributes = Arc::new(attributes);
        Self {
            engine: engine.clone(),
            shared: Arc::new(Mutex::new(shared)),
            workers: workers.max(1),
            vms: BTreeMap::new(),
            by_key: BTreeMap::new(),
            plugins: Vec::new(),
            chains: Vec::new(),
            streams: BTreeMap::new(),
            records,
            last_vm: 0,
            last_stream: 0,
            ticking: false,
        }
    }

    /// Engine that the host's modules are compiled with.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Compiles a module; the same as [`Module::new`] with the host's engine.
    ///
    /// # Errors
    /// As [`Module::new`].
    pub fn load(&self, name: &str, code: impl AsRef<[u8]>) -> Result<Module, LoadError> {
        Module::new(&self.engine, name, code)
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Gives guests a function of that name, in place of the host's own if there is one.
    pub fn add_foreign_function(&mut self, name: impl Into<String>, function: ForeignFunction) {
        lock(&self.shared).foreign.insert(name.into(), function);
    }

    /// Adds a chain of plugins.
    ///
    /// # Errors
    /// [`HostError::UnknownPlugin`] if one of them is not there.
    pub fn add_chain(&mut self, config: ChainConfig) -> Result<ChainId, HostError> {
        self.check_chain(&config)?;
        self.chains.push(config);
        Ok(ChainId(self.chains.len() - 1))
    }

    /// Changes a chain for streams that are opened from now on, as an update of a listener or of its
    /// extensions does.
    ///
    /// # Errors
    /// [`HostError::UnknownPlugin`] or [`HostError::UnknownChain`] if one is not there.
    pub fn set_chain(&mut self, chain: ChainId, config: ChainConfig) -> Result<(), HostError> {
        self.check_chain(&config)?;
        let place = self.chains.get_mut(chain.0).ok_or(HostError::UnknownChain(chain.0))?;
        *place = config;
        Ok(())
    }

    fn check_chain(&self, config: &ChainConfig) -> Result<(), HostError> {
        match config.plugins.iter().find(|plugin| self.plugin(**plugin).is_none()) {
            Some(unknown) => Err(HostError::UnknownPlugin(unknown.0)),
            None => Ok(()),
        }
    }

    pub(crate) fn plugin(&self, plugin: PluginId) -> Option<&Plugin> {
        self.plugins.get(plugin.0)?.as_ref()
    }

    fn stream(&self, stream: StreamId) -> Result<StreamRef, HostError> {
        self.streams.get(&stream.0).map(Arc::clone).ok_or(HostError::UnknownStream(stream.0))
    }

    /// Calls a guest, and does what it asked for before the answer is looked at, as Envoy does.
    pub(crate) fn call(
        &mut self,
        vm: u64,
        callback: &'static str,
        context: u32,
        args: &[u32],
    ) -> Called {
        let Some(machine) = self.vms.get_mut(&vm) else { return Called::Failed };
        let called = machine.call(&mut self.records, callback, context, args);
        let actions = machine.take_actions();
        for action in actions {
            self.act(vm, action);
        }
        called
    }

    fn act(&mut self, vm: u64, action: Action) {
        match action {
            Action::Continue { stream, slot, direction } => {
                self.act_on_stream(stream, |host, stream| {
                    host.resume_asked(stream, slot, direction);
                });
            }
            Action::Reset { stream } => {
                self.act_on_stream(stream, |_, stream| lock(stream).reset());
            }
            Action::LocalReply { stream, slot, reply } => {
                self.act_on_stream(stream, |host, stream| {
                    if let Some(filter) = lock(stream).filters.get_mut(slot) {
                        filter.local_reply_sent = true;
                    }
                    host.local_reply(stream, &reply);
                });
            }
            Action::Delete { root } => self.delete_context(vm, root),
        }
    }

    /// Tells a guest that a context is gone, and forgets it.
    fn delete_context(&mut self, vm: u64, context: u32) {
        self.call(vm, "proxy_on_delete", context, &[]);
        if let Some(state) = self.vms.get_mut(&vm).and_then(Vm::state) {
            state.contexts.remove(&context);
        }
    }

    /// Starts the clock of wall-time limits if a plugin has one.
    fn tick_for(&mut self, config: &PluginConfig) {
        if config.limits.wall_time.is_some() && !self.ticking {
            self.engine.start_ticking();
            self.ticking = true;
        }
    }
}
