//! `scripts/bench`: what routing costs, measured on this machine with real Envoy.

mod added_latency;
mod arms;
mod burst;
mod chain;
mod cpu;
mod decision;
mod events;
mod fleet;
mod freshness;
mod listeners;
mod load;
mod machine;
mod memory;
mod meter;
mod open_loop;
mod parity;
mod peers;
mod plot;
mod publisher;
mod report;
mod scale;
mod sse;
mod stream;
mod swap;
mod table;
mod traffic;
mod usage;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use crate::report::Report;

/// Measures one property of the whole arrangement.
#[derive(Parser)]
#[command(name = "bench")]
struct Flags {
    #[command(subcommand)]
    bench: Bench,
    /// Print the result as one JSON object on the last line
    #[arg(long, global = true)]
    json: bool,
    /// Where the result goes as NAME.json, and its plots as NAME-*.svg
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = testbed::root().join("target/bench"))]
    out: PathBuf,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Latency and CPU that a router adds, and where it collapses, beside other routers
    AddedLatency(added_latency::Flags),
    /// Worker CPU of each scorer module, per request and per streamed chunk
    Chain(chain::Flags),
    /// Where bursts go before any event, and what is left in flight after all requests
    Burst(burst::Flags),
    /// Worker CPU per request: no filter, a filter that only waits for the body, the router
    Cpu(cpu::Flags),
    /// One decision in wasmtime and in Envoy's V8: over size, endpoints, scorers, depth, and beside a floor
    Decision(decision::Flags),
    /// Time from an event's publication until every worker routes by it, under others' events
    Freshness(freshness::Flags),
    /// Memory of ten million (stride, endpoint) pairs in daemon and gateway
    Memory(memory::Flags),
    /// Worker CPU per streamed chunk: without the meter, unsampled, sampled, asked for its usage
    Meter(meter::Flags),
    /// Whether every packaging of every scorer says the same, bit for bit
    Parity(parity::Flags),
    /// The engines that publish for `freshness`, until they are killed
    #[command(hide = true)]
    Publish(freshness::PublishFlags),
    /// Daemon and gateway at millions of strides: memory, snapshot, decisions, and how they grow
    Scale(scale::Flags),
    /// CPU per streamed chunk: without our filters, with them, with the meter, beside llm-d's picker
    Stream(stream::Flags),
    /// Scorers exchanged under traffic: requests failed, streams cut, memory left behind
    Swap(swap::Flags),
    /// Routing quality and balance with several workers and gateways, against one worker
    Workers(workers::Flags),
}

impl Bench {
    /// As on the command line.
    fn name(&self) -> &'static str {
        match self {
            Self::AddedLatency(_) => "added-latency",
            Self::Chain(_) => "chain",
            Self::Burst(_) => "burst",
            Self::Cpu(_) => "cpu",
            Self::Decision(_) => "decision",
            Self::Freshness(_) => "freshness",
            Self::Memory(_) => "memory",
            Self::Meter(_) => "meter",
            Self::Parity(_) => "parity",
            Self::Publish(_) => "publish",
            Self::Scale(_) => "scale",
            Self::Stream(_) => "stream",
            Self::Swap(_) => "swap",
            Self::Workers(_) => "workers",
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Printing fails only when nobody reads; the exit code still tells.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    // Before the load of the measurement itself.
    let machine = machine::describe();
    let measure = async {
        match &flags.bench {
            Bench::AddedLatency(added) => added_latency::run(added).await,
            Bench::Chain(chain) => chain::run(chain).await.map(Report::from),
            Bench::Burst(burst) => burst::run(burst).await.map(Report::from),
            Bench::Cpu(cpu) => cpu::run(cpu).await,
            Bench::Decision(decision) => decision::run(decision).await,
            Bench::Freshness(freshness) => freshness::run(freshness).await,
            Bench::Memory(memory) => memory::run(memory).await.map(Report::from),
            Bench::Meter(meter) => meter::run(meter).await.map(Report::from),
            Bench::Parity(parity) => parity::run(parity).await.map(Report::from),
            Bench::Publish(publish) => {
                freshness::publish(publish).await.map(|()| Report::from((String::new(), json!({}))))
            }
            Bench::Scale(scale) => scale::run(scale).await,
            Bench::Stream(stream) => stream::run(stream).await,
            Bench::Swap(swap) => swap::run(swap).await.map(Report::from),
            Bench::Workers(workers) => workers::run(workers).await,
        }
    };
    let outcome = tokio::select! {
        outcome = measure => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(mut report) => {
            let text = format!("{}{}\n", report.table, machine::sentence(&machine));
            report.result["ok"] = json!(true);
            report.result["machine"] = machine;
            if let Err(error) = report.write(&flags.out, flags.bench.name()) {
                eprintln!("bench: {error:#}");
                return ExitCode::FAILURE;
            }
            if flags.json {
                eprint!("{text}");
                println!("{}", report.result);
            } else {
                print!("{text}");
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
