//! Plugins on workers: starting, failing, starting again, ending.

use super::Host;
use crate::error::{HostError, LoadError, VmFailure};
use crate::plugin::{FailurePolicy, PluginConfig, PluginId};
use crate::state::lock;
use crate::vm::context::Context;
use crate::vm::{Called, Vm};
use std::sync::Arc;

/// Where a plugin runs on one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) vm: u64,
    pub(crate) root: u32,
    last_load_ns: u64,
}

/// How often a plugin's machines were started again (`wasm.<name>.vm_reload_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    /// A new machine took over.
    pub success: u64,
    /// A stream came before the back-off was over.
    pub backoff: u64,
    /// The new machine failed too.
    pub failure: u64,
}

pub(crate) struct Plugin {
    pub(crate) config: Arc<PluginConfig>,
    pub(crate) places: Vec<Place>,
    pub(crate) reloads: Reloads,
    removed: bool,
}

/// What a new stream finds of a plugin.
pub(crate) enum Found {
    Running(Place),
    /// Failed, and streams pass without it.
    Skipped,
    /// Failed, and streams fail.
    Dead,
}

impl Host {
    /// Starts a plugin on every worker; before that in a canary, unless it is to have none.
    ///
    /// # Errors
    /// [`LoadError::Rejected`] if its start or configuration returned false, [`LoadError::Failed`] if
    /// it trapped or ran into a limit; nothing of it is left then but what it did to shared state.
    pub fn add_plugin(&mut self, config: PluginConfig) -> Result<PluginId, LoadError> {
        self.tick_for(&config);
        let config = Arc::new(config);
        lock(&self.shared).hold_vm_id(&config.vm_id);
        match self.start_everywhere(&config) {
            Ok(places) => {
                let reloads = Reloads::default();
                self.plugins.push(Some(Plugin { config, places, reloads, removed: false }));
                Ok(PluginId(self.plugins.len() - 1))
            }
            Err(error) => {
                lock(&self.shared).release_vm_id(&config.vm_id);
                Err(error)
            }
        }
    }

    fn start_everywhere(&mut self, config: &Arc<PluginConfig>) -> Result<Vec<Place>, LoadError> {
        if config.canary {
            let place = self.start(config, 0, true);
            // Whatever became of it, its machine goes, with the callouts that it made.
            if let Ok(place) = &place {
                lock(&self.shared).events.forget(place.vm);
                self.vms.remove(&place.vm);
            }
            place?;
        }
        let mut places = Vec::with_capacity(self.workers);
        for worker in 0..self.workers {
            match self.start(config, worker, false) {
                Ok(place) => places.push(place),
                Err(error) => {
                    for place in places {
                        self.end(place);
                    }
                    return Err(error);
                }
            }
        }
        Ok(places)
    }

    /// Gives a plugin a root context on a worker, in the machine of its identity if that lives.
    fn start(
        &mut self,
        config: &Arc<PluginConfig>,
        worker: usize,
        canary: bool,
    ) -> Result<Place, LoadError> {
        let key = (worker, config.vm_key());
        let running = self.by_key.get(&key).filter(|_| !canary).copied();
        let running = running.filter(|vm| self.vms.get(vm).is_some_and(|vm| !vm.is_failed()));
        let vm = match running {
            Some(vm) => vm,
            None => {
                self.last_vm += 1;
                let uid = self.last_vm;
                let vm =
                    Vm::start(&self.engine, config, worker, uid, &self.shared, &mut self.records)?;
                if let Some(failure) = vm.failure {
                    return Err(failed(config, failure));
                }
                self.vms.insert(uid, vm);
                if !canary {
                    self.by_key.insert(key, uid);
                }
                uid
            }
        };
        let started = self.start_root(config, vm);
        if started.is_err() {
            let unused = self.vms.get_mut(&vm).and_then(Vm::state);
            if unused.is_none_or(|state| state.contexts.is_empty()) {
                self.vms.remove(&vm);
            }
        }
        started
    }

    fn start_root(&mut self, config: &Arc<PluginConfig>, vm: u64) -> Result<Place, LoadError> {
        let root = self
            .vms
            .get_mut(&vm)
            .and_then(|machine| machine.add_context(Context::root(Arc::clone(config))));
        let root = root.unwrap_or_default();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.set_configuring(vm, root, true);
        self.call(vm, "proxy_on_context_create", root, &[0]);
        self.set_configuring(vm, root, false);
        let mut rejected = None;
        let lines = lock(&self.shared).logs.written();
        let started = [len(&config.vm_configuration)];
        if let Called::Returned { value: 0, .. } =
            self.call(vm, "proxy_on_vm_start", root, &started)
        {
            rejected = Some("proxy_on_vm_start");
        } else {
            self.set_configuring(vm, root, true);
            let configured = [len(&config.configuration)];
            if let Called::Returned { value: 0, .. } =
                self.call(vm, "proxy_on_configure", root, &configured)
            {
                rejected = Some("proxy_on_configure");
            }
            self.set_configuring(vm, root, false);
        }
        if let Some(failure) = self.vms.get(&vm).and_then(|vm| vm.failure.clone()) {
            return Err(failed(config, failure));
        }
        if let Some(callback) = rejected {
            if let Some(state) = self.vms.get_mut(&vm).and_then(Vm::state) {
                state.contexts.remove(&root);
            }
            let said = lock(&self.shared).logs.last_since(lines);
            return Err(LoadError::Rejected { plugin: config.name.clone(), callback, said });
        }
        let last_load_ns = lock(&self.shared).monotonic_ns;
        Ok(Place { vm, root, last_load_ns })
    }

    fn set_configuring(&mut self, vm: u64, root: u32, configuring: bool) {
        let state = self.vms.get_mut(&vm).and_then(Vm::state);
        let context = state.and_then(|state| state.contexts.get_mut(&root));
        if let Some(root) = context.and_then(Context::as_root) {
            root.configuring = configuring;
        }
    }

    /// Finds a plugin for a new stream, after starting it again if its policy is to.
    pub(crate) fn find(&mut self, plugin: PluginId, worker: usize) -> Found {
        let Some(found) = self.plugins.get(plugin.0).and_then(Option::as_ref) else {
            return Found::Skipped;
        };
        let Some(place) = found.places.get(worker).copied() else { return Found::Skipped };
        if self.vms.get(&place.vm).is_some_and(|vm| !vm.is_failed()) {
            return Found::Running(place);
        }
        match found.config.failure_policy {
            FailurePolicy::FailClosed => Found::Dead,
            FailurePolicy::FailOpen | FailurePolicy::LegacyFailOpen => Found::Skipped,
            FailurePolicy::FailReload { backoff } => {
                let config = Arc::clone(&found.config);
                self.reload(plugin, worker, place, &config, backoff)
            }
        }
    }

    fn reload(
        &mut self,
        plugin: PluginId,
        worker: usize,
        place: Place,
        config: &Arc<PluginConfig>,
        backoff: std::time::Duration,
    ) -> Found {
        let (now, least_ns) = {
            let mut shared = lock(&self.shared);
            let base_ms = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX / 2);
            let jitter_ms = if base_ms > 1 { shared.random() % (base_ms / 2).max(1) } else { 0 };
            let least_ms = base_ms.saturating_add(jitter_ms);
            (shared.monotonic_ns, least_ms.saturating_mul(1_000_000))
        };
        let early = now.saturating_sub(place.last_load_ns) < least_ns;
        let started = if early { None } else { Some(self.start(config, worker, false)) };
        let Some(Some(plugin)) = self.plugins.get_mut(plugin.0) else { return Found::Dead };
        let Some(current) = plugin.places.get_mut(worker) else { return Found::Dead };
        match started {
            None => plugin.reloads.backoff += 1,
            Some(Ok(place)) => {
                *current = place;
                plugin.reloads.success += 1;
                return Found::Running(place);
            }
            Some(Err(_)) => {
                current.last_load_ns = now;
                plugin.reloads.failure += 1;
            }
        }
        Found::Dead
    }

    /// Takes a plugin away. Streams that it is in go on with it; with the last of them its root
    /// contexts end (`proxy_on_done`, then `proxy_on_delete`, at once or after `proxy_done`), and with
    /// the last plugin of a `vm_id` its shared data and queues.
    ///
    /// # Errors
    /// [`HostError::UnknownPlugin`] if it is not there.
    pub fn remove_plugin(&mut self, plugin: PluginId) -> Result<(), HostError> {
        let found = self.plugins.get_mut(plugin.0).and_then(Option::as_mut);
        let found = found.filter(|plugin| !plugin.removed);
        found.ok_or(HostError::UnknownPlugin(plugin.0))?.removed = true;
        self.end_if_unused(plugin);
        Ok(())
    }

    /// Ends a removed plugin that no stream is in any more.
    pub(crate) fn end_if_unused(&mut self, plugin: PluginId) {
        let removed = self.plugin(plugin).is_some_and(|plugin| plugin.removed);
        let used = |stream: &crate::stream::data::StreamRef| {
            lock(stream).filters.iter().any(|filter| filter.plugin == plugin)
        };
        if !removed || self.streams.values().any(used) {
            return;
        }
        let Some(plugin) = self.plugins.get_mut(plugin.0).and_then(Option::take) else { return };
        for place in plugin.places {
            self.end(place);
        }
        lock(&self.shared).release_vm_id(&plugin.config.vm_id);
    }

    fn end(&mut self, place: Place) {
        if let Called::Returned { value: 0, .. } =
            self.call(place.vm, "proxy_on_done", place.root, &[])
        {
            let state = self.vms.get_mut(&place.vm).and_then(Vm::state);
            let context = state.and_then(|state| state.contexts.get_mut(&place.root));
            if let Some(root) = context.and_then(Context::as_root) {
                root.pending_done = true;
            }
            return;
        }
        self.delete_context(place.vm, place.root);
        let state = self.vms.get_mut(&place.vm).and_then(Vm::state);
        if state.is_none_or(|state| state.contexts.is_empty()) {
            lock(&self.shared).events.forget(place.vm);
            self.vms.remove(&place.vm);
        }
    }

    /// How often a plugin's machines were started again.
    ///
    /// # Errors
    /// [`HostError::UnknownPlugin`] if it is not there.
    pub fn reloads(&self, plugin: PluginId) -> Result<Reloads, HostError> {
        let found = self.plugin(plugin).ok_or(HostError::UnknownPlugin(plugin.0))?;
        Ok(found.reloads)
    }

    /// How a plugin's machine on a worker ended, if it has.
    ///
    /// # Errors
    /// [`HostError::UnknownPlugin`] or [`HostError::UnknownWorker`] if one is not there.
    pub fn failure(
        &self,
        plugin: PluginId,
        worker: usize,
    ) -> Result<Option<&VmFailure>, HostError> {
        let found = self.plugin(plugin).ok_or(HostError::UnknownPlugin(plugin.0))?;
        let unknown = HostError::UnknownWorker { worker, workers: self.workers };
        let place = found.places.get(worker).ok_or(unknown)?;
        Ok(self.vms.get(&place.vm).and_then(|vm| vm.failure.as_ref()))
    }

    /// Linear memory that a plugin's machine on a worker has, in bytes; `None` if it has failed.
    ///
    /// # Errors
    /// [`HostError::UnknownPlugin`] or [`HostError::UnknownWorker`] if one is not there.
    pub fn memory_bytes(
        &mut self,
        plugin: PluginId,
        worker: usize,
    ) -> Result<Option<usize>, HostError> {
        let found = self.plugin(plugin).ok_or(HostError::UnknownPlugin(plugin.0))?;
        let unknown = HostError::UnknownWorker { worker, workers: self.workers };
        let place = *found.places.get(worker).ok_or(unknown)?;
        Ok(self.vms.get_mut(&place.vm).and_then(Vm::memory_bytes))
    }
}

fn failed(config: &PluginConfig, failure: VmFailure) -> LoadError {
    LoadError::Failed { plugin: config.name.clone(), failure: Box::new(failure) }
}
