//! `bench added-latency`: what a router adds to a request, beside other routers on the same machine.
//!
//! Ways from the same client to the same backends: without a proxy (`direct`), through Envoy with
//! nothing, with our modules, with llm-d's endpoint picker by `ext_proc`, and through vLLM's router.
//! Rounds alternate between the ways, so that what the machine does meanwhile hits all. The load is
//! open-loop but for the cell of 220 KB at concurrency 150, which is closed as in its original.

mod cell;
mod collapse;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::arms::{Arm, Arms, ENVOY, OURS, VLLM_ROUTER};
use crate::cpu::{conversation, filler};
use crate::fleet::Chat;
use crate::load::Shot;
use crate::open_loop::{self, Offer, Outcome};
use crate::plot::{self, Axes, Series};
use crate::report::Report;
use crate::table::{aligned, median, quantile, rounded};
use crate::usage::Usage;

/// llm-d's own estimate.
const BYTES_PER_TOKEN: usize = 4;
/// Conversations per size, a third on each engine.
const CHATS: usize = 6;
/// From this size on a prompt is a conversation of eight messages, of which an engine holds six.
const CONVERSATION_BYTES: usize = 2048;
/// Part of a prompt that an engine must hold for the measurement to be of a deep match. A prompt of
/// 64 tokens is of few strides and blocks, of which the last is never whole.
const MIN_HELD_RATIO: f64 = 0.5;
/// Requests per second at which latency is measured: far from collapse, for the large as well.
const MAX_RATE: f64 = 300.0;
const MAX_BYTES_PER_S: f64 = 16e6;
const CONNECTIONS: usize = 8;
const IDLE: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Sizes of the prompts, four bytes a token
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [64, 1024, 8192, 65536])]
    tokens: Vec<usize>,
    /// Workers of Envoy and threads of each peer
    #[arg(long, value_name = "WORKERS", value_delimiter = ',', default_values_t = [1])]
    concurrency: Vec<u32>,
    /// Measured rounds; one more goes before them and is dropped
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 1500)]
    window_ms: u64,
    /// Sizes of the prompts with which the rate of collapse is looked for
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [1024])]
    collapse_tokens: Vec<usize>,
    /// Milliseconds that the 99th percentile may be at a rate that counts as carried
    #[arg(long, default_value_t = 100.0)]
    bound_ms: f64,
    /// The whole matrix, in about 90 minutes: seven sizes, 1 to 4 workers, seven rounds, three rates of
    /// collapse
    #[arg(long)]
    full: bool,
}

impl Flags {
    /// With what `--full` stands for.
    fn resolved(&self) -> Self {
        if !self.full {
            return Self {
                tokens: self.tokens.clone(),
                concurrency: self.concurrency.clone(),
                collapse_tokens: self.collapse_tokens.clone(),
                ..*self
            };
        }
        Self {
            tokens: vec![64, 256, 1024, 4096, 8192, 16_384, 65_536],
            concurrency: vec![1, 2, 3, 4],
            rounds: 7,
            window_ms: 3000,
            collapse_tokens: vec![64, 1024, 8192],
            ..*self
        }
    }

    fn window(&self) -> Duration {
        Duration::from_millis(self.window_ms)
    }
}

pub(crate) async fn run(flags: &Flags) -> Result<Report> {
    let flags = flags.resolved();
    ensure!(flags.window_ms >= 100, "--window-ms is {}, must be 100 or more", flags.window_ms);
    ensure!(flags.bound_ms > 0.0, "--bound-ms is {}, must be above 0", flags.bound_ms);
    let (mut text, mut results, mut plots) = (String::new(), Vec::new(), Vec::new());
    for &workers in &flags.concurrency {
        eprintln!("starting everything, {workers} workers ...");
        let arms = Arms::start(workers).await?;
        for missing in &arms.missing {
            eprintln!("MISSING {missing}");
        }
        let idle = idle(&arms).await?;
        let mut rows = Vec::new();
        // Engines announce a prompt once.
        let mut by_tokens = BTreeMap::new();
        for &tokens in &flags.tokens {
            let held = hold(&arms, tokens * BYTES_PER_TOKEN).await?;
            rows.extend(latency(&arms, tokens, &held, &idle, &flags).await?);
            by_tokens.insert(tokens, held.0);
        }
        let mut collapses = Vec::new();
        for &tokens in &flags.collapse_tokens {
            let shots = match by_tokens.get(&tokens) {
                Some(shots) => Arc::clone(shots),
                None => hold(&arms, tokens * BYTES_PER_TOKEN).await?.0,
            };
            collapses.extend(collapse::run(&arms, tokens, &shots, &flags).await?);
        }
        let shots = hold(&arms, cell::BYTES).await?.0;
        let cells = cell::run(&arms, &shots, &flags).await?;
        text += &format!(
            "{workers} workers. Latency from when a request was due, Poisson arrivals, {} rounds; added: \
             over Envoy alone; CPU: of all processes on the way, less what they use idle\n{}\n{}\n{}",
            flags.rounds,
            table(&rows),
            collapse::table(&collapses, flags.bound_ms),
            cell::table(&cells),
        );
        for missing in &arms.missing {
            text += &format!("not compared: {missing}\n");
        }
        if arms.all.iter().any(|arm| arm.name == VLLM_ROUTER) {
            text += "vllm-router has a backend render each prompt, which is answered at once here and \
                     tokenized by an engine\n";
        }
        if plots.is_empty() {
            plots = curves(&rows)?;
        }
        let idle = arms
            .all
            .iter()
            .zip(&idle)
            .map(|(arm, cores)| json!({"arm": arm.name, "cores": rounded(*cores)}));
        results.push(json!({
            "workers": workers, "latency": rows.iter().map(Row::json).collect::<Vec<_>>(),
            "collapse": collapses.iter().map(collapse::Row::json).collect::<Vec<_>>(),
            "cell_220kb_c150": cells.iter().map(cell::Row::json).collect::<Vec<_>>(),
            "idle": idle.collect::<Vec<_>>(), "missing": &arms.missing,
        }));
    }
    let result = json!({
        "bench": "added-latency", "rounds": flags.rounds, "window_ms": flags.window_ms,
        "bound_ms": flags.bound_ms, "bytes_per_token": BYTES_PER_TOKEN, "by_workers": results,
    });
    Ok(Report { table: text, result, plots })
}

/// Cores that each way's processes use without a request.
async fn idle(arms: &Arms) -> Result<Vec<f64>> {
    let usage = || arms.all.iter().map(|arm| Usage::of(&arm.processes)).collect::<Result<Vec<_>>>();
    let (before, start) = (usage()?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let elapsed = start.elapsed().as_secs_f64();
    Ok(usage()?.iter().zip(&before).map(|(now, before)| now.since(before) / elapsed).collect())
}

/// Requests of about so many bytes that engines hold most of, and the part that is matched.
async fn hold(arms: &Arms, bytes: usize) -> Result<(Arc<Vec<Shot>>, f64)> {
    let chat = |number: usize| {
        // No prompt of a size is the beginning of another size's.
        let number = number + bytes * CHATS;
        if bytes < CONVERSATION_BYTES {
            let text = filler(number, bytes);
            return Chat { messages: vec![json!({"role": "user", "content": text})], held: 1 };
        }
        Chat { messages: conversation(number, bytes), held: 6 }
    };
    let chats: Vec<Chat> = (0..CHATS).map(chat).collect();
    let (shots, held) = arms.fleet.hold(&format!("{bytes} bytes"), &chats, MIN_HELD_RATIO).await?;
    Ok((Arc::new(shots), held))
}

/// One way at one size.
struct Row {
    arm: &'static str,
    tokens: usize,
    rate_per_s: f64,
    held_ratio: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// By round, over Envoy alone.
    added_p50_ms: f64,
    /// Of all rounds together, over Envoy alone.
    added_p99_ms: f64,
    cpu_us: f64,
    added_cpu_us: f64,
    /// Requests that went to the engine that holds their prompt.
    to_holder_ratio: f64,
    /// Median of how late the generator itself was.
    late_ms: f64,
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "arm": self.arm, "tokens": self.tokens, "rate_per_s": rounded(self.rate_per_s),
            "held_ratio": rounded(self.held_ratio),
            "p50_ms": rounded(self.p50_ms), "p99_ms": rounded(self.p99_ms),
            "added_p50_ms": rounded(self.added_p50_ms), "added_p99_ms": rounded(self.added_p99_ms),
            "cpu_us": rounded(self.cpu_us), "added_cpu_us": rounded(self.added_cpu_us),
            "to_holder_ratio": rounded(self.to_holder_ratio),
            "generator_late_ms": rounded(self.late_ms),
        })
    }
}

/// What one way did in each round.
#[derive(Default)]
struct Rounds {
    outcomes: Vec<Outcome>,
    cpu_us: Vec<f64>,
}

impl Rounds {
    fn p50s(&self) -> Vec<f64> {
        self.outcomes.iter().map(|outcome| median(&outcome.latencies_ms())).collect()
    }

    fn all(&self) -> Vec<f64> {
        self.outcomes.iter().flat_map(Outcome::latencies_ms).collect()
    }
}

async fn latency(
    arms: &Arms,
    tokens: usize,
    (shots, held): &(Arc<Vec<Shot>>, f64),
    idle: &[f64],
    flags: &Flags,
) -> Result<Vec<Row>> {
    let bytes = tokens * BYTES_PER_TOKEN;
    let rate_per_s = (MAX_BYTES_PER_S / bytes as f64).min(MAX_RATE);
    let requests = (rate_per_s * flags.window().as_secs_f64()) as usize;
    let mut rounds: Vec<Rounds> = arms.all.iter().map(|_| Rounds::default()).collect();
    for round in 0..=flags.rounds {
        let offer = Offer { rate_per_s, requests, seed: round as u64 };
        let mut line = vec![0.0; arms.all.len()];
        for turn in 0..arms.all.len() {
            let which = (turn + round) % arms.all.len();
            let arm = &arms.all[which];
            let (outcome, spent) = offered(arm, shots, offer).await?;
            let answered = outcome.answered.len();
            ensure!(
                answered == requests,
                "{}, {tokens} tokens at {rate_per_s:.0} requests/s: {answered} of {requests} answered: {:?}",
                arm.name,
                outcome.failure
            );
            let elapsed = outcome.answered.iter().map(|a| a.done).max().unwrap_or_default();
            let cpu_s = spent - idle[which] * elapsed.as_secs_f64();
            line[which] = median(&outcome.latencies_ms());
            if round > 0 {
                rounds[which].cpu_us.push(cpu_s * 1e6 / answered as f64);
                rounds[which].outcomes.push(outcome);
            }
        }
        let note = if round == 0 { " (dropped)" } else { "" };
        eprintln!("{tokens} tokens, round {round}: p50 {line:.2?} ms{note}");
    }
    let envoy = arms.all.iter().position(|arm| arm.name == ENVOY).context("no Envoy")?;
    let base = &rounds[envoy];
    let base_p99 = quantile(&base.all(), 0.99);
    let over = |values: &[f64], base: &[f64]| {
        median(&values.iter().zip(base).map(|(value, base)| value - base).collect::<Vec<_>>())
    };
    let rows = arms.all.iter().zip(&rounds).map(|(arm, of)| {
        let all = of.all();
        let answered = || of.outcomes.iter().flat_map(|outcome| &outcome.answered);
        let late: Vec<f64> = answered().map(|a| (a.sent - a.due).as_secs_f64() * 1e3).collect();
        Row {
            arm: arm.name,
            tokens,
            rate_per_s,
            held_ratio: *held,
            p50_ms: median(&all),
            p99_ms: quantile(&all, 0.99),
            added_p50_ms: over(&of.p50s(), &base.p50s()),
            added_p99_ms: quantile(&all, 0.99) - base_p99,
            cpu_us: median(&of.cpu_us),
            added_cpu_us: over(&of.cpu_us, &base.cpu_us),
            to_holder_ratio: answered().filter(|a| a.is_expected).count() as f64 / all.len() as f64,
            late_ms: median(&late),
        }
    });
    Ok(rows.collect())
}

/// Offers requests to one way; with the seconds that its processes spent.
async fn offered(arm: &Arm, shots: &Arc<Vec<Shot>>, offer: Offer) -> Result<(Outcome, f64)> {
    let before = Usage::of(&arm.processes)?;
    let outcome = open_loop::run(&[arm.address], shots, CONNECTIONS, offer).await?;
    Ok((outcome, Usage::of(&arm.processes)?.since(&before)))
}

fn table(rows: &[Row]) -> String {
    let head = [
        "tokens",
        "requests/s",
        "way",
        "p50",
        "p99",
        "added p50",
        "added p99",
        "CPU",
        "added CPU",
        "to holder",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let ms = |value: f64| format!("{value:.2} ms");
        let us = |value: f64| format!("{value:.0} us");
        let cpu = match row.arm {
            "direct" => ["-", "-"].map(str::to_owned),
            _ => [us(row.cpu_us), us(row.added_cpu_us)],
        };
        // Of the other ways it is chance or their own memory of what they sent where.
        let holder = if row.arm == OURS {
            format!("{:.0} %", row.to_holder_ratio * 100.0)
        } else {
            "-".to_owned()
        };
        let [cpu, added_cpu] = cpu;
        cells.push(vec![
            row.tokens.to_string(),
            format!("{:.0}", row.rate_per_s),
            row.arm.to_owned(),
            ms(row.p50_ms),
            ms(row.p99_ms),
            ms(row.added_p50_ms),
            ms(row.added_p99_ms),
            cpu,
            added_cpu,
            holder,
        ]);
    }
    aligned(&cells)
}

fn curves(rows: &[Row]) -> Result<Vec<(&'static str, String)>> {
    let curve = |of: fn(&Row) -> f64| -> Vec<Series> {
        let mut series: Vec<Series> = Vec::new();
        // What is not above 0 has no place on a logarithmic axis: a way that is faster than Envoy.
        for row in rows.iter().filter(|row| of(row) > 0.0) {
            let point = (row.tokens as f64, of(row));
            match series.iter_mut().find(|series| series.name == row.arm) {
                Some(series) => series.points.push(point),
                None => series.push(Series { name: row.arm.to_owned(), points: vec![point] }),
            }
        }
        series
    };
    let x = "prompt (tokens of four bytes)";
    let added = Axes { title: "Latency added over Envoy alone, p50", x, y: "added (ms)" };
    let whole = Axes { title: "Latency to constant backends, p50", x, y: "latency (ms)" };
    Ok(vec![
        (
            "added",
            plot::lines(
                &added,
                &curve(|row| if row.arm == ENVOY { 0.0 } else { row.added_p50_ms }),
            )?,
        ),
        ("latency", plot::lines(&whole, &curve(|row| row.p50_ms))?),
    ])
}
