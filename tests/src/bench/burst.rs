//! `bench burst`: where a burst goes before any event can tell who holds what, and whether what was
//! in flight is nothing again afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use testbed::{Backend, Client, EngineOptions, Stand, StandOptions, get, root, wait_until};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::load::{self, Shot};
use crate::table::{aligned, rounded};

const PATH: &str = "/v1/completions";
const WORKERS: u32 = 4;
const ENGINES: usize = 8;
/// Bytes per token of the model's tokenizer on this text, about; the prefix is checked to be of at
/// least as many tokens as asked for.
const BYTES_PER_TOKEN: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Requests of a burst
    #[arg(long, default_value_t = 200)]
    burst: usize,
    /// Tokens of the shared prefix
    #[arg(long, default_value_t = 8192)]
    prefix_tokens: usize,
    /// Further requests over two workers before what is left in flight is counted
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
}

pub(crate) async fn run(flags: &Flags) -> Result<(String, Value)> {
    eprintln!("starting {ENGINES} engines, daemon and Envoy with {WORKERS} workers ...");
    let stand = start().await?;
    let prefix = prefix(&stand, flags.prefix_tokens).await?;
    let shared = |i: usize| format!("{prefix}\nQuestion {i}: what of part {}?", i * 7 % 41);
    let shared = burst(&stand, flags.burst, shared).await?;
    eprintln!("one prefix: {shared:?}");
    // Prompts that share not even their first stride.
    let cold = |i: usize| {
        let line = format!("{i:05} is a topic of its own, and nobody else asks about {i:05}. ");
        line.repeat(20)
    };
    let cold = burst(&stand, flags.burst, cold).await?;
    eprintln!("distinct prompts: {cold:?}");
    let mut left = leaks(&stand).await?;
    drop(stand);
    if flags.requests > 0 {
        let (requests, tokens) = long_run(flags.requests).await?;
        left = (left.0 + requests, left.1 + tokens);
    }

    let shared_endpoints = shared.served.len();
    let most = cold.served.values().copied().max().unwrap_or(0);
    let max_over_mean = most as f64 / (flags.burst as f64 / ENGINES as f64);
    let row = |what: &str, burst: &Burst| {
        let counts: Vec<String> = burst.served.values().map(usize::to_string).collect();
        vec![what.to_owned(), counts.join(" "), burst.batches.to_string()]
    };
    let rows = [
        ["burst", "requests per endpoint", "event batches during it"].map(str::to_owned).to_vec(),
        row("one new prefix", &shared),
        row("distinct prompts", &cold),
    ];
    let table = format!(
        "{} requests at once over {ENGINES} endpoints and {WORKERS} workers\n{}\
         max/mean of distinct prompts {max_over_mean:.2}; left in flight after {} requests: {} \
         requests, {} tokens\n",
        flags.burst,
        aligned(&rows),
        2 * flags.burst + flags.requests,
        left.0,
        left.1,
    );
    let result = json!({
        "bench": "burst",
        "shared_prefix_endpoints": shared_endpoints,
        "cold_max_over_mean": rounded(max_over_mean),
        "leaked_requests": left.0,
        "leaked_tokens": left.1,
        "requests": 2 * flags.burst + flags.requests,
        "shared_prefix_requests": shared.served.values().collect::<Vec<_>>(),
        "cold_requests": cold.served.values().collect::<Vec<_>>(),
        "event_batches_during_decisions": shared.batches,
    });
    Ok((table, result))
}

/// Engines whose first step is longer than a burst takes to be decided, so that no event comes in
/// between.
async fn start() -> Result<Stand> {
    let flags = [
        "--base-ms=3000",
        "--prefill-tokens-per-s=100000000",
        "--num-blocks=300000",
        "--max-model-len=4000000",
        "--max-num-seqs=1024",
    ];
    let engine = EngineOptions { flags: flags.map(str::to_owned).to_vec() };
    let options = StandOptions {
        engines: vec![engine; ENGINES],
        workers: WORKERS,
        ..StandOptions::default()
    };
    Stand::start(options).await
}

/// Text of at least so many tokens by the engine's own count.
async fn prefix(stand: &Stand, tokens: usize) -> Result<String> {
    let engine = Client::new(stand.engines.first().context("an engine")?.http);
    let mut text = String::new();
    let mut line = 0;
    loop {
        let wanted = text.len() + tokens * BYTES_PER_TOKEN / 4;
        while text.len() < wanted {
            line += 1;
            text.push_str(&format!(
                "Note {line}: part {} waits for {}. ",
                line * 7 % 41,
                line % 17
            ));
        }
        let answer = engine.post("/tokenize", &json!({"prompt": text})).await?;
        if answer.json()?["count"].as_u64().context("count of /tokenize")? >= tokens as u64 {
            return Ok(text);
        }
    }
}

#[derive(Debug)]
struct Burst {
    served: BTreeMap<String, usize>,
    /// Batches of events applied by the time the last request had been decided.
    batches: u64,
}

/// Sends all at once, each over a connection of its own, and counts who served them.
async fn burst(stand: &Stand, count: usize, prompt: impl Fn(usize) -> String) -> Result<Burst> {
    let picked = async || stand.envoy_stat("wasmcustom.wasm_epp_requests_picked_total").await;
    let batches = async || anyhow::Ok(stand.event_batches().await?.values().sum::<u64>());
    let (picked_before, batches_before) = (picked().await?, batches().await?);
    let barrier = Arc::new(Barrier::new(count));
    let mut tasks = JoinSet::new();
    for i in 0..count {
        let body = json!({"model": "tiny", "prompt": prompt(i), "max_tokens": 1});
        let (client, barrier) = (Client::new(stand.gateway), Arc::clone(&barrier));
        tasks.spawn(async move {
            barrier.wait().await;
            client.post(PATH, &body).await
        });
    }
    let batches = wait_until("all are decided", Duration::from_secs(60), async || {
        let is_decided = picked().await.ok()? >= picked_before + count as u64;
        let batches = batches().await.ok()? - batches_before;
        is_decided.then_some(batches)
    })
    .await?;
    let mut served = BTreeMap::new();
    while let Some(answer) = tasks.join_next().await {
        let answer = answer??;
        ensure!(answer.status.is_success(), "{PATH} answered {}", answer.status);
        *served.entry(answer.header("x-sim-engine").to_owned()).or_default() += 1;
    }
    Ok(Burst { served, batches })
}

/// What the gateway has in flight although every request has ended. Its acks may be a second old.
async fn leaks(stand: &Stand) -> Result<(u64, u64)> {
    let now = async || {
        let page = get(stand.daemon_admin, "/readyz").await.ok()?.json().ok()?;
        let gateway = &page["gateways"][0];
        Some((gateway["in_flight_requests"].as_u64()?, gateway["in_flight_tokens"].as_u64()?))
    };
    let none = wait_until("nothing is in flight", Duration::from_secs(10), async || {
        now().await.filter(|left| *left == (0, 0))
    });
    match none.await {
        Ok(left) => Ok(left),
        Err(_) => now().await.context("in_flight_requests of /readyz"),
    }
}

/// Many requests over two workers to backends that answer at once.
async fn long_run(requests: usize) -> Result<(u64, u64)> {
    eprintln!("{requests} requests over two workers ...");
    let page = std::fs::read(root().join("tests/golden/metrics/vllm-metrics.txt"))?;
    let mut backends = Vec::new();
    for _ in 0..4 {
        backends.push(Backend::start(page.clone()).await?);
    }
    let options = StandOptions {
        engines: Vec::new(),
        others: backends.iter().map(|backend| backend.address).collect(),
        workers: 2,
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await?;
    // A line per request would cost more than the request.
    let quiet = Client::new(stand.envoy_admin).post("/logging?wasm=info", &Value::Null).await?;
    ensure!(quiet.status.is_success(), "/logging answered {}", quiet.status);
    let shot = |i: usize| Shot {
        path: PATH,
        body: Bytes::from(
            json!({"model": "tiny", "prompt": format!("Item {i}. ").repeat(100), "max_tokens": 1})
                .to_string(),
        ),
        backend: None,
    };
    let shots = Arc::new((0..64).map(shot).collect::<Vec<_>>());
    load::run(stand.gateway, &shots, 16, requests).await?;
    leaks(&stand).await
}
