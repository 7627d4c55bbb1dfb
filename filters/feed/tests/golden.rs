//! Format 1 byte by byte, against a generator written from the specification: whoever changes a
//! byte of it changes the format's number.

use feed::{
    Accuracy, AccuracyReport, Ack, AckStatus, Batch, BatchBuilder, BatchHeader, BucketEntry,
    BucketWriter, Cell, Counters, Directory, DirectoryEntry, EndpointEntry, EndpointHash,
    EngineAdapters, Features, FoundTrail, Head, Key, LoadRecord, LoadTable, MatrixRow, ModelValue,
    OtherGateways, Picks, Predicted, Prediction, ScorerRow, Scores, SentBucket, SentClock,
    SentClocks, SentEndpoint, SentPlan, Session, SessionHash, Sessions, SlotAccuracy, Speed, Table,
    Trail, WorkerRow, find_stride, find_trails, join_trails,
};
use prefix::{Holder, Listed as _, Seed, Stride};
use routing::{
    AdapterState, Candidate, InFlight, Load, PrefixMatch, Rates, RequestFeatures, SourceState,
};

const EPOCH: u64 = 0x0102_0304_0506_0708;

fn golden(name: &str) -> Vec<u8> {
    let text = include_str!("../../../tests/golden/feed/feed.txt");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .expect("a line of that name");
    (0..line.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&line[i..i + 2], 16).expect("hexadecimal"))
        .collect()
}

/// The value is written so, and read back from the golden bytes.
fn check<T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(
    name: &str,
    value: &T,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) {
    let bytes = golden(name);
    assert_eq!(encode(value), bytes, "{name}");
    assert_eq!(&decode(&bytes).expect(name), value, "{name}");
}

fn head() -> Head {
    Head {
        instance: 7,
        epoch: EPOCH,
        sequence: 9,
        is_complete: true,
        previous_epoch: 6,
        config_version: 3,
        stamp_ns: 1_000_000_007,
    }
}

fn row() -> WorkerRow {
    WorkerRow {
        vm: 11,
        build: 12,
        config: 13,
        beat_ns: 14,
        picked: 15,
        fell_back: 16,
        scorers: vec![
            ScorerRow { scorer: 17, revision: 18, absent: 19 },
            ScorerRow { scorer: 20, revision: 0, absent: 2 },
        ],
    }
}

fn load() -> Load {
    Load { is_ready: true, waiting: Some(5), running: Some(6), kv_usage_ratio: Some(0.25) }
}

fn cells() -> Vec<Cell> {
    let cell = |address: &str, requests, tokens| Cell {
        endpoint: EndpointHash::of(address),
        requests,
        tokens,
    };
    let mut cells = vec![cell("10.0.0.1:8000", 3, 4096), cell("[fd00::1]:8000", 1, 1 << 33)];
    cells.sort_unstable_by_key(|cell| cell.endpoint);
    cells
}

#[test]
fn the_load_matrix() {
    let row = MatrixRow { vm: 11, beat_ns: 14, cells: cells() };
    check("matrix", &row, MatrixRow::encode, MatrixRow::decode);
    let others = OtherGateways { epoch: EPOCH, cells: cells() };
    check("others", &others, OtherGateways::encode, OtherGateways::decode);
    let trail = |address: &str, read_ns, published_ns, keys: &[u32]| Trail {
        endpoint: EndpointHash::of(address),
        read_ns,
        published_ns,
        keys: keys.to_vec(),
    };
    let trails = [
        trail("10.0.0.1:8000", 20, 21, &[0xDEAD_BEEF, 1, 2]),
        trail("[fd00::1]:8000", 22, 23, &[]),
    ]
    .map(|trail| trail.encode());
    let bytes = golden("trails");
    assert_eq!(join_trails(trails.iter().map(Vec::as_slice)), bytes);
    let mut found = Vec::new();
    find_trails(&bytes, &[0xDEAD_BEEF, 1, 3], |trail| found.push(trail)).unwrap();
    let endpoint = EndpointHash::of("10.0.0.1:8000");
    assert_eq!(found, [FoundTrail { endpoint, read_ns: 20, published_ns: 21, common: 2 }]);
}

#[test]
fn what_was_sent() {
    let clock =
        |endpoint, clock, capacity, started_s| SentClock { endpoint, clock, capacity, started_s };
    let clocks = vec![
        clock(EndpointHash::of("10.0.0.1:8000"), 1 << 40, 125_000, 1_700_000_000),
        clock(EndpointHash(7), 0, 0, 0),
    ];
    check("sent_clocks", &SentClocks { clocks }, SentClocks::encode, SentClocks::decode);
    let entries = vec![(0xDEAD_BEEF, vec![(0, (1 << 40) - 1), (799, 0)]), (1, vec![(3, 4)])];
    check("sent_bucket", &SentBucket { entries }, SentBucket::encode, SentBucket::decode);
    let endpoint = SentEndpoint { slot: 3, capacity: 125_000, started_s: 1_700_000_000 };
    let plan = SentPlan { keys: vec![0xDEAD_BEEF_0000_0001, 2], endpoints: vec![endpoint] };
    check("sent_plan", &plan, SentPlan::encode, SentPlan::decode);
}

#[test]
fn what_filters_and_daemon_keep() {
    check("head", &head(), Head::encode, Head::decode);
    check("row", &row(), WorkerRow::encode, WorkerRow::decode);
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let directory = Directory {
        epoch: EPOCH,
        entries: vec![
            DirectoryEntry {
                scope: 0,
                pool: "pool".into(),
                model: "m".into(),
                aliases: texts(&["alias", "ü"]),
                adapters: texts(&["sql"]),
                token_ids_scope: Some(1),
            },
            DirectoryEntry {
                scope: 2,
                pool: "pool-b".into(),
                model: "n".into(),
                ..DirectoryEntry::default()
            },
        ],
    };
    check("directory", &directory, Directory::encode, Directory::decode);
    let endpoint = |slot, address: &str| EndpointEntry {
        slot,
        address: address.into(),
        ..EndpointEntry::default()
    };
    let mut endpoints = vec![endpoint(0, "10.0.0.1:8000"), endpoint(3, "[fd00::1]:8000")];
    endpoints[0].labels = pairs(&[("llm-d.ai/role", "prefill"), ("zone", "a")]);
    endpoints[0].attributes = vec![("cost".into(), 2.5)];
    check("table", &Table { epoch: EPOCH, endpoints }, Table::encode, Table::decode);
    let record =
        |slot, load, source, block_size_tokens, [cache_tokens, started_s]: [u32; 2]| LoadRecord {
            slot,
            load,
            source,
            block_size_tokens,
            cache_tokens,
            started_s,
            adapters: None,
        };
    let mut records = vec![
        record(0, load(), SourceState::Live, 16, [6400, 1_700_000_000]),
        record(3, Load::default(), SourceState::Lost, 0, [0, 0]),
    ];
    records[0].adapters =
        Some(EngineAdapters { has_room: true, running: vec![0], waiting: vec![0, 258] });
    check("loads", &LoadTable { epoch: EPOCH, records }, LoadTable::encode, LoadTable::decode);
    let model = ModelValue {
        epoch: EPOCH,
        seed: Seed(std::array::from_fn(|i| i as u8)),
        bucket_count: 1024,
        bytes_per_token: 4.0,
        spec_json: br#"{"chat_template":null}"#.to_vec(),
    };
    check("model", &model, ModelValue::encode, ModelValue::decode);
    let picks = Picks { epoch: EPOCH, count: 300, slots: vec![(0, 299, 0), (3, 300, 7)] };
    check("picks", &picks, Picks::encode, Picks::decode);
}

#[test]
fn what_the_meter_reads_and_keeps() {
    let target = |slot, address: &str, has_state, tokens, block_size_tokens| Predicted {
        slot,
        address: address.into(),
        has_state,
        tokens,
        block_size_tokens,
    };
    let prediction = Prediction {
        epoch: EPOCH,
        scope: 2,
        is_matched: true,
        prompt_bytes: 1000,
        best_tokens: 96,
        targets: vec![
            target(3, "10.0.0.1:8000", true, 64, 16),
            target(0, "[fd00::1]:8000", false, 0, 0),
        ],
    };
    check("prediction", &prediction, Prediction::encode, Prediction::decode);
    let of = |[answers, reported, silent, over, under]: [u32; 5], judged| SlotAccuracy {
        answers,
        reported,
        silent,
        judged,
        over,
        under,
        ..SlotAccuracy::default()
    };
    let mut slots = vec![(0, of([70, 69, 1, 0x8000_0001, 2], 32)), (3, of([5, 0, 5, 0, 0], 0))];
    slots[0].1.prefill = Speed { answers: 7, tokens: 1000.5, ms: 250.0 };
    slots[0].1.decode = Speed { answers: 255, tokens: 64.0, ms: 1e6 };
    let accuracy = Accuracy { epoch: EPOCH, slots };
    check("accuracy", &accuracy, Accuracy::encode, Accuracy::decode);
    let report =
        AccuracyReport { scopes: vec![(2, accuracy), (7, Accuracy { epoch: 1, slots: vec![] })] };
    check("accuracy_report", &report, AccuracyReport::encode, AccuracyReport::decode);
}

#[test]
fn a_bucket() {
    let mut writer = BucketWriter::new(EPOCH);
    writer.push(BucketEntry {
        fingerprint: 0xDEAD_BEEF,
        tokens: 15,
        gpu: &[0, 3],
        offloaded: &[200],
        resumes: &[],
    });
    writer.push(BucketEntry {
        fingerprint: 1,
        tokens: 70_000,
        gpu: &[1],
        offloaded: &[],
        resumes: &[(1, 512)],
    });
    let bytes = golden("bucket");
    assert_eq!(writer.finish(), bytes);
    let holder = |slot, offloaded| Holder { slot, offloaded };
    let first = Stride {
        tokens: 15,
        holders: vec![holder(0, false), holder(3, false), holder(200, true)],
        resumes: vec![],
    };
    let second =
        Stride { tokens: 70_000, holders: vec![holder(1, false)], resumes: vec![(1, 512)] };
    let find = |fingerprint| {
        let found = find_stride(&bytes, fingerprint).expect("a bucket");
        found.map(|found| found.read().into_owned())
    };
    assert_eq!(find(0xDEAD_BEEF), Some(first));
    assert_eq!(find(1), Some(second));
    assert_eq!(find(2), None);
}

#[test]
fn what_scorers_read() {
    let features = Features {
        scope: 2,
        epoch: EPOCH,
        request: RequestFeatures {
            model: "m".into(),
            adapter: Some("sql".into()),
            prompt_bytes: 1000,
            strides: 15,
            prompt_tokens: 250,
            unmatched_reason: None,
            trail: vec![0xDEAD_BEEF, 7],
            ..RequestFeatures::default()
        },
        candidates: vec![Candidate {
            slot: 3,
            address: "10.0.0.1:8000".into(),
            load: load(),
            source: SourceState::Live,
            block_size_tokens: 16,
            matched: PrefixMatch {
                gpu_strides: 4,
                gpu_tokens: 64,
                any_strides: 6,
                any_tokens: 96,
                gpu_blocks: 4,
                speculative_strides: 8,
            },
            in_flight: InFlight { requests: 3, tokens: 4096 },
            ..Candidate::default()
        }],
        is_cut: false,
        is_restricted: true,
        is_probe: true,
    };
    check("features", &features, Features::encode, Features::decode);
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

#[test]
fn what_only_some_scorers_read() {
    let bare = |slot, address: &str| Candidate {
        slot,
        address: address.into(),
        source: SourceState::Lost,
        ..Candidate::default()
    };
    let full = Candidate {
        adapter: AdapterState::Full,
        has_session: true,
        rates: Rates { prefill_tokens_per_s: Some(4000.0), tpot_ms: Some(12.5) },
        labels: pairs(&[("zone", "b"), ("rack", "r1")]),
        attributes: vec![("cost".into(), -1.5)],
        ..bare(3, "10.0.0.1:8000")
    };
    let active = Candidate { adapter: AdapterState::Active, ..bare(0, "[fd00::1]:8000") };
    let plain = RequestFeatures {
        model: "m".into(),
        unmatched_reason: Some("why".into()),
        ..RequestFeatures::default()
    };
    let all = Features {
        scope: 2,
        epoch: EPOCH,
        request: RequestFeatures {
            headers: pairs(&[("x-zone", "a")]),
            priority: Some(-2),
            fairness_id: Some("tenant".into()),
            slo_ttft_ms: Some(250.0),
            slo_tpot_ms: Some(20.5),
            ..plain.clone()
        },
        candidates: vec![full, active],
        ..Features::default()
    };
    check("features_all", &all, Features::encode, Features::decode);
    let session = Features {
        request: plain,
        candidates: vec![Candidate { has_session: true, ..bare(3, "10.0.0.1:8000") }],
        ..all
    };
    check("features_session", &session, Features::encode, Features::decode);
}

#[test]
fn sessions() {
    let of = |session, endpoint, used_ns| Session {
        session: SessionHash(session),
        endpoint: EndpointHash(endpoint),
        used_ns,
    };
    let sessions = Sessions { sessions: vec![of(1, 2, 3), of(u64::MAX, 5, 6)] };
    check("sessions", &sessions, Sessions::encode, Sessions::decode);
}

#[test]
fn what_scorers_say() {
    let scores =
        Scores { epoch: EPOCH, revision: 5, scores: vec![(3, 0.25), (0, 1.0), (7, f32::INFINITY)] };
    check("scores", &scores, Scores::encode, Scores::decode);
}

#[test]
fn a_batch_and_its_ack() {
    let header = BatchHeader { instance: 7, epoch: EPOCH, sequence: 10, completes: true };
    let odd = Key::parity(EPOCH);
    let entries = [
        (Key::Directory(odd), golden("directory")),
        (Key::OtherGateways(odd), golden("others")),
        (Key::Table(odd, 2), golden("table")),
        (Key::Load(odd, 2), golden("loads")),
        (Key::Model(odd, 2), golden("model")),
        (Key::Bucket(2, 77), golden("bucket")),
    ];
    let mut builder = BatchBuilder::new(header);
    entries.iter().for_each(|(key, value)| builder.push(*key, value));
    let bytes = golden("batch");
    assert_eq!(builder.finish(), bytes);
    let batch = Batch::decode(&bytes).unwrap();
    assert_eq!(batch.header, header);
    let expected: Vec<(Key, &[u8])> = entries.iter().map(|(key, value)| (*key, &**value)).collect();
    assert_eq!(batch.entries, expected);

    let ack = Ack {
        status: AckStatus::Conflict,
        head: head(),
        now_ns: 2_000_000_009,
        counters: Counters { applied: 1, entries: 2, conflicts: 3, refused: 4, failed: 5 },
        rows: vec![row()],
        reason: "why".into(),
        in_flight: cells(),
    };
    check("ack", &ack, Ack::encode, Ack::decode);
}
