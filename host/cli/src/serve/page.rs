//! The metrics page, written from the daemon's state when it is asked for.

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use feed_push::GatewayStatus;
use prefix_index::IndexStats;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Daemon;
use super::accuracy;
use super::admin::source_name;
use super::scope::Engine;

type Labels = Vec<(&'static str, String)>;
type Ratios = Family<Labels, Gauge<f64, AtomicU64>>;

/// Collects families by name; each family is registered at its first value.
#[derive(Default)]
struct Page {
    registry: Registry,
    counters: Vec<(&'static str, Family<Labels, Counter>)>,
    gauges: Vec<(&'static str, Family<Labels, Gauge>)>,
    ratios: Vec<(&'static str, Ratios)>,
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

    fn ratio(&mut self, name: &'static str, help: &str, labels: &Labels, value: f64) {
        let known = self.ratios.iter().position(|(other, _)| *other == name);
        let at = known.unwrap_or_else(|| {
            let family = Ratios::default();
            self.registry.register(name, help, family.clone());
            self.ratios.push((name, family));
            self.ratios.len() - 1
        });
        self.ratios[at].1.get_or_create(labels).set(value);
    }
}

/// The page in OpenMetrics text.
pub(crate) fn render(daemon: &Daemon) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    for scope in &daemon.scopes {
        let of_scope: Labels =
            vec![("pool", scope.pool.clone()), ("model", scope.model.name.clone())];
        let live = scope.live();
        for (number, index) in &live.indexes {
            let mut labels = of_scope.clone();
            let keys = if *number == scope.number { "text" } else { "token_ids" };
            labels.push(("keys", keys.to_owned()));
            of_index(&mut page, &labels, &index.stats());
        }
        let checks = &scope.checks;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let waiting = of(&checks.waiting) as i64;
        let help = "Generated blocks waiting for their check.";
        page.gauge("wasm_epp_generated_blocks_waiting", help, &of_scope, waiting);
        for (name, help, value) in [
            ("wasm_epp_generated_blocks_checked", "Generated blocks judged.", &checks.checked),
            ("wasm_epp_generated_blocks_unknown", "Judged as neither.", &checks.unknown),
            ("wasm_epp_generated_blocks_skipped", "Not judged.", &checks.skipped),
        ] {
            page.counter(name, help, &of_scope, of(value));
        }
        let help = "Strides that did not fit their bucket when it was pushed.";
        page.counter("wasm_epp_index_bucket_overflows", help, &of_scope, live.overflow);
        for (endpoint, engine) in scope.endpoints.iter().zip(&live.engines) {
            let mut labels = of_scope.clone();
            labels.push(("endpoint", endpoint.address.clone()));
            of_engine(&mut page, labels, engine);
        }
    }
    for gateway in &daemon.gateways {
        let status = gateway.status.lock().unwrap_or_else(PoisonError::into_inner);
        of_gateway(&mut page, vec![("gateway", gateway.name.clone())], &status);
    }
    of_accuracy(&mut page, daemon);
    let mut text = String::new();
    encode(&mut text, &page.registry)?;
    Ok(text)
}

fn of_index(page: &mut Page, labels: &Labels, stats: &IndexStats) {
    for (name, help, value) in [
        ("wasm_epp_index_blocks", "Distinct blocks known.", stats.nodes),
        ("wasm_epp_index_strides", "Distinct strides known.", stats.strides),
        ("wasm_epp_index_holdings", "Pairs of block and endpoint.", stats.held),
        ("wasm_epp_index_parked", "Blocks waiting for an unknown parent.", stats.parked),
    ] {
        page.gauge(name, help, labels, value as i64);
    }
    for (name, help, value) in [
        ("wasm_epp_index_orphans", "Blocks stored under an unknown parent.", stats.orphans),
        ("wasm_epp_index_orphans_attached", "Orphans whose parent came.", stats.attached),
        ("wasm_epp_index_orphans_expired", "Orphans given up.", stats.expired),
        (
            "wasm_epp_index_unknown_removals",
            "Removals of blocks that are not held.",
            stats.unknown_removals,
        ),
        (
            "wasm_epp_index_unknown_announcements",
            "Blocks announced by a hash that is not known.",
            stats.unknown_announcements,
        ),
        (
            "wasm_epp_index_non_canonical_blocks",
            "Blocks that are not what their text would be tokenized to.",
            stats.non_canonical,
        ),
        ("wasm_epp_index_unknown_tokens", "Token ids without bytes.", stats.unknown_tokens),
        (
            "wasm_epp_index_malformed_stores",
            "Stores whose token ids do not fit their blocks.",
            stats.malformed,
        ),
        (
            "wasm_epp_index_dropped_strides",
            "Strides not listed because maxStrides was reached.",
            stats.dropped_strides,
        ),
        (
            "wasm_epp_index_refused_blocks",
            "Blocks beyond an endpoint's share.",
            stats.refused_blocks,
        ),
    ] {
        page.counter(name, help, labels, value);
    }
}

fn of_engine(page: &mut Page, mut labels: Labels, engine: &Engine) {
    let c = &engine.counters;
    for (name, help, value) in [
        ("wasm_epp_event_batches", "Batches of KV events applied.", c.batches),
        ("wasm_epp_blocks_stored", "Blocks announced as stored.", c.stored_blocks),
        ("wasm_epp_blocks_removed", "Blocks announced as removed.", c.removed_blocks),
        ("wasm_epp_caches_cleared", "Caches announced as cleared.", c.cleared),
        ("wasm_epp_source_resets", "Times the state was void: restart or gap.", c.resets),
        ("wasm_epp_source_fenced", "Restarts found by the metrics page first.", c.fenced),
        ("wasm_epp_event_batches_undecodable", "Batches not understood.", c.undecodable),
        ("wasm_epp_events_unknown", "Events of an unknown kind.", c.unknown_events),
        ("wasm_epp_events_other_groups", "Stores of unknown KV cache groups.", c.other_groups),
        ("wasm_epp_scrapes", "Scrapes of the engine's metrics.", c.scrapes),
        ("wasm_epp_scrape_failures", "Scrapes that failed.", c.scrape_failures),
    ] {
        page.counter(name, help, &labels, value);
    }
    let help = "1 when the endpoint may be picked.";
    page.gauge("wasm_epp_endpoint_ready", help, &labels, i64::from(engine.load.is_ready));
    labels.push(("state", source_name(engine.source).to_owned()));
    page.gauge("wasm_epp_source_state", "1 for the state of the prefix source.", &labels, 1);
}

fn of_gateway(page: &mut Page, mut labels: Labels, status: &GatewayStatus) {
    for (name, help, value) in [
        ("wasm_epp_push_batches", "Batches acked by the gateway.", status.batches),
        ("wasm_epp_push_entries", "Values acked by the gateway.", status.entries),
        ("wasm_epp_push_bytes", "Bytes acked by the gateway.", status.bytes),
        ("wasm_epp_push_snapshots", "Snapshots begun.", status.snapshots),
        ("wasm_epp_push_failures", "Posts without a good ack.", status.failures),
    ] {
        page.counter(name, help, &labels, value);
    }
    let help = "Worker VMs of the router that have reported.";
    page.gauge("wasm_epp_gateway_workers", help, &labels, status.rows.len() as i64);
    labels.push(("state", status.state.name().to_owned()));
    page.gauge("wasm_epp_gateway_state", "1 for the state the gateway is in.", &labels, 1);
}

/// What the gateways' meters measured of each endpoint, where there is a meter.
fn of_accuracy(page: &mut Page, daemon: &Daemon) {
    let reports = accuracy::of_gateways(&daemon.gateways);
    for (gateway, report) in &reports {
        for scope in &daemon.scopes {
            for (slot, endpoint) in (0u16..).zip(&scope.endpoints) {
                let of = accuracy::of_slot(report, scope.number, slot);
                let Some(of) = of else { continue };
                let labels = vec![
                    ("pool", scope.pool.clone()),
                    ("model", scope.model.name.clone()),
                    ("endpoint", endpoint.address.clone()),
                    ("gateway", gateway.clone()),
                ];
                for (name, help, value) in [
                    ("wasm_epp_measured_answers", "Answers measured in this epoch.", of.answers),
                    (
                        "wasm_epp_measured_answers_reported",
                        "Of those, with the engine's count of cached tokens.",
                        of.reported,
                    ),
                    (
                        "wasm_epp_measured_answers_silent",
                        "Of those, without it although a hit was predicted.",
                        of.silent,
                    ),
                    (
                        "wasm_epp_predictions_judged",
                        "Latest predictions that were judged, at most 32.",
                        u32::from(of.judged),
                    ),
                    (
                        "wasm_epp_predictions_over",
                        "Of those, higher than what the engine had.",
                        of.over.count_ones(),
                    ),
                    (
                        "wasm_epp_predictions_under",
                        "Of those, lower than what the engine had.",
                        of.under.count_ones(),
                    ),
                ] {
                    page.gauge(name, help, &labels, i64::from(value));
                }
                let help = "Share of the endpoint's matches that is counted.";
                let ratio = f64::from(of.reliability().ratio());
                page.ratio("wasm_epp_prefix_weight_ratio", help, &labels, ratio);
            }
        }
    }
}
