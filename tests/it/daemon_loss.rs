//! Without its daemon the gateway goes on: by prefix while the state is fresh, then by load.

use std::path::PathBuf;
use std::time::Duration;

use testbed::{Stand, StandOptions, wait_until};

use crate::support::{
    BOTH, COMPLETIONS, Protocol, assert_fell_back, completion, fallbacks, line, picked, prose,
    question, received, served, teach,
};

/// Two of the heartbeats that the daemon sends each second may be late.
const MAX_STATE_AGE_MS: u64 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_serves_before_without_and_after_its_daemon() {
    let options = StandOptions {
        more_config: format!("routing:\n  maxStateAgeMs: {MAX_STATE_AGE_MS}\n"),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await.unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    before_the_first_daemon_requests_are_left_to_the_proxy(&stand).await;

    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    let prompt = prose("a daemon's life", 3000);
    let body = completion(&prompt);
    let holder = teach(&stand, &body).await;
    let blocks = matched(&stand, &body, &holder).await;
    let seed = std::fs::read(seed_file(&stand)).unwrap();

    stand.daemon.take().unwrap().terminate(Duration::from_secs(10)).await.unwrap();
    while_the_state_is_fresh_nothing_changes(&stand, &body, &holder, blocks).await;
    when_it_is_stale_requests_are_left_to_the_proxy(&stand, &question(&prompt)).await;

    feed_again(&mut stand).await;
    assert_eq!(std::fs::read(seed_file(&stand)).unwrap(), seed);
    assert_eq!(matched(&stand, &body, &holder).await, blocks, "after a restart");

    // A crash says no good-bye.
    stand.daemon.take().unwrap().kill();
    feed_again(&mut stand).await;
    assert_eq!(matched(&stand, &body, &holder).await, blocks, "after a crash");
}

/// Starts the daemon, and waits until the gateway has all that the engines replayed.
async fn feed_again(stand: &mut Stand) {
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    wait_until("the gateway has everything", Duration::from_secs(10), async || {
        let gateways = stand.readyz().await.ok()?["gateways"].clone();
        (gateways[0]["pending"] == 0).then_some(())
    })
    .await
    .unwrap();
}

fn seed_file(stand: &Stand) -> PathBuf {
    stand.folder.path().join("data/seeds/pool.hex")
}

/// The prompt is served by its holder; returns how many blocks were matched.
async fn matched(stand: &Stand, body: &[u8], holder: &str) -> u64 {
    let answer = Protocol::H1.post(stand, COMPLETIONS, body).await;
    let line = line(stand, &answer).await;
    assert_eq!(served(stand, &answer, body), holder, "{line:?}");
    line.scores().unwrap_or_else(|| panic!("no match: {line:?}"))[holder]
}

async fn before_the_first_daemon_requests_are_left_to_the_proxy(stand: &Stand) {
    let before = fallbacks(stand).await;
    for protocol in BOTH {
        let body = completion(&prose("nobody told us", 1000));
        let answer = protocol.post(stand, COMPLETIONS, &body).await;
        served(stand, &answer, &body);
        let line = line(stand, &answer).await;
        assert_eq!((line.reason(), line.picked().len()), (Some("no_state"), 0), "{line:?}");
    }
    assert_fell_back(stand, &before, "no_state", 2).await;
    assert_eq!(picked(stand).await, 0);
}

async fn while_the_state_is_fresh_nothing_changes(
    stand: &Stand,
    body: &[u8],
    holder: &str,
    blocks: u64,
) {
    let before = fallbacks(stand).await;
    assert_eq!(matched(stand, body, holder).await, blocks, "right after the daemon's end");
    assert_eq!(fallbacks(stand).await, before);
}

async fn when_it_is_stale_requests_are_left_to_the_proxy(stand: &Stand, question: &[u8]) {
    // The age at which this happens is the configuration's; the request before was within it.
    let limit = Duration::from_millis(3 * MAX_STATE_AGE_MS);
    wait_until("the state is stale", limit, async || {
        let answer = Protocol::H1.post(stand, COMPLETIONS, question).await;
        received(stand, &answer, question);
        fallbacks(stand).await.contains_key("state_stale").then_some(())
    })
    .await
    .unwrap();
    let before = (fallbacks(stand).await, picked(stand).await);
    for protocol in BOTH {
        let body = completion(&prose("nobody tells us now", 1000));
        let answer = protocol.post(stand, COMPLETIONS, &body).await;
        served(stand, &answer, &body);
        let line = line(stand, &answer).await;
        assert_eq!((line.reason(), line.picked().len()), (Some("state_stale"), 0), "{line:?}");
    }
    assert_fell_back(stand, &before.0, "state_stale", 2).await;
    assert_eq!(picked(stand).await, before.1);
}
