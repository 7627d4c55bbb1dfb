//! Engines whose events are real and whose answers are a constant, behind a gateway: what they cost
//! does not matter to what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use testbed::{Backend, Client, EngineOptions, Stand, StandOptions, root};

use crate::load::Shot;
use crate::table::median;

pub(crate) const PATH: &str = "/v1/chat/completions";
/// Time until a prompt just announced must be matched, also on a busy machine.
const APPLIED_WITHIN: Duration = Duration::from_secs(20);
const BLOCKS: usize = 300_000;
const BLOCK_TOKENS: f64 = 16.0;

/// A conversation, of which an engine is to hold the first `held` messages.
pub(crate) struct Chat {
    pub(crate) messages: Vec<Value>,
    pub(crate) held: usize,
}

/// Three simulated engines, whose places behind the gateway backends have taken.
pub(crate) struct Fleet {
    pub(crate) stand: Stand,
    /// APIs of the simulated engines, which only the bench asks.
    engines: Vec<SocketAddr>,
    pub(crate) backends: Vec<Backend>,
}

impl Fleet {
    /// Starts engines and backends, and renders the gateway's files.
    pub(crate) async fn prepare(workers: u32) -> Result<Self> {
        let flags = [format!("--num-blocks={BLOCKS}"), "--max-model-len=4000000".to_owned()];
        let engine = EngineOptions { flags: flags.to_vec() };
        let options = StandOptions { engines: vec![engine; 3], workers, ..StandOptions::default() };
        let mut stand = Stand::prepare(options).await?;
        // The page says how large the cache is, which bounds what the daemon keeps of the engine.
        let page = std::fs::read_to_string(root().join("tests/golden/metrics/vllm-metrics.txt"))?;
        let recorded = "num_gpu_blocks=\"160\"";
        ensure!(page.contains(recorded), "the recorded metrics page has no {recorded}");
        let page = page.replace(recorded, &format!("num_gpu_blocks=\"{BLOCKS}\""));
        let (mut engines, mut backends) = (Vec::new(), Vec::new());
        for engine in &mut stand.engines {
            let backend = Backend::start(page.clone()).await?;
            engines.push(std::mem::replace(&mut engine.http, backend.address));
            backends.push(backend);
        }
        stand.write_config()?;
        stand.render()?;
        Ok(Self { stand, engines, backends })
    }

    /// Starts Envoy and the daemon, on the rendered files as they are by now.
    pub(crate) async fn start(&mut self) -> Result<()> {
        self.stand.start_envoy(&[]).await?;
        self.stand.start_daemon()?;
        self.stand.wait_ready().await
    }

    /// Has the engines hold the conversations, in turn, and gives the whole ones as requests, with
    /// the part of them that is matched.
    ///
    /// # Errors
    ///
    /// When less than `min_ratio` (0 to 1) of one is matched in time, among others.
    pub(crate) async fn hold(
        &self,
        what: &str,
        chats: &[Chat],
        min_ratio: f64,
    ) -> Result<(Vec<Shot>, f64)> {
        let gateway = self.stand.client();
        self.log_level("debug").await?;
        let (mut shots, mut held) = (Vec::new(), Vec::new());
        for (number, Chat { messages, held: earlier }) in chats.iter().enumerate() {
            let slot = number % self.engines.len();
            let holder = self.backends[slot].address.to_string();
            let before = self.stand.event_batches().await?;
            let earlier =
                json!({"model": "tiny", "messages": messages[..*earlier], "max_tokens": 1});
            let answer = Client::new(self.engines[slot]).post(PATH, &earlier).await?;
            ensure!(answer.status.is_success(), "the engine answered {answer:?}");
            self.stand.settled(&holder, &before).await?;

            let body = json!({"model": "tiny", "messages": messages, "max_tokens": 1});
            let tokens = count_tokens(self.engines[slot], messages).await?;
            // A long prompt is announced in several batches, of which one may be under way.
            let mut matched = None;
            let ratio =
                |matched: Option<u64>| matched.unwrap_or(0) as f64 * BLOCK_TOKENS / tokens as f64;
            let deadline = Instant::now() + APPLIED_WITHIN;
            while ratio(matched) < min_ratio && Instant::now() < deadline {
                let answer = gateway.post(PATH, &body).await?;
                let line = self.stand.pod_scores(answer.header("x-request-id")).await?;
                matched = line.scores().and_then(|scores| scores.get(&holder).copied());
            }
            ensure!(
                ratio(matched) >= min_ratio,
                "{what}: {matched:?} blocks of {tokens} tokens are matched"
            );
            held.push(ratio(matched));
            let body = Bytes::from(body.to_string());
            shots.push(Shot { path: PATH, body, backend: Some(holder) });
        }
        self.log_level("info").await?;
        Ok((shots, median(&held)))
    }

    async fn log_level(&self, level: &str) -> Result<()> {
        let path = format!("/logging?wasm={level}");
        let answer = Client::new(self.stand.envoy_admin).send("POST", &path, &[], "").await?;
        ensure!(answer.status.is_success(), "{path}: {answer:?}");
        Ok(())
    }
}

async fn count_tokens(engine: SocketAddr, messages: &[Value]) -> Result<u64> {
    let answer = Client::new(engine).post("/tokenize", &json!({"messages": messages})).await?;
    answer.json()?["count"].as_u64().context("count of /tokenize")
}
