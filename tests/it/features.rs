//! What only some plugins read, from configuration, engines' pages, answers and requests' headers to a
//! scorer module behind real Envoy, which says what it read; sessions; and refusals.

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Answer, EngineOptions, Stand, StandOptions, root, wait_until};

use crate::support::{
    BOTH, CHAT, COMPLETIONS, Protocol, cases, completion, counters, line, prose, served, teach,
};

/// What a module of this name reads, and how much it weighs.
const READERS: [(&str, &str, u32); 11] = [
    ("zone", r#"{by: headerLabel, header: x-zone, label: topology.kubernetes.io/zone}"#, 100),
    ("cost", "{by: attribute, name: cost}", 0),
    ("running", "{by: attribute, name: running-requests-size}", 0),
    ("adapter", "{by: adapter}", 0),
    ("session", "{by: session}", 50),
    ("priority", "{by: priority}", 0),
    ("fairness", "{by: fairnessId}", 0),
    ("slo-ttft", "{by: sloTtft}", 0),
    ("slo-tpot", "{by: sloTpot}", 0),
    ("prefill", "{by: prefillRate}", 0),
    ("tpot", "{by: tpot}", 0),
];

const PREFILL_TOKENS_PER_S: f64 = 20_000.0;
const INTER_TOKEN_MS: f64 = 20.0;

fn routing(session: &str, more: &str) -> String {
    let module = root().join("target/wasm/feature-scorer.wasm");
    let mut text = format!(
        "routing:\n  modulePlaces: {}\n  features:\n    headers: [x-zone]\n    labels: \
         [topology.kubernetes.io/zone]\n    attributes: [cost]\n    rates: true\n    session: {session}\n\
         {more}  scorers:\n  - {{type: prefix-cache, weight: 1}}\n",
        READERS.len(),
    );
    for (name, parameters, weight) in READERS {
        text.push_str(&format!(
            "  - {{type: module, name: {name}, module: {}, weight: {weight}, parameters: {parameters}}}\n",
            module.display(),
        ));
    }
    text
}

/// Engines in zones a, b and c that cost 10, 11 and 12, behind modules that read everything.
async fn start(session: &str, workers: u32) -> Stand {
    let flags = [
        format!("--prefill-tokens-per-s={PREFILL_TOKENS_PER_S}"),
        format!("--inter-token-ms={INTER_TOKEN_MS}"),
        "--adapter=sql".to_owned(),
        "--max-model-len=20000".to_owned(),
        "--num-blocks=4096".to_owned(),
    ];
    let objectives =
        "objectives:\n- {name: chat, priority: 5}\n- {name: batch, priority: 30, pool: pool}\n";
    let meter = "meter: {share: 1, includeUsage: true}\n";
    let options = StandOptions {
        engines: vec![EngineOptions { flags: flags.to_vec() }; 3],
        workers,
        adapters: vec!["sql".into()],
        more_config: format!("{objectives}{meter}{}", routing(session, "")),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await.unwrap();
    let mut text = std::fs::read_to_string(stand.config_file()).unwrap();
    for (i, (engine, zone)) in stand.engines.iter().zip(["a", "b", "c"]).enumerate() {
        let entry = format!("{{address: {}, ", engine.http);
        assert_eq!(text.matches(&entry).count(), 1, "{text}");
        let more = format!(
            "{entry}labels: {{topology.kubernetes.io/zone: {zone}, team: x}}, attributes: {{cost: {}}}, ",
            10 + i
        );
        text = text.replace(&entry, &more);
    }
    std::fs::write(stand.config_file(), text).unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();
    stand
}

/// Scores of a module for the request that was answered so.
async fn said(stand: &Stand, answer: &Answer, module: &str) -> Value {
    line(stand, answer).await.record["modules"][module].clone()
}

/// The same, by engine.
async fn scores(stand: &Stand, answer: &Answer, module: &str) -> Vec<Option<f64>> {
    let said = said(stand, answer, module).await;
    stand.engines.iter().map(|engine| said[engine.http.to_string()].as_f64()).collect()
}

fn about(values: Vec<Option<f64>>, expected: [Option<f64>; 3]) {
    let is = |(value, expected): (&Option<f64>, &Option<f64>)| match (value, expected) {
        (Some(value), Some(expected)) => (value - expected).abs() < 1e-3,
        (value, expected) => value == expected,
    };
    assert!(values.iter().zip(&expected).all(is), "{values:?}, expected {expected:?}");
}

async fn send(stand: &Stand, protocol: Protocol, headers: &[(&str, &[u8])], body: &[u8]) -> Answer {
    protocol.send(stand, COMPLETIONS, headers, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_reads_what_the_configuration_lists() {
    let stand = start("{strategy: encoded_endpoint_header}", 1).await;
    cases!(stand;
        labels_and_attributes_come_from_the_configuration,
        priority_fairness_and_slos_come_from_headers,
        a_token_leads_back_to_the_endpoint_that_gave_it,
        an_adapter_is_active_where_requests_for_it_run,
        streams_tell_how_fast_engines_are,
    );
}

async fn labels_and_attributes_come_from_the_configuration(stand: Rc<Stand>) {
    for protocol in BOTH {
        for (i, zone) in ["a", "b", "c"].into_iter().enumerate() {
            let body = completion(&prose(&format!("{protocol:?} {zone}"), 300));
            let answer = send(&stand, protocol, &[("x-zone", zone.as_bytes())], &body).await;
            assert_eq!(served(&stand, &answer, &body), stand.engines[i].http.to_string());
            let mut expected = [Some(0.0); 3];
            expected[i] = Some(1.0);
            about(scores(&stand, &answer, "zone").await, expected);
            about(scores(&stand, &answer, "cost").await, [Some(0.1), Some(0.11), Some(0.12)]);
            assert!(scores(&stand, &answer, "running").await.iter().all(Option::is_some));
        }
        // Not listed, and not there, are the same.
        let body = completion(&prose(&format!("{protocol:?} nowhere"), 300));
        let answer = send(&stand, protocol, &[("x-other", b"a")], &body).await;
        served(&stand, &answer, &body);
        assert_eq!(said(&stand, &answer, "zone").await, "no_scores");
    }
}

async fn priority_fairness_and_slos_come_from_headers(stand: Rc<Stand>) {
    let body = completion(&prose("what clients say", 300));
    let modules = ["priority", "fairness", "slo-ttft", "slo-tpot"];
    let check = async |headers: &[(&str, &[u8])], expected: [Option<f64>; 4]| {
        for protocol in BOTH {
            let answer = send(&stand, protocol, headers, &body).await;
            served(&stand, &answer, &body);
            for (module, expected) in modules.into_iter().zip(expected) {
                match expected {
                    Some(_) => about(scores(&stand, &answer, module).await, [expected; 3]),
                    None => assert_eq!(said(&stand, &answer, module).await, "no_scores"),
                }
            }
        }
    };
    check(&[], [None; 4]).await;
    check(
        &[
            ("x-llm-d-inference-objective", b"chat"),
            ("x-llm-d-inference-fairness-id", b"tenant"),
            ("x-llm-d-slo-ttft-ms", b"250"),
            ("x-llm-d-slo-tpot-ms", b"40.5"),
        ],
        [Some(0.05), Some(0.06), Some(0.25), Some(0.0405)],
    )
    .await;
    check(
        &[
            ("x-gateway-inference-objective", b"batch"),
            ("x-gateway-inference-fairness-id", b"t"),
            ("x-slo-ttft-ms", b"100"),
        ],
        [Some(0.3), Some(0.01), Some(0.1), None],
    )
    .await;
    check(&[("x-llm-d-inference-objective", b"nobody's")], [Some(0.0), None, None, None]).await;
    let malformed = async || {
        let counts = counters(&stand, "wasm_epp_mishaps_").await;
        counts.get("slo_malformed").copied().unwrap_or(0)
    };
    let before = malformed().await;
    check(&[("x-llm-d-slo-ttft-ms", b"soon")], [None; 4]).await;
    assert_eq!(malformed().await - before, 2, "one by each protocol");
}

/// `text` in base64, by Python.
fn base64(text: &str) -> String {
    let code = "import base64, sys; print(base64.b64encode(sys.argv[1].encode()).decode(), end='')";
    let out = std::process::Command::new("python3").args(["-c", code, text]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

async fn a_token_leads_back_to_the_endpoint_that_gave_it(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = completion(&prose(&format!("{protocol:?} session"), 300));
        let answer = send(&stand, protocol, &[("x-zone", b"b")], &body).await;
        let first = served(&stand, &answer, &body);
        let token = answer.header("x-session-token").to_owned();
        assert_eq!(token, base64(&first));
        for i in 0..6 {
            let body = completion(&prose(&format!("{protocol:?} session {i}"), 300));
            let headers: [(&str, &[u8]); 1] = [("x-session-token", token.as_bytes())];
            let answer = send(&stand, protocol, &headers, &body).await;
            assert_eq!(served(&stand, &answer, &body), first);
            assert_eq!(answer.header("x-session-token"), token);
            about(scores(&stand, &answer, "session").await, [Some(0.0), Some(1.0), Some(0.0)]);
        }
    }
    // Also the answer to a request that nothing was decided for.
    let other = stand.client().get("/v1/models").await.unwrap();
    assert!(other.status == 200 && other.headers.contains_key("x-session-token"), "{other:?}");
}

async fn an_adapter_is_active_where_requests_for_it_run(stand: Rc<Stand>) {
    let ask = |topic: &str, tokens: u32| {
        json!({"model": "sql", "prompt": prose(topic, 300), "max_tokens": tokens})
            .to_string()
            .into_bytes()
    };
    // Nothing runs: every engine has room for its only adapter.
    let all_have_room = async |what: &str| {
        wait_until(what, Duration::from_secs(20), async || {
            let answer = send(&stand, Protocol::H1, &[], &ask("who has it", 1)).await;
            let scores = scores(&stand, &answer, "adapter").await;
            scores.iter().all(|score| score.is_some_and(|s| (s - 0.8).abs() < 1e-3)).then_some(())
        })
        .await
        .unwrap();
    };
    all_have_room("nobody runs the adapter").await;
    let base = completion(&prose("the model itself", 300));
    let answer = send(&stand, Protocol::H1, &[], &base).await;
    assert_eq!(said(&stand, &answer, "adapter").await, "no_scores", "it names no adapter");

    let long = ask("a long one", 500);
    let running = async { send(&stand, Protocol::H2, &[("x-zone", b"c")], &long).await };
    let seen = async {
        wait_until("the third engine runs the adapter", Duration::from_secs(9), async || {
            // To another engine, so that it is not this one that makes it run there.
            let body = ask("who has it now", 1);
            let answer = send(&stand, Protocol::H1, &[("x-zone", b"a")], &body).await;
            let scores = scores(&stand, &answer, "adapter").await;
            let is = |at: usize, expected: f64| {
                scores[at].is_some_and(|score: f64| (score - expected).abs() < 1e-3)
            };
            (is(2, 1.0) && is(1, 0.8)).then_some(())
        })
        .await
        .unwrap();
    };
    let (answer, ()) = tokio::join!(running, seen);
    assert_eq!(served(&stand, &answer, &long), stand.engines[2].http.to_string());
    all_have_room("the adapter is idle again").await;
}

async fn streams_tell_how_fast_engines_are(stand: Rc<Stand>) {
    // To one engine, and one hit first: until it has named one, it is not known whether it counts.
    let zone: [(&str, &[u8]); 1] = [("x-zone", b"b")];
    let engine = stand.engines[1].http.to_string();
    let taught = completion(&prose("a hit", 1000));
    let before = stand.event_batches().await.unwrap();
    served(&stand, &send(&stand, Protocol::H1, &zone, &taught).await, &taught);
    stand.settled(&engine, &before).await.unwrap();
    served(&stand, &send(&stand, Protocol::H1, &zone, &taught).await, &taught);
    let stream = |i: usize| {
        let prompt = prose(&format!("stream {i} of many"), 12_000);
        json!({"model": "tiny", "prompt": prompt, "max_tokens": 6, "stream": true})
            .to_string()
            .into_bytes()
    };
    for i in 0..8 {
        let answer = send(&stand, BOTH[i % 2], &zone, &stream(i)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // What is measured when a stream has ended is there for the next but one request at the latest.
    let (prefill, tpot) = wait_until("the speeds are known", Duration::from_secs(20), async || {
        let body = completion(&prose("how fast", 100));
        let answer = send(&stand, Protocol::H1, &zone, &body).await;
        let of = async |module| scores(&stand, &answer, module).await[1];
        Some((of("prefill").await? * 1e6, of("tpot").await? * 1e3))
    })
    .await
    .unwrap();
    // The engine takes no less than its model says. How much comes on top is the machine's; units would be off by more.
    assert!((0.1..1.02).contains(&(prefill / PREFILL_TOKENS_PER_S)), "{prefill} tokens per second");
    assert!((0.98..10.0).contains(&(tpot / INTER_TOKEN_MS)), "{tpot} ms per token");
    let body = completion(&prose("how fast are others", 100));
    let answer = send(&stand, Protocol::H1, &[], &body).await;
    assert_eq!(scores(&stand, &answer, "prefill").await[0], None, "too few of its answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_remembered_by_all_workers() {
    let stand =
        start("{strategy: session_id, sessionIdConfig: {sources: [{header: x-user}]}}", 2).await;
    for (user, zone, engine) in [("alice", "c", 2), ("bob", "a", 0), ("carol", "b", 1)] {
        let id: (&str, &[u8]) = ("x-user", user.as_bytes());
        let body = completion(&prose(&format!("first of {user}"), 300));
        let answer = send(&stand, Protocol::H1, &[id, ("x-zone", zone.as_bytes())], &body).await;
        assert!(!answer.headers.contains_key("x-session-token"), "{answer:?}");
        let first = served(&stand, &answer, &body);
        assert_eq!(first, stand.engines[engine].http.to_string());
        assert_eq!(scores(&stand, &answer, "session").await, [Some(0.0); 3]);
        // Each on a connection of its own, and so by either worker.
        for i in 0..12 {
            let body = completion(&prose(&format!("{user} {i}"), 300));
            let path = BOTH[i % 2];
            let answer = send(&stand, path, &[id], &body).await;
            assert_eq!(served(&stand, &answer, &body), first, "request {i} of {user}");
        }
    }
    let picked: u64 = stand.envoy_stat("wasmcustom.wasm_epp_requests_picked_total").await.unwrap();
    assert_eq!(picked, 39);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_as_llm_d_does_where_that_is_configured() {
    let options = StandOptions {
        engines: vec![EngineOptions::default(); 2],
        more_config: "routing: {refuse: true}\n".into(),
        ..StandOptions::default()
    };
    let mut stand = Stand::start(options).await.unwrap();
    let dropped = |answer: &Answer| {
        let reason = answer.headers.get("x-llm-d-request-dropped-reason");
        reason.map(|reason| reason.to_str().unwrap().to_owned())
    };
    let reserved = async |stand: &Stand| {
        let details = stand.readyz().await.unwrap();
        details["gateways"][0]["in_flight"].clone()
    };
    let idle = reserved(&stand).await;
    for protocol in BOTH {
        let prefer: [(&str, &[u8]); 1] = [("prefer", b"if-available")];
        let body = completion(&prose(&format!("{protocol:?} nobody has it"), 3000));
        let answer = send(&stand, protocol, &prefer, &body).await;
        assert_eq!((answer.status.as_u16(), dropped(&answer)), (412, None), "{answer:?}");
        let holder = teach(&stand, &body).await;
        let answer = send(&stand, protocol, &prefer, &body).await;
        assert_eq!(served(&stand, &answer, &body), holder);
        // Where the engine would answer the same, with its own words.
        let answer = send(&stand, protocol, &[], b"{\"model\":").await;
        assert_eq!((answer.status.as_u16(), dropped(&answer)), (400, None), "{answer:?}");
        assert!(!answer.headers.contains_key("x-sim-engine"), "{answer:?}");
        let answer = protocol.send(&stand, CHAT, &prefer, b"{\"model\":\"other\"}").await;
        assert!(answer.status == 400 || answer.status == 404, "{answer:?}");
    }
    for engine in &mut stand.engines {
        engine.process.take().unwrap().kill();
    }
    wait_until("the daemon knows that the engines are gone", Duration::from_secs(20), async || {
        let details = stand.readyz().await.ok()?;
        let endpoints = details["endpoints"].as_array()?;
        let are_gone = endpoints.iter().all(|endpoint| endpoint["ready"] == false);
        (are_gone && details["gateways"][0]["pending"] == 0).then_some(())
    })
    .await
    .unwrap();
    for protocol in BOTH {
        let body = completion(&prose("nobody is there", 300));
        let answer = send(&stand, protocol, &[], &body).await;
        let reason = Some("rejected-no-endpoints".to_owned());
        assert_eq!((answer.status.as_u16(), dropped(&answer)), (503, reason), "{answer:?}");
    }
    let refused = counters(&stand, "wasm_epp_requests_refused_").await;
    let expected = [("nothing_held", 2), ("body_not_json", 2), ("none_ready", 2)];
    for (reason, times) in expected {
        assert_eq!(refused.get(reason), Some(&times), "{refused:?}");
    }
    assert_eq!(reserved(&stand).await, idle, "nothing is left reserved");
}
