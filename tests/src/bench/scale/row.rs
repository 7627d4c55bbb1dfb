//! One row: so many strides in a daemon of its own and a gateway of its own.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{Backend, Engine, Stand, StandOptions, get, wait_until};
use tokio::net::TcpListener;

use super::Flags;
use super::publisher::{Engines, address};
use crate::cpu::{process_ns, worker_ns};
use crate::freshness::probes::Workers;
use crate::memory::rss_bytes;
use crate::table::{quantile, rounded};

/// Blocks per chain, a stride each: a prompt of 1024 tokens.
pub(super) const CHAIN: usize = 64;
/// For anything that grows with the strides.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Between two looks at a daemon that works, whose answer names every endpoint.
const LOOK: Duration = Duration::from_millis(200);
/// What the workers do without a question is watched for so long.
const IDLE: Duration = Duration::from_secs(2);
/// Matches alone decide. Pages of metrics are asked for once a second, as a thousand of them every
/// 100 ms would be most of what is measured.
const CONFIG: &str = "metrics: {intervalMs: 1000}\n\
                      routing:\n  scorers:\n  - {type: prefix-cache, weight: 1}\n";
const PAGE: &str = "vllm:num_requests_waiting{engine=\"0\"} 0.0\n\
                    vllm:num_requests_running{engine=\"0\"} 0.0\n\
                    vllm:kv_cache_usage_perc{engine=\"0\"} 0.0\n";

#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) strides: u64,
    /// Engines that hold each.
    pub(super) holders: usize,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} strides of {} holders each", self.strides, self.holders)
    }
}

pub(super) struct Measured {
    pub(super) point: Point,
    /// Whole chains.
    pub(super) strides: u64,
    /// Resident beyond what it was without strides.
    pub(super) daemon_bytes: u64,
    pub(super) gateway_bytes: u64,
    /// Of a gateway that got all of it as a snapshot.
    snapshot_bytes: u64,
    daemon_empty_bytes: u64,
    gateway_empty_bytes: u64,
    pub(super) applied_per_s: f64,
    /// From the last block applied until the gateway had all that changed.
    pub(super) behind_s: f64,
    /// From a gateway that serves and has nothing until it has everything.
    pub(super) snapshot_s: f64,
    pub(super) snapshot_daemon_cpu_s: f64,
    /// Worker CPU, without what the workers do anyway.
    pub(super) decision_us: f64,
    /// Before there was any stride.
    pub(super) decision_without_us: f64,
    decision_ms: [f64; 2],
}

impl Measured {
    pub(super) fn json(&self) -> Value {
        json!({
            "strides": self.strides,
            "holders": self.point.holders,
            "daemon_bytes": self.daemon_bytes,
            "gateway_bytes": self.gateway_bytes,
            "gateway_bytes_after_snapshot": self.snapshot_bytes,
            "daemon_bytes_without": self.daemon_empty_bytes,
            "gateway_bytes_without": self.gateway_empty_bytes,
            "applied_blocks_per_s": self.applied_per_s.round(),
            "behind_s": rounded(self.behind_s),
            "snapshot_s": rounded(self.snapshot_s),
            "snapshot_daemon_cpu_s": rounded(self.snapshot_daemon_cpu_s),
            "decision_worker_us": rounded(self.decision_us),
            "decision_worker_us_without": rounded(self.decision_without_us),
            "decision_ms": {"p50": rounded(self.decision_ms[0]), "p99": rounded(self.decision_ms[1])},
        })
    }
}

struct Arrangement {
    stand: Stand,
    engines: Engines,
    workers: u32,
    questions: u64,
    _pages: Backend,
    pages_port: u16,
}

pub(super) async fn measure(point: Point, flags: &Flags) -> Result<Measured> {
    let chains = point.strides.div_ceil(CHAIN as u64);
    let strides = chains * CHAIN as u64;
    let mut all = Arrangement::start(strides, flags).await?;
    let (without, _) = all.decisions(chains, point.holders, false).await?;
    let (daemon_empty, gateway_empty) = (all.daemon_rss()?, all.gateway_rss()?);

    let started = Instant::now();
    for chain in 0..chains {
        all.engines.publish(chain, point.holders).await?;
    }
    // And the empty one of each engine.
    let batches = chains * point.holders as u64 + flags.endpoints as u64;
    all.wait("all blocks are applied", async |all: &Arrangement| {
        let applied = all.stand.event_batches().await.ok()?.values().sum::<u64>();
        (applied >= batches).then_some(())
    })
    .await?;
    let applied_s = started.elapsed().as_secs_f64();
    all.wait("the gateway has all blocks", async |all: &Arrangement| {
        let gateway = &all.stand.readyz().await.ok()?["gateways"][0];
        (gateway["state"] == "live" && gateway["pending"] == 0).then_some(())
    })
    .await?;
    let behind_s = started.elapsed().as_secs_f64() - applied_s;
    ensure!(all.listed().await? == strides, "{} of {strides} strides listed", all.listed().await?);
    let (daemon, gateway) = (all.daemon_rss()?, all.gateway_rss()?);
    let (decision_us, times) = all.decisions(chains, point.holders, true).await?;

    let (snapshot_s, snapshot_daemon_cpu_s) = all.snapshot().await?;
    let snapshot_bytes = all.gateway_rss()?.saturating_sub(gateway_empty);
    // The new process decides like the old one.
    all.decisions(chains, point.holders, true).await?;
    Ok(Measured {
        point,
        strides,
        daemon_bytes: daemon.saturating_sub(daemon_empty),
        gateway_bytes: gateway.saturating_sub(gateway_empty),
        snapshot_bytes,
        daemon_empty_bytes: daemon_empty,
        gateway_empty_bytes: gateway_empty,
        applied_per_s: (strides * point.holders as u64) as f64 / applied_s,
        behind_s,
        snapshot_s,
        snapshot_daemon_cpu_s,
        decision_us,
        decision_without_us: without,
        decision_ms: [quantile(&times, 0.5), quantile(&times, 0.99)],
    })
}

impl Arrangement {
    async fn start(strides: u64, flags: &Flags) -> Result<Self> {
        let pages = Backend::start_at((Ipv4Addr::UNSPECIFIED, 0).into(), PAGE).await?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let options = StandOptions {
            engines: Vec::new(),
            workers: flags.workers,
            max_strides: Some(strides),
            more_config: CONFIG.to_owned(),
            ..StandOptions::default()
        };
        let mut stand = Stand::prepare(options).await?;
        let (pages_port, port) = (pages.address.port(), listener.local_addr()?.port());
        stand.engines = (0..flags.endpoints)
            .map(|engine| Engine {
                http: address(engine, pages_port),
                kv_events: Some(format!("tcp://{}", address(engine, port))),
                replay: None,
                process: None,
            })
            .collect();
        stand.write_config()?;
        stand.render()?;
        stand.start_envoy(&[]).await?;
        stand.start_daemon()?;
        let engines = Engines::accept(&listener, flags.endpoints, CHAIN, flags.seed).await?;
        stand.wait_ready().await?;
        let (workers, questions) = (flags.workers, flags.questions);
        Ok(Self { stand, engines, workers, questions, _pages: pages, pages_port })
    }

    fn daemon_rss(&self) -> Result<u64> {
        rss_bytes(self.stand.daemon.as_ref().context("the daemon runs")?.id())
    }

    fn envoy(&self) -> Result<u32> {
        Ok(self.stand.envoy.as_ref().context("Envoy runs")?.id())
    }

    fn gateway_rss(&self) -> Result<u64> {
        rss_bytes(self.envoy()?)
    }

    async fn wait(
        &self,
        what: &str,
        mut is_so: impl AsyncFnMut(&Self) -> Option<()>,
    ) -> Result<()> {
        let mut next = Instant::now();
        wait_until(what, PATIENCE, async || {
            if Instant::now() < next {
                return None;
            }
            next = Instant::now() + LOOK;
            is_so(self).await
        })
        .await
    }

    /// Strides that the daemon lists.
    async fn listed(&self) -> Result<u64> {
        let page = get(self.stand.daemon_admin, "/metrics").await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        let values = text
            .lines()
            .filter(|line| line.starts_with("wasm_epp_index_strides{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum::<f64>() as u64)
    }

    /// Has each worker decide on prompts at random, and holds the decisions to what was published.
    /// Gives worker CPU per decision (us) and the times to the answers (ms).
    async fn decisions(
        &mut self,
        chains: u64,
        holders: usize,
        are_held: bool,
    ) -> Result<(f64, Vec<f64>)> {
        let feed = self.stand.folder.path().join("feed.sock");
        let question = self.engines.question(0);
        let mut workers = Workers::open(&feed, self.workers, &question).await?;
        let envoy = self.envoy()?;
        let (before, started) = (worker_ns(envoy)?, Instant::now());
        tokio::time::sleep(IDLE).await;
        let idle = (worker_ns(envoy)? - before) as f64 / started.elapsed().as_secs_f64();
        let mut times = Vec::new();
        let (before, started) = (worker_ns(envoy)?, Instant::now());
        for _ in 0..self.questions {
            let chain = self.engines.below(chains);
            let question = self.engines.question(chain);
            let (said, time) = workers.ask(question).await?;
            times.push(time.as_secs_f64() * 1e3);
            let mut held = self.engines.holders(chain, holders);
            let is_right = held
                .any(|engine| said["picked"][0] == address(engine, self.pages_port).to_string());
            ensure!(is_right || !are_held, "chain {chain}: {said}");
        }
        let spent = (worker_ns(envoy)? - before) as f64 - idle * started.elapsed().as_secs_f64();
        Ok((spent / 1e3 / self.questions as f64, times))
    }

    /// Starts the gateway anew, and gives the time until it has everything, and the daemon's CPU in it.
    async fn snapshot(&mut self) -> Result<(f64, f64)> {
        let daemon = self.stand.daemon.as_ref().context("the daemon runs")?.id();
        let old = self.stand.readyz().await?["gateways"][0]["instance"].clone();
        if let Some(envoy) = self.stand.envoy.take() {
            envoy.kill();
        }
        self.stand.start_envoy(&[]).await?;
        let (before, started) = (process_ns(daemon)?, Instant::now());
        self.wait("the snapshot is whole", async |all: &Arrangement| {
            let gateway = &all.stand.readyz().await.ok()?["gateways"][0];
            let is_new = gateway["instance"] != old;
            (is_new && gateway["state"] == "live" && gateway["pending"] == 0).then_some(())
        })
        .await?;
        let seconds = started.elapsed().as_secs_f64();
        Ok((seconds, (process_ns(daemon)? - before) as f64 / 1e9))
    }
}
