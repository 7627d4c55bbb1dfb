//! Two daemons and three gateways: whatever is cut off or lost, each gateway has one writer, epochs only
//! grow, requests are served, and once the news is through every gateway routes by the same prefixes.

mod link;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    Client, EngineOptions, Process, Sibling, Stand, StandOptions, get, pod_scores, port,
    wait_until, wasm_epp,
};

use crate::support::{COMPLETIONS, completion, prose, question};
use link::{Link, Writes};
use wire::Wire;

const GATEWAYS: usize = 3;
const DAEMONS: usize = 2;
/// A standby waits for three heartbeats; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(30);

struct Fleet {
    stand: Stand,
    /// Gateways after the stand's own.
    siblings: Vec<Sibling>,
    /// Processes by daemon; `None` while stopped.
    daemons: Vec<Option<Process>>,
    admins: Vec<SocketAddr>,
    /// From the last daemon to the engines: pages, events, replays.
    wires: Vec<Wire>,
    /// By daemon, then by gateway.
    links: Vec<Vec<Link>>,
    /// By gateway.
    writes: Vec<Arc<Mutex<Writes>>>,
}

impl Fleet {
    async fn start() -> Self {
        let gateways: String = (0..GATEWAYS)
            .map(|g| format!("- {{name: gw-{g}, feed: \"unix:link-0-{g}.sock\"}}\n"))
            .collect();
        let stand = Stand::prepare(StandOptions {
            engines: vec![EngineOptions::default(); 3],
            workers: 2,
            more_config: format!("gateways:\n{gateways}"),
            ..StandOptions::default()
        })
        .await
        .unwrap();
        stand.render().unwrap();
        let mut fleet = Self {
            admins: (0..DAEMONS).map(|_| ([127, 0, 0, 1], port().unwrap()).into()).collect(),
            daemons: (0..DAEMONS).map(|_| None).collect(),
            writes: (0..GATEWAYS).map(|_| Arc::default()).collect(),
            links: Vec::new(),
            wires: Vec::new(),
            siblings: Vec::new(),
            stand,
        };
        fleet.admins[0] = fleet.stand.daemon_admin;
        fleet.stand.start_envoy(&[]).await.unwrap();
        for g in 1..GATEWAYS {
            fleet.siblings.push(fleet.stand.start_sibling(g, 2).await.unwrap());
        }
        for d in 0..DAEMONS {
            let link = |g: usize| {
                let feed = if g == 0 { "feed.sock".to_owned() } else { format!("feed-{g}.sock") };
                let path = fleet.file(&format!("link-{d}-{g}.sock"));
                Link::new(path, fleet.file(&feed), d, &fleet.writes[g])
            };
            let links = (0..GATEWAYS).map(link).collect();
            fleet.links.push(links);
        }
        for engine in &fleet.stand.engines {
            let zmq = |address: &Option<String>| {
                address.as_ref().unwrap().strip_prefix("tcp://").unwrap().parse().unwrap()
            };
            for to in [engine.http, zmq(&engine.kv_events), zmq(&engine.replay)] {
                fleet.wires.push(Wire::new(to).await);
            }
        }
        fleet
    }

    fn file(&self, name: &str) -> PathBuf {
        self.stand.folder.path().join(name)
    }

    /// Starts a daemon beside the others. All have the same seeds.
    fn start_daemon(&mut self, d: usize) {
        let (data, file) = (format!("data-{d}"), self.file(&format!("daemon-{d}.yaml")));
        let text = std::fs::read_to_string(self.stand.config_file()).unwrap();
        let own = format!("dataDir: {data}\nadmin: {}\n", self.admins[d]);
        let first = format!("dataDir: data\nadmin: {}\n", self.stand.daemon_admin);
        assert!(text.starts_with(&first));
        let text = text.replace(&first, &own).replace("unix:link-0-", &format!("unix:link-{d}-"));
        let text = if d == DAEMONS - 1 { self.by_wires(text) } else { text };
        std::fs::write(&file, text).unwrap();
        let seeds = |d: usize| self.file(&format!("data-{d}/seeds"));
        if d > 0 && !seeds(d).exists() {
            std::fs::create_dir_all(seeds(d)).unwrap();
            for seed in std::fs::read_dir(seeds(0)).unwrap() {
                let seed = seed.unwrap();
                std::fs::copy(seed.path(), seeds(d).join(seed.file_name())).unwrap();
            }
        }
        let mut command = Command::new(wasm_epp().unwrap());
        command.arg("serve").arg("--config").arg(file);
        for (peer, admin) in self.admins.iter().enumerate().filter(|(peer, _)| *peer != d) {
            if self.daemons[peer].is_some() {
                command.arg("--peer").arg(admin.to_string());
            }
        }
        let log = self.file(&format!("daemon-{d}.log"));
        self.daemons[d] = Some(Process::start(&format!("daemon {d}"), &mut command, &log).unwrap());
    }

    /// The configuration of a daemon that reaches the engines by the wires alone.
    fn by_wires(&self, mut text: String) -> String {
        for (engine, wires) in self.stand.engines.iter().zip(self.wires.chunks(3)) {
            let [page, events, replay] = wires else { panic!("three wires of an engine") };
            let endpoint = format!("{{address: {}, ", engine.http);
            let with_page = format!("{endpoint}metrics: \"http://{}/metrics\", ", page.address);
            let told = [&engine.kv_events, &engine.replay].map(|told| told.clone().unwrap());
            for (from, to) in [
                (&endpoint, with_page),
                (&told[0], format!("tcp://{}", events.address)),
                (&told[1], format!("tcp://{}", replay.address)),
            ] {
                assert!(text.contains(from), "{from} in {text}");
                text = text.replace(from, &to);
            }
        }
        text
    }

    async fn details(&self, d: usize) -> Option<Value> {
        get(self.admins[d], "/readyz").await.ok()?.json().ok()
    }

    /// Waits until each gateway is fed by the daemon that is named for it, and has all that changed.
    async fn fed_by(&self, what: &str, expected: [Option<usize>; GATEWAYS]) {
        for (g, daemon) in expected.into_iter().enumerate() {
            let Some(daemon) = daemon else { continue };
            wait_until(
                &format!("{what}: gateway {g} is fed by daemon {daemon}"),
                SOON,
                async || {
                    let gateway = self.details(daemon).await?["gateways"][g].clone();
                    let instance = u64::from_str_radix(gateway["instance"].as_str()?, 16).ok()?;
                    // A state is of the last ack, so another may have written since.
                    let writer = self.writes[g].lock().unwrap().writer(instance)?.1;
                    let is_fed = gateway["state"] == "live" && gateway["pending"] == 0;
                    (is_fed && writer == daemon).then_some(())
                },
            )
            .await
            .unwrap();
        }
    }

    fn gateway(&self, g: usize) -> (SocketAddr, PathBuf) {
        match g.checked_sub(1) {
            None => (self.stand.gateway, self.stand.envoy_log()),
            Some(sibling) => (self.siblings[sibling].gateway, self.siblings[sibling].log.clone()),
        }
    }

    /// Sends a prompt through a gateway; gives the engine that holds it from now on.
    async fn teach(&self, through: usize, prompt: &str) -> String {
        let (gateway, _) = self.gateway(through);
        let headers = [("content-type", "application/json")];
        let client = Client::new(gateway);
        let answer = client.send("POST", COMPLETIONS, &headers, completion(prompt)).await.unwrap();
        assert_eq!(answer.status, 200);
        let engine = answer.header("x-sim-engine").strip_prefix("engine-").unwrap();
        self.stand.engines[engine.parse::<usize>().unwrap()].http.to_string()
    }

    /// Whom a gateway would send a prompt to, with how many blocks of it: nothing is changed by it.
    async fn holds(&self, through: usize, prompt: &str) -> Option<(String, u64)> {
        let (gateway, log) = self.gateway(through);
        let headers = [("content-type", "application/json")];
        let client = Client::new(gateway);
        let answer = client.send("POST", COMPLETIONS, &headers, question(prompt)).await.unwrap();
        // The engine refuses it, so it arrived.
        assert_eq!(answer.status, 400, "{answer:?}");
        let line = pod_scores(&log, answer.header("x-request-id")).await.unwrap();
        let picked = line.picked().first()?.clone();
        let blocks = line.scores()?.get(&picked).copied()?;
        Some((picked, blocks))
    }

    /// Every gateway of `through` knows who holds all of this prompt.
    async fn precise(&self, what: &str, through: &[usize], prompt: &str, holder: &str) {
        for g in through {
            wait_until(&format!("{what}: gateway {g} routes by prefix"), SOON, async || {
                let (picked, blocks) = self.holds(*g, prompt).await?;
                // Strides of 64 bytes, of which the last may be short of a block.
                let whole = prompt.len() as u64 / 64 - 2;
                (picked == holder && blocks >= whole).then_some(())
            })
            .await
            .unwrap();
        }
    }

    /// A new prompt through one gateway is known to all of these.
    async fn learns(&self, what: &str, through: &[usize]) -> (String, String) {
        let prompt = prose(what, 3000);
        let holder = self.teach(through[0], &prompt).await;
        self.precise(what, through, &prompt, &holder).await;
        (prompt, holder)
    }
}

/// Requests one after the other through each gateway, all the while.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(gateways: &[SocketAddr]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let run = |gateway: SocketAddr| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move {
                let (client, mut failed) = (Client::new(gateway), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let n = sent.fetch_add(1, Ordering::Relaxed);
                    let prompt = prose(&format!("traffic {}", n % 40), 700);
                    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
                    match client.post(COMPLETIONS, &body).await {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => failed.push(format!("{gateway}: {answer:?}")),
                        Err(error) => failed.push(format!("{gateway}: {error:#}")),
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                failed
            })
        };
        let tasks = gateways.iter().copied().map(run).collect();
        Self { stop, sent, tasks }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert_eq!(task.await.unwrap(), [""; 0], "no request is lost");
        }
        assert!(self.sent.load(Ordering::Relaxed) > 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gateway_has_one_writer_and_stays_precise_whatever_is_lost() {
    let mut fleet = Fleet::start().await;
    fleet.start_daemon(0);
    fleet.fed_by("one daemon", [Some(0); 3]).await;
    // The one that starts last takes over.
    fleet.start_daemon(1);
    fleet.fed_by("two daemons", [Some(1); 3]).await;
    // The last gateway is lost later.
    let traffic = Traffic::start(&[fleet.gateway(0).0, fleet.gateway(1).0]);
    let first = fleet.learns("two daemons", &[0, 1, 2]).await;

    // One gateway is cut off from its writer.
    fleet.links[1][1].cut();
    fleet.fed_by("a partition", [Some(1), Some(0), Some(1)]).await;
    fleet.learns("a partition", &[1, 0, 2]).await;
    fleet.links[1][1].mend();
    // Who is back does not take it from the one that feeds it.
    wait_until("daemon 1 stands by for gateway 1", SOON, async || {
        (fleet.details(1).await?["gateways"][1]["state"] == "standby").then_some(())
    })
    .await
    .unwrap();
    let learnt = fleet.learns("the partition's end", &[2, 1, 0]).await;
    fleet.fed_by("the partition's end", [Some(1), Some(0), Some(1)]).await;

    // A daemon is lost.
    fleet.daemons[1].take().unwrap().kill();
    fleet.fed_by("a lost daemon", [Some(0); 3]).await;
    for (prompt, holder) in [&first, &learnt] {
        fleet.precise("a lost daemon", &[0, 1, 2], prompt, holder).await;
    }
    fleet.learns("a lost daemon", &[0, 1, 2]).await;
    fleet.start_daemon(1);
    fleet.fed_by("a daemon is back", [Some(1); 3]).await;
    fleet.precise("a daemon is back", &[0, 1, 2], &first.0, &first.1).await;

    // A gateway is lost; the others do not notice.
    fleet.siblings[1].envoy.take().unwrap().kill();
    fleet.learns("a lost gateway", &[0, 1]).await;
    fleet.siblings[1].start().await.unwrap();
    fleet.fed_by("a gateway is back", [Some(1); 3]).await;
    fleet.precise("a gateway is back", &[2], &first.0, &first.1).await;

    // A gateway is cut off from both: what it knows is as good as before, and then it is fed again.
    for d in 0..DAEMONS {
        fleet.links[d][0].cut();
    }
    fleet.precise("no daemon", &[0], &first.0, &first.1).await;
    let (prompt, holder) = fleet.learns("while gateway 0 is cut off", &[1, 2]).await;
    assert_eq!(fleet.holds(0, &prompt).await, None, "nobody could tell it");
    fleet.links[0][0].mend();
    fleet.fed_by("another daemon", [Some(0), Some(1), Some(1)]).await;
    fleet.precise("another daemon", &[0], &prompt, &holder).await;
    fleet.links[1][0].mend();

    // The daemon that feeds two gateways hears no engine any more, and lets the other have them.
    fleet.wires.iter_mut().for_each(Wire::cut);
    fleet.fed_by("a deaf daemon", [Some(0); 3]).await;
    fleet.learns("a deaf daemon", &[0, 1, 2]).await;
    for wire in &mut fleet.wires {
        wire.mend().await;
    }
    let heard = async || {
        let details = fleet.details(1).await?;
        let mut endpoints = details["endpoints"].as_array()?.iter();
        endpoints.all(|endpoint| endpoint["ready"] == true).then_some(())
    };
    wait_until("the daemon hears the engines again", SOON, heard).await.unwrap();
    // And when the other one goes, it has heard what it missed.
    let (prompt, holder) = fleet.learns("both daemons hear", &[0, 1, 2]).await;
    fleet.daemons[0].take().unwrap().kill();
    fleet.fed_by("the other daemon alone", [Some(1); 3]).await;
    fleet.precise("the other daemon alone", &[0, 1, 2], &prompt, &holder).await;

    traffic.end().await;
    for writes in &fleet.writes {
        writes.lock().unwrap().assert_single_writer();
    }
}
