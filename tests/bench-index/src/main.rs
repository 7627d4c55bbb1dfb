//! `scripts/bench index`: the prefix index beside those of Dynamo and SMG, on one history.
//!
//! Each index runs in a process of its own, as memory that was freed is not given back to the
//! system. All take the same events in the form they want them in, answer the same prompts, and
//! every answer is compared with sets of held blocks.

mod corpus;
mod dynamo;
#[path = "../../src/bench/events.rs"]
mod events;
mod oracle;
mod ours;
mod random;
mod smg;
mod subject;
#[path = "../../src/bench/table.rs"]
mod table;
mod trace;
mod wire;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use prefix_index::KeySpace;
use serde_json::{Value, json};

use crate::corpus::Corpus;
use crate::dynamo::Dynamo;
use crate::ours::Ours;
use crate::smg::Smg;
use crate::subject::{Plan, measure};
use crate::table::aligned;
use crate::trace::{Options, Trace};
use crate::wire::Wire;

const ENDPOINTS: usize = 64;
/// As the daemon sizes its buckets.
const STRIDES_PER_BUCKET: usize = 16;

/// The prefix index beside those of its peers: blocks applied per second, lookups, memory
#[derive(Parser)]
#[command(name = "bench index")]
struct Flags {
    /// Print the result as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Only this index, in this process
    #[arg(long, value_enum)]
    only: Option<Which>,
    /// Blocks that each endpoint's cache holds: Qwen3-32B on two H100 by default
    #[arg(long, default_value_t = 19_500)]
    capacity: usize,
    /// Blocks stored in all, in terms of what all caches hold; beyond 1 others are evicted
    #[arg(long, default_value_t = 1.5)]
    turnover: f64,
    /// Prompts of 488 blocks to look up
    #[arg(long, default_value_t = 4000)]
    prompts: usize,
    /// Times that the history is applied
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Times that every prompt is looked up
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Which {
    /// Ours, over text: token ids become bytes
    Text,
    /// Ours, over text, from the bytes that an engine publishes
    Wire,
    /// Ours, over token ids
    TokenIds,
    /// `ConcurrentRadixTreeCompressed` of `dynamo-kv-router`
    Dynamo,
    /// `ChainIndex` of `kv-index`
    Smg,
}

impl Which {
    const ALL: [Self; 5] = [Self::Text, Self::Wire, Self::TokenIds, Self::Dynamo, Self::Smg];

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn title(self) -> &'static str {
        match self {
            Self::Text => "wasm-epp, text",
            Self::Wire => "wasm-epp, text, decoded too",
            Self::TokenIds => "wasm-epp, token ids",
            Self::Dynamo => "dynamo-kv-router CRTC",
            Self::Smg => "kv-index ChainIndex",
        }
    }
}

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Printing fails only when nobody reads; the exit code still tells.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let outcome = match flags.only {
        Some(which) => run(which, &flags).map(|result| (String::new(), result)),
        None => all(&flags),
    };
    match outcome {
        Ok((table, result)) => {
            print!("{table}");
            if flags.json {
                println!("{result}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            if flags.json {
                println!("{}", json!({"ok": false, "error": format!("{error:#}")}));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(which: Which, flags: &Flags) -> Result<Value> {
    let corpus = Corpus::load()?;
    let options = Options {
        endpoints: ENDPOINTS,
        capacity_blocks: flags.capacity,
        turnover: flags.turnover,
        prompts: flags.prompts,
        seed: flags.seed,
    };
    let trace = Trace::new(&options, &corpus);
    let (operations, fill) = trace.operations();
    let plan = Plan { endpoints: ENDPOINTS, repeats: flags.repeats, rounds: flags.rounds };
    let bytes_per_token = corpus.bytes_per_token();
    let ours = |key_space, bytes_per_block: f64| {
        // Nearly all blocks of the caches are held by one endpoint.
        let blocks = (ENDPOINTS * flags.capacity) as f64;
        let strides = blocks * bytes_per_block / prefix::STRIDE_BYTES as f64;
        let buckets = (strides as usize / STRIDES_PER_BUCKET).max(64).next_power_of_two();
        Ours { key_space, table: &corpus.table, bucket_count: buckets as u32 }
    };
    let block = trace::BLOCK as f64;
    let mut result = match which {
        Which::Text => measure(&ours(KeySpace::Text, block * bytes_per_token), &trace, &plan),
        Which::Wire => measure(&Wire(ours(KeySpace::Text, block * bytes_per_token)), &trace, &plan),
        Which::TokenIds => measure(&ours(KeySpace::TokenIds, block * 4.0), &trace, &plan),
        Which::Dynamo => measure(&Dynamo, &trace, &plan),
        Which::Smg => measure(&Smg, &trace, &plan),
    }?;
    result["trace"] = json!({
        "tokenizer": corpus.name,
        "bytes_per_token": table::rounded(bytes_per_token),
        "block_operations": operations,
        "block_operations_before_evictions": fill,
        "prompts": trace.prompts.len(),
        "seed": flags.seed,
    });
    Ok(result)
}

fn in_a_process(which: Which, flags: &Flags) -> Result<Value> {
    eprintln!("{} ...", which.title());
    let output = Command::new(std::env::current_exe()?)
        .args(["--json", "--only", &which.name()])
        .args(["--capacity", &flags.capacity.to_string()])
        .args(["--turnover", &flags.turnover.to_string()])
        .args(["--prompts", &flags.prompts.to_string()])
        .args(["--repeats", &flags.repeats.to_string()])
        .args(["--rounds", &flags.rounds.to_string()])
        .args(["--seed", &flags.seed.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    let result: Value =
        serde_json::from_str(line).with_context(|| format!("{}: {line}", which.title()))?;
    ensure!(result["ok"].is_null(), "{}: {}", which.title(), result["error"]);
    Ok(result)
}

fn all(flags: &Flags) -> Result<(String, Value)> {
    let results: Vec<(Which, Value)> = Which::ALL
        .into_iter()
        .map(|which| Ok((which, in_a_process(which, flags)?)))
        .collect::<Result<_>>()?;
    Ok((table_of(&results), json_of(results)))
}

fn table_of(results: &[(Which, Value)]) -> String {
    let head = [
        "index",
        "M blocks/s",
        "stores only",
        "lookup p50 us",
        "p99",
        "hash prompt p50 us",
        "B/pair",
        "B/block",
        "over",
        "under",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (which, result) in results {
        let number = |value: &Value, scale: f64, digits: usize| {
            let value = value.as_f64().unwrap_or(f64::NAN) / scale;
            format!("{value:.digits$}")
        };
        rows.push(vec![
            which.title().to_owned(),
            number(&result["apply_blocks_per_s"], 1e6, 2),
            number(&result["apply_stores_only_blocks_per_s"], 1e6, 2),
            number(&result["lookup_us"]["p50"], 1.0, 2),
            number(&result["lookup_us"]["p99"], 1.0, 2),
            number(&result["hash_prompt_us"]["p50"], 1.0, 2),
            number(&result["bytes_per_entry"], 1.0, 1),
            number(&result["bytes_per_distinct_block"], 1.0, 1),
            number(&result["answers"]["over"], 1.0, 0),
            number(&result["answers"]["under"], 1.0, 0),
        ]);
    }
    aligned(&rows)
}

fn json_of(results: Vec<(Which, Value)>) -> Value {
    let of = |which: Which| {
        results.iter().find(|(other, _)| *other == which).map_or(Value::Null, |(_, r)| r.clone())
    };
    let (text, ids) = (of(Which::Text), of(Which::TokenIds));
    let peer = |which: Which, name: &str, version: &str| {
        let mut result = of(which);
        result["name"] = json!(name);
        result["version"] = json!(version);
        result
    };
    json!({
        "ok": true,
        "bench": "index",
        "load_average": load_average(),
        "apply_blocks_per_s": {
            "with_detokenising": text["apply_blocks_per_s"],
            "with_decoding_and_detokenising": of(Which::Wire)["apply_blocks_per_s"],
            "without_detokenising": ids["apply_blocks_per_s"],
        },
        "lookup_us": text["lookup_us"],
        "bytes_per_entry": text["bytes_per_entry"],
        "text": text,
        "token_ids": ids,
        "peers": {
            "dynamo": peer(Which::Dynamo, "dynamo-kv-router ConcurrentRadixTreeCompressed", "1.6.1"),
            "smg": peer(Which::Smg, "kv-index ChainIndex", "2.0.0"),
        },
    })
}

/// How busy others keep the machine; null where it cannot be told.
fn load_average() -> Option<f64> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').next()?.parse().ok()
}
