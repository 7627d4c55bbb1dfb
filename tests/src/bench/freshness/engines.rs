//! Engines that publish at a rate, as a process of their own: what a daemon carries beside the event
//! that is measured. They speak ZMTP 3.0 with bytes that are made beforehand, so that they cost little
//! of the machine, and wait where the daemon does not read, so that nothing is lost.

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::Process;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::prompts::{BLOCK, Prompts};
use crate::events::{self, Event};

/// Batches of an engine before they repeat, half of whose blocks are held at a time.
const MIN_CHAINS: usize = 8;

#[derive(clap::Args, Clone)]
pub(crate) struct Flags {
    /// Engines
    #[arg(long)]
    pub(crate) engines: usize,
    /// Blocks stored and removed per second, by all of them
    #[arg(long)]
    pub(crate) rate: u64,
    /// Blocks stored, and as many removed, per batch
    #[arg(long)]
    pub(crate) blocks: usize,
    /// Blocks held by all of them
    #[arg(long)]
    pub(crate) held: usize,
    #[arg(long)]
    pub(crate) seed: u64,
}

/// Starts the process. Gives where its engines publish.
pub(crate) fn start(flags: &Flags, log: &Path) -> Result<(Process, Vec<String>)> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("publish")
        .args(["--engines", &flags.engines.to_string()])
        .args(["--rate", &flags.rate.to_string()])
        .args(["--blocks", &flags.blocks.to_string()])
        .args(["--held", &flags.held.to_string()])
        .args(["--seed", &flags.seed.to_string()]);
    let (process, line) = Process::start_with_line("engines that publish", &mut command, log)?;
    let said: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    let engines = said["engines"].as_array().context("engines")?;
    let engines = engines.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect();
    Ok((process, engines))
}

/// The process: says where its engines listen, waits until each has its subscriber, and publishes until
/// it is killed.
pub(crate) async fn run(flags: &Flags) -> Result<()> {
    ensure!(flags.engines > 0 && flags.rate > 0 && flags.blocks > 0, "nothing to publish");
    let chains = (2 * flags.held / flags.blocks / flags.engines).max(MIN_CHAINS);
    let mut prompts = Prompts::new(flags.seed)?;
    let (mut listeners, mut addresses, mut engines) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..flags.engines {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addresses.push(format!("tcp://{}", listener.local_addr()?));
        listeners.push(listener);
        engines.push(Engine::new(number as u64, chains, flags.blocks, &mut prompts)?);
    }
    println!("{}", json!({"engines": addresses}));
    let mut streams = Vec::new();
    for listener in &listeners {
        let (stream, _) = listener.accept().await?;
        streams.push(subscribed(stream).await.context("a subscriber")?);
    }
    // All that is held first, which no rate is measured of.
    for (engine, stream) in engines.iter_mut().zip(&mut streams) {
        for _ in 0..chains / 2 {
            stream.write_all(engine.next()).await?;
        }
    }
    let per_batch = 2 * flags.blocks as u64;
    let (started, mut sent) = (Instant::now(), 0u64);
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut turn = 0;
    loop {
        ticks.tick().await;
        let due = started.elapsed().as_micros() as u64 * flags.rate / 1_000_000;
        while sent + per_batch <= due {
            streams[turn].write_all(engines[turn].next()).await?;
            turn = (turn + 1) % engines.len();
            sent += per_batch;
        }
    }
}

/// One engine's messages, which repeat: by then what a message stores was removed long ago.
struct Engine {
    /// Store alone, until as much is held as is to be.
    first: Vec<Vec<u8>>,
    /// Store a chain, and remove the one of half a round before.
    round: Vec<Vec<u8>>,
    sequence: u64,
}

impl Engine {
    fn new(number: u64, chains: usize, blocks: usize, prompts: &mut Prompts) -> Result<Self> {
        let hashes = |chain: usize| -> Vec<u64> {
            (0..blocks as u64)
                .map(|block| mix(number << 40 | (chain as u64) << 16 | block))
                .collect()
        };
        let (mut first, mut round) = (Vec::new(), Vec::new());
        for chain in 0..chains {
            let (tokens, _) = prompts.next(blocks);
            let (stored, removed) = (hashes(chain), hashes((chain + chains / 2) % chains));
            let store =
                Event::Stored { parent: None, hashes: &stored, tokens: &tokens[..blocks * BLOCK] };
            // The last of a chain goes first, and each by itself, as vLLM frees them.
            let removals = removed.chunks(1).rev().map(|hashes| Event::Removed { hashes });
            let all: Vec<Event> = std::iter::once(store).chain(removals).collect();
            first.push(message(&events::batch(1.0, &[store])?));
            round.push(message(&events::batch(1.0, &all)?));
        }
        first.truncate(chains / 2);
        Ok(Self { first, round, sequence: 0 })
    }

    /// The next message, of this time.
    fn next(&mut self) -> &[u8] {
        let number = self.sequence as usize;
        let at = number % self.round.len();
        let message = self.first.get_mut(number).unwrap_or(&mut self.round[at]);
        message[SEQUENCE].copy_from_slice(&self.sequence.to_be_bytes());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |at| at.as_secs_f64());
        message[TIME].copy_from_slice(&now.to_be_bytes());
        self.sequence += 1;
        message
    }
}

/// After the empty topic's frame (two bytes) and its own flags and length.
pub(crate) const SEQUENCE: Range<usize> = 4..12;
/// After the payload's flags and length, and the marks of its array and of the number.
const TIME: Range<usize> = 23..31;

/// Three frames: topic, sequence number, payload, the last one with a long length.
pub(crate) fn message(payload: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 0, 1, 8];
    message.extend([0; 8]);
    message.push(2);
    message.extend((payload.len() as u64).to_be_bytes());
    message.extend_from_slice(payload);
    message
}

/// Shakes hands as a publisher without a heartbeat, and waits for the subscription.
pub(crate) async fn subscribed(mut stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    let mut greeting = [0u8; 64];
    greeting[0] = 0xff;
    greeting[8] = 1;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).await?;
    stream.read_exact(&mut greeting).await?;
    stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB").await?;
    // Its READY, then a frame that subscribes.
    for _ in 0..2 {
        let mut head = [0u8; 2];
        stream.read_exact(&mut head).await?;
        ensure!(head[0] & 2 == 0, "a long frame from a subscriber");
        let mut body = vec![0; usize::from(head[1])];
        stream.read_exact(&mut body).await?;
    }
    Ok(stream)
}

fn mix(number: u64) -> u64 {
    let z = (number ^ (number >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z ^ (z >> 29)
}
