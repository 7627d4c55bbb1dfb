//! `wasm-epp doctor` against a running daemon.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{EngineOptions, Stand, StandOptions, get, wait_until, wasm_epp};

use crate::support::{completion, prose, teach};

pub(crate) fn doctor(stand: &Stand) -> (Output, Value) {
    let output = Command::new(wasm_epp().unwrap())
        .args(["doctor", "--json", "--config"])
        .arg(stand.config_file())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (output, report.unwrap_or_default())
}

/// Findings of engines in order, then the gateway's.
fn findings(report: &Value) -> Vec<Value> {
    report["findings"].as_array().cloned().unwrap_or_default()
}

/// The value of a series of the daemon's `/metrics`.
async fn metric(stand: &Stand, series: &str) -> Option<f64> {
    let page = get(stand.daemon_admin, "/metrics").await.unwrap();
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(s, _)| s == series));
    line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_is_well_and_what_is_not() {
    // The second engine writes events as vLLM up to 0.23 does, and frames replays so.
    let old = ["--event-encoding", "tagged-array", "--replay-framing", "without-topic"];
    let old = EngineOptions { flags: old.map(str::to_owned).to_vec() };
    let engines = vec![EngineOptions::default(), old, EngineOptions::default()];
    let mut stand =
        Stand::start(StandOptions { engines, ..StandOptions::default() }).await.unwrap();
    let (output, report) = doctor(&stand);
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)), "{output:?}");
    assert_eq!(findings(&report).len(), 4, "three engines and a gateway");
    for engine in &findings(&report)[..3] {
        let evidence = &engine["evidence"];
        assert_eq!(evidence["replay"], "works", "an empty history is an answer too");
        assert_eq!((&evidence["encoding"], &evidence["events"]), (&Value::Null, &json!(0)));
    }

    // Prompts of their own until all engines hold one.
    let old_address = stand.engines[1].http.to_string();
    let mut holders = std::collections::BTreeSet::new();
    for topic in 0.. {
        holders.insert(teach(&stand, &completion(&prose(&format!("topic {topic}"), 600))).await);
        if holders.len() == 3 {
            break;
        }
        assert!(topic < 50, "some engine gets nothing: {holders:?}");
    }
    let what = "the next scrapes show the prompts";
    let (output, report) = wait_until(what, Duration::from_secs(30), async || {
        let (output, report) = doctor(&stand);
        let tokens = |f: &Value| f["evidence"]["prompt_tokens_watched"].as_u64();
        findings(&report)[..3].iter().all(|f| tokens(f) > Some(100)).then_some((output, report))
    })
    .await
    .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let all = findings(&report);
    for engine in &all[..3] {
        let (evidence, is_old) = (&engine["evidence"], engine["name"] == old_address);
        let release = if is_old { "vLLM 0.22 to 0.23" } else { "vLLM 0.24 or later" };
        let form = if is_old { "arrays" } else { "maps" };
        assert_eq!(evidence["encoding"], form, "{engine}");
        let releases = evidence["releases"].as_array().unwrap();
        assert!(releases.iter().any(|r| r["name"] == release), "{engine}");
        assert!(evidence["events"].as_u64() > Some(0), "{engine}");
        assert_eq!((&evidence["gaps"], &evidence["unknown_tokens"]), (&json!(0), &json!(0)));
        let own = evidence["metrics_block_size_tokens"].as_u64();
        assert_eq!(evidence["block_size_tokens"].as_u64(), own);
    }
    let gateway = &all[3]["evidence"];
    assert!(gateway["epoch"].as_u64() > Some(0) && gateway["last_ack_ms"].is_u64(), "{gateway}");
    let rows = gateway["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "one worker: {gateway}");
    assert!(rows[0]["picked"].as_u64() > Some(0) && rows[0]["beat_age_ms"].is_u64(), "{gateway}");
    // Engines and daemon share a clock here, and batches are received after they were made.
    let lag = |which: &str, quantile: &str| gateway[which][quantile].as_f64().unwrap();
    assert!(gateway["lag_published_ms"]["count"].as_u64() >= Some(3), "{gateway}");
    for quantile in ["p50", "p99"] {
        let (whole, part) = (lag("lag_published_ms", quantile), lag("lag_received_ms", quantile));
        assert!(0.0 < part && part <= whole && whole < 60_000.0, "{gateway}");
    }
    let clamped = "wasm_epp_lag_batches_clamped_total{gateway=\"gw-0\"}";
    assert_eq!(metric(&stand, clamped).await, Some(0.0));
    let count = "wasm_epp_lag_published_to_acked_seconds_count{gateway=\"gw-0\"}";
    assert!(metric(&stand, count).await >= Some(3.0));

    // A replay that is asked for and not answered.
    let lost = stand.engines[1].http.to_string();
    stand.engines[1].process.take().unwrap().kill();
    let (output, report) = wait_until("the doctor sees it", Duration::from_secs(30), async || {
        let (output, report) = doctor(&stand);
        let engine = &findings(&report)[1];
        let is_down = engine["problems"].as_array().is_some_and(|problems| problems.len() >= 2);
        (report["ok"] == false && is_down).then_some((output, report))
    })
    .await
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let ill: Vec<Value> =
        findings(&report).into_iter().filter(|f| f["problems"] != json!([])).collect();
    assert_eq!(ill.len(), 1, "{report}");
    assert_eq!((&ill[0]["name"], &ill[0]["state"]), (&json!(lost), &json!("lost")));
    let of = format!("pool=\"pool\",model=\"tiny\",endpoint=\"{lost}\"");
    let failed = format!("wasm_epp_source_connections_failed_total{{{of}}}");
    assert!(metric(&stand, &failed).await >= Some(1.0), "its reader counts what failed");

    stand.daemon.take().unwrap().kill();
    let (output, report) = doctor(&stand);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("is `wasm-epp serve` running?"), "{errors}");
    assert_eq!(report["ok"], false, "one object on the last line all the same: {output:?}");

    std::fs::write(stand.config_file(), "pools: 3\n").unwrap();
    let (output, _) = doctor(&stand);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_nobody_answers_is_no_replay() {
    let engines = vec![EngineOptions::default()];
    let mut stand =
        Stand::prepare(StandOptions { engines, ..StandOptions::default() }).await.unwrap();
    // The events' own address: a publisher is there, and it is no replay socket.
    stand.engines[0].replay = stand.engines[0].kv_events.clone();
    stand.write_config().unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    let what = "the doctor sees that replays fail";
    let (output, report) = wait_until(what, Duration::from_secs(60), async || {
        let (output, report) = doctor(&stand);
        let engine = findings(&report).first()?.clone();
        (engine["evidence"]["replay"] == "fails").then_some((output, engine))
    })
    .await
    .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let problems = report["problems"].to_string();
    assert!(problems.contains("its replay does not answer"), "{report}");
    let of = format!("pool=\"pool\",model=\"tiny\",endpoint=\"{}\"", stand.engines[0].http);
    let failed = format!("wasm_epp_source_replays_failed_total{{{of}}}");
    assert!(metric(&stand, &failed).await >= Some(1.0));
}
