//! Engines' events by way of a real server of Valkey or Redis: one process follows, and daemons that
//! have no connection to an engine's events route as one would that follows it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use testbed::{EngineOptions, Process, Stand, StandOptions, get, port, root, wait_until, wasm_epp};

use crate::recovery::{
    endpoint, gateway_has_everything, have_heard_the_same, held_blocks, matched, readyz,
};
use crate::support::{completion, prose, teach};

const SOON: Duration = Duration::from_secs(30);

/// Without one the test is skipped, but not in CI.
fn server_program() -> Option<PathBuf> {
    let own = root().join(".local/bin/carrier-server");
    let program = std::env::var_os("WASM_EPP_CARRIER_SERVER").map_or(own, PathBuf::from);
    let works = Command::new(&program)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if works {
        return Some(program);
    }
    let why = format!("{} does not run: run scripts/setup --carrier", program.display());
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
    None
}

fn start_server(program: &Path, folder: &Path, port: u16) -> Process {
    let mut command = Command::new(program);
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]).arg("--dir").arg(folder);
    // A password, so that it is asked for.
    command.args(["--requirepass", "open sesame"]);
    Process::start("carrier", &mut command, &folder.join("carrier.log")).unwrap()
}

fn start_follower(stand: &Stand, admin: SocketAddr) -> Process {
    let mut command = Command::new(wasm_epp().unwrap());
    command.arg("follow").arg("--config").arg(stand.config_file());
    command.args(["--admin", &admin.to_string()]);
    let log = stand.folder.path().join("follower.log");
    Process::start("wasm-epp follow", &mut command, &log).unwrap()
}

/// Waits until the gateway is so for a daemon.
async fn gateway_is(daemon: SocketAddr, state: &str) {
    wait_until(&format!("the gateway is {state} for {daemon}"), SOON, async || {
        (readyz(daemon).await?["gateways"][0]["state"] == state).then_some(())
    })
    .await
    .unwrap();
}

async fn is(daemon: SocketAddr, stand: &Stand, source: &str) {
    wait_until(&format!("every source is {source}"), SOON, async || {
        for engine in &stand.engines {
            let known = endpoint(daemon, &engine.http.to_string()).await?;
            if known["source"] != source {
                return None;
            }
        }
        Some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_fed_by_one_follower_route_alike() {
    let Some(program) = server_program() else { return };
    let (carrier, admin) = (port().unwrap(), port().unwrap());
    let admin = SocketAddr::from(([127, 0, 0, 1], admin));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "open sesame\n").unwrap();
    let mut server = start_server(&program, folder.path(), carrier);
    let options = StandOptions {
        engines: vec![EngineOptions::default(); 2],
        more_config: format!(
            "carrier: {{server: '127.0.0.1:{carrier}', leaseMs: 1000, passwordFile: '{}'}}\n",
            folder.path().join("password").display()
        ),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await.unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    let mut follower = start_follower(&stand, admin);
    stand.wait_ready().await.unwrap();
    // The one that started last feeds the gateway, and the other one stands by.
    let (process, feeding) = stand.start_second_daemon().unwrap();
    let waiting = std::mem::replace(&mut stand.daemon_admin, feeding);
    let waiting_process = stand.daemon.replace(process).unwrap();
    gateway_is(waiting, "standby").await;
    gateway_is(feeding, "live").await;
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();

    let mut prompts = Vec::new();
    for topic in ["rivers", "mountains", "the sea", "clouds"] {
        let prompt = prose(topic, 2000);
        teach(&stand, &completion(&prompt)).await;
        prompts.push(prompt);
    }
    have_heard_the_same(feeding, waiting).await;
    let held = held_blocks(feeding).await;
    assert!(held.values().all(|blocks| *blocks > 0), "{held:?}");
    assert_eq!(held_blocks(waiting).await, held);

    // Nobody follows: the daemons say so, and go on from there when somebody does.
    follower.kill();
    is(feeding, &stand, "lost").await;
    is(waiting, &stand, "lost").await;
    follower = start_follower(&stand, admin);
    is(feeding, &stand, "live").await;
    // The server goes and comes.
    server.kill();
    is(feeding, &stand, "lost").await;
    server = start_server(&program, folder.path(), carrier);
    is(feeding, &stand, "live").await;
    is(waiting, &stand, "live").await;
    let prompt = prose("wind", 2000);
    teach(&stand, &completion(&prompt)).await;
    prompts.push(prompt);
    have_heard_the_same(feeding, waiting).await;
    let held = held_blocks(feeding).await;
    assert_eq!(held_blocks(waiting).await, held);
    gateway_has_everything(&stand).await;
    let mut scores = Vec::new();
    for prompt in &prompts {
        scores.push(matched(&stand, prompt).await);
    }
    for daemon in [feeding, waiting] {
        let metrics = get(daemon, "/metrics").await.unwrap();
        let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
        for engine in &stand.engines {
            let labels = format!("{{pool=\"pool\",model=\"tiny\",endpoint=\"{}\"}}", engine.http);
            for line in [
                format!("wasm_epp_carrier_voids_total{labels} 0"),
                format!("wasm_epp_carrier_follower{labels} 1.0"),
                // It has asked no engine.
                format!("wasm_epp_source_replays_total{labels} 0"),
            ] {
                assert!(metrics.lines().any(|other| other == line), "{line} in {metrics}");
            }
        }
    }
    let of_follower = get(admin, "/metrics").await.unwrap();
    let of_follower = String::from_utf8_lossy(&of_follower.body).into_owned();
    let active = of_follower
        .lines()
        .filter(|line| line.starts_with("wasm_epp_follower_active{") && line.ends_with(" 1.0"));
    assert_eq!(active.count(), stand.engines.len(), "{of_follower}");

    // The other daemon feeds the gateway, which decides as before.
    stand.daemon.replace(waiting_process).unwrap().kill();
    stand.daemon_admin = waiting;
    gateway_is(waiting, "live").await;
    gateway_has_everything(&stand).await;
    for (prompt, scores) in prompts.iter().zip(&scores) {
        assert_eq!(&matched(&stand, prompt).await, scores);
    }
    let holder = teach(&stand, &completion(&prose("rain", 2000))).await;
    assert!(held_blocks(waiting).await[&holder] > held[&holder]);
    for process in [follower, server] {
        process.kill();
    }
}
