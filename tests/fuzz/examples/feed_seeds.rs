//! Writes the seeds of the `feed` target into a folder: `cargo run --example feed_seeds -- FOLDER`.
//! They are inputs, not goldens: nothing is compared with them.

use feed::{
    Accuracy, AccuracyReport, Ack, AckStatus, BatchBuilder, BatchHeader, BucketEntry, BucketWriter,
    Cell, Counters, EndpointEntry, EndpointHash, EngineAdapters, Features, Head, Key, LoadRecord,
    LoadTable, MatrixRow, OtherGateways, Outcome, Predicted, Prediction, ScorerRow, SessionHash,
    Sessions, Table, Trail, WorkerRow, join_trails,
};
use routing::{AdapterState, Candidate, Rates, RequestFeatures};

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(format!("{folder}/{name}"), bytes);

    let mut bucket = BucketWriter::new(9);
    for fingerprint in [0, 7, 0xAABB_CCDD] {
        bucket.push(BucketEntry {
            fingerprint,
            tokens: 300,
            gpu: &[2, 200],
            offloaded: &[1],
            resumes: &[(2, 256)],
        });
    }
    let bucket = bucket.finish();
    let mut batch =
        BatchBuilder::new(BatchHeader { instance: 1, epoch: 9, sequence: 2, completes: true });
    batch.push(Key::Bucket(3, 4), &bucket);
    write("batch", batch.finish())?;
    write("bucket", [&0xAABB_CCDDu32.to_le_bytes()[..], &bucket].concat())?;

    let scorers = vec![ScorerRow { scorer: 7, revision: 8, absent: 9 }];
    let row =
        WorkerRow { vm: 1, build: 2, config: 3, beat_ns: 4, picked: 5, fell_back: 6, scorers };
    let ack = Ack {
        status: AckStatus::Conflict,
        head: Head { instance: 3, epoch: 2, ..Head::default() },
        now_ns: 77,
        counters: Counters { applied: 1, entries: 2, conflicts: 3, refused: 4, failed: 5 },
        rows: vec![row.clone()],
        reason: "why".into(),
        in_flight: vec![Cell { requests: 1, tokens: 2, ..Cell::default() }],
    };
    let cells = ack.in_flight.clone();
    write("matrix", MatrixRow { vm: 1, beat_ns: 4, cells: cells.clone() }.encode())?;
    write("others", OtherGateways { epoch: 9, cells }.encode())?;
    let trail = Trail { keys: vec![7, 8, 9], ..Trail::default() }.encode();
    write("trails", join_trails([trail.as_slice()].into_iter()))?;
    write("ack", ack.encode())?;
    write("row", row.encode())?;
    write("head", ack.head.encode())?;

    let candidate = |slot| Candidate {
        slot,
        address: format!("10.0.0.{slot}:8000").into(),
        ..Candidate::default()
    };
    let features = Features {
        scope: 3,
        epoch: 8,
        request: RequestFeatures { model: "m".into(), strides: 9, ..RequestFeatures::default() },
        candidates: (0..3).map(candidate).collect(),
        is_cut: false,
        is_restricted: true,
        is_probe: false,
    };
    write("features", features.encode())?;
    let pair = |name: &str| (name.to_owned(), "value".to_owned());
    let mut extended = features;
    extended.request.headers = vec![pair("x-header")];
    extended.request.priority = Some(-1);
    extended.request.fairness_id = Some("tenant".into());
    (extended.request.slo_ttft_ms, extended.request.slo_tpot_ms) = (Some(250.0), Some(20.0));
    let rates = Rates { prefill_tokens_per_s: Some(4e3), tpot_ms: Some(12.5) };
    for candidate in &mut extended.candidates {
        candidate.labels = vec![pair("zone"), pair("rack")];
        candidate.attributes = vec![("cost".into(), 1.5)];
        (candidate.adapter, candidate.has_session, candidate.rates) =
            (AdapterState::Full, true, rates);
    }
    write("features-extended", extended.encode())?;
    let entry = |slot| EndpointEntry {
        slot,
        address: format!("10.0.0.{slot}:8000"),
        labels: vec![pair("zone"), pair("rack")],
        attributes: vec![("cost".into(), 1.5)],
    };
    write("table", Table { epoch: 9, endpoints: (0..3).map(entry).collect() }.encode())?;
    let told = EngineAdapters { has_room: true, running: vec![0, 1], waiting: vec![2] };
    let record = |slot| LoadRecord { slot, adapters: Some(told.clone()), ..LoadRecord::default() };
    write("loads", LoadTable { epoch: 9, records: (0..3).map(record).collect() }.encode())?;
    let mut sessions = Sessions::default();
    sessions.bind(SessionHash(1), EndpointHash(2), 3, 4);
    write("sessions", sessions.encode())?;

    let target = Predicted { slot: 3, address: "10.0.0.3:8000".into(), ..Predicted::default() };
    let prediction =
        Prediction { epoch: 8, scope: 3, targets: vec![target], ..Prediction::default() };
    write("prediction", prediction.encode())?;
    let mut accuracy = Accuracy { epoch: 8, slots: vec![] };
    accuracy.observe(3, Outcome::Over, true);
    accuracy.observe(7, Outcome::Silent, false);
    accuracy.change(3, |of| of.prefill.observe(1000.0, 500.0));
    write("accuracy", accuracy.encode())?;
    write("accuracy-report", AccuracyReport { scopes: vec![(3, accuracy)] }.encode())
}
