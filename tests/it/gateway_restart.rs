//! A new Envoy has empty shared data: the daemon's next connection finds it out and fills it.

use std::time::Duration;

use testbed::{Stand, StandOptions, get, wait_until};

use crate::support::{
    BOTH, COMPLETIONS, Protocol, completion, line, prose, question, received, served, teach,
};

/// The daemon opens a fresh connection each second; a snapshot of this size takes milliseconds.
const FOUND_OUT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_new_gateway_process_routes_by_prefix_within_seconds() {
    let mut stand = Stand::prepare(StandOptions::default()).await.unwrap();
    stand.render().unwrap();
    // Any number that no other Envoy of this machine has; the port is ours alone.
    let base_id = stand.gateway.port().to_string();
    let epoch = |number| ["--base-id", base_id.as_str(), "--restart-epoch", number];
    stand.start_envoy(&epoch("0")).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    let prompt = prose("restarts", 3000);
    let holder = teach(&stand, &completion(&prompt)).await;
    let first = instance(&stand).await;

    // Hot: the old process goes on beside the new one, and with it the daemon's old connection.
    let mut old = stand.envoy.take().unwrap();
    stand.start_envoy(&epoch("1")).await.unwrap();
    wait_until("the new process has the listeners", Duration::from_secs(20), async || {
        let info = get(stand.envoy_admin, "/server_info").await.ok()?.json().ok()?;
        let is_new = info["command_line_options"]["restart_epoch"] == 1;
        (is_new && info["state"] == "LIVE").then_some(())
    })
    .await
    .unwrap();
    // A new connection is a connection to the new process, which at first knows nothing.
    routes_by_prefix(&stand, &prompt, &holder).await;
    let second = instance(&stand).await;
    assert_ne!(first, second);
    old.check().expect("the old process is alive all the while");
    old.kill();
    routes_by_prefix(&stand, &prompt, &holder).await;

    // Cold: nothing is left of the process, and for a while nothing listens.
    stand.envoy.take().unwrap().kill();
    wait_until("the daemon notices", Duration::from_secs(10), async || {
        let gateways = stand.readyz().await.ok()?["gateways"].clone();
        (gateways[0]["state"] == "disconnected").then_some(())
    })
    .await
    .unwrap();
    stand.start_envoy(&[]).await.unwrap();
    routes_by_prefix(&stand, &prompt, &holder).await;
    let third = instance(&stand).await;
    assert!(third != first && third != second);
}

/// Asks until the prompt is routed by prefix; every answer before is good too, and says that there
/// was no state. Then its holder serves it.
async fn routes_by_prefix(stand: &Stand, prompt: &str, holder: &str) {
    let (asked, other) = (question(prompt), completion(&prose("meanwhile", 500)));
    wait_until("the new process routes by prefix", FOUND_OUT, async || {
        let answer = Protocol::H1.post(stand, COMPLETIONS, &other).await;
        served(stand, &answer, &other);
        let answer = Protocol::H1.post(stand, COMPLETIONS, &asked).await;
        let engine = received(stand, &answer, &asked);
        let line = line(stand, &answer).await;
        if let Some(reason) = line.reason() {
            assert!(["no_state", "state_incomplete"].contains(&reason), "{line:?}");
            return None;
        }
        assert_eq!(line.picked()[0], engine, "{line:?}");
        line.scores()?.contains_key(holder).then_some(())
    })
    .await
    .unwrap();
    for protocol in BOTH {
        let body = completion(prompt);
        let answer = protocol.post(stand, COMPLETIONS, &body).await;
        assert_eq!(served(stand, &answer, &body), holder);
    }
}

async fn instance(stand: &Stand) -> String {
    stand.readyz().await.unwrap()["gateways"][0]["instance"].as_str().unwrap().to_owned()
}
