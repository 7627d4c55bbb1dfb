//! Engines die before, while and after they take a request; the client sees 200.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Client, Stand, StandOptions, wait_until};

use crate::support::{
    BOTH, COMPLETIONS, Protocol, assert_fell_back, completion, fallbacks, line, noted, prose,
    served, sha256, teach,
};

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_served_while_one_engine_is_alive() {
    let mut stand = Stand::start(StandOptions::default()).await.unwrap();
    for behaviour in ["reset", "status"] {
        for protocol in BOTH {
            the_next_in_the_list_serves_what_the_first_dropped(&stand, protocol, behaviour).await;
        }
    }

    let body = completion(&prose("a prefix", 3000));
    let holder = teach(&stand, &body).await;
    stop(&mut stand, &holder);
    // Still picked first for as long as nobody has noticed.
    for protocol in BOTH {
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_ne!(served(&stand, &answer, &body), holder);
    }
    gone(&stand, &holder).await;
    a_stopped_engine_is_not_picked(&stand, &body, &holder).await;

    let rest: Vec<String> = stand.engines.iter().map(|engine| engine.http.to_string()).collect();
    for address in rest {
        stop(&mut stand, &address);
        gone(&stand, &address).await;
    }
    let before = fallbacks(&stand).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_fell_back(&stand, &before, "none_ready", 1).await;
}

async fn behave(stand: &Stand, address: &str, behaviour: &Value) {
    let engine = Client::new(stand.engine(address).unwrap().http);
    assert_eq!(engine.post("/sim/behaviour", behaviour).await.unwrap().status, 200);
}

async fn the_next_in_the_list_serves_what_the_first_dropped(
    stand: &Stand,
    protocol: Protocol,
    behaviour: &str,
) {
    let body = completion(&prose(&format!("{protocol:?} {behaviour}"), 3000));
    let holder = teach(stand, &body).await;
    behave(stand, &holder, &json!({"on_request": behaviour})).await;
    let before = fallbacks(stand).await;
    let answer = protocol.post(stand, COMPLETIONS, &body).await;
    let line = line(stand, &answer).await;
    assert_eq!((line.picked().len(), &line.picked()[0]), (3, &holder), "{line:?}");
    assert_eq!(served(stand, &answer, &body), line.picked()[1], "{line:?}");
    let first_try = noted(stand, &holder, &answer).await;
    assert_eq!(first_try["body_sha256"], sha256(&body));
    assert_eq!(fallbacks(stand).await, before);

    behave(stand, &holder, &json!({"on_request": "serve"})).await;
}

fn stop(stand: &mut Stand, address: &str) {
    let engine = stand.engines.iter_mut().find(|engine| engine.http.to_string() == address);
    if let Some(process) = engine.unwrap().process.take() {
        process.kill();
    }
}

/// Waits until the daemon knows that the engine is gone, and has told the gateway.
async fn gone(stand: &Stand, address: &str) {
    wait_until("the engine's end is known", Duration::from_secs(10), async || {
        let details = stand.readyz().await.ok()?;
        let mut endpoints = details["endpoints"].as_array()?.iter();
        let endpoint = endpoints.find(|endpoint| endpoint["address"] == address)?;
        let is_pushed = details["gateways"][0]["pending"] == 0;
        (endpoint["ready"] == false && is_pushed).then_some(())
    })
    .await
    .unwrap();
}

async fn a_stopped_engine_is_not_picked(stand: &Stand, held_by_it: &[u8], stopped: &str) {
    for protocol in BOTH {
        for i in 0..6 {
            let new = completion(&prose(&format!("{protocol:?} {i}"), 500));
            for body in [held_by_it, &new] {
                let answer = protocol.post(stand, COMPLETIONS, body).await;
                let line = line(stand, &answer).await;
                assert_eq!(served(stand, &answer, body), line.picked()[0]);
                assert!(!line.picked().iter().any(|address| address == stopped), "{line:?}");
            }
        }
    }
}
