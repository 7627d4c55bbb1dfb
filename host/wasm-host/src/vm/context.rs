//! Contexts of a virtual machine: one per plugin, and one per stream and plugin.

use crate::headers::HeaderMap;
use crate::plugin::PluginConfig;
use crate::stream::data::StreamRef;
use crate::upstreams::HttpResponse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) struct Context {
    /// Number of the root context that made it; of a root context, 0.
    pub(crate) parent: u32,
    pub(crate) plugin: Arc<PluginConfig>,
    /// What `proxy_get_status` says. Envoy keeps it for the context that made the callout, so a guest
    /// that has set another effective context does not see it.
    pub(crate) status: (u32, Vec<u8>),
    pub(crate) kind: ContextKind,
}

pub(crate) enum ContextKind {
    Root(Box<Root>),
    Stream { stream: StreamRef, slot: usize },
}

/// What only root contexts have: everything that goes on without a stream.
#[derive(Default)]
pub(crate) struct Root {
    /// Whether the plugin's configuration can be read.
    pub(crate) configuring: bool,
    /// The response whose callback is running.
    pub(crate) response: Option<HttpResponse>,
    pub(crate) grpc_message: Option<Vec<u8>>,
    pub(crate) grpc_initial: Option<HeaderMap>,
    pub(crate) grpc_trailing: Option<HeaderMap>,
    pub(crate) http_calls: BTreeSet<u32>,
    pub(crate) grpc_calls: BTreeSet<u32>,
    pub(crate) grpc_streams: BTreeMap<u32, GrpcStream>,
    /// Milliseconds; 0 is none.
    pub(crate) tick_period_ms: u32,
    /// Grows with each new period, so that ticks of an old one are known.
    pub(crate) tick_generation: u64,
    /// Names that `declare_property` was called for, and whether they can be set only once.
    pub(crate) declared: BTreeMap<Vec<u8>, bool>,
    /// `proxy_on_done` returned false, and `proxy_done` has not been called yet.
    pub(crate) pending_done: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GrpcStream {
    pub(crate) local_closed: bool,
    pub(crate) remote_closed: bool,
}

impl Context {
    pub(crate) fn root(plugin: Arc<PluginConfig>) -> Self {
        Self { parent: 0, plugin, status: (0, Vec::new()), kind: ContextKind::Root(Box::default()) }
    }

    pub(crate) fn stream(
        parent: u32,
        plugin: Arc<PluginConfig>,
        stream: StreamRef,
        slot: usize,
    ) -> Self {
        Self { parent, plugin, status: (0, Vec::new()), kind: ContextKind::Stream { stream, slot } }
    }

    pub(crate) fn as_root(&mut self) -> Option<&mut Root> {
        match &mut self.kind {
            ContextKind::Root(root) => Some(root),
            ContextKind::Stream { .. } => None,
        }
    }

    pub(crate) fn as_stream(&self) -> Option<(StreamRef, usize)> {
        match &self.kind {
            ContextKind::Root(_) => None,
            ContextKind::Stream { stream, slot } => Some((Arc::clone(stream), *slot)),
        }
    }
}
