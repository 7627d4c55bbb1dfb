//! The follower's pages: `/healthz` and `/metrics`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::Followed;

type Labels = Vec<(&'static str, String)>;

pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("--admin: bind {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "admin is listening");
    Ok(listener)
}

pub(super) async fn serve(listener: TcpListener, followed: Arc<Vec<Followed>>) {
    let app = Router::new().route("/healthz", get(|| async { "ok\n" })).route(
        "/metrics",
        get(move || async move {
            match render(&followed) {
                Ok(text) => {
                    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                    ([(header::CONTENT_TYPE, kind)], text).into_response()
                }
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }),
    );
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "admin ended");
    }
}

/// The page in OpenMetrics text. Labels take only values of the configuration.
fn render(followed: &[Followed]) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let mut counter = |name, help| {
        let family = Family::<Labels, Counter>::default();
        registry.register(name, help, family.clone());
        family
    };
    let terms = counter("wasm_epp_follower_terms", "Times that it became the follower");
    let records = counter("wasm_epp_follower_records", "Entries that the carrier has taken");
    let bytes = counter("wasm_epp_follower_bytes", "Their bytes");
    let failures = counter(
        "wasm_epp_follower_carrier_failures",
        "Connections to the carrier that were not made or broke",
    );
    let gaps = counter("wasm_epp_follower_source_gaps", "Holes seen in the sequence of batches");
    let restarts = counter("wasm_epp_follower_source_restarts", "Runs of the engine that ended");
    let replays = counter("wasm_epp_follower_source_replays", "Replays asked for");
    let connections = counter(
        "wasm_epp_follower_source_connections_failed",
        "Connections to the engine that were not made, broke, or were given up",
    );
    let active = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    let help = "1 while it is the follower, and not another process";
    registry.register("wasm_epp_follower_active", help, active.clone());
    for engine in followed {
        let labels = vec![("events", engine.endpoint.clone())];
        let (to, from) = (engine.carrier.values(), engine.engine.counts());
        active.get_or_create(&labels).set(f64::from(u8::from(to.is_holder)));
        for (family, value) in [
            (&terms, to.terms),
            (&records, to.records),
            (&bytes, to.bytes),
            (&failures, to.failures),
            (&gaps, from.gaps),
            (&restarts, from.restarts),
            (&replays, from.replays),
            (&connections, from.connections_failed),
        ] {
            family.get_or_create(&labels).inc_by(value);
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
