//! `bench memory`: what ten million (stride, endpoint) pairs take in the daemon's index and in a
//! gateway, as RSS, in three shapes.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use feed::{BatchBuilder, Key};
use feed_push::{Fill, PushState, Pusher, PusherConfig, StateSource, Target};
use prefix::Seed;
use prefix_index::{EngineHash, Index, IndexConfig, KeySpace, StoredBlocks, Tier};
use serde_json::{Value, json};
use testbed::{Stand, StandOptions, wait_until};
use tokio::sync::{Notify, watch};

use crate::table::aligned;

/// How the pairs are distributed.
#[derive(Clone, Copy, ValueEnum, Debug)]
pub(crate) enum Shape {
    /// Every stride is held by one endpoint.
    Distinct,
    /// Strides are held by ten endpoints each.
    Tenfold,
    /// Strides are held by 64 endpoints each.
    Everywhere,
}

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Only this shape, in this process
    #[arg(long, value_enum)]
    shape: Option<Shape>,
    /// (stride, endpoint) pairs
    #[arg(long, default_value_t = 10_000_000)]
    pairs: u64,
}

/// Tokens per block; with four bytes each, one stride per block.
const BLOCK: usize = 16;
/// Blocks per chain: a prompt of 1024 tokens.
const CHAIN: u64 = 64;
/// As the daemon sizes its index.
const STRIDES_PER_BUCKET: u64 = 16;

impl Shape {
    fn endpoints(self) -> u64 {
        match self {
            Self::Distinct => 1,
            Self::Tenfold => 10,
            Self::Everywhere => 64,
        }
    }
}

pub(crate) async fn run(flags: &Flags) -> Result<(String, Value)> {
    let rows = match flags.shape {
        Some(shape) => vec![measure(shape, flags.pairs).await?],
        // A process each: memory that was freed is not given back to the system.
        None => [Shape::Distinct, Shape::Tenfold, Shape::Everywhere]
            .into_iter()
            .map(|shape| in_a_process(shape, flags.pairs))
            .collect::<Result<_>>()?,
    };
    let head = [
        "shape",
        "strides",
        "pairs",
        "daemon B/block",
        "daemon B/pair",
        "gateway B/stride",
        "blocks applied/s",
        "snapshot s",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in &rows {
        let number =
            |key: &str, digits: usize| format!("{:.digits$}", row[key].as_f64().unwrap_or(0.0));
        table.push(vec![
            row["shape"].as_str().unwrap_or_default().to_owned(),
            number("strides", 0),
            number("pairs", 0),
            number("daemon_bytes_per_block", 0),
            number("daemon_bytes_per_pair", 1),
            number("gateway_bytes_per_stride", 1),
            number("apply_blocks_per_s", 0),
            number("snapshot_s", 1),
        ]);
    }
    let table = aligned(&table);
    Ok((table, json!({ "shapes": rows })))
}

fn in_a_process(shape: Shape, pairs: u64) -> Result<Value> {
    let name = shape.to_possible_value().context("a shape has a name")?.get_name().to_owned();
    eprintln!("{name} ...");
    let output = Command::new(std::env::current_exe()?)
        .args(["memory", "--json", "--shape", &name, "--pairs", &pairs.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    let result: Value = serde_json::from_str(line).with_context(|| format!("{name}: {line}"))?;
    ensure!(result["ok"] == true, "{name}: {}", result["error"]);
    Ok(result["shapes"][0].clone())
}

async fn measure(shape: Shape, pairs: u64) -> Result<Value> {
    let holders = shape.endpoints();
    let strides = pairs / holders / CHAIN * CHAIN;
    let words: Vec<[u8; 4]> = (0..65_536u32)
        .map(|i| format!("{i:04x}").as_bytes().try_into().unwrap_or(*b"zzzz"))
        .collect();
    let bucket_count = (strides / STRIDES_PER_BUCKET).max(64) as u32;
    let before = rss_bytes(std::process::id())?;
    let mut index = Index::new(IndexConfig {
        model: "m".into(),
        seed: Seed([7; 64]),
        bucket_count: bucket_count.next_power_of_two(),
        max_strides: usize::MAX,
        key_space: KeySpace::Text,
    });
    let slots: Vec<u16> = (0..holders).map(|_| index.add_endpoint()).collect();
    let started = Instant::now();
    for chain in 0..strides / CHAIN {
        let (hashes, tokens) = chain_of(chain);
        for slot in &slots {
            let blocks = StoredBlocks {
                hashes: &hashes,
                parent: None,
                token_ids: &tokens,
                block_size_tokens: BLOCK as u32,
                tier: Tier::Gpu,
                lora: None,
                salt: None,
                beyond_text: &[],
            };
            index.begin_batch(*slot);
            index.store(*slot, &blocks, 0, |id| words.get(id as usize).map(|word| &word[..]));
        }
        if chain % (strides / CHAIN / 10).max(1) == 0 {
            eprint!("\r{} of {} chains", chain, strides / CHAIN);
        }
    }
    let apply_s = started.elapsed().as_secs_f64();
    let daemon = rss_bytes(std::process::id())?.saturating_sub(before);
    ensure!(index.stats().strides as u64 == strides, "{:?}", index.stats());
    eprintln!("\rindexed {strides} strides, {} MB", daemon >> 20);

    let options = StandOptions {
        engines: Vec::new(),
        others: vec!["127.0.0.1:9".parse()?],
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await?;
    stand.render()?;
    stand.start_envoy(&[]).await?;
    let envoy = stand.envoy.as_ref().context("Envoy runs")?.id();
    let empty = rss_bytes(envoy)?;
    let started = Instant::now();
    let (gateway, entries) = push(&stand, index)
        .await
        .map(|entries| (rss_bytes(envoy).unwrap_or(0).saturating_sub(empty), entries))?;
    let snapshot_s = started.elapsed().as_secs_f64();
    eprintln!("pushed {entries} buckets in {snapshot_s:.1} s, {} MB", gateway >> 20);
    let pairs = strides * holders;
    // What the first holder of a block takes is in the pair's budget, not the block's.
    let per_block = daemon as f64 / strides as f64;
    Ok(json!({
        "shape": format!("{shape:?}").to_lowercase(),
        "strides": strides,
        "pairs": pairs,
        "daemon_mib": daemon >> 20,
        "gateway_mib": gateway >> 20,
        "daemon_bytes_per_block": per_block,
        "daemon_bytes_per_pair": daemon as f64 / pairs as f64,
        "gateway_bytes_per_stride": gateway as f64 / strides as f64,
        "apply_blocks_per_s": pairs as f64 / apply_s,
        "snapshot_s": snapshot_s,
    }))
}

/// Hashes and tokens of a chain that shares nothing with any other.
fn chain_of(chain: u64) -> (Vec<EngineHash>, Vec<u32>) {
    let mix = |i: u64| {
        let z = (i ^ (i >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z ^ (z >> 29)
    };
    let hashes = (0..CHAIN).map(|i| EngineHash(mix(chain * CHAIN + i + 1))).collect();
    let tokens =
        (0..CHAIN * BLOCK as u64).map(|i| (mix(chain * 1_000_003 + i) & 0xFFFF) as u32).collect();
    (hashes, tokens)
}

/// Buckets only: a gateway's memory is theirs.
struct Buckets {
    index: Index,
    watcher: usize,
    in_flight: Vec<u32>,
}

impl StateSource for Buckets {
    fn begin_snapshot(&mut self) {
        self.index.mark_all(self.watcher);
    }
    fn fill(&mut self, epoch: u64, batch: &mut BatchBuilder, bytes: usize, entries: u32) -> Fill {
        self.in_flight.clear();
        while batch.len_bytes() < bytes
            && batch.count() < entries
            && let Some(bucket) = self.index.next_dirty(self.watcher)
        {
            batch.push(Key::Bucket(0, bucket), &self.index.encode_bucket(bucket, epoch).0);
            self.in_flight.push(bucket);
        }
        if self.index.dirty_count(self.watcher) == 0 { Fill::Drained } else { Fill::More }
    }
    fn applied(&mut self) {
        self.in_flight.clear();
    }
    fn unknown(&mut self) {
        for bucket in self.in_flight.drain(..) {
            self.index.mark(self.watcher, bucket);
        }
    }
}

/// Pushes the index to the stand's gateway; returns the values acked.
async fn push(stand: &Stand, mut index: Index) -> Result<u64> {
    let watcher = index.watch();
    let (_stop, stopped) = watch::channel(false);
    let pusher = Pusher::new(
        PusherConfig {
            poll: std::time::Duration::MAX,
            name: "gw".into(),
            target: Target::Unix(stand.folder.path().join("feed.sock")),
            changed: Arc::new(Notify::new()),
            aside: watch::channel(false).1,
            stop: stopped,
        },
        Buckets { index, watcher, in_flight: Vec::new() },
    );
    let status = pusher.status();
    let task = tokio::spawn(pusher.run());
    let entries = wait_until("the snapshot is whole", Duration::from_secs(600), async || {
        let status = status.lock().ok()?;
        (status.state == PushState::Live).then_some(status.entries)
    })
    .await;
    task.abort();
    entries
}

pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * 4096)
}
