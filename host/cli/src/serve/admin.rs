//! The daemon's own pages: `/healthz`, `/readyz`, `/metrics`, and `/snapshot` for its peers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use feed_push::PushState;
use routing::SourceState;
use serde_json::{Value, json};

use super::scope::Scope;
use super::{Daemon, accuracy, details, page, snapshot};

pub(crate) fn app(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/snapshot", get(|State(daemon)| snapshot::serve(daemon)))
        .with_state(daemon)
}

/// 200 when every gateway is fed and every source of events is live; the details either way.
async fn ready(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    let (is_ready, details) = details(&daemon);
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(details))
}

pub(crate) fn details(daemon: &Daemon) -> (bool, Value) {
    // Read before what is pending: a check changes the index before it stops waiting.
    let waiting = |scope: &Arc<Scope>| scope.checks.waiting.load(Ordering::Relaxed);
    let unchecked = daemon.scopes.iter().map(waiting).sum::<u64>();
    let mut is_ready = true;
    let mut gateways = Vec::new();
    for (watcher, gateway) in daemon.gateways.iter().enumerate() {
        // Read before the index: what leaves it as pending is in flight by then.
        let pending = |in_flight: bool| {
            let dirty = |scope: &Arc<Scope>| scope.live().dirty_count(watcher);
            daemon.scopes.iter().map(dirty).sum::<usize>() + usize::from(in_flight)
        };
        let status = gateway.status.lock().unwrap_or_else(PoisonError::into_inner);
        is_ready &= matches!(status.state, PushState::Live | PushState::Standby);
        let mut entry = json!({
            "name": gateway.name,
            "state": status.state.name(),
            "instance": format!("{:016x}", status.head.instance),
            "epoch": status.head.epoch,
            "sequence": status.head.sequence,
            "workers": status.rows.len(),
            "pending": pending(status.in_flight),
            "error": status.last_error,
        });
        details::add(&mut entry, details::gateway(&status, gateway));
        gateways.push(entry);
    }
    let accuracies = accuracy::of_gateways(&daemon.gateways);
    let mut endpoints = Vec::new();
    for scope in &daemon.scopes {
        let live = scope.live();
        for (slot, endpoint) in scope.roster.listed() {
            let Some(engine) = live.engines.get(usize::from(slot)) else { continue };
            let held_blocks = live.indexes.first().map(|(_, index)| index.held_blocks(slot));
            // One that is said to take no requests now is no reason to wait.
            is_ready &= engine.is_withdrawn
                || engine.load.is_ready
                    && matches!(engine.source(), SourceState::Live | SourceState::None);
            let mut entry = json!({
                "pool": scope.pool,
                "model": scope.model.name,
                "address": endpoint.address,
                "ready": engine.is_ready(),
                "withdrawn": engine.is_withdrawn,
                "source": source_name(engine.source()),
                "doubts": engine.doubts.names(),
                "block_size_tokens": engine.block_size_tokens,
                "metrics_block_size_tokens": engine.metrics_block_size_tokens,
                "has_events": endpoint.kv_events.is_some(),
                "has_replay": endpoint.replay.is_some(),
                "event_batches": engine.counters.batches,
                "sequence": engine.position.map(|position| position.sequence),
                "last_batch_ms": engine.last_batch.map(|at| at.elapsed().as_millis() as u64),
                "held_blocks": held_blocks,
                "restored": engine.restored.as_ref().map(|restored| json!({
                    "from": restored.origin.to_string(),
                    "blocks": restored.blocks,
                })),
                "resets": engine.counters.resets(),
                "fenced": engine.counters.fenced,
                "undecodable": engine.counters.undecodable,
                "other_groups": engine.counters.other_groups,
                "error": engine.scrape_error,
                "accuracy": accuracy::details(&accuracies, scope.number, slot),
                "rendering": engine.rendering.name(),
                "rendering_detail": engine.rendering.to_string(),
            });
            details::add(&mut entry, details::engine(scope, slot, engine));
            if let Some(counters) = daemon.carried.get(&(scope.number, slot)) {
                let values = counters.values();
                entry["carrier"] = json!({
                    "connected": values.is_connected,
                    "follower": values.has_follower,
                    "voids": values.holes,
                });
            }
            endpoints.push(entry);
        }
    }
    let mut discovered = Vec::new();
    for (pool, shared) in &daemon.discovered {
        let record = shared.record();
        is_ready &= record.is_known;
        discovered.push(json!({
            "pool": pool,
            "known": record.is_known,
            "found": record.found,
            "ready": record.ready,
            "error": record.error,
        }));
    }
    let record = &daemon.snapshots;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let details = json!({
        "ready": is_ready,
        "unchecked_blocks": unchecked,
        "gateways": gateways,
        "endpoints": endpoints,
        "discovery": discovered,
        "snapshots": {
            "written": count(&record.written),
            "refused": count(&record.refused),
            "failed": count(&record.failed),
            "error": record.error(),
        },
    });
    (is_ready, details)
}

pub(crate) fn source_name(source: SourceState) -> &'static str {
    match source {
        SourceState::None => "none",
        SourceState::Live => "live",
        SourceState::Resyncing => "resyncing",
        SourceState::Degraded => "degraded",
        SourceState::Lost => "lost",
        SourceState::Approximate => "approximate",
    }
}

async fn metrics(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    open_metrics(page::render(&daemon))
}

/// The answer to whoever asks for a page of metrics.
pub(crate) fn open_metrics(page: Result<String, std::fmt::Error>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match page {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], text),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            "metrics cannot be written\n".to_owned(),
        ),
    }
}
