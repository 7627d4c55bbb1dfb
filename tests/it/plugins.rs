//! Scorers, filters, pickers and profiles, built in and as modules of their own: the same code, so the
//! same numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{EngineOptions, Stand, StandOptions, get, root, wait_until};

use crate::scorers::stream;
use crate::support::{
    BOTH, CHAT, COMPLETIONS, Protocol, assert_fell_back, completion, fallbacks, line, noted, prose,
    served, teach,
};

/// Scorers that are modules too, and parameters where they need some.
const SCORERS: [(&str, &str); 15] = [
    ("prefix-cache", "{matchLengthWeight: 0.5, matchLengthScaleTokens: 500}"),
    ("queue", "{}"),
    ("running-requests", "{}"),
    ("kv-cache-utilization", "{}"),
    ("load-aware", "{threshold: 4}"),
    ("active-request", "{idleThreshold: 1, maxBusyScore: 0.75}"),
    ("token-load", "{queueThresholdTokens: 20000}"),
    ("lora-affinity", "{}"),
    ("session-affinity", "{}"),
    ("context-length-aware", "{}"),
    ("endpoint-attribute", "{attributeKey: power, algorithm: {type: linear_lower_is_better}}"),
    ("header-label-affinity", "{headerName: x-tier, labelKey: tier}"),
    ("topology-affinity", "{peerTopologyHeader: x-peer}"),
    ("latency", "{}"),
    ("lmetric", "{}"),
];

fn options(more_config: String) -> StandOptions {
    let flags = ["--inter-token-ms=20", "--max-model-len=100000"].map(str::to_owned).to_vec();
    StandOptions {
        engines: vec![EngineOptions { flags }; 3],
        more_config,
        ..StandOptions::default()
    }
}

fn module(file: &str) -> String {
    root().join("target/wasm").join(file).display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scorer_says_the_same_as_a_module() {
    let mut routing =
        "routing:\n  modulePlaces: 15\n  scorers:\n  - {type: no-hit-lru}\n".to_owned();
    for (name, parameters) in SCORERS {
        let file = module(&format!("{name}-scorer.wasm"));
        let _ = writeln!(
            routing,
            "  - {{type: {name}, parameters: {parameters}}}\n  - {{type: module, name: {name}, shadow: true, module: {file}, parameters: {parameters}}}"
        );
    }
    let stand = Stand::start(options(routing)).await.unwrap();
    let requests: Vec<(&str, Vec<u8>)> = (0..28usize)
        .map(|i| match i % 4 {
            // Prompts that grow, so that there is something to reuse.
            0 | 1 => (COMPLETIONS, completion(&prose(&format!("topic {}", i % 3), 400 * (i + 1)))),
            2 => (COMPLETIONS, completion(&prose(&format!("only {i}"), 10 + 900 * i))),
            _ => {
                let text = prose(&format!("topic {}", i % 3), 150 * i);
                let messages = json!([{"role": "user", "content": text}]);
                let body = json!({"model": "tiny", "messages": messages, "max_tokens": 1});
                (CHAT, body.to_string().into_bytes())
            }
        })
        .collect();
    let mut streams = Vec::new();
    // By scorer, the values that it gave to endpoints of one request, where they differ.
    let mut told_apart: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut held, mut busy) = (0, 0);
    for (i, (path, body)) in requests.iter().enumerate() {
        if i % 5 == 1 {
            streams.push(stream(&stand, BOTH[i % 2], i, 4_000));
            let name = "http.inference.downstream_rq_active";
            wait_until("the stream is open", Duration::from_secs(20), async || {
                (stand.envoy_stat(name).await.ok()? == streams.len() as u64).then_some(())
            })
            .await
            .unwrap();
        }
        let answer = BOTH[i / 2 % 2].post(&stand, path, body).await;
        served(&stand, &answer, body);
        let record = line(&stand, &answer).await.record;
        held += usize::from(!record["scores"].is_null());
        busy += usize::from(record["in_flight"] != json!({}));
        for (name, _) in SCORERS {
            let (own, said) = (&record["scorers"][name], &record["modules"][name]);
            let own_map = own.as_object().unwrap();
            assert_eq!(own_map.len(), 3, "{record}");
            if own_map.values().all(Value::is_null) {
                assert_eq!(said, "no_scores", "{name} of request {i}: {record}");
                continue;
            }
            assert_eq!(own, said, "{name} of request {i}: {record}");
            let values: BTreeSet<String> = own_map.values().map(Value::to_string).collect();
            *told_apart.entry(name).or_default() += usize::from(values.len() > 1);
        }
        assert!(record["scorers"]["no-hit-lru"].is_object(), "{record}");
    }
    // The requests were not all alike.
    assert!(held >= 8 && busy >= 8, "{held} hits, {busy} with something in flight");
    for name in [
        "prefix-cache",
        "running-requests",
        "kv-cache-utilization",
        "active-request",
        "token-load",
        "latency",
        "lmetric",
    ] {
        let count = told_apart.get(name).copied().unwrap_or(0);
        assert!(count >= 3, "{name} told endpoints apart {count} times: {told_apart:?}");
    }
    streams.into_iter().for_each(|stream| stream.abort());
}

/// Writes another `routing` section and waits until the gateway uses it.
async fn configure(stand: &Stand, routing: &str) {
    stand.write_config().unwrap();
    let text = std::fs::read_to_string(stand.config_file()).unwrap();
    std::fs::write(stand.config_file(), format!("{text}{routing}")).unwrap();
    stand.render().unwrap();
    for filter in ["picker", "scorer-0"] {
        let file = stand.rendered().join(format!("ecds/{filter}.yaml"));
        let text = std::fs::read_to_string(file).unwrap();
        let version = text.lines().find_map(|line| line.strip_prefix("version_info: ")).unwrap();
        let page = format!("/stats?filter=http_filter.{filter}.version_text");
        wait_until(&format!("{filter} is current"), Duration::from_secs(20), async || {
            let page = get(stand.envoy_admin, &page).await.ok()?;
            String::from_utf8_lossy(&page.body).contains(version.trim_matches('"')).then_some(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_pickers_and_profiles_decide_with_and_without_modules() {
    let stand = Stand::start(options(String::new())).await.unwrap();
    let affinity = format!(
        "{{type: module, name: affinity, module: {}",
        module("prefix-cache-affinity-filter.wasm")
    );
    // Whoever holds the prompt is left alone with it, whatever the picker draws; the module, recorded
    // only, would have kept the same.
    configure(
        &stand,
        &format!(
            "routing:\n  filters: [{{type: prefix-cache-affinity}}, {affinity}, shadow: true}}]\n  scorers: []\n  picker: {{type: random}}\n"
        ),
    )
    .await;
    let body = completion(&prose("affinity", 3_000));
    let holder = teach(&stand, &body).await;
    let others: Vec<String> = stand
        .engines
        .iter()
        .map(|engine| engine.http.to_string())
        .filter(|address| *address != holder)
        .collect();
    let filtered = |by: &str| {
        others.iter().map(|address| (address.clone(), json!(by))).collect::<BTreeMap<_, _>>()
    };
    for protocol in BOTH.repeat(3) {
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(served(&stand, &answer, &body), holder);
        let record = line(&stand, &answer).await.record;
        assert_eq!(record["filtered"], json!(filtered("prefix-cache-affinity")), "{record}");
        let keeps = |address: &String| record["modules"]["affinity"][address].as_f64();
        assert_eq!(keeps(&holder), Some(1.0), "{record}");
        assert!(others.iter().all(|address| keeps(address) == Some(0.0)), "{record}");
    }
    let shadow = "wasmcustom.wasm_epp_shadow_differs_affinity_total";
    assert_eq!(stand.envoy_stat(shadow).await.unwrap(), 0);
    // A prompt that nobody holds is drawn for: sixteen go to each engine or so.
    let mut drawn = BTreeSet::new();
    for i in 0..48 {
        let body = completion(&prose(&format!("drawn {i}"), 300));
        drawn.insert(served(&stand, &Protocol::H1.post(&stand, COMPLETIONS, &body).await, &body));
    }
    assert_eq!(drawn.len(), 3, "48 draws of 3 miss one with a chance of 3 (2/3)^48 = 1e-8");

    // The module alone does the same.
    configure(
        &stand,
        &format!(
            "routing:\n  filters: [{affinity}}}]\n  scorers: []\n  picker: {{type: random}}\n"
        ),
    )
    .await;
    for protocol in BOTH.repeat(3) {
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(served(&stand, &answer, &body), holder);
        let record = line(&stand, &answer).await.record;
        assert_eq!(record["filtered"], json!(filtered("affinity")), "{record}");
    }

    // Filters that leave nobody: counted, and the proxy's own policy routes.
    configure(
        &stand,
        "routing: {filters: [{type: label-selector, parameters: {matchLabels: {app: other}}}]}\n",
    )
    .await;
    let before = fallbacks(&stand).await;
    served(&stand, &Protocol::H2.post(&stand, COMPLETIONS, &body).await, &body);
    assert_fell_back(&stand, &before, "filtered", 1).await;

    // Two profiles: one routes, the other one's choice goes to the engine's sidecar by a header.
    configure(
        &stand,
        "routing:\n  profiles:\n  - {name: decode, scorers: [{type: queue}]}\n  - {name: prefill, scorers: [{type: prefix-cache}]}\n  profileHandler: {type: disagg, parameters: {nonCachedTokens: 0}}\n",
    )
    .await;
    // A prompt that one engine holds: the proxy's policy has spread the other one.
    let body = completion(&prose("prefilled", 3_000));
    let holder = teach(&stand, &body).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    let engine = served(&stand, &answer, &body);
    let record = line(&stand, &answer).await.record;
    assert_eq!(
        (&record["profile"], &record["others"]["prefill"][0]),
        (&json!("decode"), &json!(holder))
    );
    let note = noted(&stand, &engine, &answer).await;
    let prefiller = json!(["x-prefiller-host-port", holder]);
    assert!(note["headers"].as_array().unwrap().contains(&prefiller), "{note}");
    // A client cannot name one.
    configure(&stand, "routing: {scorers: [{type: queue}]}\n").await;
    let forged: [(&str, &[u8]); 1] = [("x-prefiller-host-port", b"127.0.0.1:1")];
    let answer = Protocol::H1.send(&stand, COMPLETIONS, &forged, &body).await;
    let engine = served(&stand, &answer, &body);
    let note = noted(&stand, &engine, &answer).await.to_string();
    assert!(!note.contains("x-prefiller-host-port"), "{note}");
}
