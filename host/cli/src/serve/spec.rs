//! Every metric of the daemon: name, type, labels, meaning. The page takes its help texts from here,
//! `METRICS.md` is this table, and tests hold both to it.

mod carrier;

/// Types of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
pub(crate) struct Metric {
    /// As it is registered; the page appends `_total` to a counter's.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, help }
}

/// Labels are bounded by the configuration: its pools, models, endpoints and gateways.
const ENDPOINT: &[&str] = &["pool", "model", "endpoint"];
const MODEL: &[&str] = &["pool", "model"];
/// `keys` is `text` or `token_ids`.
const INDEX: &[&str] = &["pool", "model", "keys"];
const MEASURED_OF: &[&str] = &["pool", "model", "endpoint", "gateway"];
const POOL: &[&str] = &["pool"];
const GATEWAY: &[&str] = &["gateway"];
const VMS: &[&str] = &["gateway", "filter"];

/// By subject, as `METRICS.md` shows them.
pub(crate) const METRICS: &[(&str, &[Metric])] = &[
    ("Events of an engine", &EVENTS),
    ("Sources of events", &SOURCES),
    ("The listener of `kvEventsListen`", &LISTENER),
    ("Events by a `carrier`", &carrier::CARRIED),
    ("Generated blocks", &GENERATED),
    ("The index", &INDEXES),
    ("Snapshots", &SNAPSHOTS),
    ("Discovery", &DISCOVERY),
    ("Gateways", &GATEWAYS),
    ("Lag", &LAG),
    ("Load of an engine", &LOAD),
    ("What a meter found", &MEASURED),
];

/// Those of `wasm-epp follow`, which `METRICS.md` shows after the daemon's.
pub(crate) const FOLLOWER: &[(&str, &[Metric])] = &[
    ("Engines that are followed", &carrier::FOLLOWED),
    ("Their events", &carrier::FOLLOWED_EVENTS),
];

const EVENTS: [Metric; 7] = [
    counter("wasm_epp_event_batches", ENDPOINT, "Batches of KV events applied"),
    counter(
        "wasm_epp_event_batches_undecodable",
        ENDPOINT,
        "Batches not understood; their events are lost",
    ),
    counter(
        "wasm_epp_events",
        &["pool", "model", "endpoint", "kind"],
        "KV events applied, by kind: stored, removed, cleared, unknown",
    ),
    counter(
        "wasm_epp_events_other_groups",
        ENDPOINT,
        "Stores of KV cache groups that are not understood",
    ),
    counter("wasm_epp_blocks_stored", ENDPOINT, "Blocks announced as stored"),
    counter("wasm_epp_blocks_removed", ENDPOINT, "Blocks announced as removed"),
    counter(
        "wasm_epp_source_unknown_tokens",
        ENDPOINT,
        "Token ids of new blocks that have no bytes in the model folder's tokenizer",
    ),
];

const SOURCES: [Metric; 13] = [
    gauge(
        "wasm_epp_sources",
        &["pool", "model", "state"],
        "Sources of prefix state by state: none, live, resyncing, degraded, lost",
    ),
    gauge(
        "wasm_epp_source_state",
        &["pool", "model", "endpoint", "state"],
        "1 for the state of the endpoint's source",
    ),
    counter(
        "wasm_epp_source_gaps",
        ENDPOINT,
        "Holes seen in the sequence of batches, closed by a replay or not",
    ),
    counter("wasm_epp_source_replays", ENDPOINT, "Replays asked for"),
    counter(
        "wasm_epp_source_replays_with_batches",
        ENDPOINT,
        "Replays that brought batches that were not known",
    ),
    counter(
        "wasm_epp_source_replays_failed",
        ENDPOINT,
        "Replays not answered, cut short, or with a hole",
    ),
    counter(
        "wasm_epp_source_replayed_batches",
        ENDPOINT,
        "Batches that replays brought and that were not known",
    ),
    counter(
        "wasm_epp_source_resets",
        &["pool", "model", "endpoint", "reason"],
        "Times the endpoint's prefix state was void, by reason: restart and gap as its events show them, process as its metrics do",
    ),
    counter(
        "wasm_epp_source_connections_failed",
        ENDPOINT,
        "Connections to the publisher that were not made, broke, or were given up",
    ),
    counter(
        "wasm_epp_source_frames_too_large",
        ENDPOINT,
        "Of these, those given up because the peer announced more than can be waited for",
    ),
    counter(
        "wasm_epp_source_messages_malformed",
        ENDPOINT,
        "Messages of the publisher that are not a sequence number and a payload",
    ),
    counter(
        "wasm_epp_source_messages_superseded",
        ENDPOINT,
        "Messages over a connection in whose place a newer one has come",
    ),
    gauge(
        "wasm_epp_source_receive_lag_seconds",
        ENDPOINT,
        "From the timestamp of the last batch to its receipt; negative when the engine's clock is ahead of the daemon's",
    ),
];

const LISTENER: [Metric; 8] = [
    counter(
        "wasm_epp_listener_connections_failed",
        &[],
        "Connections that broke, or were given up",
    ),
    counter("wasm_epp_listener_connections_refused", &[], "Connections beyond the limit"),
    counter(
        "wasm_epp_listener_frames_too_large",
        &[],
        "Connections given up because the peer announced more than can be waited for",
    ),
    counter(
        "wasm_epp_listener_messages_malformed",
        &[],
        "Messages that are not a topic, a sequence number and a payload",
    ),
    counter(
        "wasm_epp_listener_messages_unknown_topic",
        &[],
        "Messages under a topic that is not kv@POD@MODEL",
    ),
    counter(
        "wasm_epp_listener_messages_refused",
        &[],
        "Messages of publishers for which there is no room",
    ),
    counter(
        "wasm_epp_listener_sources_evicted",
        &[],
        "Publishers forgotten, long disconnected, to make room",
    ),
    counter(
        "wasm_epp_listener_updates_unconfigured",
        &[],
        "Updates of publishers that are no configured endpoint",
    ),
];

const GENERATED: [Metric; 6] = [
    counter(
        "wasm_epp_generated_blocks",
        ENDPOINT,
        "Blocks that may be of generated text, which need not be tokenized as its tokenizer would",
    ),
    gauge(
        "wasm_epp_generated_blocks_unchecked_ratio",
        ENDPOINT,
        "Share of these that were found neither canonical nor not, so far",
    ),
    gauge("wasm_epp_generated_blocks_waiting", MODEL, "Generated blocks waiting for their check"),
    counter("wasm_epp_generated_blocks_checked", MODEL, "Generated blocks judged"),
    counter(
        "wasm_epp_generated_blocks_unknown",
        MODEL,
        "Of these, those judged as neither, for lack of context or of rules",
    ),
    counter(
        "wasm_epp_generated_blocks_skipped",
        MODEL,
        "Generated blocks not judged: the queue was full, or the block before not known",
    ),
];

const INDEXES: [Metric; 15] = [
    gauge("wasm_epp_index_blocks", INDEX, "Distinct blocks known"),
    gauge(
        "wasm_epp_index_strides",
        INDEX,
        "Distinct strides known: the entries of the gateway's index",
    ),
    gauge("wasm_epp_index_holdings", INDEX, "Pairs of block and endpoint"),
    gauge("wasm_epp_index_parked", INDEX, "Blocks waiting for an unknown parent"),
    counter("wasm_epp_index_orphans", INDEX, "Blocks stored under an unknown parent"),
    counter("wasm_epp_index_orphans_attached", INDEX, "Of these, those whose parent came"),
    counter("wasm_epp_index_orphans_expired", INDEX, "Of these, those given up, for age or room"),
    counter("wasm_epp_index_unknown_removals", INDEX, "Removals of blocks that are not held"),
    counter(
        "wasm_epp_index_unknown_announcements",
        INDEX,
        "Blocks announced by a hash that is not known",
    ),
    counter(
        "wasm_epp_index_non_canonical_blocks",
        INDEX,
        "Blocks unlisted because they are not what their text would be tokenized to",
    ),
    counter("wasm_epp_index_unknown_tokens", INDEX, "Token ids without bytes; the text ends there"),
    counter(
        "wasm_epp_index_malformed_stores",
        INDEX,
        "Stores whose token ids do not fit their blocks",
    ),
    counter(
        "wasm_epp_index_dropped_strides",
        INDEX,
        "Strides not listed because maxStrides was reached",
    ),
    counter("wasm_epp_index_refused_blocks", INDEX, "Blocks beyond an endpoint's share"),
    counter(
        "wasm_epp_index_bucket_overflows",
        MODEL,
        "Strides that did not fit their bucket when it was pushed",
    ),
];

const GATEWAYS: [Metric; 11] = [
    gauge(
        "wasm_epp_gateway_endpoints_unknown",
        &["gateway", "pool"],
        "Ready endpoints that the proxy's cluster has not, where its admin interface is named",
    ),
    counter("wasm_epp_push_batches", GATEWAY, "Batches acked by the gateway"),
    counter("wasm_epp_push_entries", GATEWAY, "Values acked by the gateway"),
    counter("wasm_epp_push_bytes", GATEWAY, "Bytes acked by the gateway"),
    counter("wasm_epp_push_snapshots", GATEWAY, "Snapshots begun"),
    counter("wasm_epp_push_failures", GATEWAY, "Posts without a good ack"),
    gauge("wasm_epp_gateway_workers", GATEWAY, "Worker VMs of the router that have reported"),
    gauge(
        "wasm_epp_gateway_state",
        &["gateway", "state"],
        "1 for the state the gateway is in: disconnected, snapshot, live, standby",
    ),
    gauge("wasm_epp_gateway_ack_age_seconds", GATEWAY, "Since the gateway's last ack"),
    gauge(
        "wasm_epp_vms_dead",
        VMS,
        "Workers whose VM of these filters is dead, or for a scorer silent, and not revived; filter is router or scorer-NAME",
    ),
    counter("wasm_epp_revivals", VMS, "Times that the filters were configured anew to revive a VM"),
];

/// Of pools whose endpoints are discovered.
const DISCOVERY: [Metric; 8] = [
    gauge(
        "wasm_epp_discovery_current",
        POOL,
        "1 while what is known of endpoints is up to date; else it is as it was",
    ),
    gauge("wasm_epp_discovery_endpoints_found", POOL, "Endpoints that exist, ready or not"),
    gauge("wasm_epp_discovery_endpoints_ready", POOL, "Of these, those that may be sent requests"),
    counter("wasm_epp_discovery_failures", POOL, "Failed attempts to ask"),
    counter(
        "wasm_epp_discovery_lists",
        POOL,
        "Times that everything was asked for anew: of an API server, when a watch could not go on",
    ),
    counter("wasm_epp_discovery_endpoints_came", POOL, "Endpoints taken in"),
    counter("wasm_epp_discovery_endpoints_left", POOL, "Endpoints given up"),
    counter("wasm_epp_discovery_endpoints_refused", POOL, "Endpoints for which there was no room"),
];

const LAG: [Metric; 4] = [
    histogram(
        "wasm_epp_lag_published_to_acked_seconds",
        GATEWAY,
        "From the engine's timestamp of a batch of events to the ack after which nothing of it is missing in the gateway, by two clocks",
    ),
    histogram(
        "wasm_epp_lag_received_to_acked_seconds",
        GATEWAY,
        "The same from the receipt by the daemon, by one clock",
    ),
    counter(
        "wasm_epp_lag_batches_clamped",
        GATEWAY,
        "Lags that were negative, as the engine's clock is ahead, and count as 0",
    ),
    counter(
        "wasm_epp_lag_batches_skipped",
        &["gateway", "reason"],
        "Batches without a lag, by reason: overflow (too many waited), snapshot (part of one); without one from the engine's timestamp only: no_timestamp, before_start (older than the daemon)",
    ),
];

const SNAPSHOTS: [Metric; 7] = [
    gauge(
        "wasm_epp_restored_blocks",
        &["pool", "model", "endpoint", "from"],
        "Blocks held when the endpoint was restored, while they are not void; from is disk or peer",
    ),
    counter("wasm_epp_snapshots_written", &[], "Snapshots written to disk"),
    counter("wasm_epp_snapshot_write_failures", &[], "Snapshots that could not be written"),
    counter("wasm_epp_snapshots_served", &[], "Snapshots given to peers"),
    counter(
        "wasm_epp_snapshots_refused",
        &[],
        "Snapshots, or parts of one, that were not restored",
    ),
    gauge("wasm_epp_snapshot_bytes", &[], "Size of the last snapshot taken"),
    gauge(
        "wasm_epp_snapshot_pause_seconds",
        &[],
        "How long events waited while the last snapshot was taken",
    ),
];

const MEASURED: [Metric; 9] = [
    gauge("wasm_epp_measured_answers", MEASURED_OF, "Answers measured in this epoch"),
    gauge(
        "wasm_epp_measured_answers_reported",
        MEASURED_OF,
        "Of those, with the engine's count of cached tokens",
    ),
    gauge(
        "wasm_epp_measured_answers_silent",
        MEASURED_OF,
        "Of those, without it although a hit was predicted",
    ),
    gauge(
        "wasm_epp_predictions_judged",
        MEASURED_OF,
        "Latest predictions that were judged, at most 32",
    ),
    gauge("wasm_epp_predictions_over", MEASURED_OF, "Of those, higher than what the engine had"),
    gauge("wasm_epp_predictions_under", MEASURED_OF, "Of those, lower than what the engine had"),
    gauge(
        "wasm_epp_prefix_weight_ratio",
        MEASURED_OF,
        "Share of the endpoint's matches that is counted",
    ),
    gauge(
        "wasm_epp_measured_prefill_tokens_per_second",
        MEASURED_OF,
        "Uncached prompt tokens in the time to the first token, over the latest streams; from five on",
    ),
    gauge(
        "wasm_epp_measured_tpot_seconds",
        MEASURED_OF,
        "Time per output token after the first, over the latest streams; from five on",
    ),
];

const LOAD: [Metric; 4] = [
    gauge(
        "wasm_epp_endpoint_rendering_state",
        &["pool", "model", "endpoint", "state"],
        "1 for how the engine's prompts compare with ours: unknown, verified, differs, unverifiable",
    ),
    gauge("wasm_epp_endpoint_ready", ENDPOINT, "1 when the endpoint may be picked"),
    counter("wasm_epp_scrapes", ENDPOINT, "Scrapes of the engine's metrics"),
    counter("wasm_epp_scrape_failures", ENDPOINT, "Scrapes that failed"),
];

fn all() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().chain(FOLLOWER).flat_map(|(_, metrics)| metrics.iter())
}

fn find(name: &str) -> Option<&'static Metric> {
    all().find(|metric| metric.name == name)
}

/// What the metric means; empty for one that is not listed, which a test finds.
pub(crate) fn help(name: &str) -> &'static str {
    find(name).map_or("", |metric| metric.help)
}

/// Whether the metric is listed so.
pub(crate) fn is(name: &str, kind: Kind, labels: &[(&'static str, String)]) -> bool {
    find(name).is_some_and(|metric| {
        metric.kind == kind && metric.labels.iter().eq(labels.iter().map(|(label, _)| label))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `METRICS.md` from the table.
    fn document() -> String {
        let mut text = "# Metrics of the daemon\n\nAt `/metrics` of the admin address, as OpenMetrics. Labels take only values of the configuration \
                        and those named here.\nA gauge or histogram of something that is not known yet is absent, not 0.\n"
            .to_owned();
        add_sections(&mut text, METRICS);
        text.push_str(
            "\n# Metrics of a follower\n\nAt `/metrics` of `wasm-epp follow --admin`, likewise. `events` and `topic` are `kvEvents` and `topic` of the endpoints that\n\
             share the publisher.\n",
        );
        add_sections(&mut text, FOLLOWER);
        text
    }

    fn add_sections(text: &mut String, sections: &[(&str, &[Metric])]) {
        for (subject, metrics) in sections {
            text.push_str(&format!(
                "\n## {subject}\n\n| metric | type | labels | is |\n|---|---|---|---|\n"
            ));
            for metric in *metrics {
                let (suffix, kind) = match metric.kind {
                    Kind::Counter => ("_total", "counter"),
                    Kind::Gauge => ("", "gauge"),
                    Kind::Histogram => ("", "histogram"),
                };
                text.push_str(&format!(
                    "| `{}{suffix}` | {kind} | {} | {} |\n",
                    metric.name,
                    metric.labels.join(", "),
                    metric.help
                ));
            }
        }
    }

    /// `METRICS_WRITE=1 cargo test -p wasm-epp metrics_md` writes the file.
    #[test]
    fn metrics_md_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md");
        if std::env::var_os("METRICS_WRITE").is_some() {
            std::fs::write(path, document()).expect("METRICS.md");
        }
        assert_eq!(std::fs::read_to_string(path).expect("METRICS.md"), document());
    }

    #[test]
    fn names_are_unique_and_follow_the_scheme() {
        let mut names: Vec<&str> = all().map(|metric| metric.name).collect();
        for name in &names {
            assert!(name.starts_with("wasm_epp_") && !name.ends_with("_total"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!help(name).is_empty() && !help(name).ends_with('.'), "{name}");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
