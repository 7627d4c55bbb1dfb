//! `bench swap`: scorers exchanged by `wasm-epp modules` while traffic flows, and what that does to
//! requests, streams and the gateway's memory.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{Client, EngineOptions, Stand, StandOptions, root, wait_until, wasm_epp};

use crate::memory::rss_bytes;
use crate::table::{median, quantile, rounded};
use crate::traffic::{Rate, Traffic};

const WORKERS: u32 = 2;
const ENGINES: usize = 4;
/// Kinds of changes of one cycle.
const CYCLE: usize = 12;
/// Without traffic, memory that has not fallen for so long does not fall any more.
const SETTLED: Duration = Duration::from_secs(8);
const MIB: f64 = (1 << 20) as f64;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Swaps that succeed; those that roll back by themselves come on top
    #[arg(long, default_value_t = 200)]
    swaps: usize,
    /// Cycles before memory is first measured, with the same traffic: what the allocator keeps grows
    /// until as many VMs have lived at once as ever will
    #[arg(long, default_value_t = 12)]
    warm_up_cycles: usize,
    /// Requests per second
    #[arg(long, default_value_t = 125)]
    rate: u32,
    /// Streams open at all times; some more run, as one that ends leaves a gap before the next
    #[arg(long, default_value_t = 20)]
    streams: usize,
}

/// What a command is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Swapped,
    RolledBack,
}

#[derive(Default)]
struct Done {
    swaps: usize,
    rolled_back: usize,
    seconds: Vec<f64>,
}

pub(crate) async fn run(flags: &Flags) -> Result<(String, Value)> {
    eprintln!("starting {ENGINES} engines, daemon and Envoy with {WORKERS} workers ...");
    let bench = Bench::start().await?;
    let rate = Rate { requests_per_s: flags.rate, streams: flags.streams + 10, stream_tokens: 320 };
    let mut number = 0;
    let warm_up = Traffic::start(bench.stand.gateway, rate).await?;
    for _ in 0..flags.warm_up_cycles * CYCLE {
        bench.change(number)?;
        number += 1;
    }
    warm_up.finish().await?;
    let before = bench.settled().await?;
    eprintln!("before: {before:?}");

    let traffic = Traffic::start(bench.stand.gateway, rate).await?;
    let mut done = Done::default();
    // Ends where it began, so that memory is compared at the same configuration.
    while done.swaps < flags.swaps || number % CYCLE != 0 {
        let started = Instant::now();
        match bench.change(number)? {
            Expected::Swapped => done.swaps += 1,
            Expected::RolledBack => done.rolled_back += 1,
        }
        done.seconds.push(started.elapsed().as_secs_f64());
        number += 1;
        if number % CYCLE == 0 {
            let rss = rss_bytes(bench.envoy()?)? as f64 / MIB;
            eprintln!(
                "{} swaps, {} rolled back, {:.0} requests/s, RSS {rss:.1} MiB, {} VMs",
                done.swaps,
                done.rolled_back,
                traffic.rate(),
                bench.vms().await?,
            );
        }
    }
    let requests_per_s = traffic.rate();
    let counts = traffic.finish().await?;
    let after = bench.settled().await?;
    eprintln!("after: {after:?}");

    let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let growth = after.rss_mib - before.rss_mib;
    let fewest_open = of(&counts.fewest_open);
    ensure!(requests_per_s >= 100.0, "only {requests_per_s:.0} requests/s were sent");
    ensure!(
        fewest_open >= flags.streams as u64,
        "at one time only {fewest_open} streams were open"
    );
    let table = format!(
        "{} swaps and {} that rolled back by themselves, p50 {:.2} s, p99 {:.2} s\n\
         {} requests ({requests_per_s:.0}/s), {} failed; {} streams (never fewer than {fewest_open} \
         open), {} cut\n\
         Envoy's RSS {:.1} MiB before, {:.1} MiB after; {} VMs before, {} after\n",
        done.swaps,
        done.rolled_back,
        median(&done.seconds),
        quantile(&done.seconds, 0.99),
        of(&counts.requests),
        of(&counts.failed_requests),
        of(&counts.streams),
        of(&counts.cut_streams),
        before.rss_mib,
        after.rss_mib,
        before.vms,
        after.vms,
    );
    let result = json!({
        "bench": "swap",
        "swaps": done.swaps,
        "requests": of(&counts.requests),
        "failed_requests": of(&counts.failed_requests),
        "streams": of(&counts.streams),
        "cut_streams": of(&counts.cut_streams),
        "rss_growth_mib": rounded(growth),
        "rolled_back": done.rolled_back,
        "fewest_open_streams": fewest_open,
        "requests_per_s": rounded(requests_per_s),
        "swap_p50_s": rounded(median(&done.seconds)),
        "swap_p99_s": rounded(quantile(&done.seconds, 0.99)),
        "rss_before_mib": rounded(before.rss_mib),
        "rss_after_mib": rounded(after.rss_mib),
        "allocated_growth_mib": rounded(after.allocated_mib - before.allocated_mib),
        "vms_before": before.vms,
        "vms_after": after.vms,
    });
    Ok((table, result))
}

/// The gateway without traffic.
#[derive(Debug)]
struct Memory {
    rss_mib: f64,
    allocated_mib: f64,
    vms: u64,
}

struct Bench {
    stand: Stand,
    engines: Vec<String>,
}

impl Bench {
    async fn start() -> Result<Self> {
        let flags = ["--inter-token-ms=50", "--max-num-seqs=256"].map(str::to_owned).to_vec();
        let options = StandOptions {
            engines: vec![EngineOptions { flags }; ENGINES],
            workers: WORKERS,
            ..StandOptions::default()
        };
        let stand = Stand::prepare(options).await?;
        let engines = stand.engines.iter().map(|engine| engine.http.to_string()).collect();
        // Modules of the bench's own, as it builds new ones.
        let modules = stand.folder.path().join("modules");
        std::fs::create_dir(&modules)?;
        for name in ["router", "feeder", "steady-scorer", "unruly-scorer"] {
            let name = format!("{name}.wasm");
            std::fs::copy(root().join("target/wasm").join(&name), modules.join(&name))?;
        }
        let bench = |stand| Self { stand, engines };
        stand.write_config()?;
        let mut bench = bench(stand);
        bench.configure("")?;
        bench.stand.render()?;
        bench.stand.start_envoy(&[]).await?;
        bench.stand.start_daemon()?;
        bench.stand.wait_ready().await?;
        // A line per request would cost more than the request.
        let admin = Client::new(bench.stand.envoy_admin);
        let quiet = admin.post("/logging?wasm=info", &Value::Null).await?;
        ensure!(quiet.status.is_success(), "/logging answered {}", quiet.status);
        Ok(bench)
    }

    fn envoy(&self) -> Result<u32> {
        Ok(self.stand.envoy.as_ref().context("a running Envoy")?.id())
    }

    /// Wasm VMs that Envoy has.
    async fn vms(&self) -> Result<u64> {
        self.stand.envoy_stat("wasm.envoy.wasm.runtime.v8.active").await
    }

    /// The configuration with these scorer lines.
    fn configure(&self, scorers: &str) -> Result<()> {
        self.stand.write_config()?;
        let text = std::fs::read_to_string(self.stand.config_file())?;
        let target = root().join("target/wasm");
        let mut text = text.replace(&target.display().to_string(), "modules");
        let _ = write!(
            text,
            "gateways:\n- {{name: gw-0, feed: \"unix:feed.sock\", resources: envoy}}\n\
             routing:\n  scorers:\n  - {{type: prefix-cache, weight: 3}}\n\
             \x20 - {{type: queue, weight: 2}}\n{scorers}"
        );
        Ok(std::fs::write(self.stand.config_file(), text)?)
    }

    /// Another build of a module: its code, and a custom section that says which.
    fn build(&self, module: &str, number: usize) -> Result<()> {
        let code = std::fs::read(root().join("target/wasm").join(module))?;
        let name = format!("build-{number:08}");
        let section = [&[0u8, name.len() as u8 + 1, name.len() as u8], name.as_bytes()].concat();
        let file = self.stand.folder.path().join("modules").join(module);
        Ok(std::fs::write(file, [code, section].concat())?)
    }

    /// One change of the cycle, by the command, and checked to have the outcome it must have. Each
    /// cycle has other builds and parameters than the one before, and ends with no scorer but the
    /// built-in ones.
    fn change(&self, number: usize) -> Result<Expected> {
        let best = |i: usize| &self.engines[(number / CYCLE + i) % ENGINES];
        let steady = |name: &str, i: usize, more: &str| {
            format!(
                "  - {{type: module, name: {name}, module: modules/steady-scorer.wasm, \
                 parameters: {{best: \"{}\"}}{more}}}\n",
                best(i)
            )
        };
        let unruly = |does: &str| {
            format!(
                "  - {{type: module, name: {does}, module: modules/unruly-scorer.wasm, \
                 parameters: {{does: {does}}}}}\n"
            )
        };
        let refused = "  - {type: module, name: a, module: modules/steady-scorer.wasm, \
                       parameters: {best: 7}}\n";
        let a = |i| steady("a", i, "");
        let heavy = steady("a", 1, ", weight: 50");
        let shadow = |i| steady("b", i, ", weight: 9, shadow: true");
        let mut command = "swap";
        let (scorers, expected) = match number % CYCLE {
            // Another build, added.
            0 => {
                self.build("steady-scorer.wasm", number)?;
                (a(0), Expected::Swapped)
            }
            // Parameters, a weight, a shadow and its parameters.
            1 => (a(1), Expected::Swapped),
            2 => (heavy, Expected::Swapped),
            3 => (heavy + &shadow(0), Expected::Swapped),
            4 => (heavy + &shadow(2), Expected::Swapped),
            // What must not come.
            5 => (refused.to_owned() + &shadow(2), Expected::RolledBack),
            6 => (heavy + &shadow(2) + &unruly("trap"), Expected::RolledBack),
            7 => (heavy + &shadow(2) + &unruly("malformed"), Expected::RolledBack),
            // Taken away, and back.
            8 => (heavy, Expected::Swapped),
            9 => {
                command = "rollback";
                (heavy, Expected::Swapped)
            }
            // Another build of the router itself.
            10 => {
                self.build("router.wasm", number)?;
                (heavy + &shadow(2), Expected::Swapped)
            }
            _ => (String::new(), Expected::Swapped),
        };
        self.configure(&scorers)?;
        let output = Command::new(wasm_epp()?)
            .args(["modules", command, "--json", "--config"])
            .arg(self.stand.config_file())
            .output()
            .context("run wasm-epp modules")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let result: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        let wanted = match expected {
            Expected::Swapped => (Some(0), "swapped"),
            Expected::RolledBack => (Some(1), "rolled_back"),
        };
        let outcome = result["gateways"][0]["outcome"].as_str().unwrap_or_default();
        ensure!(
            (output.status.code(), outcome) == wanted,
            "change {number} (kind {}) was to be {}: {text}",
            number % CYCLE,
            wanted.1
        );
        Ok(expected)
    }

    /// Memory once nothing falls any more: no request is under way, the VMs of replaced modules are
    /// gone with their last streams, and the allocator has returned what it returns.
    async fn settled(&self) -> Result<Memory> {
        let envoy = self.envoy()?;
        let fewest = std::cell::Cell::new((u64::MAX, Instant::now()));
        wait_until("the gateway's memory has settled", Duration::from_secs(120), async || {
            let rss = rss_bytes(envoy).ok()?;
            let (least, at) = fewest.get();
            // A page more or less is no movement.
            if rss + (256 << 10) < least {
                fewest.set((rss, Instant::now()));
            }
            (at.elapsed() > SETTLED && least != u64::MAX).then_some(())
        })
        .await?;
        Ok(Memory {
            rss_mib: rss_bytes(envoy)? as f64 / MIB,
            allocated_mib: self.stand.envoy_stat("server.memory_allocated").await? as f64 / MIB,
            vms: self.vms().await?,
        })
    }
}
