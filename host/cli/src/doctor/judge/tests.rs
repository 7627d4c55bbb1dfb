use super::*;
use serde_json::json;

fn live() -> Value {
    json!({
        "address": "127.0.0.1:8000", "engine": "vllm", "ready": true, "source": "live",
        "has_events": true, "has_replay": true, "block_size_tokens": 16,
        "metrics_block_size_tokens": 16, "event_batches": 9, "last_batch_ms": 1234,
        "held_blocks": 7, "resets": 0, "gaps": 1, "encoding": "maps", "hashes": "u64",
        "releases": [{"engine": "vLLM", "name": "vLLM 0.24 or later"}],
        "replay": "works", "replays": 2, "replays_failed": 0, "receive_lag_ms": 2.0,
        "has_checker": true, "generated_blocks": 8, "unchecked_ratio": 0.125, "unknown_tokens": 0,
        "prompt_tokens_watched": 5000, "superseded": 0,
    })
}

fn fed() -> Value {
    json!({
        "name": "gw", "state": "live", "epoch": 5, "sequence": 9, "pending": 0, "last_ack_ms": 400,
        "lag_published_ms": {"p50": 1.5, "p99": 9.0}, "lag_received_ms": {"p50": 0.5, "p99": 8.0},
        "rows": [{"build": "00ab", "beat_age_ms": 80, "picked": 3, "fell_back": 1}],
    })
}

fn of_engine(engine: &Value) -> Finding {
    judge(&json!({"endpoints": [engine], "gateways": []})).findings.remove(0)
}

fn of_gateway(gateway: &Value) -> Finding {
    judge(&json!({"endpoints": [], "gateways": [gateway]})).findings.remove(0)
}

#[test]
fn all_is_well() {
    let report = judge(&json!({"endpoints": [live()], "gateways": [fed()]}));
    assert!(report.is_well());
    let text = "\
ok  engine   127.0.0.1:8000  live  7 blocks of 16 tokens, last event 1.2 s ago
      events are maps with u64 hashes: vLLM 0.24 or later
      9 batches, 1 gaps, 0 resets; replay works
      12.5 % of 8 generated blocks unchecked
ok  gateway  gw              live  last ack 400 ms ago, epoch 5, 9 batches acked, 0 changes pending
      from the engine's timestamp to ack: p50 1.5 ms, p99 9 ms
      from receipt to ack: p50 0.5 ms, p99 8 ms
      worker of build 00ab: last beat 80 ms ago, 3 picked, 1 fell back
";
    assert_eq!(report.text(), text);
    assert_eq!(report.json()["ok"], true);
    assert_eq!(report.json()["findings"][0]["evidence"], live());
}

#[test]
fn each_ill_of_an_engine_has_its_sentence() {
    let check = |changes: Value, expected: &str| {
        let mut ill = live();
        ill.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let finding = of_engine(&ill);
        assert_eq!(finding.problems.len(), 1, "{finding:?}");
        assert!(finding.problems[0].contains(expected), "{finding:?}");
        let report = Report { findings: vec![finding] };
        assert!(!report.is_well());
        assert!(report.text().starts_with("BAD engine"), "{}", report.text());
    };
    check(json!({"ready": false}), "metrics do not answer");
    check(json!({"source": "lost"}), "cannot be reached");
    check(json!({"source": "none"}), "routed by load only");
    check(json!({"source": "resyncing"}), "caught up with");
    let doubted =
        |doubt: &str, expected| check(json!({"source": "degraded", "doubts": [doubt]}), expected);
    doubted("history", "history was not available");
    doubted("restart", "restarted");
    doubted("connection", "connection broke");
    doubted("events", "events that are not understood");
    doubted("hybrid", "groups that are not understood");
    doubted("ranks", "ranks");
    let measured = |accuracy: Value, expected| check(json!({"accuracy": accuracy}), expected);
    measured(
        json!({"answers": 9, "reported": 0, "silent": 4, "prefix_weight_ratio": 1.0}),
        "none of its 9 measured answers says how many tokens were cached, and 4",
    );
    measured(
        json!({"reported": 9, "judged": 20, "over": 6, "prefix_weight_ratio": 0.5}),
        "6 of the last 20 were too high, so its matches count by 0.5",
    );
    measured(
        json!({"reported": 9, "judged": 12, "under": 3, "prefix_weight_ratio": 1.0}),
        "3 of the last 12 were too low",
    );
    check(json!({"has_replay": false, "replay": "never asked"}), "no replay");
    let carried = |connected: bool, follower: bool| json!({"carrier": {"connected": connected, "follower": follower}});
    check(carried(false, false), "no connection to the carrier");
    check(carried(true, false), "nobody follows it");
    check(
        json!({"replay": "fails", "replays_failed": 2}),
        "its replay does not answer (2 of 2 failed, the last one too)",
    );
    check(json!({"metrics_block_size_tokens": 32}), "16 tokens per block, its metrics 32");
    check(json!({"unknown_tokens": 3}), "3 token ids have no bytes");
    check(
        json!({"engine": "sglang"}),
        "its events are those of vLLM, its configuration says engine: sglang",
    );
    check(
        json!({"event_batches": 0}),
        "it has read 5000 prompt tokens since it is watched and announced nothing",
    );
}

#[test]
fn a_measured_engine_that_is_right_is_well() {
    for accuracy in [
        json!({"answers": 9, "reported": 0, "silent": 2, "prefix_weight_ratio": 1.0}),
        json!({"answers": 99, "reported": 1, "silent": 9, "prefix_weight_ratio": 1.0}),
        json!({"reported": 9, "judged": 32, "over": 7, "under": 7, "prefix_weight_ratio": 1.0}),
    ] {
        let mut engine = live();
        engine["accuracy"] = accuracy;
        let finding = of_engine(&engine);
        assert!(finding.problems.is_empty(), "{finding:?}");
    }
}

#[test]
fn what_is_not_wrong_is_a_remark() {
    let check = |changes: Value, expected: &str| {
        let mut odd = live();
        odd.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let finding = of_engine(&odd);
        assert_eq!(finding.problems, [""; 0], "{finding:?}");
        assert_eq!(finding.remarks.len(), 1, "{finding:?}");
        assert!(finding.remarks[0].contains(expected), "{finding:?}");
    };
    check(json!({"replays": 3, "replays_failed": 1}), "1 replays failed, the last one did not");
    check(json!({"has_checker": false}), "no checker");
    check(json!({"superseded": 4}), "4 messages were refused");
    check(json!({"receive_lag_ms": -50.0}), "ahead of the daemon's by 50 ms or more");
    check(json!({"receive_lag_ms": 1000.0}), "came 1000 ms after its timestamp");
    check(json!({"releases": []}), "no release that is known");
    check(json!({"event_batches": 0, "replay": "asked"}), "announced nothing");
}

#[test]
fn what_is_not_known_yet_is_not_held_against_an_engine() {
    let mut young = live();
    for key in ["encoding", "hashes", "unchecked_ratio", "receive_lag_ms", "last_batch_ms"] {
        young[key] = Value::Null;
    }
    young["releases"] = json!([]);
    young["event_batches"] = json!(0);
    young["prompt_tokens_watched"] = json!(999);
    let finding = of_engine(&young);
    assert!(finding.problems.is_empty() && finding.remarks.is_empty(), "{finding:?}");
    let notes =
        ["7 blocks of 16 tokens, no event yet", "0 batches, 1 gaps, 0 resets; replay works"];
    assert_eq!(finding.notes, notes);
    // Two engines write alike: either may be configured.
    let both = [("vLLM", "vLLM 0.10.2 to 0.13"), ("SGLang", "SGLang 0.5.9 to 0.5.19")];
    let both = both.map(|(engine, name)| json!({"engine": engine, "name": name}));
    for engine in ["vllm", "sglang"] {
        let mut unclear = live();
        unclear["releases"] = json!(both);
        unclear["engine"] = json!(engine);
        let finding = of_engine(&unclear);
        assert!(finding.problems.is_empty(), "{finding:?}");
        assert!(finding.notes[1].ends_with("vLLM 0.10.2 to 0.13, or SGLang 0.5.9 to 0.5.19"));
    }
}

#[test]
fn a_list_that_is_fetched_needs_no_replay() {
    let mut fetched = live();
    fetched["engine"] = json!("tensorrt-llm");
    fetched["has_replay"] = json!(false);
    fetched["releases"] = json!([{"engine": "TensorRT-LLM", "name": "TensorRT-LLM"}]);
    let finding = of_engine(&fetched);
    assert!(finding.problems.is_empty(), "{finding:?}");
}

#[test]
fn gateways_are_judged_by_their_acks() {
    let check = |changes: Value, problems: &[&str], remarks: &[&str]| {
        let mut gateway = fed();
        gateway.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let finding = of_gateway(&gateway);
        assert_eq!(
            (&finding.problems[..], &finding.remarks[..]),
            (&own(problems)[..], &own(remarks)[..])
        );
    };
    check(json!({}), &[], &[]);
    check(json!({"state": "disconnected", "error": "refused"}), &["it is not fed: refused"], &[]);
    check(json!({"state": "snapshot"}), &["it is being sent a snapshot"], &[]);
    check(json!({"last_ack_ms": 3000}), &[], &[]);
    check(json!({"last_ack_ms": 3001}), &["it has not acked for 3001 ms"], &[]);
    check(json!({"state": "standby", "last_ack_ms": 9000}), &[], &[]);
    check(json!({"rows": []}), &[], &["no worker has decided a request yet"]);
    let row = |build: &str, age: u64| json!({"build": build, "beat_age_ms": age});
    let two = json!({"rows": [row("b", 10), row("a", 20), row("a", 30)]});
    check(two, &[], &["its workers run different builds: a, b"]);
    // A worker of the old build that has gone is no news.
    check(json!({"rows": [row("b", 10), row("a", 3001)]}), &[], &[]);
}

fn own(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
