//! One row: so many engines that publish so much, so many gateways.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::{
    Backend, Engine, Process, Stand, StandOptions, envoy, get, port, wait_until, wasm_epp,
};

use super::Flags;
use super::engines::{self, Flags as Publish};
use super::probes::Workers;
use super::prompts::{BLOCK, Prompts};
use crate::cpu::process_ns;
use crate::publisher::Publisher;
use crate::table::quantile;

/// A batch that is not seen after this is not seen.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Until all runs.
const START: Duration = Duration::from_secs(120);
/// So many events in a row that are not seen end a row: the state is behind and stays there.
const MAX_UNSEEN: usize = 3;
/// The match outweighs the queue, the queue everything else.
const PROFILE: &str =
    "routing:\n  scorers:\n  - {type: prefix-cache, weight: 3}\n  - {type: queue, weight: 1}\n";

#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// Blocks stored and removed per second.
    pub(super) rate: u64,
    /// Engines that publish them.
    pub(super) engines: usize,
    pub(super) gateways: usize,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rate, engines, gateways } = self;
        write!(f, "{rate} blocks/s of {engines} engines, {gateways} gateways")
    }
}

#[derive(Clone)]
pub(super) struct Measured {
    pub(super) point: Point,
    /// Blocks of the other engines that the daemon applied, per second.
    pub(super) applied_per_s: f64,
    /// Of the last worker, per event; infinite of one that is not seen.
    latest_ms: Vec<f64>,
    /// When the last worker was last seen not to know.
    earliest_ms: Vec<f64>,
    probes_ms: Vec<f64>,
    pub(super) unseen: usize,
    pub(super) daemon_cores: f64,
    /// Of all gateways together.
    pub(super) gateway_cores: f64,
    pub(super) publisher_cores: f64,
    /// Changed buckets that the first gateway had still to get.
    pub(super) pending: u64,
}

impl Measured {
    /// How many were measured.
    pub(super) fn events(&self) -> usize {
        self.latest_ms.len()
    }

    /// `None` where the quantile is of an event that was not seen.
    pub(super) fn visible_ms(&self, share: f64) -> Option<f64> {
        Some(quantile(&self.latest_ms, share)).filter(|ms| ms.is_finite())
    }

    pub(super) fn unseen_before_ms(&self, share: f64) -> Option<f64> {
        Some(quantile(&self.earliest_ms, share)).filter(|ms| ms.is_finite())
    }

    pub(super) fn probe_ms(&self, share: f64) -> Option<f64> {
        Some(quantile(&self.probes_ms, share))
    }
}

/// Everything of a row, running.
struct Arrangement {
    stand: Stand,
    gateways: Vec<Process>,
    publishers: Option<Process>,
    /// Addresses of the other engines.
    others: Vec<String>,
    publisher: Publisher,
    prompts: Prompts,
    holder: Backend,
    /// Metrics pages of the other endpoints.
    _pages: [Backend; 2],
}

pub(super) async fn measure(point: Point, flags: &Flags) -> Result<Measured> {
    let mut all = Arrangement::start(point, flags).await?;
    let (_, question) = all.prompts.next(flags.blocks);
    let feed = all.stand.folder.path().join("feed.sock");
    let mut workers = Workers::open(&feed, flags.workers, &question).await?;
    let holder = all.holder.address.to_string();
    let mut measured = Measured {
        point,
        applied_per_s: 0.0,
        latest_ms: Vec::new(),
        earliest_ms: Vec::new(),
        probes_ms: Vec::new(),
        unseen: 0,
        daemon_cores: 0.0,
        gateway_cores: 0.0,
        publisher_cores: 0.0,
        pending: 0,
    };
    let mut unseen_in_a_row = 0;
    let (before, started) = (all.reading().await?, Instant::now());
    let limit = Duration::from_secs(flags.row_seconds);
    for event in 0..flags.events {
        if started.elapsed() > limit {
            break;
        }
        let (tokens, question) = all.prompts.next(flags.blocks);
        let pause = Duration::from_micros(3_000 + all.prompts.random.below(20_000));
        let publish = async {
            // Probes are under way, and events meet every phase of what the daemon does by the clock.
            tokio::time::sleep(pause).await;
            all.publisher.store(&tokens, BLOCK).await
        };
        let (seen, published) = tokio::join!(workers.watch(&question, &holder, PATIENCE), publish);
        let (seen, published) = (seen.with_context(|| format!("event {event}"))?, published?);
        let Some(seen) = seen.into_iter().collect::<Option<Vec<_>>>() else {
            measured.unseen += 1;
            measured.latest_ms.push(f64::INFINITY);
            measured.earliest_ms.push(f64::INFINITY);
            unseen_in_a_row += 1;
            if unseen_in_a_row >= MAX_UNSEEN {
                break;
            }
            continue;
        };
        unseen_in_a_row = 0;
        ensure!(
            seen.iter().all(|seen| seen.hit > published),
            "event {event}: routed to the holder before it held"
        );
        let since = |at: Instant| at.saturating_duration_since(published).as_secs_f64() * 1e3;
        let last = |times: &mut dyn Iterator<Item = f64>| times.fold(0.0, f64::max);
        measured.latest_ms.push(last(&mut seen.iter().map(|seen| since(seen.hit))));
        measured.earliest_ms.push(last(&mut seen.iter().map(|seen| since(seen.last_miss))));
    }
    let (after, seconds) = (all.reading().await?, started.elapsed().as_secs_f64());
    measured.probes_ms = workers.trips.iter().map(|trip| trip.as_secs_f64() * 1e3).collect();
    let per_batch = 2.0 * flags.blocks as f64;
    measured.applied_per_s = (after.batches - before.batches) as f64 * per_batch / seconds;
    let cores = |before: u64, after: u64| (after - before) as f64 / 1e9 / seconds;
    measured.daemon_cores = cores(before.daemon_ns, after.daemon_ns);
    measured.gateway_cores = cores(before.gateways_ns, after.gateways_ns);
    measured.publisher_cores = cores(before.publishers_ns, after.publishers_ns);
    measured.pending = after.pending;
    Ok(measured)
}

struct Reading {
    batches: u64,
    daemon_ns: u64,
    gateways_ns: u64,
    publishers_ns: u64,
    pending: u64,
}

impl Arrangement {
    async fn start(point: Point, flags: &Flags) -> Result<Self> {
        let mut publisher = Publisher::bind().await?;
        let (holder, idle) = (Backend::start(page(9)).await?, Backend::start(page(0)).await?);
        // Every engine that publishes beside it: busy, so that none is picked for want of a match.
        let busy = Backend::start_at((Ipv4Addr::UNSPECIFIED, 0).into(), page(9)).await?;
        let names: Vec<String> = (0..point.gateways)
            .map(|number| format!("- {{name: gw-{number}, feed: \"unix:{}\"}}\n", feed_of(number)))
            .collect();
        let options = StandOptions {
            engines: Vec::new(),
            others: vec![idle.address],
            workers: flags.workers,
            more_config: format!("gateways:\n{}{PROFILE}", names.concat()),
            ..StandOptions::default()
        };
        let mut stand = Stand::prepare(options).await?;
        stand.engines.push(Engine {
            http: holder.address,
            kv_events: Some(publisher.endpoint.clone()),
            replay: None,
            process: None,
        });
        let mut publishers = None;
        let mut others = Vec::new();
        if point.rate > 0 {
            let publish = Publish {
                engines: point.engines,
                rate: point.rate,
                blocks: flags.blocks,
                held: flags.held,
                seed: flags.seed + 1,
            };
            let log = stand.folder.path().join("publishers.log");
            let (process, endpoints) = engines::start(&publish, &log)?;
            publishers = Some(process);
            for (number, endpoint) in endpoints.into_iter().enumerate() {
                let ip = Ipv4Addr::new(127, 1, (number / 250) as u8, (number % 250 + 1) as u8);
                let http = SocketAddr::new(IpAddr::V4(ip), busy.address.port());
                others.push(http.to_string());
                let kv_events = Some(endpoint);
                stand.engines.push(Engine { http, kv_events, replay: None, process: None });
            }
        }
        stand.write_config()?;
        stand.render()?;
        stand.start_envoy(&[]).await?;
        let mut gateways = Vec::new();
        for number in 1..point.gateways {
            gateways.push(start_gateway(&stand, number, flags.workers).await?);
        }
        stand.start_daemon()?;
        let mut prompts = Prompts::new(flags.seed)?;
        let (tokens, _) = prompts.next(flags.blocks);
        let address = holder.address.to_string();
        wait_until("the daemon follows the publisher", START, async || {
            // Lost until the daemon has subscribed, which a PUB socket does not tell.
            publisher.greet(&tokens, BLOCK).await.ok()?;
            let batches = stand.event_batches().await.ok()?;
            (batches.get(&address).copied()? > 0).then_some(())
        })
        .await?;
        stand.wait_ready().await?;
        let _pages = [idle, busy];
        let all = Self { stand, gateways, publishers, others, publisher, prompts, holder, _pages };
        // What is held is there first, and a second of the load.
        let held = if point.rate > 0 { (flags.held / flags.blocks) as u64 } else { 0 };
        let warm = held + point.rate / (2 * flags.blocks as u64) / 2;
        wait_until("the other engines' blocks are applied", START, async || {
            (all.reading().await.ok()?.batches >= warm).then_some(())
        })
        .await?;
        Ok(all)
    }

    async fn reading(&self) -> Result<Reading> {
        let batches = self.stand.event_batches().await?;
        let details = self.stand.readyz().await?;
        let id = |process: &Option<Process>| process.as_ref().map(Process::id);
        let gateways = self.gateways.iter().map(Process::id).chain(id(&self.stand.envoy));
        let gateways_ns = gateways.map(process_ns).sum::<Result<u64>>()?;
        Ok(Reading {
            batches: self.others.iter().filter_map(|address| batches.get(address)).sum(),
            daemon_ns: process_ns(id(&self.stand.daemon).context("the daemon runs")?)?,
            gateways_ns,
            publishers_ns: id(&self.publishers).map_or(Ok(0), process_ns)?,
            pending: details["gateways"][0]["pending"].as_u64().unwrap_or(0),
        })
    }
}

fn feed_of(number: usize) -> String {
    if number == 0 { "feed.sock".to_owned() } else { format!("feed-{number}.sock") }
}

/// A further Envoy beside the stand's, with a feed of its own.
async fn start_gateway(stand: &Stand, number: usize, workers: u32) -> Result<Process> {
    let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let (gateway, admin) = (loopback(port()?), loopback(port()?));
    let text = std::fs::read_to_string(stand.config_file())?;
    let text = text
        .replace(&format!("listen: {}", stand.gateway), &format!("listen: {gateway}"))
        .replace(&format!("  admin: {}", stand.envoy_admin), &format!("  admin: {admin}"))
        .replace("  feed: unix:feed.sock", &format!("  feed: unix:{}", feed_of(number)));
    let folder = stand.folder.path();
    let config = folder.join(format!("gateway-{number}.yaml"));
    let out = folder.join(format!("gateway-{number}"));
    std::fs::write(&config, text)?;
    let mut render = Command::new(wasm_epp()?);
    render.args(["render", "--gateway", "envoy", "--config"]).arg(&config).arg("--out").arg(&out);
    let rendered = render.output()?;
    ensure!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let mut command = Command::new(envoy()?);
    command.arg("-c").arg(out.join("envoy.yaml")).args(["--log-level", "warn"]);
    command.args(["--concurrency", &workers.to_string(), "--use-dynamic-base-id"]);
    let log = folder.join(format!("gateway-{number}.log"));
    let process = Process::start("a further Envoy", &mut command, &log)?;
    wait_until("a further Envoy is ready", START, async || {
        get(admin, "/ready").await.ok()?.status.is_success().then_some(())
    })
    .await?;
    Ok(process)
}

/// A metrics page on which so many requests wait.
fn page(waiting: u32) -> String {
    format!(
        "vllm:num_requests_waiting{{engine=\"0\"}} {waiting}.0\n\
         vllm:num_requests_running{{engine=\"0\"}} 0.0\n\
         vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.0\n"
    )
}
