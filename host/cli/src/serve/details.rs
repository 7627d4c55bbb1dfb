//! What `/readyz` says of each engine and gateway beyond being ready or not; `wasm-epp doctor` reads
//! it.

use std::sync::PoisonError;

use feed_push::GatewayStatus;
use serde_json::{Value, json};

use super::GatewayHandle;
use super::lag::receive_lag_s;
use super::scope::{Engine, Scope};
use crate::config::EngineKind;

/// Adds the members of one object to another.
pub(crate) fn add(to: &mut Value, more: Value) {
    if let (Value::Object(to), Value::Object(more)) = (to, more) {
        to.extend(more);
    }
}

/// The evidence for and against precise prefix state of one engine.
pub(crate) fn engine(scope: &Scope, slot: u16, engine: &Engine) -> Value {
    let c = &engine.counters;
    let read = scope.roster.reader(slot).counts();
    let endpoint = scope.roster.endpoint(slot);
    let encoding = &engine.encoding;
    let releases: Vec<Value> = encoding
        .releases()
        .iter()
        .map(|releases| json!({"engine": releases.engine, "name": releases.to_string()}))
        .collect();
    let engine_name = EngineKind::NAMES.iter().find(|(_, kind)| *kind == endpoint.engine);
    json!({
        "engine": engine_name.map(|(name, _)| name),
        "events": c.stored_events + c.removed_events + c.cleared_events + c.unknown_events,
        "encoding": encoding.form(),
        "hashes": encoding.hash_kind(),
        "fields": encoding.fields(),
        "releases": releases,
        "replay": match read.is_replay_answered {
            None if read.replays > 0 => "asked",
            None => "never asked",
            Some(true) => "works",
            Some(false) => "fails",
        },
        "replays": read.replays,
        "replays_failed": read.replays_failed,
        "gaps": read.gaps,
        "restarts": c.restarts + c.fenced,
        "connections_failed": read.connections_failed,
        "not_batches": read.not_batches,
        "frames_too_large": read.frames_too_large,
        "superseded": read.superseded,
        "receive_lag_ms": engine.last_published.map(|last| (receive_lag_s(last) * 1e3).round()),
        "has_checker": scope.checks.has_checker(),
        "generated_blocks": c.generated_blocks,
        "unchecked_ratio": unchecked_ratio(c.generated_blocks, scope.checks.decided(slot)),
        "unknown_tokens": c.unknown_tokens,
        "prompt_tokens_watched": engine.prompt_tokens.map(|(first, now)| now - first),
    })
}

/// Share of generated blocks that were not found to be canonical or not; `None` while there is none.
pub(crate) fn unchecked_ratio(generated: u64, decided: u64) -> Option<f64> {
    let unchecked = generated.saturating_sub(decided);
    (generated > 0).then(|| unchecked as f64 / generated as f64)
}

/// Who acked, how fast, and which router VMs reported.
pub(crate) fn gateway(status: &GatewayStatus, gateway: &GatewayHandle) -> Value {
    let lag = gateway.lag.lock().unwrap_or_else(PoisonError::into_inner);
    let rows: Vec<Value> = status
        .rows
        .iter()
        .map(|row| {
            json!({
                "vm": format!("{:016x}", row.vm),
                "build": format!("{:016x}", row.build),
                "config": format!("{:016x}", row.config),
                "beat_age_ms": status.gateway_now_ns.saturating_sub(row.beat_ns) / 1_000_000,
                "picked": row.picked,
                "fell_back": row.fell_back,
            })
        })
        .collect();
    let held = gateway.vms.lock().unwrap_or_else(PoisonError::into_inner);
    let vms: Vec<Value> = held.iter().map(|(filter, vms)| vms.details(filter)).collect();
    let sum = |of: &dyn Fn(&feed::Cell) -> u64| status.reservations.iter().map(of).sum::<u64>();
    let quantiles = |lags: &super::lag::Lags| {
        let ms = |quantile| lags.recent_ms(quantile).map(|ms| (ms * 1e3).round() / 1e3);
        json!({"p50": ms(0.5), "p99": ms(0.99), "count": lags.count()})
    };
    json!({
        "last_ack_ms": status.last_ack.map(|at| at.elapsed().as_millis() as u64),
        "rows": rows,
        "can_revive": gateway.can_revive,
        "vms": vms,
        "in_flight_requests": sum(&|cell| u64::from(cell.requests)),
        "in_flight_tokens": sum(&|cell| cell.tokens),
        "lag_published_ms": quantiles(&lag.published),
        "lag_received_ms": quantiles(&lag.received),
        "lag_clamped": lag.clamped,
    })
}
