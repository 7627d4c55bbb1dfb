//! `bench freshness`: from an event's publication until a request is routed by it.
//!
//! The bench is the engine's publisher, so it knows when a batch left, and both backends, so it
//! sees where a request went. Of two endpoints the one with events says that requests wait: it is
//! picked for the prompt once its blocks are in the gateway, and never before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use model::TokenTable;
use serde_json::{Value, json};
use testbed::{Backend, Engine, Stand, StandOptions, root, wait_until};

use crate::load::Connection;
use crate::publisher::Publisher;
use crate::table::{aligned, median, quantile, rounded};

const BLOCK: usize = 16;
/// A batch that is not seen after this is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// The match outweighs the queue, the queue everything else.
const PROFILE: &str =
    "routing:\n  scorers:\n  - {type: prefix-cache, weight: 3}\n  - {type: queue, weight: 1}\n";

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Events measured
    #[arg(long, default_value_t = 300)]
    events: usize,
    /// Blocks of 16 tokens per event
    #[arg(long, default_value_t = 32)]
    blocks: usize,
    /// Seed of the prompts and pauses
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) async fn run(flags: &Flags) -> Result<(String, Value)> {
    ensure!(flags.events > 0 && flags.blocks >= 8, "at least 1 event of at least 8 blocks");
    eprintln!("starting daemon and Envoy ...");
    let mut publisher = Publisher::bind().await?;
    let busy = Backend::start(page(9)).await?;
    let idle = Backend::start(page(0)).await?;
    let (stand, mut prompts) = start(&mut publisher, &busy, &idle, flags).await?;
    let mut probe = Connection::open(stand.gateway).await?;
    let holder = busy.address.to_string();

    let (mut latest, mut earliest, mut trips) = (Vec::new(), Vec::new(), Vec::new());
    for event in 0..flags.events {
        let (tokens, body) = prompts.next(flags.blocks);
        let watching = tokio::spawn(watch(probe, body, holder.clone()));
        // Probes are under way, and events meet every phase of what the daemon does by the clock.
        tokio::time::sleep(Duration::from_micros(3_000 + prompts.random.below(20_000))).await;
        let published = publisher.store(&tokens, BLOCK).await?;
        let seen = watching.await?.with_context(|| format!("event {event}"))?;
        probe = seen.probe;
        ensure!(seen.hit > published, "event {event}: routed to the holder before it held");
        latest.push(ms(seen.hit - published));
        earliest.push(ms(seen.last_miss.saturating_duration_since(published)));
        trips.extend(seen.trips);
        if (event + 1) % 100 == 0 {
            eprintln!("{} events, p50 {:.2} ms so far", event + 1, median(&latest));
        }
    }
    let quantiles = |values: &[f64]| [0.5, 0.9, 0.99, 1.0].map(|share| quantile(values, share));
    let row = |name: &str, values: &[f64]| {
        let cells = quantiles(values).map(|value| format!("{value:.2} ms"));
        std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>()
    };
    let rows = [
        ["", "p50", "p90", "p99", "max"].map(str::to_owned).to_vec(),
        row("routed by, at the latest", &latest),
        row("not yet routed by", &earliest),
        row("one probe", &trips),
    ];
    let table = format!(
        "From publishing an event of {} blocks until a probe is routed by it, {} events, no other \
         load, seed {}\n{}",
        flags.blocks,
        flags.events,
        flags.seed,
        aligned(&rows)
    );
    let of = |values: &[f64]| {
        let [p50, p90, p99, max] = quantiles(values).map(rounded);
        json!({"p50": p50, "p90": p90, "p99": p99, "max": max})
    };
    let result = json!({
        "bench": "freshness", "events": flags.events, "blocks_per_event": flags.blocks,
        "seed": flags.seed, "routable_ms": of(&latest), "not_yet_routable_ms": of(&earliest),
        "probe_ms": of(&trips),
    });
    Ok((table, result))
}

struct Seen {
    probe: Connection,
    /// When the last probe that went elsewhere was sent.
    last_miss: Instant,
    /// When the first probe that went to the holder was answered.
    hit: Instant,
    trips: Vec<f64>,
}

/// Probes without a pause until the holder answers.
async fn watch(mut probe: Connection, body: Bytes, holder: String) -> Result<Seen> {
    let started = Instant::now();
    let (mut last_miss, mut trips) = (started, Vec::new());
    loop {
        let sent = Instant::now();
        let served_by = probe.post("/v1/completions", body.clone()).await?;
        let answered = Instant::now();
        if served_by == holder {
            return Ok(Seen { probe, last_miss, hit: answered, trips });
        }
        trips.push(ms(answered - sent));
        last_miss = sent;
        ensure!(started.elapsed() < PATIENCE, "its blocks never show in the gateway");
    }
}

async fn start(
    publisher: &mut Publisher,
    busy: &Backend,
    idle: &Backend,
    flags: &Flags,
) -> Result<(Stand, Prompts)> {
    let options = StandOptions {
        engines: Vec::new(),
        others: vec![idle.address],
        more_config: PROFILE.to_owned(),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await?;
    stand.engines.push(Engine {
        http: busy.address,
        kv_events: Some(publisher.endpoint.clone()),
        replay: None,
        process: None,
    });
    stand.write_config()?;
    stand.render()?;
    stand.start_envoy(&[]).await?;
    stand.start_daemon()?;
    let mut prompts = Prompts::new(flags.seed)?;
    let (tokens, _) = prompts.next(flags.blocks);
    wait_until("the daemon follows the publisher", PATIENCE, async || {
        // Lost until the daemon has subscribed, which a PUB socket does not tell.
        publisher.greet(&tokens, BLOCK).await.ok()?;
        let batches = stand.event_batches().await.ok()?;
        (batches.get(&busy.address.to_string()).copied()? > 0).then_some(())
    })
    .await?;
    stand.wait_ready().await?;
    let level = testbed::Client::new(stand.envoy_admin);
    level.send("POST", "/logging?wasm=info", &[], "").await?;
    Ok((stand, prompts))
}

/// A metrics page on which so many requests wait.
fn page(waiting: u32) -> String {
    format!(
        "vllm:num_requests_waiting{{engine=\"0\"}} {waiting}.0\n\
         vllm:num_requests_running{{engine=\"0\"}} 0.0\n\
         vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.0\n"
    )
}

/// Prompts of random tokens that are plain text each.
struct Prompts {
    table: TokenTable,
    plain: Vec<u32>,
    random: Random,
}

impl Prompts {
    fn new(seed: u64) -> Result<Self> {
        let file = root().join("tests/golden/tiny-model/tokenizer.json");
        let table = TokenTable::read(&file).with_context(|| format!("read {}", file.display()))?;
        let is_plain = |id: &u32| {
            table.bytes(*id).is_some_and(|bytes| {
                !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_lowercase() || *b == b' ')
            })
        };
        let plain: Vec<u32> = (0..table.len() as u32).filter(is_plain).collect();
        ensure!(plain.len() > 1000, "only {} tokens are plain text", plain.len());
        Ok(Self { table, plain, random: Random(seed.max(1)) })
    }

    /// Tokens, and the request whose prompt is their text.
    fn next(&mut self, blocks: usize) -> (Vec<u32>, Bytes) {
        let plain = self.plain.len() as u64;
        let mut token = || self.plain[self.random.below(plain) as usize];
        let tokens: Vec<u32> = (0..blocks * BLOCK).map(|_| token()).collect();
        let text: Vec<u8> =
            tokens.iter().filter_map(|id| self.table.bytes(*id)).flatten().copied().collect();
        let prompt = String::from_utf8_lossy(&text);
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
        (tokens, Bytes::from(body.to_string()))
    }
}

/// xorshift64 (Marsaglia 2003, shifts 13, 7, 17).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
