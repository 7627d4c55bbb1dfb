//! The metrics page, written from the daemon's state when it is asked for.

use std::fmt;
use std::sync::PoisonError;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Daemon;
use super::admin::source_name;

type Labels = Vec<(&'static str, String)>;

/// Collects families by name; each family is registered at its first value.
#[derive(Default)]
struct Page {
    registry: Registry,
    counters: Vec<(&'static str, Family<Labels, Counter>)>,
    gauges: Vec<(&'static str, Family<Labels, Gauge>)>,
}

impl Page {
    /// A counter; the encoder appends `_total`.
    fn counter(&mut self, name: &'static str, help: &str, labels: &Labels, value: u64) {
        let known = self.counters.iter().position(|(other, _)| *other == name);
        let at = known.unwrap_or_else(|| {
            let family = Family::<Labels, Counter>::default();
            self.registry.register(name, help, family.clone());
            self.counters.push((name, family));
            self.counters.len() - 1
        });
        self.counters[at].1.get_or_create(labels).inc_by(value);
    }

    fn gauge(&mut self, name: &'static str, help: &str, labels: &Labels, value: i64) {
        let known = self.gauges.iter().position(|(other, _)| *other == name);
        let at = known.unwrap_or_else(|| {
            let family = Family::<Labels, Gauge>::default();
            self.registry.register(name, help, family.clone());
            self.gauges.push((name, family));
            self.gauges.len() - 1
        });
        self.gauges[at].1.get_or_create(labels).set(value);
    }
}

/// The page in OpenMetrics text.
pub(crate) fn render(daemon: &Daemon) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    for scope in &daemon.scopes {
        let of_scope: Labels =
            vec![("pool", scope.pool.clone()), ("model", scope.model.name.clone())];
        let live = scope.live();
        let stats = live.index.stats();
        let p = &mut page;
        p.gauge(
            "wasm_epp_index_blocks",
            "Distinct blocks of text known.",
            &of_scope,
            stats.nodes as i64,
        );
        p.gauge(
            "wasm_epp_index_strides",
            "Distinct strides listed or waiting for their ancestors.",
            &of_scope,
            stats.strides as i64,
        );
        p.gauge(
            "wasm_epp_index_holdings",
            "Pairs of block and endpoint.",
            &of_scope,
            stats.held as i64,
        );
        p.counter(
            "wasm_epp_index_orphans",
            "Stored blocks whose parent is not known.",
            &of_scope,
            stats.orphans,
        );
        p.counter(
            "wasm_epp_index_unknown_removals",
            "Removals of blocks that are not held.",
            &of_scope,
            stats.unknown_removals,
        );
        p.counter(
            "wasm_epp_index_unknown_tokens",
            "Token ids that the tokenizer has no bytes for.",
            &of_scope,
            stats.unknown_tokens,
        );
        p.counter(
            "wasm_epp_index_malformed_stores",
            "Stores whose token ids do not fit their blocks.",
            &of_scope,
            stats.malformed,
        );
        p.counter(
            "wasm_epp_index_dropped_strides",
            "Strides not listed because maxStrides was reached.",
            &of_scope,
            stats.dropped_strides,
        );
        p.counter(
            "wasm_epp_index_bucket_overflows",
            "Strides that did not fit their bucket when it was pushed.",
            &of_scope,
            live.overflow,
        );
        for (endpoint, engine) in scope.endpoints.iter().zip(&live.engines) {
            let mut labels = of_scope.clone();
            labels.push(("endpoint", endpoint.address.clone()));
            let c = &engine.counters;
            p.counter(
                "wasm_epp_event_batches",
                "Batches of KV events applied.",
                &labels,
                c.batches,
            );
            p.counter(
                "wasm_epp_blocks_stored",
                "Blocks announced as stored.",
                &labels,
                c.stored_blocks,
            );
            p.counter(
                "wasm_epp_blocks_removed",
                "Blocks announced as removed.",
                &labels,
                c.removed_blocks,
            );
            p.counter(
                "wasm_epp_caches_cleared",
                "Caches announced as cleared.",
                &labels,
                c.cleared,
            );
            p.counter(
                "wasm_epp_source_resets",
                "Times the state of an engine was void: restart or gap.",
                &labels,
                c.resets,
            );
            p.counter(
                "wasm_epp_event_batches_undecodable",
                "Batches not understood.",
                &labels,
                c.undecodable,
            );
            p.counter(
                "wasm_epp_events_unknown",
                "Events of a kind this build does not know.",
                &labels,
                c.unknown_events,
            );
            p.counter(
                "wasm_epp_events_other_groups",
                "Stores of KV cache groups that are not full attention.",
                &labels,
                c.other_groups,
            );
            p.counter("wasm_epp_scrapes", "Scrapes of the engine's metrics.", &labels, c.scrapes);
            p.counter(
                "wasm_epp_scrape_failures",
                "Scrapes that failed.",
                &labels,
                c.scrape_failures,
            );
            p.gauge(
                "wasm_epp_endpoint_ready",
                "1 when the endpoint may be picked.",
                &labels,
                i64::from(engine.load.is_ready),
            );
            labels.push(("state", source_name(engine.source).to_owned()));
            p.gauge(
                "wasm_epp_source_state",
                "1 for the state the prefix source is in.",
                &labels,
                1,
            );
        }
    }
    for gateway in &daemon.gateways {
        let status = gateway.status.lock().unwrap_or_else(PoisonError::into_inner);
        let mut labels: Labels = vec![("gateway", gateway.name.clone())];
        let p = &mut page;
        p.counter(
            "wasm_epp_push_batches",
            "Batches acked by the gateway.",
            &labels,
            status.batches,
        );
        p.counter("wasm_epp_push_entries", "Values acked by the gateway.", &labels, status.entries);
        p.counter("wasm_epp_push_bytes", "Bytes acked by the gateway.", &labels, status.bytes);
        p.counter("wasm_epp_push_snapshots", "Snapshots begun.", &labels, status.snapshots);
        p.counter("wasm_epp_push_failures", "Posts without a good ack.", &labels, status.failures);
        p.gauge(
            "wasm_epp_gateway_workers",
            "Worker VMs of the router that have reported.",
            &labels,
            status.rows.len() as i64,
        );
        labels.push(("state", status.state.name().to_owned()));
        p.gauge("wasm_epp_gateway_state", "1 for the state the gateway is in.", &labels, 1);
    }
    let mut text = String::new();
    encode(&mut text, &page.registry)?;
    Ok(text)
}
