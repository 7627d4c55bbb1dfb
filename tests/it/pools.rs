//! Several pools behind one listener: a request goes to the pool of its model.

use std::collections::BTreeSet;
use std::rc::Rc;

use serde_json::{Value, json};
use testbed::{Answer, Client, EngineOptions, PoolOptions, Stand, StandOptions};

use crate::support::{
    BOTH, COMPLETIONS, Protocol, SERVED, assert_fell_back, cases, counters, fallbacks, line, noted,
    picked, prose, received, served,
};
use crate::wire::{self, Parts, chunk};

/// Engines of "pool" (tiny), "second" (small) and "third" (tiny too, by its path).
const POOL: std::ops::Range<usize> = 0..2;
const SECOND: std::ops::Range<usize> = 2..4;
const THIRD: std::ops::Range<usize> = 4..5;

fn engine(flags: &[&str]) -> EngineOptions {
    let more = ["--num-blocks", "40000", "--max-model-len", "400000"];
    EngineOptions { flags: flags.iter().chain(&more).map(|flag| (*flag).to_owned()).collect() }
}

fn three_pools() -> StandOptions {
    let second = PoolOptions {
        name: "second".into(),
        model: "small".into(),
        aliases: vec!["small-latest".into()],
        adapters: vec!["tables".into(), "sql".into()],
        engines: vec![engine(&["--adapter=tables", "--adapter=poems", "--adapter=sql"]); 2],
        ..PoolOptions::default()
    };
    let third = PoolOptions {
        name: "third".into(),
        model: "tiny".into(),
        route_prefix: Some("/third".into()),
        engines: vec![engine(&[])],
        ..PoolOptions::default()
    };
    StandOptions {
        engines: vec![engine(&["--adapter=sql"]); 2],
        adapters: vec!["sql".into()],
        more_pools: vec![second, third],
        // Nothing is metered until the case that turns it on.
        more_config: "meter: {share: 0}\n".into(),
        ..StandOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_the_pool_of_their_model() {
    let stand = Stand::start(three_pools()).await.unwrap();
    cases!(stand;
        each_cluster_has_its_own_endpoints,
        a_model_leads_to_its_pool_and_is_scored_with_its_state,
        an_alias_leads_to_its_pool_and_reaches_the_engine_as_it_is,
        an_adapter_leads_to_its_pool_once_it_is_known,
        what_both_pools_serve_is_the_routes_own,
        what_nobody_serves_stays,
        a_path_of_a_pool_wins_over_the_model,
        a_client_chooses_no_pool_and_no_engine_sees_one,
        bodies_arrive_whole_in_another_pool,
        a_retry_stays_in_the_pool,
        a_moved_request_is_metered_too,
    );
}

/// The configured names hold without a daemon: an engine of another model could only refuse.
#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_the_pool_of_their_model_without_a_daemon() {
    let mut stand = Stand::prepare(three_pools()).await.unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    for protocol in BOTH {
        for (model, pool) in [("tiny", POOL), ("small", SECOND), ("tables", SECOND), ("sql", POOL)]
        {
            let before = fallbacks(&stand).await;
            let body = ask(model, "no state");
            let answer = protocol.post(&stand, COMPLETIONS, &body).await;
            assert_of(&stand, &served(&stand, &answer, &body), pool);
            assert_eq!(line(&stand, &answer).await.reason(), Some("no_state"));
            assert_fell_back(&stand, &before, "no_state", 1).await;
        }
    }
}

fn ask(model: &str, topic: &str) -> Vec<u8> {
    json!({"model": model, "prompt": prose(topic, 1500), "max_tokens": 1}).to_string().into_bytes()
}

fn addresses(stand: &Stand, pool: std::ops::Range<usize>) -> BTreeSet<String> {
    stand.engines[pool].iter().map(|engine| engine.http.to_string()).collect()
}

#[track_caller]
fn assert_of(stand: &Stand, engine: &str, pool: std::ops::Range<usize>) {
    let pool = addresses(stand, pool);
    assert!(pool.contains(engine), "{engine} is none of {pool:?}");
}

/// Requests that left the pool of their route.
async fn rerouted(stand: &Stand) -> u64 {
    stand.envoy_stat("wasmcustom.wasm_epp_requests_rerouted_total").await.unwrap()
}

/// The request was decided on with the state of `pool`, and served by the first of its list.
async fn assert_picked(stand: &Stand, answer: &Answer, sent: &[u8], pool: std::ops::Range<usize>) {
    let engine = served(stand, answer, sent);
    assert_of(stand, &engine, pool.clone());
    let line = line(stand, answer).await;
    assert_eq!(line.picked().first(), Some(&engine), "{line:?}");
    let (listed, all) = (line.picked().into_iter().collect(), addresses(stand, pool));
    assert_eq!(all.intersection(&listed).count(), listed.len(), "{line:?}");
}

async fn each_cluster_has_its_own_endpoints(stand: Rc<Stand>) {
    for (name, pool) in [("pool", POOL), ("second", SECOND), ("third", THIRD)] {
        let members = stand.envoy_stat(&format!("cluster.{name}.membership_total")).await.unwrap();
        assert_eq!(members, pool.len() as u64, "{name}");
    }
}

async fn a_model_leads_to_its_pool_and_is_scored_with_its_state(stand: Rc<Stand>) {
    for protocol in BOTH {
        let before = (fallbacks(&stand).await, picked(&stand).await, rerouted(&stand).await);
        for (model, pool) in [("tiny", POOL), ("small", SECOND)] {
            let body = ask(model, &format!("{protocol:?}"));
            let batches = stand.event_batches().await.unwrap();
            let answer = protocol.post(&stand, COMPLETIONS, &body).await;
            assert_picked(&stand, &answer, &body, pool.clone()).await;
            let holder = served(&stand, &answer, &body);
            stand.settled(&holder, &batches).await.unwrap();
            let answer = protocol.post(&stand, COMPLETIONS, &body).await;
            assert_picked(&stand, &answer, &body, pool).await;
            let scores = line(&stand, &answer).await.scores().unwrap();
            assert_eq!(scores.into_keys().collect::<Vec<_>>(), [holder]);
        }
        assert_eq!(fallbacks(&stand).await, before.0);
        assert_eq!((picked(&stand).await, rerouted(&stand).await), (before.1 + 4, before.2 + 2));
    }
}

/// The simulated engine knows its model by one name only and answers 404.
async fn an_alias_leads_to_its_pool_and_reaches_the_engine_as_it_is(stand: Rc<Stand>) {
    for protocol in BOTH {
        let (before, body) = (picked(&stand).await, ask("small-latest", "aliases"));
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_of(&stand, &received(&stand, &answer, &body), SECOND);
        assert_eq!(line(&stand, &answer).await.record["model"], "small");
        assert_eq!(picked(&stand).await, before + 1);
    }
}

async fn an_adapter_leads_to_its_pool_once_it_is_known(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = ask("tables", &format!("{protocol:?} tables"));
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_picked(&stand, &answer, &body, SECOND).await;
    }
    let body = ask("poems", "spring");
    let before = fallbacks(&stand).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_eq!(answer.status, 404);
    assert_of(&stand, &received(&stand, &answer, &body), POOL);
    assert_fell_back(&stand, &before, "unknown_model", 1).await;
    // Loaded, and said so in its events, by an engine of the second pool.
    let engine = stand.engines[SECOND.start].http;
    let batches = stand.event_batches().await.unwrap();
    let sent: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(Client::new(engine).post(COMPLETIONS, &sent).await.unwrap().status, 200);
    stand.settled(&engine.to_string(), &batches).await.unwrap();
    for protocol in BOTH {
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(served(&stand, &answer, &body), engine.to_string());
        assert_picked(&stand, &answer, &body, SECOND).await;
    }
    assert_fell_back(&stand, &before, "unknown_model", 1).await;
}

async fn what_both_pools_serve_is_the_routes_own(stand: Rc<Stand>) {
    let before = rerouted(&stand).await;
    for protocol in BOTH {
        for i in 0..4 {
            // "sql" is an adapter of both pools, "tiny" a model of the first and the third.
            for model in ["sql", "tiny"] {
                let body = ask(model, &format!("{protocol:?} {i}"));
                let answer = protocol.post(&stand, COMPLETIONS, &body).await;
                assert_picked(&stand, &answer, &body, POOL).await;
            }
        }
    }
    assert_eq!(rerouted(&stand).await, before);
}

async fn what_nobody_serves_stays(stand: Rc<Stand>) {
    for protocol in BOTH {
        let (before, moved) = (fallbacks(&stand).await, rerouted(&stand).await);
        let body = ask("none such", "nobody");
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(answer.status, 404);
        assert_of(&stand, &received(&stand, &answer, &body), POOL);
        assert_fell_back(&stand, &before, "unknown_model", 1).await;
        assert_eq!(rerouted(&stand).await, moved);
    }
}

async fn a_path_of_a_pool_wins_over_the_model(stand: Rc<Stand>) {
    let path = "/third/v1/completions";
    for protocol in BOTH {
        let (before, moved) = (fallbacks(&stand).await, rerouted(&stand).await);
        let body = ask("tiny", &format!("{protocol:?} third"));
        let answer = protocol.post(&stand, path, &body).await;
        assert_picked(&stand, &answer, &body, THIRD).await;
        let body = ask("small", "elsewhere");
        let answer = protocol.post(&stand, path, &body).await;
        assert_eq!(answer.status, 404);
        assert_of(&stand, &received(&stand, &answer, &body), THIRD);
        assert_fell_back(&stand, &before, "unknown_model", 1).await;
        assert_eq!(rerouted(&stand).await, moved);
    }
}

async fn a_client_chooses_no_pool_and_no_engine_sees_one(stand: Rc<Stand>) {
    for protocol in BOTH {
        for (model, pool, named) in [("tiny", POOL, "second"), ("small", SECOND, "pool")] {
            let headers: [(&str, &[u8]); 2] =
                [("X-Wasm-Epp-Pool", named.as_bytes()), ("x-note", b"kept")];
            let body = ask(model, "own pool");
            let answer = protocol.send(&stand, COMPLETIONS, &headers, &body).await;
            assert_picked(&stand, &answer, &body, pool).await;
            let entry = noted(&stand, &served(&stand, &answer, &body), &answer).await;
            let headers = entry["headers"].as_array().cloned().unwrap_or_default();
            let names: Vec<&str> = headers.iter().filter_map(|pair| pair[0].as_str()).collect();
            assert!(names.contains(&"x-note"), "{names:?}");
            assert!(!names.iter().any(|name| name.starts_with("x-wasm-epp")), "{names:?}");
        }
        // Not even where intake does not look: a path that is not a prompt's.
        let headers: [(&str, &[u8]); 1] = [("x-wasm-epp-pool", b"second")];
        let body = ask("tiny", "tokenize");
        let answer = protocol.send(&stand, "/tokenize", &headers, &body).await;
        assert_of(&stand, answer.header(SERVED), POOL);
    }
}

/// However the body comes, the route is chosen again before any of it goes on.
async fn bodies_arrive_whole_in_another_pool(stand: Rc<Stand>) {
    let before = fallbacks(&stand).await;
    for (bytes, piece) in [(300, 7), (40_000, 1_000), (500_000, 99_999)] {
        let text = prose(&format!("{bytes} bytes"), bytes);
        let body = json!({"model": "small", "prompt": text, "max_tokens": 1}).to_string();
        let body = body.as_bytes();
        let mut answers = Vec::new();
        for protocol in BOTH {
            answers.push(protocol.post(&stand, COMPLETIONS, body).await);
        }
        for trailers in [&b""[..], b"x-checksum: 1\r\n"] {
            let end = [&chunk(b""), trailers, b"\r\n"].concat();
            let chunks: Vec<Vec<u8>> = body.chunks(piece).map(chunk).chain([end]).collect();
            let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let chunked: [(&str, &[u8]); 1] = [("transfer-encoding", b"chunked")];
            let answer = wire::h1(stand.gateway, "POST", COMPLETIONS, &chunked, &parts).await;
            answers.push(answer.unwrap());
        }
        let frames: Vec<&[u8]> = body.chunks(piece).collect();
        let ended: Vec<&[u8]> = frames.iter().copied().chain([&b""[..]]).collect();
        let endings = [
            Parts { data: &frames, trailers: &[] },
            Parts { data: &ended, trailers: &[] },
            Parts { data: &frames, trailers: &[("x-checksum", b"1")] },
        ];
        for parts in endings {
            answers.push(wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap());
        }
        assert_eq!(answers.len(), 7);
        for answer in &answers {
            assert_picked(&stand, answer, body, SECOND).await;
        }
    }
    assert_eq!(fallbacks(&stand).await, before);
}

async fn a_retry_stays_in_the_pool(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = ask("small", &format!("{protocol:?} retries"));
        let batches = stand.event_batches().await.unwrap();
        let first = protocol.post(&stand, COMPLETIONS, &body).await;
        let holder = served(&stand, &first, &body);
        stand.settled(&holder, &batches).await.unwrap();
        let engine = Client::new(stand.engine(&holder).unwrap().http);
        let behave = async |what: &str| {
            let behaviour = json!({"on_request": what});
            assert_eq!(engine.post("/sim/behaviour", &behaviour).await.unwrap().status, 200);
        };
        behave("reset").await;
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        behave("serve").await;
        let next = served(&stand, &answer, &body);
        assert_of(&stand, &next, SECOND);
        assert_eq!(line(&stand, &answer).await.picked(), [holder.clone(), next]);
    }
}

async fn a_moved_request_is_metered_too(stand: Rc<Stand>) {
    let share = async |millionths: u32| {
        let path = format!("/runtime_modify?wasm_epp.meter_share={millionths}");
        let admin = Client::new(stand.envoy_admin);
        assert_eq!(admin.send("POST", &path, &[], "").await.unwrap().status, 200);
    };
    let metered = async || counters(&stand, "wasm_epp_meter_").await.get("answers").copied();
    assert_eq!(metered().await, None, "nothing is metered yet");
    share(1_000_000).await;
    for (i, protocol) in (1..).zip(BOTH) {
        let body = ask("small", "metered");
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_picked(&stand, &answer, &body, SECOND).await;
        let what = "the answer is metered";
        testbed::wait_until(what, std::time::Duration::from_secs(10), async || {
            (metered().await == Some(i)).then_some(())
        })
        .await
        .unwrap();
    }
    share(0).await;
}
