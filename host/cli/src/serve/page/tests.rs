//! The whole page of a daemon that has seen a recorded session of a real vLLM.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use feed::{Accuracy, BatchBuilder, BatchHeader, SlotAccuracy, Speed};
use feed_push::{Fill, StateSource};
use kv_events::{SourceState as EventState, SourceUpdate, decode};
use serde_json::Value;
use tokio::time::Instant;

use super::super::gateway::GatewayFeed;
use super::super::in_flight::InFlight;
use super::super::revival::Vms;
use super::super::scope::Restored;
use super::super::snapshot::Origin;
use super::super::{GatewayHandle, admin, apply, scope};
use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

struct Setup {
    _folder: tempfile::TempDir,
    daemon: Daemon,
    feed: GatewayFeed,
}

impl Setup {
    /// One engine, one gateway, a listener.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wasm-epp.yaml");
        let text = format!(
            "dataDir: data\nkvEventsListen: 'tcp://127.0.0.1:5557'\npools:\n- name: pool\n  \
             models: [{{name: tiny, folder: '{}', tokenIdPrompts: true}}]\n  \
             endpoints: [{{address: '127.0.0.1:8000', kvEvents: 'tcp://127.0.0.1:5557'}}]\n",
            golden("tiny-model").display()
        );
        std::fs::write(&file, text).unwrap();
        let config = crate::config::load(&file).unwrap();
        let scopes = scope::load(&config, &[Arc::default()]).unwrap();
        let feed = GatewayFeed::new(0, &scopes, &Arc::new(InFlight::new(&[])));
        let gateway = GatewayHandle {
            name: "gw-0".into(),
            status: Arc::default(),
            lag: feed.lag(),
            can_revive: false,
            vms: Arc::default(),
            unknown: Arc::default(),
        };
        let daemon = Daemon {
            scopes,
            gateways: vec![gateway],
            listener: Some(Arc::default()),
            snapshots: Arc::default(),
            carried: [((0, 0), Arc::default())].into(),
            discovered: vec![("pool".into(), Arc::default())],
        };
        Self { _folder: folder, daemon, feed }
    }

    fn update(&self, update: SourceUpdate) {
        apply::apply(&self.daemon.scopes[0], 0, update);
    }

    /// A batch of the session, as if the engine had made it at `ts`.
    fn batch(&self, sequence: u64, payload: &[u8], ts: Option<f64>) {
        let mut batch = decode(payload).unwrap();
        batch.ts = ts.unwrap_or(batch.ts);
        self.update(SourceUpdate::Batch {
            sequence,
            fingerprint: 0,
            batch,
            received_at: Instant::now(),
        });
    }

    fn push(&mut self) -> Fill {
        let mut batch = BatchBuilder::new(BatchHeader::default());
        let fill = self.feed.fill(1, &mut batch, usize::MAX, u32::MAX);
        self.feed.applied();
        fill
    }
}

fn session() -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(golden("kv-events/session-chat-small-cache.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| {
            let payload = line.get("event")?.as_array()?[2].as_str()?.to_owned();
            let byte = |at: usize| u8::from_str_radix(&payload[at..at + 2], 16).unwrap();
            Some((0..payload.len()).step_by(2).map(byte).collect())
        })
        .collect()
}

/// Metrics of a page: types by name, and samples as they are written.
fn read(page: &str) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line}");
        }
    }
    (types, samples)
}

#[test]
fn the_page_has_exactly_the_metrics_of_the_table() {
    let mut setup = Setup::new();
    for (sequence, payload) in (0..).zip(&session()) {
        setup.batch(sequence, payload, None);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    setup.batch(1000, &session()[0], Some(now));
    setup.push();
    {
        let mut status = setup.daemon.gateways[0].status.lock().unwrap();
        status.last_ack = Some(Instant::now());
        let speed = Speed { answers: 5, tokens: 100.0, ms: 50.0 };
        let slots =
            vec![(0, SlotAccuracy { prefill: speed, decode: speed, ..SlotAccuracy::default() })];
        status.accuracy.push(setup.daemon.scopes[0].number, Accuracy { epoch: 1, slots });
    }

    setup.daemon.gateways[0].vms.lock().unwrap().insert("router".to_owned(), Vms::default());
    setup.daemon.gateways[0].unknown.lock().unwrap().insert("pool".to_owned(), 0);
    let restored = Restored { origin: Origin::Disk, blocks: 3 };
    setup.daemon.scopes[0].live().engines[0].restored = Some(restored);

    let page = render(&setup.daemon).unwrap();
    assert!(page.ends_with("# EOF\n"));
    let (types, samples) = read(&page);
    let listed: BTreeMap<String, String> = spec::METRICS
        .iter()
        .flat_map(|(_, metrics)| metrics.iter())
        .map(|metric| (metric.name.to_owned(), format!("{:?}", metric.kind).to_lowercase()))
        .collect();
    assert_eq!(types, listed);
    for metric in spec::METRICS.iter().flat_map(|(_, metrics)| metrics.iter()) {
        let expected: BTreeSet<&str> = metric.labels.iter().copied().collect();
        let endings: &[&str] = match metric.kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_sum", "_count", "_bucket"],
        };
        for ending in endings {
            let name = format!("{}{ending}", metric.name);
            let of = samples.keys().filter(|series| series.split('{').next() == Some(&name));
            let mut count = 0;
            for series in of {
                let labels = series.strip_prefix(&name).unwrap().trim_matches(['{', '}']);
                let labels: BTreeSet<&str> = labels
                    .split("\",")
                    .filter_map(|label| Some(label.split_once('=')?.0))
                    .filter(|label| *label != "le")
                    .collect();
                assert_eq!(labels, expected, "{series}");
                count += 1;
            }
            assert!(count > 0, "{name} has no sample");
        }
    }
}

#[test]
fn events_of_a_real_session_are_counted_as_python_counts_them() {
    let setup = Setup::new();
    let counts: Value =
        serde_json::from_slice(&std::fs::read(golden("kv-events/counts.json")).unwrap()).unwrap();
    let counts = counts["session-chat-small-cache.jsonl"].as_array().unwrap().clone();
    for (sequence, payload) in (0..).zip(&session()) {
        setup.batch(sequence, payload, None);
    }
    setup.update(SourceUpdate::State(EventState::Live { partial: false }));
    setup.update(SourceUpdate::Reset { reason: kv_events::ResetReason::Gap });
    let (_, samples) = read(&render(&setup.daemon).unwrap());
    let tagged = |tag: &str| {
        counts.iter().map(|batch| batch["tags"][tag].as_f64().unwrap_or(0.0)).sum::<f64>()
    };
    let of = "pool=\"pool\",model=\"tiny\",endpoint=\"127.0.0.1:8000\"";
    let check = |series: &str, value: f64| {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    };
    for (kind, tag) in
        [("stored", "BlockStored"), ("removed", "BlockRemoved"), ("cleared", "AllBlocksCleared")]
    {
        check(&format!("wasm_epp_events_total{{{of},kind=\"{kind}\"}}"), tagged(tag));
    }
    assert!(tagged("BlockStored") > 0.0 && tagged("BlockRemoved") > 0.0);
    let hashes: f64 = counts.iter().filter_map(|batch| batch["hashes"].as_f64()).sum();
    let blocks = |verb: &str| samples[&format!("wasm_epp_blocks_{verb}_total{{{of}}}")];
    assert_eq!(blocks("stored") + blocks("removed"), hashes);
    check(&format!("wasm_epp_event_batches_total{{{of}}}"), counts.len() as f64);
    check(&format!("wasm_epp_source_resets_total{{{of},reason=\"gap\"}}"), 1.0);
    check(&format!("wasm_epp_source_resets_total{{{of},reason=\"restart\"}}"), 0.0);
    check("wasm_epp_sources{pool=\"pool\",model=\"tiny\",state=\"live\"}", 1.0);
    check("wasm_epp_sources{pool=\"pool\",model=\"tiny\",state=\"lost\"}", 0.0);
    check(&format!("wasm_epp_source_unknown_tokens_total{{{of}}}"), 0.0);
    // Nobody checks in this test: all that was generated is unchecked.
    check(&format!("wasm_epp_generated_blocks_unchecked_ratio{{{of}}}"), 1.0);
}

#[test]
fn the_lag_of_a_batch_ends_with_the_ack_of_its_push() {
    let mut setup = Setup::new();
    let payloads = session();
    setup.batch(0, &payloads[0], None);
    setup.feed.begin_snapshot();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    setup.batch(1, &payloads[1], Some(now));
    setup.batch(2, &payloads[2], Some(now + 3600.0));
    setup.batch(3, &payloads[3], None);
    let read_page = |setup: &Setup| read(&render(&setup.daemon).unwrap()).1;
    let published = "wasm_epp_lag_published_to_acked_seconds_count{gateway=\"gw-0\"}";
    assert_eq!(read_page(&setup)[published], 0.0, "nothing is acked yet");
    assert_eq!(setup.push(), Fill::Drained);
    let samples = read_page(&setup);
    let skipped = |reason: &str| {
        samples
            [&format!("wasm_epp_lag_batches_skipped_total{{gateway=\"gw-0\",reason=\"{reason}\"}}")]
    };
    assert_eq!(samples[published], 2.0);
    assert_eq!(samples["wasm_epp_lag_received_to_acked_seconds_count{gateway=\"gw-0\"}"], 3.0);
    assert_eq!(samples["wasm_epp_lag_batches_clamped_total{gateway=\"gw-0\"}"], 1.0);
    assert_eq!((skipped("snapshot"), skipped("before_start")), (1.0, 1.0));
    let name = "wasm_epp_lag_published_to_acked_seconds_bucket{";
    let buckets = samples.iter().filter(|(series, _)| series.starts_with(name));
    let above = |series: &str| series.contains("le=\"+Inf\"");
    let counted: Vec<f64> = buckets.filter(|(s, _)| above(s)).map(|(_, count)| *count).collect();
    assert_eq!(counted, [2.0], "buckets are cumulative");
    let ahead = "wasm_epp_source_receive_lag_seconds{pool=\"pool\",model=\"tiny\",endpoint=\"127.0.0.1:8000\"}";
    assert!(samples[ahead] < -3000.0, "the engine's clock is an hour ahead");
}

#[test]
fn the_details_say_what_the_events_prove() {
    let setup = Setup::new();
    for (sequence, payload) in (0..).zip(&session()) {
        setup.batch(sequence, payload, None);
    }
    let (_, details) = admin::details(&setup.daemon);
    let engine = &details["endpoints"][0];
    assert_eq!((&engine["encoding"], &engine["hashes"]), (&"maps".into(), &"u64".into()));
    assert_eq!(engine["releases"][0]["name"], "vLLM 0.24 or later");
    assert_eq!((&engine["replay"], &engine["unknown_tokens"]), (&"never asked".into(), &0.into()));
    assert_eq!(engine["unchecked_ratio"], 1.0);
    setup.update(SourceUpdate::Reset { reason: kv_events::ResetReason::Restart });
    let (_, details) = admin::details(&setup.daemon);
    assert_eq!(details["endpoints"][0]["encoding"], Value::Null, "another process writes its own");
    // Token ids beyond the tokenizer's: another model's.
    let mut batch = decode(&session()[0]).unwrap();
    for event in &mut batch.events {
        if let kv_events::KvEvent::Stored(stored) = event {
            stored.token_ids.iter_mut().for_each(|id| *id += 1_000_000);
        }
    }
    let received_at = Instant::now();
    setup.update(SourceUpdate::Batch { sequence: 0, fingerprint: 0, batch, received_at });
    let (_, details) = admin::details(&setup.daemon);
    assert!(details["endpoints"][0]["unknown_tokens"].as_u64() > Some(0));
}
