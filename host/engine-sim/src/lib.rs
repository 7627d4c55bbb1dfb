//! A vLLM-shaped engine without a model: OpenAI API, prefix cache, KV events with replay, metrics,
//! latency model, and misbehaviour on command.
//!
//! Prompts are rendered, tokenized and cached as a real engine would; only the answers are made
//! up. What it announces on its event socket is exactly what its cache holds.

mod cache;
mod chain;
mod config;
mod engine;
mod events;
mod http;
mod publisher;
mod reset;
mod scheduler;
mod server;
#[cfg(test)]
mod session_tests;
mod text;

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use config::{EventEncoding, ReplayFraming, SimConfig, default_model_folder};

use cache::BlockCache;
use engine::{Engine, Latency, SharedStats};
use publisher::Publisher;
use scheduler::Scheduler;
use text::Text;

/// A started engine. Dropping it stops it as well, without waiting.
#[derive(Debug)]
pub struct RunningSim {
    /// Where HTTP is served.
    pub http: SocketAddr,
    /// Event endpoint (`tcp://ip:port`), bound or connected to, if any.
    pub kv_events: Option<String>,
    /// Bound replay endpoint, if any.
    pub replay: Option<String>,
    server: JoinHandle<()>,
    engine: JoinHandle<()>,
    publishing: JoinHandle<()>,
    replaying: Option<JoinHandle<()>>,
}

/// Starts an engine; everything is bound when this returns.
pub async fn start(config: SimConfig) -> Result<RunningSim> {
    start_with(config, false).await
}

/// [`start`], with `kv_events_connect` connecting the event publisher to `kv_events` instead of
/// binding it, as vLLM does with an address that has no `*` in it. The other end may come and go.
pub async fn start_with(config: SimConfig, kv_events_connect: bool) -> Result<RunningSim> {
    let text = Text::load(&config.model_folder)?;
    let max_model_len = config.check(text.model_limit)?;
    let hash_seed = match config.hash_seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let listener = TcpListener::bind(config.http)
        .await
        .with_context(|| format!("binding HTTP to {}", config.http))?;
    let http = listener.local_addr().context("asking for the bound HTTP address")?;
    let publisher = Publisher::start(&config, kv_events_connect).await?;

    let cache = BlockCache::new(config.block_size_tokens, config.num_blocks, hash_seed);
    let stats = SharedStats::default();
    let engine = Engine {
        scheduler: Scheduler::new(cache, config.max_num_seqs),
        latency: Latency::new(&config),
        stats: stats.clone(),
        batches: publisher.batches,
        outputs: HashMap::new(),
    };
    let (commands, received) = mpsc::unbounded_channel();
    let endpoints = (publisher.events_endpoint.clone(), publisher.replay_endpoint.clone());
    let router =
        http::router(http::App::new(config, max_model_len, text, stats, commands, endpoints));
    Ok(RunningSim {
        http,
        kv_events: publisher.events_endpoint,
        replay: publisher.replay_endpoint,
        server: tokio::spawn(server::serve(listener, router)),
        engine: tokio::spawn(engine.run(received)),
        publishing: publisher.publishing,
        replaying: publisher.replaying,
    })
}

impl RunningSim {
    /// Stops at once: connections are closed, ports are free when this returns.
    pub async fn shutdown(mut self) {
        self.server.abort();
        self.engine.abort();
        let _ = (&mut self.server).await;
        // The engine held the last sender of batches: without it the publisher ends by itself.
        let _ = (&mut self.engine).await;
        let _ = (&mut self.publishing).await;
        if let Some(replaying) = &mut self.replaying {
            replaying.abort();
            let _ = replaying.await;
        }
    }
}

impl Drop for RunningSim {
    fn drop(&mut self) {
        for task in [&self.server, &self.engine, &self.publishing] {
            task.abort();
        }
        if let Some(task) = &self.replaying {
            task.abort();
        }
    }
}

fn random_seed() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("drawing the hash seed")?;
    Ok(u64::from_le_bytes(bytes))
}
