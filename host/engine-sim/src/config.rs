use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// How events are written in a batch (the batch itself is an array in both).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EventEncoding {
    /// `["BlockStored", ...]`: vLLM up to 0.23.
    TaggedArray,
    /// `{"type": "BlockStored", ...}` without default fields: vLLM from 0.24.
    #[default]
    TaggedMap,
}

/// How replayed batches are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReplayFraming {
    /// `["", seq, payload]`: vLLM up to 0.25.
    WithoutTopic,
    /// `["", topic, seq, payload]`: vLLM from 0.26.
    #[default]
    WithTopic,
}

/// Everything a simulated engine is started with. [`SimConfig::default`] listens on free ports of
/// 127.0.0.1 and answers at once.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Name of this engine in the `x-sim-engine` response header.
    pub name: String,
    /// Served model name.
    pub model: String,
    /// Names of LoRA adapters, each a model of its own to clients.
    pub adapters: Vec<String>,
    /// Model folder (Hugging Face layout) with the tokenizer and the chat template.
    pub model_folder: PathBuf,
    /// HTTP listen address; port 0 takes a free one.
    pub http: SocketAddr,
    /// ZMQ endpoint of the event publisher (`tcp://127.0.0.1:0`), `None` for no events.
    pub kv_events: Option<String>,
    /// ZMQ endpoint of the replay socket, `None` for no replay.
    pub replay: Option<String>,
    /// First frame of every published batch.
    pub topic: String,
    /// Encoding of events.
    pub event_encoding: EventEncoding,
    /// Framing of replayed batches.
    pub replay_framing: ReplayFraming,
    /// Batches kept for replay (vLLM's `buffer_steps`).
    pub buffer_steps: usize,
    /// Tokens per block.
    pub block_size_tokens: usize,
    /// Blocks of the cache, as vLLM's `num_gpu_blocks`: one of them is never used (the null block).
    pub num_blocks: usize,
    /// Whether usages name cached tokens (vLLM's `--enable-prompt-tokens-details`).
    pub prompt_tokens_details: bool,
    /// Most requests that run at a time; others wait.
    pub max_num_seqs: usize,
    /// Most tokens of a prompt and its answer; `None` takes the model's own limit. In any case
    /// no more than the cache holds.
    pub max_model_len: Option<usize>,
    /// Prompt tokens that are not cached, computed per second; infinite for no prefill time.
    pub prefill_tokens_per_s: f64,
    /// Fixed time of a step that starts requests.
    pub base_ms: f64,
    /// Time of a step in which requests decode: each gets one token.
    pub inter_token_ms: f64,
    /// Seed of the generated text: same seed and prompt, same answer, on every engine.
    pub seed: u64,
    /// Seed of the block hashes; `None` draws one, as vLLM without PYTHONHASHSEED.
    pub hash_seed: Option<u64>,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            name: "sim".to_owned(),
            model: "tiny".to_owned(),
            adapters: Vec::new(),
            model_folder: default_model_folder(),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            kv_events: Some("tcp://127.0.0.1:0".to_owned()),
            replay: Some("tcp://127.0.0.1:0".to_owned()),
            topic: String::new(),
            event_encoding: EventEncoding::default(),
            replay_framing: ReplayFraming::default(),
            buffer_steps: 10_000,
            block_size_tokens: 16,
            num_blocks: 1024,
            prompt_tokens_details: true,
            max_num_seqs: 256,
            max_model_len: None,
            prefill_tokens_per_s: f64::INFINITY,
            base_ms: 0.0,
            inter_token_ms: 0.0,
            seed: 0,
            hash_seed: None,
        }
    }
}

impl SimConfig {
    /// Refuses values no engine can run with, and fills in `max_model_len`.
    pub(crate) fn check(&self, model_limit: Option<usize>) -> Result<usize> {
        ensure!(self.block_size_tokens > 0, "block size must be at least 1 token");
        ensure!(self.num_blocks >= 2, "num_blocks is {}, must be at least 2", self.num_blocks);
        ensure!(self.max_num_seqs > 0, "max_num_seqs must be at least 1");
        ensure!(
            self.prefill_tokens_per_s > 0.0,
            "prefill_tokens_per_s is {}, must be positive",
            self.prefill_tokens_per_s
        );
        for (name, value) in [("base_ms", self.base_ms), ("inter_token_ms", self.inter_token_ms)] {
            ensure!(value.is_finite() && value >= 0.0, "{name} is {value}, must be 0 or more");
        }
        let capacity = (self.num_blocks - 1)
            .checked_mul(self.block_size_tokens)
            .context("num_blocks times block size overflows")?;
        let wanted = self.max_model_len.or(model_limit).unwrap_or(capacity);
        Ok(wanted.min(capacity))
    }
}

/// `tests/golden/tiny-model` of this repository.
pub fn default_model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-model")
}
