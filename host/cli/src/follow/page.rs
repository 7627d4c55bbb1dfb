//! The follower's pages: `/healthz` and `/metrics`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use super::Followed;
use crate::serve::admin::open_metrics;
use crate::serve::page::{Labels, Page};

pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("--admin: bind {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "admin is listening");
    Ok(listener)
}

pub(super) async fn serve(listener: TcpListener, followed: Arc<Vec<Followed>>) {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { open_metrics(render(&followed)) }));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "admin ended");
    }
}

/// The page in OpenMetrics text. Labels take only values of the configuration.
fn render(followed: &[Followed]) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    for engine in followed {
        let labels: Labels =
            vec![("events", engine.name.endpoint.clone()), ("topic", engine.name.topic.clone())];
        let (to, from) = (engine.carrier.values(), engine.engine.counts());
        page.gauge("wasm_epp_follower_active", &labels, f64::from(u8::from(to.is_holder)));
        for (name, value) in [
            ("wasm_epp_follower_terms", to.terms),
            ("wasm_epp_follower_records", to.records),
            ("wasm_epp_follower_record_bytes", to.bytes),
            ("wasm_epp_follower_carrier_connections_failed", to.failures),
            ("wasm_epp_follower_source_gaps", from.gaps),
            ("wasm_epp_follower_source_restarts", from.restarts),
            ("wasm_epp_follower_source_replays", from.replays),
            ("wasm_epp_follower_source_replays_failed", from.replays_failed),
            ("wasm_epp_follower_source_replayed_batches", from.replayed_batches),
            ("wasm_epp_follower_source_connections_failed", from.connections_failed),
            ("wasm_epp_follower_source_frames_too_large", from.frames_too_large),
            ("wasm_epp_follower_source_messages_malformed", from.not_batches),
        ] {
            page.counter(name, &labels, value);
        }
    }
    page.text()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use carrier::EngineName;

    use super::*;
    use crate::serve::spec::{FOLLOWER, Kind};

    #[test]
    fn the_page_has_exactly_the_metrics_of_the_table() {
        let followed = |topic: &str| Followed {
            name: EngineName { endpoint: "tcp://a:5557".into(), topic: topic.into() },
            engine: Arc::default(),
            carrier: Arc::default(),
        };
        let page = render(&[followed("kv@"), followed("other@")]).unwrap();
        let types: BTreeMap<&str, &str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let listed = FOLLOWER.iter().flat_map(|(_, metrics)| metrics.iter());
        let listed: Vec<_> = listed.collect();
        assert_eq!(types.len(), listed.len(), "{page}");
        for metric in listed {
            let (kind, suffix, zero) = match metric.kind {
                Kind::Counter => ("counter", "_total", "0"),
                Kind::Gauge => ("gauge", "", "0.0"),
                Kind::Histogram => ("histogram", "", "0"),
            };
            assert_eq!(types.get(metric.name), Some(&kind), "{page}");
            for topic in ["kv@", "other@"] {
                let name = metric.name;
                let line =
                    format!("{name}{suffix}{{events=\"tcp://a:5557\",topic=\"{topic}\"}} {zero}");
                assert!(page.lines().any(|other| other == line), "{line} in {page}");
            }
        }
    }
}
