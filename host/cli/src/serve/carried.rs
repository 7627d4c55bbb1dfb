//! Engines whose events come through a carrier.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use carrier::{Address, CarrierConfig, ConsumeCounters, EngineName, Feed};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::apply;
use super::scope::Scope;
use crate::config::{Carrier, Endpoint, EngineKind};

/// Updates of an engine that wait for the index; beyond it the streams of a connection wait.
const QUEUE: usize = 1024;

/// What is counted of each, by the scope's number and the slot.
pub(crate) type Carried = HashMap<(u16, u16), Arc<ConsumeCounters>>;

/// Whether followers of an endpoint like this publish its events. TensorRT-LLM hands each event out
/// once and keeps no bytes to pass on, so it is followed directly.
pub(crate) fn can_carry(endpoint: &Endpoint) -> bool {
    endpoint.kv_events.is_some() && endpoint.engine != EngineKind::Trtllm
}

/// The name of its stream.
pub(crate) fn name_of(endpoint: &Endpoint) -> Option<EngineName> {
    let events = endpoint.kv_events.clone().filter(|_| can_carry(endpoint))?;
    Some(EngineName { endpoint: events, topic: endpoint.topic.clone() })
}

/// Reads the password.
pub(crate) fn settings(carrier: &Carrier) -> anyhow::Result<Arc<CarrierConfig>> {
    let password = match &carrier.password_file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("carrier.passwordFile: read {}", file.display()))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let username = carrier.username.clone();
    Ok(Arc::new(CarrierConfig {
        address: Address { server: carrier.server.clone(), username, password },
        name: carrier.name.clone(),
        max_entries: carrier.max_entries,
        lease: carrier.lease,
    }))
}

/// Starts to read the streams of all endpoints that are carried.
pub(crate) fn start(
    carrier: &Carrier,
    scopes: &[Arc<Scope>],
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Carried> {
    let (mut feeds, mut carried) = (Vec::new(), Carried::new());
    for scope in scopes {
        for (slot, endpoint) in scope.roster.listed() {
            let Some(engine) = name_of(&endpoint) else { continue };
            let (sender, mut updates) = mpsc::channel(QUEUE);
            let counters = Arc::new(ConsumeCounters::default());
            carried.insert((scope.number, slot), Arc::clone(&counters));
            let resume = scope.live().engines[usize::from(slot)].resume();
            feeds.push(Feed { engine, resume, updates: sender, counters });
            let scope = Arc::clone(scope);
            tasks.spawn(async move {
                while let Some(update) = updates.recv().await {
                    apply::apply(&scope, slot, update);
                }
            });
        }
    }
    tracing::info!(server = carrier.server, engines = feeds.len(), "events come by a carrier");
    tasks.spawn(carrier::consume(settings(carrier)?, feeds));
    Ok(carried)
}
