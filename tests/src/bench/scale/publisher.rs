//! As many engines as a row has, each an address and a connection of its own, that publish chains made
//! on the spot: ten million blocks are two gigabytes as events.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::events::{self, Event};
use crate::freshness::engines::{SEQUENCE, message, subscribed};
use crate::freshness::prompts::{Prompts, Random};

/// Bytes per token: with 16 tokens per block a block is one stride.
const TOKEN_BYTES: usize = 4;

/// Address of an engine; all of 127.0.0.0/8 is this machine.
pub(super) fn address(engine: usize, port: u16) -> SocketAddr {
    let ip = Ipv4Addr::new(127, 2, (engine / 250) as u8, (engine % 250 + 1) as u8);
    SocketAddr::new(IpAddr::V4(ip), port)
}

pub(super) struct Engines {
    streams: Vec<TcpStream>,
    /// Numbers of the next batches.
    sequences: Vec<u64>,
    prompts: Prompts,
    chain: usize,
    seed: u64,
    random: Random,
}

impl Engines {
    /// Waits until the daemon has subscribed to each.
    pub(super) async fn accept(
        listener: &TcpListener,
        engines: usize,
        chain: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut streams: Vec<Option<TcpStream>> = (0..engines).map(|_| None).collect();
        let port = listener.local_addr()?.port();
        for _ in 0..engines {
            let (stream, _) = listener.accept().await?;
            let me = stream.local_addr()?;
            let engine = (0..engines).find(|engine| address(*engine, port) == me);
            let engine = engine.with_context(|| format!("a connection to {me}"))?;
            ensure!(streams[engine].is_none(), "a second connection to {me}");
            streams[engine] = Some(subscribed(stream).await.context("a subscriber")?);
        }
        let mut streams: Vec<TcpStream> = streams.into_iter().flatten().collect();
        // Of an engine that never published nothing is known; this tells that it holds nothing.
        let nothing = message(&events::batch(1.0, &[])?);
        for stream in &mut streams {
            stream.write_all(&nothing).await?;
        }
        Ok(Self {
            streams,
            sequences: vec![1; engines],
            prompts: Prompts::new(seed)?.of_token_bytes(TOKEN_BYTES)?,
            chain,
            seed,
            random: Random::new(seed),
        })
    }

    /// The engines that hold chain `number`.
    pub(super) fn holders(&self, number: u64, holders: usize) -> impl Iterator<Item = usize> {
        let engines = self.streams.len();
        (0..holders).map(move |holder| (number as usize + holder) % engines)
    }

    /// Publishes chain `number` by each of its holders.
    pub(super) async fn publish(&mut self, number: u64, holders: usize) -> Result<()> {
        let tokens = self.tokens(number);
        let first = number * self.chain as u64;
        // An odd factor: each number has another hash.
        let hash = |block: u64| (first + block + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let hashes: Vec<u64> = (0..self.chain as u64).map(hash).collect();
        let event = Event::Stored { parent: None, hashes: &hashes, tokens: &tokens };
        let mut message = message(&events::batch(1.0, &[event])?);
        for engine in self.holders(number, holders).collect::<Vec<_>>() {
            message[SEQUENCE].copy_from_slice(&self.sequences[engine].to_be_bytes());
            self.sequences[engine] += 1;
            // Waits where the daemon does not read.
            self.streams[engine].write_all(&message).await?;
        }
        Ok(())
    }

    /// The request whose prompt is chain `number`.
    pub(super) fn question(&mut self, number: u64) -> Bytes {
        let tokens = self.tokens(number);
        self.prompts.question(&tokens)
    }

    fn tokens(&mut self, number: u64) -> Vec<u32> {
        let mut tokens = Vec::new();
        let seed = (number + 1).wrapping_mul(0xD1B5_4A32_D192_ED03) ^ self.seed;
        self.prompts.tokens_of(seed, self.chain, &mut tokens);
        tokens
    }

    /// A number below `limit`, at random.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }
}
