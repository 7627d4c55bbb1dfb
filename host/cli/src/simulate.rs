//! `wasm-epp simulate-engine`: an engine without a model, for tests and demonstrations.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use engine_sim::{EventEncoding, ReplayFraming, SimConfig};
use tokio::signal::unix::{SignalKind, signal};

/// Flags of `simulate-engine`. What is left out is as in [`SimConfig::default`]: free ports of
/// 127.0.0.1, the tiny model of the repository, and answers at once.
#[derive(Args, Debug, Default)]
pub struct Flags {
    /// Name of this engine in the x-sim-engine response header
    #[arg(long)]
    name: Option<String>,
    /// Served model name
    #[arg(long)]
    model: Option<String>,
    /// Name of a LoRA adapter; may be repeated
    #[arg(long = "adapter", value_name = "NAME")]
    adapters: Vec<String>,
    /// Folder with tokenizer and chat template
    #[arg(long, value_name = "DIR")]
    model_folder: Option<PathBuf>,
    /// Listen address of the OpenAI API and of /metrics; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT")]
    http: Option<SocketAddr>,
    /// ZMQ address of the KV event publisher, like tcp://127.0.0.1:0
    #[arg(long, value_name = "ADDRESS")]
    kv_events: Option<String>,
    /// Connect to the --kv-events address instead of binding it
    #[arg(long, requires = "kv_events")]
    kv_events_connect: bool,
    /// Publish no KV events
    #[arg(long, conflicts_with_all = ["kv_events", "replay"])]
    no_kv_events: bool,
    /// ZMQ address of the replay socket
    #[arg(long, value_name = "ADDRESS")]
    replay: Option<String>,
    /// Offer no replay
    #[arg(long, conflicts_with = "replay")]
    no_replay: bool,
    /// First frame of every published batch
    #[arg(long)]
    topic: Option<String>,
    /// How events are written
    #[arg(long, value_enum, value_name = "ENCODING")]
    event_encoding: Option<Encoding>,
    /// How replayed batches are framed
    #[arg(long, value_enum, value_name = "FRAMING")]
    replay_framing: Option<Framing>,
    /// Batches kept for replay
    #[arg(long, value_name = "BATCHES")]
    buffer_steps: Option<usize>,
    /// Tokens per block
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<usize>,
    /// Blocks of the cache
    #[arg(long, value_name = "BLOCKS")]
    num_blocks: Option<usize>,
    /// Never name cached tokens in usages, as vLLM without --enable-prompt-tokens-details
    #[arg(long)]
    no_prompt_tokens_details: bool,
    /// Most requests that run at a time
    #[arg(long, value_name = "REQUESTS")]
    max_num_seqs: Option<usize>,
    /// Most tokens of a prompt and its answer
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Uncached prompt tokens computed per second
    #[arg(long, value_name = "TOKENS")]
    prefill_tokens_per_s: Option<f64>,
    /// Fixed time of a step that starts requests
    #[arg(long, value_name = "MS")]
    base_ms: Option<f64>,
    /// Time of a step in which requests get a token each
    #[arg(long, value_name = "MS")]
    inter_token_ms: Option<f64>,
    /// Seed of the generated text
    #[arg(long)]
    seed: Option<u64>,
    /// Seed of the block hashes; drawn at random when left out
    #[arg(long, value_name = "SEED")]
    hash_seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Encoding {
    /// As vLLM up to 0.23
    TaggedArray,
    /// As vLLM from 0.24
    TaggedMap,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Framing {
    /// As vLLM up to 0.25
    WithoutTopic,
    /// As vLLM from 0.26
    WithTopic,
}

/// Runs an engine until SIGTERM or SIGINT. When it takes requests, its addresses are one line of
/// JSON on stdout.
///
/// # Errors
/// When a value is not accepted, the model folder is not readable, or an address cannot be bound.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    // Before anything is announced, so that a signal sent by a reader of the line is not lost.
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let connects = flags.kv_events_connect;
    let sim = engine_sim::start_with(config(flags), connects).await?;
    println!(
        "{}",
        serde_json::json!({"http": sim.http, "kvEvents": sim.kv_events, "replay": sim.replay})
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    sim.shutdown().await;
    Ok(())
}

fn config(flags: Flags) -> SimConfig {
    let default = SimConfig::default();
    let kv_events = flags.kv_events.or(default.kv_events).filter(|_| !flags.no_kv_events);
    let replay = flags.replay.or(default.replay);
    SimConfig {
        name: flags.name.unwrap_or(default.name),
        model: flags.model.unwrap_or(default.model),
        adapters: flags.adapters,
        model_folder: flags.model_folder.unwrap_or(default.model_folder),
        http: flags.http.unwrap_or(default.http),
        replay: replay.filter(|_| kv_events.is_some() && !flags.no_replay),
        kv_events,
        topic: flags.topic.unwrap_or(default.topic),
        event_encoding: match flags.event_encoding {
            Some(Encoding::TaggedArray) => EventEncoding::TaggedArray,
            Some(Encoding::TaggedMap) => EventEncoding::TaggedMap,
            None => default.event_encoding,
        },
        replay_framing: match flags.replay_framing {
            Some(Framing::WithoutTopic) => ReplayFraming::WithoutTopic,
            Some(Framing::WithTopic) => ReplayFraming::WithTopic,
            None => default.replay_framing,
        },
        buffer_steps: flags.buffer_steps.unwrap_or(default.buffer_steps),
        block_size_tokens: flags.block_size.unwrap_or(default.block_size_tokens),
        num_blocks: flags.num_blocks.unwrap_or(default.num_blocks),
        prompt_tokens_details: !flags.no_prompt_tokens_details,
        max_num_seqs: flags.max_num_seqs.unwrap_or(default.max_num_seqs),
        max_model_len: flags.max_model_len.or(default.max_model_len),
        prefill_tokens_per_s: flags.prefill_tokens_per_s.unwrap_or(default.prefill_tokens_per_s),
        base_ms: flags.base_ms.unwrap_or(default.base_ms),
        inter_token_ms: flags.inter_token_ms.unwrap_or(default.inter_token_ms),
        seed: flags.seed.unwrap_or(default.seed),
        hash_seed: flags.hash_seed.or(default.hash_seed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_is_the_default() {
        let (ours, default) = (config(Flags::default()), SimConfig::default());
        assert_eq!(format!("{ours:?}"), format!("{default:?}"));
    }

    #[test]
    fn without_events_there_is_no_replay() {
        let config = config(Flags { no_kv_events: true, ..Flags::default() });
        assert_eq!((config.kv_events, config.replay), (None, None));
    }
}
