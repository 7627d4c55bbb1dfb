//! The metrics page, written from the daemon's state when it is asked for.

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use feed_push::GatewayStatus;
use prefix_index::IndexStats;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};
use routing::SourceState;

use super::Daemon;
use super::accuracy;
use super::admin::source_name;
use super::carried::Carried;
use super::details::unchecked_ratio;
use super::lag::{BOUNDS_S, GatewayLag, Lags, receive_lag_s};
use super::members::Shared;
use super::scope::{Engine, Scope};
use super::snapshot::Record;
use super::spec::{self, Kind};
use super::watch::ListenerCounts;

pub(crate) type Labels = Vec<(&'static str, String)>;

/// Collects families by name; each family is registered at its first value.
#[derive(Default)]
pub(crate) struct Page {
    registry: Registry,
    counters: Families<Counter>,
    gauges: Families<Gauge<f64, AtomicU64>>,
    histograms: Families<Histogram>,
}

/// By name.
type Families<M> = Vec<(&'static str, Family<Labels, M>)>;

impl Page {
    /// A counter; the encoder appends `_total`.
    pub(crate) fn counter(&mut self, name: &'static str, labels: &Labels, value: u64) {
        debug_assert!(spec::is(name, Kind::Counter, labels), "{name} {labels:?}");
        let family = family(&mut self.registry, &mut self.counters, name);
        family.get_or_create(labels).inc_by(value);
    }

    pub(crate) fn gauge(&mut self, name: &'static str, labels: &Labels, value: f64) {
        debug_assert!(spec::is(name, Kind::Gauge, labels), "{name} {labels:?}");
        let family = family(&mut self.registry, &mut self.gauges, name);
        family.get_or_create(labels).set(value);
    }

    /// In OpenMetrics text.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn histogram(&mut self, name: &'static str, labels: &Labels, lags: &Lags) {
        debug_assert!(spec::is(name, Kind::Histogram, labels), "{name} {labels:?}");
        let family = family(&mut self.registry, &mut self.histograms, name);
        *family.get_or_create(labels).0.lock().unwrap_or_else(PoisonError::into_inner) =
            lags.clone();
    }
}

fn family<'f, M>(
    registry: &mut Registry,
    known: &'f mut Families<M>,
    name: &'static str,
) -> &'f Family<Labels, M>
where
    Family<Labels, M>: Metric + Clone + Default,
{
    let at = known.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
        let family = Family::<Labels, M>::default();
        registry.register(name, spec::help(name), family.clone());
        known.push((name, family));
        known.len() - 1
    });
    &known[at].1
}

/// A histogram that was counted elsewhere.
#[derive(Clone, Debug, Default)]
struct Histogram(std::sync::Arc<std::sync::Mutex<Lags>>);

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let lags = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bounds = BOUNDS_S.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(lags.buckets).collect();
        encoder.encode_histogram::<NoLabelSet>(lags.sum_s, lags.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// The page in OpenMetrics text.
pub(crate) fn render(daemon: &Daemon) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    for scope in &daemon.scopes {
        of_scope(&mut page, scope);
        of_carried(&mut page, scope, &daemon.carried);
    }
    if let Some(listener) = &daemon.listener {
        of_listener(&mut page, listener);
    }
    of_snapshots(&mut page, &daemon.snapshots);
    for (pool, shared) in &daemon.discovered {
        of_discovery(&mut page, pool, shared);
    }
    for gateway in &daemon.gateways {
        let labels = vec![("gateway", gateway.name.clone())];
        let status = gateway.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        of_gateway(&mut page, &labels, &status);
        for (filter, vms) in gateway.vms.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let labels = with(&labels, "filter", filter);
            page.gauge("wasm_epp_vms_dead", &labels, vms.dead as f64);
            page.counter("wasm_epp_revivals", &labels, vms.revivals);
        }
        let unknown = gateway.unknown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (pool, count) in unknown {
            let labels = with(&labels, "pool", &pool);
            page.gauge("wasm_epp_gateway_endpoints_unknown", &labels, count as f64);
        }
        let lag = gateway.lag.lock().unwrap_or_else(PoisonError::into_inner);
        of_lag(&mut page, &labels, &lag);
    }
    of_accuracy(&mut page, daemon);
    page.text()
}

fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push((name, value.to_owned()));
    labels
}

fn of_discovery(page: &mut Page, pool: &str, shared: &Shared) {
    let labels: Labels = vec![("pool", pool.to_owned())];
    let record = shared.record();
    let is_current = record.is_known && record.error.is_none();
    page.gauge("wasm_epp_discovery_current", &labels, f64::from(u8::from(is_current)));
    page.gauge("wasm_epp_discovery_endpoints_found", &labels, record.found as f64);
    page.gauge("wasm_epp_discovery_endpoints_ready", &labels, record.ready as f64);
    page.counter("wasm_epp_discovery_failures", &labels, record.failures);
    page.counter("wasm_epp_discovery_lists", &labels, record.lists);
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.counter("wasm_epp_discovery_endpoints_came", &labels, of(&shared.came));
    page.counter("wasm_epp_discovery_endpoints_left", &labels, of(&shared.left));
    page.counter("wasm_epp_discovery_endpoints_refused", &labels, of(&shared.refused));
}

fn of_scope(page: &mut Page, scope: &Scope) {
    let labels: Labels = vec![("pool", scope.pool.clone()), ("model", scope.model.name.clone())];
    let checks = &scope.checks;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.gauge("wasm_epp_generated_blocks_waiting", &labels, of(&checks.waiting) as f64);
    page.counter("wasm_epp_generated_blocks_checked", &labels, of(&checks.checked));
    page.counter("wasm_epp_generated_blocks_unknown", &labels, of(&checks.unknown));
    page.counter("wasm_epp_generated_blocks_skipped", &labels, of(&checks.skipped));
    // Copied out, so that engines' events do not wait while the page is written.
    let (stats, engines, overflow) = {
        let live = scope.live();
        let stats: Vec<_> = live.indexes.iter().map(|(number, i)| (*number, i.stats())).collect();
        (stats, live.engines.clone(), live.overflow)
    };
    for (number, stats) in &stats {
        let keys = if *number == scope.number { "text" } else { "token_ids" };
        of_index(page, &with(&labels, "keys", keys), stats);
    }
    page.counter("wasm_epp_index_bucket_overflows", &labels, overflow);
    for state in STATES {
        let count = engines.iter().filter(|engine| engine.source() == state).count();
        let labels = with(&labels, "state", source_name(state));
        page.gauge("wasm_epp_sources", &labels, count as f64);
    }
    for (slot, endpoint) in scope.roster.listed() {
        let Some(engine) = engines.get(usize::from(slot)) else { continue };
        let labels = with(&labels, "endpoint", &endpoint.address);
        of_engine(page, &labels, engine);
        of_reader(page, &labels, &scope.roster.reader(slot).counts());
        let generated = engine.counters.generated_blocks;
        page.counter("wasm_epp_generated_blocks", &labels, generated);
        if let Some(ratio) = unchecked_ratio(generated, checks.decided(slot)) {
            page.gauge("wasm_epp_generated_blocks_unchecked_ratio", &labels, ratio);
        }
    }
}

fn of_carried(page: &mut Page, scope: &Scope, carried: &Carried) {
    for (slot, endpoint) in scope.roster.listed() {
        let Some(counters) = carried.get(&(scope.number, slot)) else { continue };
        let labels: Labels = vec![
            ("pool", scope.pool.clone()),
            ("model", scope.model.name.clone()),
            ("endpoint", endpoint.address.clone()),
        ];
        let values = counters.values();
        let is = |condition| f64::from(u8::from(condition));
        page.gauge("wasm_epp_carrier_connected", &labels, is(values.is_connected));
        page.gauge("wasm_epp_carrier_follower", &labels, is(values.has_follower));
        page.counter("wasm_epp_carrier_records", &labels, values.records);
        page.counter("wasm_epp_carrier_voids", &labels, values.holes);
        page.counter("wasm_epp_carrier_records_malformed", &labels, values.malformed);
        page.counter("wasm_epp_carrier_connections_failed", &labels, values.failures);
    }
}

const STATES: [SourceState; 5] = [
    SourceState::None,
    SourceState::Live,
    SourceState::Resyncing,
    SourceState::Degraded,
    SourceState::Lost,
];

fn of_index(page: &mut Page, labels: &Labels, stats: &IndexStats) {
    for (name, value) in [
        ("wasm_epp_index_blocks", stats.nodes),
        ("wasm_epp_index_strides", stats.strides),
        ("wasm_epp_index_holdings", stats.held),
        ("wasm_epp_index_parked", stats.parked),
    ] {
        page.gauge(name, labels, value as f64);
    }
    for (name, value) in [
        ("wasm_epp_index_orphans", stats.orphans),
        ("wasm_epp_index_orphans_attached", stats.attached),
        ("wasm_epp_index_orphans_expired", stats.expired),
        ("wasm_epp_index_unknown_removals", stats.unknown_removals),
        ("wasm_epp_index_unknown_announcements", stats.unknown_announcements),
        ("wasm_epp_index_non_canonical_blocks", stats.non_canonical),
        ("wasm_epp_index_unknown_tokens", stats.unknown_tokens),
        ("wasm_epp_index_malformed_stores", stats.malformed),
        ("wasm_epp_index_dropped_strides", stats.dropped_strides),
        ("wasm_epp_index_refused_blocks", stats.refused_blocks),
    ] {
        page.counter(name, labels, value);
    }
}

fn of_engine(page: &mut Page, labels: &Labels, engine: &Engine) {
    let c = &engine.counters;
    for (name, value) in [
        ("wasm_epp_event_batches", c.batches),
        ("wasm_epp_event_batches_undecodable", c.undecodable),
        ("wasm_epp_events_other_groups", c.other_groups),
        ("wasm_epp_blocks_stored", c.stored_blocks),
        ("wasm_epp_blocks_removed", c.removed_blocks),
        ("wasm_epp_source_unknown_tokens", c.unknown_tokens),
        ("wasm_epp_scrapes", c.scrapes),
        ("wasm_epp_scrape_failures", c.scrape_failures),
    ] {
        page.counter(name, labels, value);
    }
    for (kind, value) in [
        ("stored", c.stored_events),
        ("removed", c.removed_events),
        ("cleared", c.cleared_events),
        ("unknown", c.unknown_events),
    ] {
        page.counter("wasm_epp_events", &with(labels, "kind", kind), value);
    }
    for (reason, value) in [("restart", c.restarts), ("gap", c.gaps), ("process", c.fenced)] {
        page.counter("wasm_epp_source_resets", &with(labels, "reason", reason), value);
    }
    if let Some(seconds) = engine.last_published.map(receive_lag_s) {
        page.gauge("wasm_epp_source_receive_lag_seconds", labels, seconds);
    }
    let rendering = with(labels, "state", engine.rendering.name());
    page.gauge("wasm_epp_endpoint_rendering_state", &rendering, 1.0);
    page.gauge("wasm_epp_endpoint_ready", labels, f64::from(u8::from(engine.load.is_ready)));
    if let Some(restored) = &engine.restored {
        let from = with(labels, "from", restored.origin.kind());
        page.gauge("wasm_epp_restored_blocks", &from, restored.blocks as f64);
    }
    let state = with(labels, "state", source_name(engine.source()));
    page.gauge("wasm_epp_source_state", &state, 1.0);
}

fn of_reader(page: &mut Page, labels: &Labels, counts: &kv_events::Counts) {
    for (name, value) in [
        ("wasm_epp_source_gaps", counts.gaps),
        ("wasm_epp_source_replays", counts.replays),
        ("wasm_epp_source_replays_with_batches", counts.replays_with_news),
        ("wasm_epp_source_replays_failed", counts.replays_failed),
        ("wasm_epp_source_replayed_batches", counts.replayed_batches),
        ("wasm_epp_source_connections_failed", counts.connections_failed),
        ("wasm_epp_source_frames_too_large", counts.frames_too_large),
        ("wasm_epp_source_messages_malformed", counts.not_batches),
        ("wasm_epp_source_messages_superseded", counts.superseded),
    ] {
        page.counter(name, labels, value);
    }
}

fn of_listener(page: &mut Page, listener: &ListenerCounts) {
    let counts = listener.counters.counts();
    let strangers = listener.strangers.load(Ordering::Relaxed);
    for (name, value) in [
        ("wasm_epp_listener_connections_failed", counts.connections_failed),
        ("wasm_epp_listener_connections_refused", counts.connections_refused),
        ("wasm_epp_listener_frames_too_large", counts.frames_too_large),
        ("wasm_epp_listener_messages_malformed", counts.not_batches),
        ("wasm_epp_listener_messages_unknown_topic", counts.unknown_topics),
        ("wasm_epp_listener_messages_refused", counts.sources_refused),
        ("wasm_epp_listener_sources_evicted", counts.sources_evicted),
        ("wasm_epp_listener_updates_unconfigured", strangers),
    ] {
        page.counter(name, &Labels::new(), value);
    }
}

fn of_snapshots(page: &mut Page, record: &Record) {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (name, counter) in [
        ("wasm_epp_snapshots_written", &record.written),
        ("wasm_epp_snapshot_write_failures", &record.failed),
        ("wasm_epp_snapshots_served", &record.served),
        ("wasm_epp_snapshots_refused", &record.refused),
    ] {
        page.counter(name, &Labels::new(), of(counter));
    }
    page.gauge("wasm_epp_snapshot_bytes", &Labels::new(), of(&record.bytes) as f64);
    let pause_s = of(&record.pause_us) as f64 / 1e6;
    page.gauge("wasm_epp_snapshot_pause_seconds", &Labels::new(), pause_s);
}

fn of_gateway(page: &mut Page, labels: &Labels, status: &GatewayStatus) {
    for (name, value) in [
        ("wasm_epp_push_batches", status.batches),
        ("wasm_epp_push_entries", status.entries),
        ("wasm_epp_push_bytes", status.bytes),
        ("wasm_epp_push_snapshots", status.snapshots),
        ("wasm_epp_push_failures", status.failures),
    ] {
        page.counter(name, labels, value);
    }
    page.gauge("wasm_epp_gateway_workers", labels, status.rows.len() as f64);
    page.gauge("wasm_epp_gateway_state", &with(labels, "state", status.state.name()), 1.0);
    if let Some(at) = status.last_ack {
        page.gauge("wasm_epp_gateway_ack_age_seconds", labels, at.elapsed().as_secs_f64());
    }
}

fn of_lag(page: &mut Page, labels: &Labels, lag: &GatewayLag) {
    page.histogram("wasm_epp_lag_published_to_acked_seconds", labels, &lag.published);
    page.histogram("wasm_epp_lag_received_to_acked_seconds", labels, &lag.received);
    page.counter("wasm_epp_lag_batches_clamped", labels, lag.clamped);
    for (reason, value) in [
        ("overflow", lag.skipped.overflow),
        ("snapshot", lag.skipped.snapshot),
        ("no_timestamp", lag.skipped.no_timestamp),
        ("before_start", lag.skipped.before_start),
    ] {
        page.counter("wasm_epp_lag_batches_skipped", &with(labels, "reason", reason), value);
    }
}

/// What the gateways' meters measured of each endpoint, where there is a meter.
fn of_accuracy(page: &mut Page, daemon: &Daemon) {
    let reports = accuracy::of_gateways(&daemon.gateways);
    for (gateway, report) in &reports {
        for scope in &daemon.scopes {
            for (slot, endpoint) in scope.roster.listed() {
                let of = accuracy::of_slot(report, scope.number, slot);
                let Some(of) = of else { continue };
                let labels = vec![
                    ("pool", scope.pool.clone()),
                    ("model", scope.model.name.clone()),
                    ("endpoint", endpoint.address.clone()),
                    ("gateway", gateway.clone()),
                ];
                for (name, value) in [
                    ("wasm_epp_measured_answers", of.answers),
                    ("wasm_epp_measured_answers_reported", of.reported),
                    ("wasm_epp_measured_answers_silent", of.silent),
                    ("wasm_epp_predictions_judged", u32::from(of.judged)),
                    ("wasm_epp_predictions_over", of.over.count_ones()),
                    ("wasm_epp_predictions_under", of.under.count_ones()),
                ] {
                    page.gauge(name, &labels, f64::from(value));
                }
                let ratio = f64::from(of.reliability().ratio());
                page.gauge("wasm_epp_prefix_weight_ratio", &labels, ratio);
                if let Some(rate) = of.prefill.tokens_per_s() {
                    let name = "wasm_epp_measured_prefill_tokens_per_second";
                    page.gauge(name, &labels, f64::from(rate));
                }
                if let Some(ms) = of.decode.ms_per_token() {
                    let seconds = f64::from(ms) / 1e3;
                    page.gauge("wasm_epp_measured_tpot_seconds", &labels, seconds);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
