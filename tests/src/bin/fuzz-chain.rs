//! `scripts/fuzz chain`: the modules of a gateway, given anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use serde_json::json;
use testbed::chain_fuzz::{Corpus, Done, session};
use testbed::wasmtime::Modules;

/// Streams through the chain of a gateway in wasmtime, with any bytes at any callback. Ends at the first
/// module that dies, and says the number that repeats it.
#[derive(Parser)]
#[command(name = "fuzz-chain")]
struct Options {
    /// Streams, in all.
    #[arg(long, default_value_t = 100_000)]
    executions: u64,
    /// Streams of one gateway.
    #[arg(long, default_value_t = 2_000)]
    session: u64,
    /// Number of the first session.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads, each with a gateway of its own.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Say the result as one JSON object in the last line.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let (modules, corpus) = (Modules::load()?, Corpus::load()?);
    let per_session = options.session.clamp(1, options.executions.max(1));
    let sessions = options.executions.div_ceil(per_session);
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let all = Mutex::new(Done::default());
    let started = Instant::now();
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= sessions || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let done = session(&modules, &corpus, options.seed.wrapping_add(number), per_session)
                .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            *all.lock().unwrap_or_else(PoisonError::into_inner) += done;
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut said = Instant::now();
        while threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(50));
            if said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                let (streams, callbacks) = {
                    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    (all.streams, all.callbacks)
                };
                let seconds = started.elapsed().as_secs();
                eprintln!(
                    "{streams} of {} streams, {callbacks} callbacks, {seconds} s",
                    options.executions
                );
            }
        }
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let done = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = started.elapsed().as_secs_f64();
    for (name, count) in &done.counters {
        println!("{name:<60}{count:>12}");
    }
    for (name, count) in [
        ("streams", done.streams),
        ("picked", done.picked),
        ("answered", done.answered),
        ("callbacks", done.callbacks),
        ("deaths", 0),
    ] {
        println!("{name:<60}{count:>12}");
    }
    println!("{:<60}{seconds:>12.1}", "seconds");
    if options.json {
        println!(
            "{}",
            json!({
                "executions": done.streams, "callbacks": done.callbacks, "picked": done.picked,
                "answered": done.answered, "deaths": 0, "seconds": seconds,
            })
        );
    }
    Ok(())
}
