//! What intake finds of a prompt at the endpoints that announce nothing.

use std::collections::BTreeMap;

use feed::{EndpointHash, LoadRecord, SENT_PROPERTY, SentEndpoint, SentPlan, Table};
use hostcalls::Host;
use prefix::{Depths, StrideKey};
use routing::SourceState;

use super::{Silent, look_up, sent_keys};
use crate::config::ApproximatePrefix;

/// What endpoints without events were sent of a prompt.
pub(crate) struct Sent {
    plan: SentPlan,
    /// By slot.
    strides: BTreeMap<u16, u32>,
    tokens_per_stride: f32,
}

impl Sent {
    /// Looks a prompt up, in a scope and by its tokens per stride.
    pub(crate) fn look_up(
        host: &impl Host,
        (scope, tokens_per_stride): (u16, f32),
        keys: &[StrideKey],
        (table, loads): (&Table, &[LoadRecord]),
        config: &ApproximatePrefix,
        max_lookups: u32,
    ) -> Self {
        let silent = silent(table, loads, config, tokens_per_stride);
        let most = strides_of(config.max_prefix_tokens, tokens_per_stride);
        let keys = if silent.is_empty() { Vec::new() } else { sent_keys(keys, most) };
        let strides = look_up(host, scope, &keys, &silent, max_lookups);
        let endpoints = silent.iter().map(|silent| silent.is).collect();
        Self { plan: SentPlan { keys, endpoints }, strides, tokens_per_stride }
    }

    /// How deep the prompt reaches at an endpoint.
    pub(crate) fn depths(&self, slot: u16) -> Depths {
        let strides = self.strides.get(&slot).copied().unwrap_or(0);
        let held = (strides, (strides as f32 * self.tokens_per_stride) as u32);
        Depths { gpu: held, any: held, resume_tokens: None }
    }

    /// Leaves what the picker needs, if there is anything to remember. False if the host refused.
    pub(crate) fn leave(&self, host: &impl Host) -> bool {
        self.plan.keys.is_empty() || host.set_property(SENT_PROPERTY, &self.plan.encode()).is_ok()
    }
}

/// The endpoints that announce nothing.
fn silent(
    table: &Table,
    loads: &[LoadRecord],
    config: &ApproximatePrefix,
    tokens_per_stride: f32,
) -> Vec<Silent> {
    let one = |record: &LoadRecord| {
        let at = table.endpoints.binary_search_by_key(&record.slot, |entry| entry.slot).ok()?;
        let address = &table.endpoints.get(at)?.address;
        let tokens = match record.cache_tokens {
            known if known > 0 && config.auto_tune => known,
            _ => config.capacity_tokens,
        };
        let capacity = strides_of(tokens, tokens_per_stride);
        Some(Silent {
            endpoint: EndpointHash::of(address),
            is: SentEndpoint { slot: record.slot, capacity, started_s: record.started_s },
        })
    };
    loads.iter().filter(|record| record.source == SourceState::None).filter_map(one).collect()
}

/// Full strides of so many tokens; saturates.
fn strides_of(tokens: u32, tokens_per_stride: f32) -> u32 {
    (tokens as f32 / tokens_per_stride.max(f32::MIN_POSITIVE)) as u32
}
