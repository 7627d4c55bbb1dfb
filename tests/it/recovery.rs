//! A daemon that was killed is right again at once: from its own snapshot, or from a peer's, where
//! engines cannot replay what it missed. What cannot be proven to be still so is void.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Client, EngineOptions, Stand, StandOptions, get, port, wait_until};

use crate::support::{
    COMPLETIONS, Protocol, completion, line, prose, question, received, served, teach,
};

const SOON: Duration = Duration::from_secs(20);
const OFTEN: &str = "snapshot: {intervalSeconds: 1}\n";
const AT_THE_END: &str = "snapshot: {intervalSeconds: 86400}\n";

/// Engines that stay where they are when they start again.
fn options(engines: usize, flags: &[&str], more_config: &str) -> StandOptions {
    let engine = |_| {
        let address = |flag: &str, scheme: &str| {
            format!("--{flag}={scheme}127.0.0.1:{}", port().expect("a port"))
        };
        let mut all = vec![address("http", ""), address("kv-events", "tcp://")];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        EngineOptions { flags: all }
    };
    StandOptions {
        engines: (0..engines).map(engine).collect(),
        more_config: more_config.to_owned(),
        ..StandOptions::default()
    }
}

/// Everything is started, and the daemon hears every engine.
async fn started(options: StandOptions) -> Stand {
    let mut stand = Stand::prepare(options).await.unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    every_engine_is_heard(&stand, stand.daemon_admin).await;
    stand
}

/// What is published before a subscription takes effect is lost without a replay.
async fn every_engine_is_heard(stand: &Stand, daemon: SocketAddr) {
    for engine in &stand.engines {
        let address = engine.http.to_string();
        let mut n = 0;
        wait_until("the engine is heard", SOON, async || {
            n += 1;
            let prompt = prose(&format!("call {n} of {daemon}"), 300);
            let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
            Client::new(engine.http).post(COMPLETIONS, &body).await.ok()?;
            (endpoint(daemon, &address).await?["event_batches"].as_u64()? > 0).then_some(())
        })
        .await
        .unwrap();
    }
}

pub(crate) async fn readyz(daemon: SocketAddr) -> Option<Value> {
    get(daemon, "/readyz").await.ok()?.json().ok()
}

pub(crate) async fn endpoint(daemon: SocketAddr, address: &str) -> Option<Value> {
    let details = readyz(daemon).await?;
    let mut endpoints = details["endpoints"].as_array()?.iter();
    endpoints.find(|endpoint| endpoint["address"] == address).cloned()
}

/// Blocks by endpoint, once all events have arrived.
pub(crate) async fn held_blocks(daemon: SocketAddr) -> BTreeMap<String, u64> {
    let details = readyz(daemon).await.unwrap();
    let of = |endpoint: &Value| {
        let address = endpoint["address"].as_str().unwrap().to_owned();
        (address, endpoint["held_blocks"].as_u64().unwrap())
    };
    details["endpoints"].as_array().unwrap().iter().map(of).collect()
}

/// The engines' own numbers of the last batches that the daemon has applied, by endpoint. What two
/// daemons count since they were started differs; these do not.
async fn sequences(daemon: SocketAddr) -> Option<BTreeMap<String, u64>> {
    let details = readyz(daemon).await?;
    let of = |endpoint: &Value| {
        Some((endpoint["address"].as_str()?.to_owned(), endpoint["sequence"].as_u64()?))
    };
    details["endpoints"].as_array()?.iter().map(of).collect()
}

/// Waits until both daemons have applied the same batches of every engine.
pub(crate) async fn have_heard_the_same(first: SocketAddr, second: SocketAddr) {
    wait_until("both daemons have heard the same", SOON, async || {
        (sequences(first).await? == sequences(second).await?).then_some(())
    })
    .await
    .unwrap();
}

/// Waits until what is known now is on disk: of the next two snapshots the second began later.
async fn snapshot_is_written(stand: &Stand) {
    let written = async || readyz(stand.daemon_admin).await?["snapshots"]["written"].as_u64();
    let before = written().await.unwrap();
    wait_until("two more snapshots are written", SOON, async || {
        (written().await? >= before + 2).then_some(())
    })
    .await
    .unwrap();
}

pub(crate) async fn gateway_has_everything(stand: &Stand) {
    wait_until("the gateway has everything", SOON, async || {
        let gateway = readyz(stand.daemon_admin).await?["gateways"][0].clone();
        (gateway["state"] == "live" && gateway["pending"] == 0).then_some(())
    })
    .await
    .unwrap();
}

/// Matched blocks by endpoint for a request that leaves no trace in the engines.
pub(crate) async fn matched(stand: &Stand, prompt: &str) -> BTreeMap<String, u64> {
    let body = question(prompt);
    let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
    received(stand, &answer, &body);
    let line = line(stand, &answer).await;
    line.scores().unwrap_or_else(|| panic!("nobody holds it: {line:?}"))
}

/// Waits until all of the engine's state is void.
async fn is_void(stand: &Stand, address: &str, counter: &str) {
    wait_until("the engine's old blocks are void", SOON, async || {
        let endpoint = endpoint(stand.daemon_admin, address).await?;
        let is_void = endpoint["restored"].is_null() && endpoint[counter].as_u64()? == 1;
        is_void.then_some(())
    })
    .await
    .unwrap();
}

/// Some prompts, the first of them followed up as a chat is. Gives the last one and who holds it.
async fn chats(stand: &Stand) -> (String, String) {
    for topic in ["rivers", "mountains"] {
        teach(stand, &completion(&prose(topic, 2000))).await;
    }
    let mut prompt = prose("the sea", 1500);
    let mut holder = teach(stand, &completion(&prompt)).await;
    for turn in 0..2 {
        prompt.push_str(&prose(&format!("turn {turn}"), 700));
        holder = teach(stand, &completion(&prompt)).await;
    }
    (prompt, holder)
}

/// The state is the one of before, and events keep applying to it.
async fn is_as_before(
    stand: &Stand,
    held: &BTreeMap<String, u64>,
    scores: &BTreeMap<String, u64>,
    (prompt, holder): (&str, &str),
    origin: &str,
) {
    let daemon = stand.daemon_admin;
    wait_until("the daemon is connected to the engines again", SOON, async || {
        let details = readyz(daemon).await?;
        let mut endpoints = details["endpoints"].as_array()?.iter();
        endpoints
            .all(|endpoint| endpoint["ready"] == true && endpoint["source"] == "resyncing")
            .then_some(())
    })
    .await
    .unwrap();
    assert_eq!(&held_blocks(daemon).await, held);
    for (address, blocks) in held {
        let restored = endpoint(daemon, address).await.unwrap()["restored"].clone();
        assert_eq!(restored, json!({"from": origin, "blocks": blocks}));
    }
    gateway_has_everything(stand).await;
    assert_eq!(&matched(stand, prompt).await, scores);

    let longer = format!("{prompt}{}", prose("one more turn", 900));
    let before = stand.event_batches().await.unwrap();
    let body = completion(&longer);
    let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
    assert_eq!(served(stand, &answer, &body), holder);
    assert_ne!(answer.header("x-sim-cached-tokens"), "0");
    stand.settled(holder, &before).await.unwrap();
    let of_holder = endpoint(daemon, holder).await.unwrap();
    assert_eq!((&of_holder["resets"], &of_holder["fenced"]), (&json!(0), &json!(0)));
    assert!(["live", "degraded"].contains(&of_holder["source"].as_str().unwrap()), "{of_holder}");
    assert!(of_holder["held_blocks"].as_u64().unwrap() > held[holder], "{of_holder}");
    assert!(matched(stand, &longer).await[holder] > scores[holder]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_goes_on_from_its_snapshot() {
    let mut stand = started(options(3, &["--no-replay"], OFTEN)).await;
    let (prompt, holder) = chats(&stand).await;
    let (held, scores) = (held_blocks(stand.daemon_admin).await, matched(&stand, &prompt).await);
    snapshot_is_written(&stand).await;
    stand.daemon.take().unwrap().kill();

    let file = stand.data_dir().join("snapshot");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&file).unwrap();
    for text in ["river", "mountain", "the sea"] {
        assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
    }

    stand.start_daemon().unwrap();
    is_as_before(&stand, &held, &scores, (&prompt, &holder), "the disk").await;
    let metrics = get(stand.daemon_admin, "/metrics").await.unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let blocks = held[&holder];
    let expected = format!("endpoint=\"{holder}\",from=\"disk\"}} {blocks}");
    assert!(metrics.contains(&expected), "{expected} in {metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_events_named_is_still_known_after_a_restart() {
    let mut stand = started(options(2, &["--no-replay", "--adapter=sql"], OFTEN)).await;
    let prompt = prose("tables", 1500);
    let body = json!({"model": "sql", "prompt": prompt, "max_tokens": 1}).to_string().into_bytes();
    let holder = teach(&stand, &body).await;
    snapshot_is_written(&stand).await;
    stand.daemon.take().unwrap().kill();
    stand.start_daemon().unwrap();
    gateway_has_everything(&stand).await;
    // Asked without leaving a trace, so that no event can name it again.
    let body = json!({"model": "sql", "prompt": prompt, "max_tokens": 0}).to_string().into_bytes();
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    received(&stand, &answer, &body);
    let line = line(&stand, &answer).await;
    let scores = line.scores().unwrap_or_else(|| panic!("nobody holds it: {line:?}"));
    assert_eq!(scores.keys().collect::<Vec<_>>(), [&holder]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_goes_on_from_its_peer() {
    let mut stand = started(options(2, &["--no-replay"], "")).await;
    let (_second, peer) = stand.start_second_daemon().unwrap();
    every_engine_is_heard(&stand, peer).await;
    // The one that started last feeds the gateway.
    stand.daemon.take().unwrap().kill();
    stand.start_daemon().unwrap();
    every_engine_is_heard(&stand, stand.daemon_admin).await;
    have_heard_the_same(stand.daemon_admin, peer).await;
    gateway_has_everything(&stand).await;
    let (prompt, holder) = chats(&stand).await;
    let scores = matched(&stand, &prompt).await;
    have_heard_the_same(stand.daemon_admin, peer).await;
    let held = held_blocks(peer).await;
    assert!(held[&holder] > scores[&holder]);
    stand.daemon.take().unwrap().kill();
    let data = stand.data_dir();
    assert!(!data.join("snapshot").exists());
    // A third one is not there; that is no reason not to start.
    let nobody = SocketAddr::from(([127, 0, 0, 1], port().unwrap()));
    stand.start_daemon_beside(&[nobody, peer]).unwrap();
    let origin = format!("peer {peer}");
    is_as_before(&stand, &held, &scores, (&prompt, &holder), &origin).await;
    let snapshots = readyz(stand.daemon_admin).await.unwrap()["snapshots"].clone();
    let error = snapshots["error"].as_str().unwrap();
    assert_eq!(snapshots["refused"], 1);
    assert!(error.starts_with(&format!("snapshot of peer {nobody} cannot be fetched")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_reaches_back_to_the_snapshot_proves_it_and_another_voids_it() {
    let mut stand = started(options(2, &["--buffer-steps", "1"], OFTEN)).await;
    for i in 0..2 {
        for n in 0..3 {
            direct(&stand, i, &prose(&format!("engine {i} prompt {n}"), 900)).await;
        }
    }
    wait_until("all blocks are known", SOON, async || {
        let held = held_blocks(stand.daemon_admin).await;
        held.values().all(|blocks| *blocks > 3 * 10).then_some(())
    })
    .await
    .unwrap();
    snapshot_is_written(&stand).await;
    let held = held_blocks(stand.daemon_admin).await;
    stand.daemon.take().unwrap().kill();
    // More than the buffer keeps.
    for n in 0..3 {
        direct(&stand, 1, &prose(&format!("meanwhile {n}"), 900)).await;
    }
    stand.start_daemon().unwrap();
    let (same, other) = (stand.engines[0].http.to_string(), stand.engines[1].http.to_string());
    is_void(&stand, &other, "resets").await;
    wait_until("the source is proven", SOON, async || {
        let endpoint = endpoint(stand.daemon_admin, &same).await?;
        ["live", "degraded"].contains(&endpoint["source"].as_str()?).then_some(())
    })
    .await
    .unwrap();
    let endpoint = endpoint(stand.daemon_admin, &same).await.unwrap();
    assert_eq!((&endpoint["resets"], &endpoint["held_blocks"]), (&json!(0), &json!(held[&same])));
    assert!(held_blocks(stand.daemon_admin).await[&other] < held[&other]);
}

/// Sends a prompt to an engine past the gateway.
async fn direct(stand: &Stand, i: usize, prompt: &str) {
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
    let answer = Client::new(stand.engines[i].http).post(COMPLETIONS, &body).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_restarted_meanwhile_holds_nothing() {
    let mut stand = started(options(2, &["--no-replay"], OFTEN)).await;
    chats(&stand).await;
    snapshot_is_written(&stand).await;
    let held = held_blocks(stand.daemon_admin).await;
    stand.daemon.take().unwrap().kill();
    let (restarted, other) = (stand.engines[0].http.to_string(), stand.engines[1].http.to_string());
    assert!(held[&restarted] > 0);
    stand.restart_engine(0).unwrap();
    assert_eq!(stand.engines[0].http.to_string(), restarted, "on the same address");
    stand.start_daemon().unwrap();
    // It has published nothing yet: its page tells.
    is_void(&stand, &restarted, "fenced").await;
    let now = held_blocks(stand.daemon_admin).await;
    assert_eq!((now[&restarted], now[&other]), (0, held[&other]));
    let endpoint = endpoint(stand.daemon_admin, &other).await.unwrap();
    assert_eq!(endpoint["restored"]["blocks"], held[&other]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_used_is_refused_in_words_and_the_daemon_goes_on() {
    let options = options(1, &["--no-replay"], AT_THE_END);
    let mut stand = started(options).await;
    chats(&stand).await;
    let held = held_blocks(stand.daemon_admin).await;
    // A clean stop leaves one, long before it would be time.
    stand.daemon.take().unwrap().terminate(Duration::from_secs(10)).await.unwrap();
    let file = stand.data_dir().join("snapshot");
    let good = std::fs::read(&file).unwrap();

    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        bytes
    };
    let mut future = good.clone();
    future[8] = 99;
    let cases = [
        (changed(good.len() / 2), "snapshot of the disk, pool pool, model tiny: is damaged"),
        (good[..good.len() / 2].to_vec(), "snapshot of the disk is too short"),
        (future, "snapshot of the disk version 99 is not understood, only 1"),
        (b"something else".to_vec(), "snapshot of the disk is no snapshot"),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&file, bytes).unwrap();
        stand.start_daemon().unwrap();
        let details = up(&stand).await;
        assert_eq!(details["snapshots"]["refused"], 1, "{expected}");
        assert_eq!(details["snapshots"]["error"], expected);
        assert_eq!(details["endpoints"][0]["restored"], Value::Null);
        assert_eq!(details["endpoints"][0]["held_blocks"], 0);
        let log = std::fs::read_to_string(stand.daemon_log()).unwrap();
        assert!(log.contains(&format!("{expected}: going on without it")), "{log}");
        stand.daemon.take().unwrap().kill();
    }

    // Of another pool's daemons.
    std::fs::write(&file, &good).unwrap();
    let seed = stand.data_dir().join("seeds/pool.hex");
    let ours = std::fs::read(&seed).unwrap();
    std::fs::write(&seed, "ab".repeat(64)).unwrap();
    stand.start_daemon().unwrap();
    assert_eq!(
        up(&stand).await["snapshots"]["error"],
        "snapshot of the disk, pool pool, model tiny: is sealed with another seed"
    );
    stand.daemon.take().unwrap().kill();

    std::fs::write(&seed, ours).unwrap();
    stand.start_daemon().unwrap();
    up(&stand).await;
    assert_eq!(held_blocks(stand.daemon_admin).await, held, "the good one is still good");
}

async fn up(stand: &Stand) -> Value {
    wait_until("the daemon answers", SOON, async || readyz(stand.daemon_admin).await).await.unwrap()
}
