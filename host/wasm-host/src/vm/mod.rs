//! One instance of a module on one worker.

pub(crate) mod context;
pub(crate) mod exports;
pub(crate) mod report;
pub(crate) mod state;

use crate::engine::{EPOCH_TICK, Engine};
use crate::error::{LoadError, VmFailure};
use crate::limits::GuestLimits;
use crate::plugin::PluginConfig;
use crate::state::{SharedRef, lock};
use crate::stream::data::Direction;
use context::Context;
use report::CallRecord;
use state::VmState;
use std::collections::HashMap;
use std::sync::Arc;
use wasmtime::{Func, Store, Val};

/// What a guest asked for that happens only after its callback has returned.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Continue {
        stream: u64,
        slot: usize,
        direction: Direction,
    },
    Reset {
        stream: u64,
    },
    LocalReply {
        stream: u64,
        slot: usize,
        reply: crate::stream::LocalReply,
    },
    /// `proxy_done` of a root context that was waiting for it.
    Delete {
        root: u32,
    },
}

/// How a callback went.
pub(crate) enum Called {
    /// The module has none of that name, or the allow-list takes it away.
    Missing,
    /// What it returned (0 if it returns nothing), and whether a local reply is pending.
    Returned { value: u32, stop: bool },
    /// The virtual machine has failed, now or before.
    Failed,
}

pub(crate) struct Vm {
    pub(crate) uid: u64,
    pub(crate) worker: usize,
    pub(crate) module: Arc<str>,
    store: Option<Store<VmState>>,
    exports: HashMap<&'static str, Func>,
    limits: GuestLimits,
    /// What the guest had asked for when it failed, which still happens.
    left: Vec<Action>,
    /// Set once; nothing is called afterwards.
    pub(crate) failure: Option<VmFailure>,
    shared: SharedRef,
}

impl Vm {
    /// Instantiates the module and lets it initialise itself.
    pub(crate) fn start(
        engine: &Engine,
        plugin: &Arc<PluginConfig>,
        worker: usize,
        uid: u64,
        shared: &SharedRef,
        records: &mut report::Records,
    ) -> Result<Self, LoadError> {
        let module = &plugin.module;
        let instantiate = |cause: wasmtime::Error| LoadError::Instantiate {
            module: module.name.to_string(),
            cause: format!("{cause:#}"),
        };
        let mut store =
            Store::new(engine.inner(), VmState::new(plugin, worker, uid, Arc::clone(shared)));
        store.limiter(|state| &mut state.limiter);
        arm(&mut store, &plugin.limits).map_err(instantiate)?;
        store.data_mut().phase = Some("starting");
        let instance =
            engine.imports().linker.instantiate(&mut store, &module.inner).map_err(instantiate)?;
        let memory = instance.get_memory(&mut store, "memory");
        let mut exports = HashMap::new();
        for (name, _) in exports::CALLBACKS {
            if let Some(func) = instance.get_func(&mut store, name)
                && (!name.starts_with("proxy_on_")
                    || *name == "proxy_on_memory_allocate"
                    || plugin.allows(name))
            {
                exports.insert(*name, func);
            }
        }
        let malloc = exports.get("malloc").or(exports.get("proxy_on_memory_allocate")).copied();
        store.data_mut().memory = memory;
        store.data_mut().malloc = malloc;
        let mut vm = Self {
            uid,
            worker,
            module: Arc::clone(&module.name),
            store: Some(store),
            exports,
            limits: plugin.limits.clone(),
            left: Vec::new(),
            failure: None,
            shared: Arc::clone(shared),
        };
        if matches!(vm.call(records, "_initialize", 0, &[]), Called::Missing) {
            vm.call(records, "_start", 0, &[]);
        } else {
            vm.call(records, "main", 0, &[0, 0]);
            vm.call(records, "__main_void", 0, &[]);
        }
        if let Some(state) = vm.state() {
            state.phase = None;
            state.actions.clear();
        }
        Ok(vm)
    }

    /// The state that host functions see; nothing of it is left once the machine has failed.
    pub(crate) fn state(&mut self) -> Option<&mut VmState> {
        self.store.as_mut().map(Store::data_mut)
    }

    /// What the last callback asked for.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        match self.store.as_mut() {
            Some(store) => std::mem::take(&mut store.data_mut().actions),
            None => std::mem::take(&mut self.left),
        }
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Linear memory in bytes.
    pub(crate) fn memory_bytes(&mut self) -> Option<usize> {
        let store = self.store.as_mut()?;
        let memory = store.data().memory?;
        Some(memory.data_size(store))
    }

    pub(crate) fn add_context(&mut self, context: Context) -> Option<u32> {
        self.state().map(|state| state.add_context(context))
    }

    /// Calls an export for a context. Actions it asked for are left in the state.
    pub(crate) fn call(
        &mut self,
        records: &mut report::Records,
        callback: &'static str,
        context: u32,
        args: &[u32],
    ) -> Called {
        let Some(store) = self.store.as_mut() else { return Called::Failed };
        let Some(func) = self.exports.get(callback) else { return Called::Missing };
        let mut params = Vec::with_capacity(args.len() + 1);
        if context != 0 {
            params.push(Val::I32(context.cast_signed()));
        }
        params.extend(args.iter().map(|arg| Val::I32(arg.cast_signed())));
        let has_result = func.ty(&*store).results().len() == 1;
        let mut results = vec![Val::I32(0); usize::from(has_result)];
        store.data_mut().enter(context);
        let outcome =
            arm(store, &self.limits).and_then(|()| func.call(&mut *store, &params, &mut results));
        let budget = self.limits.fuel.unwrap_or(u64::MAX);
        let fuel = budget.saturating_sub(store.get_fuel().unwrap_or(0));
        let trapped = outcome.is_err();
        records.push(CallRecord {
            worker: self.worker,
            module: Arc::clone(&self.module),
            callback,
            context,
            fuel,
            trapped,
        });
        match outcome {
            Ok(()) => {
                let stop = std::mem::take(&mut store.data_mut().stop_iteration);
                let value = results.first().and_then(Val::i32).unwrap_or(0).cast_unsigned();
                Called::Returned { value, stop }
            }
            Err(error) => {
                let mut failure = report::describe(&error, store.data(), &self.limits);
                failure.callback = callback;
                failure.context = context;
                self.fail(failure);
                Called::Failed
            }
        }
    }

    fn fail(&mut self, failure: VmFailure) {
        let mut shared = lock(&self.shared);
        shared.events.forget(self.uid);
        let line = crate::LogLine {
            time_ns: shared.wall_ns,
            level: crate::LogLevel::Critical,
            worker: self.worker,
            source: self.module.to_string(),
            text: failure.to_string(),
        };
        shared.logs.write(line);
        drop(shared);
        self.failure = Some(failure);
        self.left = self.take_actions();
        // With the store goes the guest's memory; nothing can be called any more.
        self.store = None;
    }
}

/// A callback's fuel and time begin now.
fn arm(store: &mut Store<VmState>, limits: &GuestLimits) -> wasmtime::Result<()> {
    store.set_fuel(limits.fuel.unwrap_or(u64::MAX))?;
    let ticks = match limits.wall_time {
        // One more, as the tick under way is already partly over.
        Some(limit) => limit.as_millis().div_ceil(EPOCH_TICK.as_millis()) + 1,
        None => 1 << 40,
    };
    store.set_epoch_deadline(u64::try_from(ticks).unwrap_or(1 << 40).min(1 << 40));
    Ok(())
}
