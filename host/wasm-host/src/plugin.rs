//! Configuration of plugins and chains.

use crate::engine::Module;
use crate::headers::HeaderMap;
use crate::limits::GuestLimits;
use crate::property::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What happens to streams when a virtual machine has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// `FAIL_CLOSED`, the default: 503, for streams under way and all later ones.
    #[default]
    FailClosed,
    /// `FAIL_OPEN`: 503 for streams under way, later ones pass without the plugin.
    FailOpen,
    /// `FAIL_RELOAD`: 503 for streams under way; the next stream gets a new virtual machine,
    /// unless the last start of one was less than the back-off ago.
    FailReload {
        /// Least time between two starts; up to half as much is added by chance. Envoy's default
        /// is one second.
        backoff: Duration,
    },
    /// The deprecated field `fail_open: true`: streams under way and later ones pass without the
    /// plugin.
    LegacyFailOpen,
}

/// One plugin: a module with an identity and a configuration.
#[derive(Clone)]
pub struct PluginConfig {
    /// Name, for logs and as `plugin_name`.
    pub name: String,
    /// Which of a module's root contexts this is.
    pub root_id: String,
    /// The module.
    pub module: Module,
    /// Namespace of shared data and queues; part of what decides whether plugins share a virtual
    /// machine.
    pub vm_id: String,
    /// What the guest reads at `proxy_on_vm_start`.
    pub vm_configuration: Vec<u8>,
    /// What the guest reads at `proxy_on_configure`.
    pub configuration: Vec<u8>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// What happens to streams when the virtual machine has failed.
    pub failure_policy: FailurePolicy,
    /// `allow_on_headers_stop_iteration`: whether a guest's pause in a headers callback holds only
    /// the headers, so that it still gets the body, or everything.
    pub allow_on_headers_stop_iteration: bool,
    /// `capability_restriction_config`: names of the imports and callbacks that are allowed; empty
    /// is all of them.
    pub allowed_capabilities: BTreeSet<String>,
    /// Limits of its virtual machine.
    pub limits: GuestLimits,
    /// Whether it is tried in a virtual machine of its own first, as Envoy does, with all effects
    /// that its start has on metrics, shared data and queues.
    pub canary: bool,
}

impl PluginConfig {
    /// A plugin of that name with Envoy's defaults.
    pub fn new(name: impl Into<String>, module: &Module) -> Self {
        Self {
            name: name.into(),
            root_id: String::new(),
            module: module.clone(),
            vm_id: String::new(),
            vm_configuration: Vec::new(),
            configuration: Vec::new(),
            environment: BTreeMap::new(),
            failure_policy: FailurePolicy::default(),
            allow_on_headers_stop_iteration: false,
            allowed_capabilities: BTreeSet::new(),
            limits: GuestLimits::default(),
            canary: true,
        }
    }

    /// Whether a call or callback is on the allow-list.
    pub(crate) fn allows(&self, capability: &str) -> bool {
        self.allowed_capabilities.is_empty() || self.allowed_capabilities.contains(capability)
    }

    /// Plugins with equal keys share a virtual machine per worker.
    pub(crate) fn vm_key(&self) -> VmKey {
        VmKey {
            vm_id: self.vm_id.clone(),
            vm_configuration: self.vm_configuration.clone(),
            environment: self.environment.clone(),
            module: (self.module.name.to_string(), self.module.digest),
            allowed_capabilities: self.allowed_capabilities.clone(),
        }
    }
}

/// What a virtual machine is told apart by. Envoy leaves the allow-list out of it, so that the
/// first plugin's holds for all; here plugins with different lists never share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VmKey {
    vm_id: String,
    vm_configuration: Vec<u8>,
    environment: BTreeMap<String, String>,
    module: (String, u64),
    allowed_capabilities: BTreeSet<String>,
}

/// Chooses the route of a request: attributes such as `xds.route_name` and `xds.cluster_name` that
/// hold until the route is chosen again.
pub type RouteChoice = Arc<dyn Fn(&HeaderMap) -> Value + Send + Sync>;

/// The filters of a listener.
#[derive(Clone)]
pub struct ChainConfig {
    /// Plugins in the order that requests pass them; responses pass them the other way.
    pub plugins: Vec<PluginId>,
    /// Bytes of a body that may be held back; a request above gets 413, a response becomes a 500.
    pub buffer_limit_bytes: usize,
    /// How the route is chosen, at the first header and again after `clear_route_cache` or a change
    /// of request headers, as long as the headers have not left the chain.
    pub route: Option<RouteChoice>,
}

impl ChainConfig {
    /// A chain of these plugins with Envoy's buffer limit of 1 MiB and no routes.
    pub fn new(plugins: impl Into<Vec<PluginId>>) -> Self {
        Self { plugins: plugins.into(), buffer_limit_bytes: 1024 * 1024, route: None }
    }
}

/// Number of a plugin within its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginId(pub(crate) usize);

/// Number of a chain within its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(pub(crate) usize);

/// Number of a stream within its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub(crate) u64);
