//! Scorer modules between intake and picker: loaded into a running gateway and taken back, and what
//! those do that do not behave. Nothing a module does may harm a request or a stream.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Answer, EngineOptions, Stand, StandOptions, get, root, wait_until};
use tokio::task::JoinHandle;

use crate::support::{
    BOTH, CHAT, COMPLETIONS, Protocol, completion, line, picked, prose, received, served,
};
use crate::wire::{self, Parts, chunk};

const CHUNKED: (&str, &[u8]) = ("transfer-encoding", b"chunked");

/// What the unruly module does, and whether its scores are then absent for a request.
const DEEDS: [(&str, Said); 9] = [
    ("trap", Said::Nothing),
    ("forbidden", Said::Nothing),
    ("answers", Said::Nothing),
    ("headers", Said::Nothing),
    ("malformed", Said::Nothing),
    ("nan", Said::Nothing),
    ("few", Said::Some),
    ("large", Said::Some),
    ("loop", Said::All),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    Nothing,
    Some,
    All,
}

/// Deeds that end in a trap, and what the module's last words in the log are.
const LAST_WORDS: [&str; 1] = ["a scorer that traps"];

fn options() -> StandOptions {
    let flags = ["--inter-token-ms=20", "--max-model-len=100000"].map(str::to_owned).to_vec();
    StandOptions {
        engines: vec![EngineOptions { flags }; 3],
        workers: 2,
        ..StandOptions::default()
    }
}

/// The configuration with these modules: (name, file, parameters, further keys).
fn configure(stand: &Stand, modules: &[(&str, &str, Value, &str)]) {
    stand.write_config().unwrap();
    let mut text = std::fs::read_to_string(stand.config_file()).unwrap();
    text.push_str(
        "routing:\n  modulePlaces: 12\n  scorers:\n  - {type: prefix-cache, weight: 3}\n",
    );
    for (name, file, parameters, more) in modules {
        let file = root().join("target/wasm").join(file);
        let _ = writeln!(
            text,
            "  - {{type: module, name: {name}, module: {}, parameters: {parameters}{more}}}",
            file.display()
        );
    }
    std::fs::write(stand.config_file(), text).unwrap();
    stand.render().unwrap();
}

fn steady(
    name: &'static str,
    best: &str,
    more: &'static str,
) -> (&'static str, &'static str, Value, &'static str) {
    (name, "steady-scorer.wasm", json!({"best": best}), more)
}

async fn counter(stand: &Stand, name: &str) -> u64 {
    stand.envoy_stat(&format!("wasmcustom.wasm_epp_{name}_total")).await.unwrap()
}

/// Sends requests, each on a connection of its own and so to either worker, until a row of them went
/// where the module says because it says so.
async fn until_first(stand: &Stand, module: &str, address: &str) {
    let what = format!("{address} comes first by {module}");
    let in_a_row = std::cell::Cell::new(0);
    wait_until(&what, Duration::from_secs(60), async || {
        let body = completion(&prose("is it loaded", 300));
        let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
        let engine = served(stand, &answer, &body);
        let says = line(stand, &answer).await.record["modules"][module][address] == 1.0;
        in_a_row.set(if says && engine == address { in_a_row.get() + 1 } else { 0 });
        (in_a_row.get() == 12).then_some(())
    })
    .await
    .unwrap();
}

pub(crate) fn stream(
    stand: &Stand,
    protocol: Protocol,
    number: usize,
    tokens: usize,
) -> JoinHandle<Answer> {
    let prompt = prose(&format!("stream {number}"), 500);
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens, "stream": true,
    });
    let (gateway, body) = (stand.gateway, body.to_string().into_bytes());
    tokio::spawn(async move {
        match protocol {
            Protocol::H1 => {
                let length = body.len().to_string();
                let headers: [(&str, &[u8]); 1] = [("content-length", length.as_bytes())];
                let mut sent = wire::h1_begin(gateway, "POST", CHAT, &headers).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut sent, &body).await.unwrap();
                wire::h1_answer(sent).await.unwrap()
            }
            Protocol::H2 => {
                let mut sender = wire::h2_connect(gateway).await.unwrap();
                let request = wire::h2_request(gateway, CHAT, &[]).unwrap();
                let (response, mut sent) = sender.send_request(request, false).unwrap();
                sent.send_data(body.into(), true).unwrap();
                wire::h2_answer(response.await.unwrap()).await.unwrap()
            }
        }
    })
}

/// Every way in which a request's body may come, by both protocols; each must be forwarded whole.
/// Gives the answers to those that were routed.
async fn every_shape(stand: &Stand, topic: &str) -> Vec<(Answer, String)> {
    let body = completion(&prose(topic, 3_000));
    let mut answers = Vec::new();
    for protocol in BOTH {
        answers.push(protocol.post(stand, COMPLETIONS, &body).await);
    }
    for trailers in [&b""[..], b"x-checksum: 1\r\n"] {
        let mut parts: Vec<Vec<u8>> = body.chunks(700).map(chunk).collect();
        parts.push([&chunk(b"")[..], trailers, b"\r\n"].concat());
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let sent = wire::h1(stand.gateway, "POST", COMPLETIONS, &[CHUNKED], &parts).await;
        answers.push(sent.unwrap());
    }
    let frames: Vec<&[u8]> = body.chunks(700).collect();
    for trailers in [&[][..], &[("x-checksum", &b"1"[..])]] {
        let parts = Parts { data: &frames, trailers };
        answers.push(wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap());
    }
    // Without a body there is nothing to score: the engine refuses it, and nobody else does.
    let empty: [(&str, &[u8]); 1] = [("content-length", b"0")];
    let by_length = wire::h1(stand.gateway, "POST", COMPLETIONS, &empty, &[]).await.unwrap();
    let parts = Parts { data: &[], trailers: &[] };
    let by_headers = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
    for answer in [by_length, by_headers] {
        assert_eq!(answer.status, 400, "{answer:?}");
        received(stand, &answer, b"");
    }
    let models = stand.client().get("/v1/models").await.unwrap();
    assert_eq!(models.status, 200, "{models:?}");
    answers
        .into_iter()
        .map(|answer| {
            let engine = served(stand, &answer, &body);
            (answer, engine)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_are_loaded_into_a_running_gateway_and_harm_nothing() {
    let mut stand = Stand::prepare(options()).await.unwrap();
    let engines: Vec<String> = stand.engines.iter().map(|engine| engine.http.to_string()).collect();
    configure(&stand, &[]);
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    every_shape(&stand, "no modules yet").await;

    // One that behaves, loaded while the gateway runs.
    configure(&stand, &[steady("steady", &engines[1], ", weight: 100")]);
    until_first(&stand, "steady", &engines[1]).await;
    for (answer, engine) in every_shape(&stand, "with a module").await {
        assert_eq!(engine, engines[1]);
        let record = line(&stand, &answer).await.record;
        assert_eq!(record["modules"]["steady"][&engines[1]], 1.0, "{record}");
        assert_eq!(record["modules"]["steady"][&engines[0]], 0.0, "{record}");
    }

    // Streams that run while everything below happens.
    const STREAMS: usize = 12;
    const TOKENS: usize = 3_000;
    let streams: Vec<JoinHandle<Answer>> =
        (0..STREAMS).map(|i| stream(&stand, BOTH[i % 2], i, TOKENS)).collect();
    let active = async |what: &str| {
        let name = "http.inference.downstream_rq_active";
        wait_until(what, Duration::from_secs(20), async || {
            (stand.envoy_stat(name).await.ok()? == STREAMS as u64).then_some(())
        })
        .await
        .unwrap();
    };
    active("all streams are open").await;

    let mut modules = vec![steady("steady", &engines[2], ", weight: 100")];
    modules.extend(DEEDS.map(|(name, _)| (name, "unruly-scorer.wasm", json!({"does": name}), "")));
    configure(&stand, &modules);
    until_first(&stand, "steady", &engines[2]).await;
    is_loaded(&stand).await;
    let before = counts(&stand).await;
    let mut requests = 0;
    for round in 0..4 {
        for (answer, engine) in every_shape(&stand, &format!("unruly {round}")).await {
            requests += 1;
            assert_eq!(engine, engines[2]);
            let record = line(&stand, &answer).await.record;
            for (name, said) in DEEDS {
                let shown = &record["modules"][name];
                assert_eq!(shown.is_string(), said == Said::Nothing, "{name}: {record}");
            }
            assert_eq!(record["modules"]["trap"], "missing", "{record}");
            assert_eq!(record["modules"]["malformed"], "malformed", "{record}");
            assert_eq!(record["modules"]["nan"], "no_scores", "{record}");
        }
    }
    let after = counts(&stand).await;
    for (name, said) in DEEDS {
        let (absent, partial) = (after[name].0 - before[name].0, after[name].1 - before[name].1);
        let expected = match said {
            Said::Nothing => (requests, 0),
            Said::Some => (0, requests),
            Said::All => (0, 0),
        };
        assert_eq!((absent, partial), expected, "{name}");
    }
    let log = String::from_utf8_lossy(&std::fs::read(stand.envoy_log()).unwrap()).into_owned();
    for words in LAST_WORDS {
        assert!(log.contains(words), "the log has no {words:?}");
    }
    assert!(!log.contains("a response callback"), "a response callback was called");
    active("the streams are still open").await;

    // One that pauses. Not with trailers, which Envoy would forward twice.
    let pauses = ("pauses", "unruly-scorer.wasm", json!({"does": "pauses"}), "");
    configure(&stand, &[steady("steady", &engines[2], ", weight: 100"), pauses]);
    is_current(&stand, "scorer-1").await;
    for protocol in BOTH.repeat(3) {
        let body = completion(&prose("paused", 3_000));
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(served(&stand, &answer, &body), engines[2]);
        assert_eq!(line(&stand, &answer).await.record["modules"]["pauses"], "missing");
    }

    // Parameters that the module refuses: Envoy keeps what it has.
    let (name, file, _, more) = steady("steady", "", ", weight: 100");
    let rejected = ".*extension_config_discovery.http_filter.scorer-0.update_rejected";
    assert_eq!(stand.envoy_stat(rejected).await.unwrap(), 0);
    configure(&stand, &[(name, file, json!({"best": 7}), more)]);
    wait_until("the update is rejected", Duration::from_secs(20), async || {
        (stand.envoy_stat(rejected).await.ok()? > 0).then_some(())
    })
    .await
    .unwrap();
    for (_, engine) in every_shape(&stand, "refused parameters").await {
        assert_eq!(engine, engines[2]);
    }
    let log = String::from_utf8_lossy(&std::fs::read(stand.envoy_log()).unwrap()).into_owned();
    let reason = "parameters: best: invalid type: integer `7`, expected a string";
    assert!(log.contains(reason), "the log has no {reason:?}");

    // As a shadow it decides nothing, and is counted where it would have.
    configure(
        &stand,
        &[
            steady("other", &engines[1], ", weight: 100"),
            steady("shadow", &engines[0], ", weight: 1000, shadow: true"),
        ],
    );
    until_first(&stand, "other", &engines[1]).await;
    wait_until("the shadow is loaded", Duration::from_secs(20), async || {
        let body = completion(&prose("shadow", 300));
        served(&stand, &Protocol::H2.post(&stand, COMPLETIONS, &body).await, &body);
        (counter(&stand, "shadow_differs_shadow").await > 0).then_some(())
    })
    .await
    .unwrap();
    let before = (counter(&stand, "shadow_differs_shadow").await, picked(&stand).await);
    for (_, engine) in every_shape(&stand, "shadow").await {
        assert_eq!(engine, engines[1]);
    }
    let after = (counter(&stand, "shadow_differs_shadow").await, picked(&stand).await);
    assert_eq!(after.0 - before.0, after.1 - before.1);

    // Taken back.
    configure(&stand, &[]);
    wait_until("the modules are gone", Duration::from_secs(20), async || {
        let body = completion(&prose("taken back", 300));
        let answer = Protocol::H2.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
        (line(&stand, &answer).await.record["modules"] == json!({})).then_some(())
    })
    .await
    .unwrap();
    every_shape(&stand, "modules gone").await;
    active("no stream has ended early").await;
    for stream in streams {
        let answer = stream.await.unwrap();
        assert_eq!(answer.status, 200);
        let text = String::from_utf8_lossy(&answer.body);
        assert!(text.ends_with("data: [DONE]\n\n"), "a cut stream");
        let pieces = text.matches("\"content\":").count();
        assert!(pieces >= TOKENS, "{pieces} pieces of a stream of {TOKENS} tokens");
    }
}

/// Requests without scores and with some, by module.
async fn counts(stand: &Stand) -> BTreeMap<&'static str, (u64, u64)> {
    let mut counts = BTreeMap::new();
    for (name, _) in DEEDS {
        let absent = counter(stand, &format!("scores_absent_{name}")).await;
        let incomplete = counter(stand, &format!("scores_incomplete_{name}")).await;
        counts.insert(name, (absent, incomplete));
    }
    counts
}

/// Waits until Envoy uses what was rendered for this filter.
async fn is_current(stand: &Stand, filter: &str) {
    let file = stand.rendered().join(format!("ecds/{filter}.yaml"));
    let text = std::fs::read_to_string(file).unwrap();
    let version = text.lines().find_map(|line| line.strip_prefix("version_info: ")).unwrap();
    let page = format!("/stats?filter=http_filter.{filter}.version_text");
    wait_until("the filter is current", Duration::from_secs(20), async || {
        let page = get(stand.envoy_admin, &page).await.ok()?;
        String::from_utf8_lossy(&page.body).contains(version.trim_matches('"')).then_some(())
    })
    .await
    .unwrap();
}

/// Waits until all modules' configurations are in use, and each trapped on some worker.
async fn is_loaded(stand: &Stand) {
    wait_until("all modules are loaded", Duration::from_secs(60), async || {
        let page = get(stand.envoy_admin, "/stats?filter=http_filter.scorer-").await.ok()?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        assert!(!text.contains("update_rejected: 1"), "{text}");
        let body = completion(&prose("is it loaded", 300));
        let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
        served(stand, &answer, &body);
        let modules = line(stand, &answer).await.record["modules"].clone();
        let is_said = DEEDS.iter().all(|(name, said)| {
            !modules[name].is_null() && (modules[name].is_string() == (*said == Said::Nothing))
        });
        let is_odd = modules["malformed"] == "malformed" && modules["nan"] == "no_scores";
        let log = std::fs::read(stand.envoy_log()).ok()?;
        let trapped = String::from_utf8_lossy(&log).contains(LAST_WORDS[0]);
        (is_said && is_odd && trapped).then_some(())
    })
    .await
    .unwrap();
}

/// A callback that is not exported is not called: what a module costs per streamed chunk is nothing
/// because there is nothing to call.
#[test]
fn a_packaged_scorer_exports_what_it_needs_and_imports_what_it_may() {
    let bytes = std::fs::read(root().join("target/wasm/steady-scorer.wasm")).unwrap();
    let (imports, exports) = names(&bytes);
    let callbacks: Vec<&str> =
        exports.iter().map(String::as_str).filter(|name| name.starts_with("proxy_")).collect();
    assert_eq!(
        callbacks,
        [
            "proxy_abi_version_0_2_1",
            "proxy_on_configure",
            "proxy_on_context_create",
            "proxy_on_delete",
            "proxy_on_memory_allocate",
            "proxy_on_request_headers",
        ]
    );
    let calls: Vec<&str> =
        imports.iter().map(String::as_str).filter(|name| name.starts_with("proxy_")).collect();
    assert_eq!(
        calls,
        ["proxy_get_buffer_bytes", "proxy_get_property", "proxy_log", "proxy_set_property"]
    );
}

/// Names of a module's imports and exports, sorted (WebAssembly core specification 5.5).
fn names(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    fn number(bytes: &mut &[u8]) -> usize {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(length);
        *bytes = rest;
        taken
    }
    fn text(bytes: &mut &[u8]) -> String {
        let length = number(bytes);
        String::from_utf8(take(bytes, length).to_vec()).unwrap()
    }
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut rest = &bytes[8..];
    while !rest.is_empty() {
        let id = take(&mut rest, 1)[0];
        let length = number(&mut rest);
        let mut section = take(&mut rest, length);
        if id == 2 {
            for _ in 0..number(&mut section) {
                text(&mut section);
                imports.push(text(&mut section));
                assert_eq!(take(&mut section, 1), [0], "only functions are imported");
                number(&mut section);
            }
        } else if id == 7 {
            for _ in 0..number(&mut section) {
                exports.push(text(&mut section));
                take(&mut section, 1);
                number(&mut section);
            }
        }
    }
    imports.sort();
    exports.sort();
    (imports, exports)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_is_missing_at_the_start_is_only_absent() {
    let mut stand = Stand::prepare(options()).await.unwrap();
    let best = stand.engines[1].http.to_string();
    configure(&stand, &[steady("steady", &best, ", weight: 100"), steady("gone", &best, "")]);
    let gone = std::fs::read_dir(stand.rendered().join("modules")).unwrap();
    for file in gone.map(|file| file.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("scorer-gone-") {
            std::fs::remove_file(file).unwrap();
        }
    }
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    let mut requests = 0;
    for (answer, engine) in every_shape(&stand, "one is missing").await {
        requests += 1;
        assert_eq!(engine, best);
        assert_eq!(line(&stand, &answer).await.record["modules"]["gone"], "missing");
    }
    assert_eq!(counter(&stand, "scores_absent_gone").await, requests);
    assert_eq!(counter(&stand, "scores_absent_steady").await, 0);
}
