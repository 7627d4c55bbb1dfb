//! `bench workers`: whether requests are routed as well by several workers and gateways as by one
//! worker.
//!
//! The same requests at the same times go to engines whose caches together hold the shared prefixes
//! and none of which holds them alone. Quality is what the engines themselves say they had cached;
//! balance is how many requests the fullest engine has under way, over the mean. Each run has engines,
//! daemon and gateways of its own; repetitions have seeds of their own, and are compared by seed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use testbed::{
    EngineOptions, Process, Stand, StandOptions, envoy, get, port, wait_until, wasm_epp,
};

use crate::cpu::filler;
use crate::load::Shot;
use crate::open_loop::{self, Answered, Chance, Offer};
use crate::report::Report;
use crate::table::{aligned, median, rounded};

const ENGINES: usize = 4;
const PATH: &str = "/v1/completions";
const START: Duration = Duration::from_secs(60);
/// Kept connections to all gateways together: enough for each of eight workers to have some.
const CONNECTIONS: usize = 64;
/// What several workers or gateways may lose.
const BOUND_RATIO: f64 = 0.02;
/// The part of the requests, from the first, that fills the caches and is not counted.
const WARM_RATIO: f64 = 0.25;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Runs of each arrangement, each with a seed
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Requests of a run
    #[arg(long, default_value_t = 500)]
    requests: usize,
    /// Requests per second
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// Shared prefixes, all equally popular
    #[arg(long, default_value_t = 40)]
    groups: usize,
    /// Bytes of each
    #[arg(long, default_value_t = 4000)]
    prefix_bytes: usize,
    /// Blocks of 16 tokens in each engine's cache
    #[arg(long, default_value_t = 2000)]
    blocks: usize,
    /// Workers of each gateway
    #[arg(long, value_name = "WORKERS", value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    workers: Vec<u32>,
    /// Gateways fed by one daemon; several have one worker each
    #[arg(long, value_name = "GATEWAYS", value_delimiter = ',', default_values_t = [1, 2, 3])]
    gateways: Vec<usize>,
    /// Every number of workers with every number of gateways, in seven repetitions of twice the
    /// requests
    #[arg(long)]
    full: bool,
}

/// An arrangement.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Arrangement {
    workers: u32,
    gateways: usize,
}

/// What a run showed.
#[derive(Clone, Copy, Debug)]
struct Shown {
    /// Prompt tokens that the engines had cached, of all.
    hit_ratio: f64,
    /// Requests under way at the fullest engine over the mean of all, both over the whole run.
    fullest_ratio: f64,
    p50_ms: f64,
}

pub(crate) async fn run(flags: &Flags) -> Result<Report> {
    ensure!(flags.rate > 0.0, "--rate is {}, must be above 0", flags.rate);
    ensure!(flags.groups > 0, "--groups is 0, must be 1 or more");
    let (repetitions, requests) = match flags.full {
        true => (7, flags.requests * 2),
        false => (flags.repetitions, flags.requests),
    };
    let one = Arrangement { workers: 1, gateways: 1 };
    let mut arrangements = vec![one];
    for &gateways in &flags.gateways {
        for &workers in &flags.workers {
            let next = Arrangement { workers, gateways };
            if next != one && (flags.full || workers == 1 || gateways == 1) {
                arrangements.push(next);
            }
        }
    }
    let mut shown: Vec<Vec<Shown>> = arrangements.iter().map(|_| Vec::new()).collect();
    for seed in 0..repetitions {
        for turn in 0..arrangements.len() {
            let which = (turn + seed) % arrangements.len();
            let offer = Offer { rate_per_s: flags.rate, requests, seed: seed as u64 };
            let one = measure(arrangements[which], offer, flags).await?;
            eprintln!("seed {seed}, {:?}: {one:.3?}", arrangements[which]);
            shown[which].push(one);
        }
    }
    Ok(report(flags, requests, &arrangements, &shown))
}

fn report(
    flags: &Flags,
    requests: usize,
    arrangements: &[Arrangement],
    shown: &[Vec<Shown>],
) -> Report {
    let head = [
        "gateways x workers",
        "cached",
        "over one worker",
        "fullest/mean",
        "over one worker",
        "p50",
        "within 2 %",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut results = Vec::new();
    for (arrangement, all) in arrangements.iter().zip(shown) {
        let of = |pick: fn(&Shown) -> f64| median(&all.iter().map(pick).collect::<Vec<_>>());
        let over = |pick: fn(&Shown) -> f64| -> Vec<f64> {
            all.iter().zip(&shown[0]).map(|(one, base)| pick(one) / pick(base) - 1.0).collect()
        };
        let (hits, fullest) = (over(|one| one.hit_ratio), over(|one| one.fullest_ratio));
        // Better is no deviation to complain of.
        let is_within = median(&hits) >= -BOUND_RATIO && median(&fullest) <= BOUND_RATIO;
        let spread = |values: &[f64]| {
            let low = values.iter().copied().fold(f64::MAX, f64::min);
            let high = values.iter().copied().fold(f64::MIN, f64::max);
            format!(
                "{:+.1} % ({:+.1} to {:+.1})",
                median(values) * 100.0,
                low * 100.0,
                high * 100.0
            )
        };
        rows.push(vec![
            format!("{} x {}", arrangement.gateways, arrangement.workers),
            format!("{:.1} %", of(|one| one.hit_ratio) * 100.0),
            spread(&hits),
            format!("{:.3}", of(|one| one.fullest_ratio)),
            spread(&fullest),
            format!("{:.0} ms", of(|one| one.p50_ms)),
            if is_within { "yes" } else { "no" }.to_owned(),
        ]);
        let rounds = |values: &[f64]| values.iter().copied().map(rounded).collect::<Vec<_>>();
        results.push(json!({
            "gateways": arrangement.gateways, "workers": arrangement.workers,
            "hit_ratio": rounded(of(|one| one.hit_ratio)), "hit_ratio_over_one": rounds(&hits),
            "fullest_over_mean": rounded(of(|one| one.fullest_ratio)),
            "fullest_over_one": rounds(&fullest), "p50_ms": rounded(of(|one| one.p50_ms)),
            "is_within": is_within,
        }));
    }
    let repetitions = shown[0].len();
    let table = format!(
        "{requests} requests at {} per second over {ENGINES} engines, {} prefixes of {} bytes; medians of \
         {repetitions} seeds, differences by seed (least to most)\n{}",
        flags.rate,
        flags.groups,
        flags.prefix_bytes,
        aligned(&rows)
    );
    let result = json!({
        "bench": "workers", "requests": requests, "rate_per_s": flags.rate, "groups": flags.groups,
        "prefix_bytes": flags.prefix_bytes, "blocks": flags.blocks, "engines": ENGINES,
        "repetitions": repetitions, "bound_ratio": BOUND_RATIO, "arrangements": results,
    });
    Report { table, result, plots: Vec::new() }
}

async fn measure(arrangement: Arrangement, offer: Offer, flags: &Flags) -> Result<Shown> {
    let (stand, others) = start(arrangement, flags).await?;
    let mut gateways = vec![stand.gateway];
    gateways.extend(others.iter().map(|(address, _)| *address));
    let shots = Arc::new(shots(offer, flags));
    let connections = CONNECTIONS / gateways.len();
    let outcome = open_loop::run(&gateways, &shots, connections, offer).await?;
    ensure!(
        outcome.answered.len() == offer.requests,
        "{} of {} requests answered: {:?}",
        outcome.answered.len(),
        offer.requests,
        outcome.failure
    );
    let mut answered = outcome.answered;
    answered.sort_by_key(|answered| answered.due);
    let counted = &answered[(offer.requests as f64 * WARM_RATIO) as usize..];
    let latencies: Vec<f64> = counted.iter().map(Answered::latency_ms).collect();
    Ok(Shown {
        hit_ratio: hit_ratio(counted)?,
        fullest_ratio: fullest_ratio(counted),
        p50_ms: median(&latencies),
    })
}

/// Requests of groups by chance, each with a question of its own.
fn shots(offer: Offer, flags: &Flags) -> Vec<Shot> {
    let mut chance = Chance(offer.seed ^ 0x5eed);
    let shot = |number: usize| {
        let group = (chance.next() * flags.groups as f64) as usize;
        let prompt = format!(
            "{}\nQuestion {number}: what of part {}?",
            filler(group, flags.prefix_bytes),
            number * 7 % 41
        );
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 12});
        Shot { path: PATH, body: Bytes::from(body.to_string()), backend: None }
    };
    (0..offer.requests).map(shot).collect()
}

fn hit_ratio(answered: &[Answered]) -> Result<f64> {
    let (mut cached, mut all) = (0, 0);
    for answered in answered {
        let body: Value = serde_json::from_slice(&answered.body)?;
        let usage = &body["usage"];
        all += usage["prompt_tokens"].as_u64().context("prompt_tokens of a usage")?;
        // Left out when nothing was cached, as vLLM does.
        cached += usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    }
    ensure!(cached > 0, "no engine had anything cached");
    Ok(cached as f64 / all as f64)
}

/// Mean over time of the requests under way at the engine that has most, over the mean of all engines.
fn fullest_ratio(answered: &[Answered]) -> f64 {
    let mut changes: Vec<(Duration, &str, i64)> = answered
        .iter()
        .flat_map(|one| [(one.sent, one.backend.as_str(), 1), (one.done, one.backend.as_str(), -1)])
        .collect();
    changes.sort_by_key(|change| change.0);
    let (mut under_way, mut before) = (BTreeMap::new(), Duration::ZERO);
    let (mut fullest, mut sum) = (0.0, 0.0);
    for (at, engine, change) in changes {
        let time = (at - before).as_secs_f64();
        fullest += under_way.values().copied().max().unwrap_or(0) as f64 * time;
        sum += under_way.values().sum::<i64>() as f64 * time;
        *under_way.entry(engine).or_insert(0) += change;
        before = at;
    }
    fullest / (sum / ENGINES as f64)
}

/// Engines, daemon and the gateways; those after the first by address.
async fn start(
    arrangement: Arrangement,
    flags: &Flags,
) -> Result<(Stand, Vec<(SocketAddr, Process)>)> {
    let engine = EngineOptions {
        flags: [
            format!("--num-blocks={}", flags.blocks),
            "--base-ms=5".to_owned(),
            "--prefill-tokens-per-s=20000".to_owned(),
            "--inter-token-ms=10".to_owned(),
        ]
        .to_vec(),
    };
    let mut more_config = "gateways:\n".to_owned();
    for number in 0..arrangement.gateways {
        more_config += &format!("- {{name: gw-{number}, feed: \"unix:{}\"}}\n", socket(number));
    }
    let options = StandOptions {
        engines: vec![engine; ENGINES],
        workers: arrangement.workers,
        more_config,
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await?;
    stand.render()?;
    stand.start_envoy(&[]).await?;
    let mut others = Vec::new();
    for number in 1..arrangement.gateways {
        others.push(start_gateway(&stand, number, arrangement.workers).await?);
    }
    stand.start_daemon()?;
    stand.wait_ready().await?;
    stand.wait_engines_ready().await?;
    Ok((stand, others))
}

fn socket(gateway: usize) -> String {
    if gateway == 0 { "feed.sock".to_owned() } else { format!("feed-{gateway}.sock") }
}

/// A further Envoy for the stand's daemon and engines.
async fn start_gateway(
    stand: &Stand,
    number: usize,
    workers: u32,
) -> Result<(SocketAddr, Process)> {
    let loopback = || anyhow::Ok(SocketAddr::from(([127, 0, 0, 1], port()?)));
    let (listen, admin) = (loopback()?, loopback()?);
    let text = std::fs::read_to_string(stand.config_file())?
        .replace(&format!("  listen: {}\n", stand.gateway), &format!("  listen: {listen}\n"))
        .replace(&format!("  admin: {}\n", stand.envoy_admin), &format!("  admin: {admin}\n"))
        .replace("  feed: unix:feed.sock\n", &format!("  feed: unix:{}\n", socket(number)));
    let folder = stand.folder.path();
    let (config, out) =
        (folder.join(format!("gateway-{number}.yaml")), folder.join(format!("envoy-{number}")));
    std::fs::write(&config, text)?;
    let mut render = Command::new(wasm_epp()?);
    render.args(["render", "--gateway", "envoy", "--config"]).arg(&config).arg("--out").arg(&out);
    let rendered = render.output()?;
    ensure!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let mut command = Command::new(envoy()?);
    command.arg("-c").arg(out.join("envoy.yaml")).args([
        "--concurrency",
        &workers.to_string(),
        "--use-dynamic-base-id",
    ]);
    let log = folder.join(format!("envoy-{number}.log"));
    let process = Process::start("a further envoy", &mut command, &log)?;
    let what = format!("Envoy {number} is ready");
    wait_until(&what, START, async || {
        get(admin, "/ready").await.ok()?.status.is_success().then_some(())
    })
    .await
    .with_context(|| process.tail())?;
    Ok((listen, process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_engine_is_weighed_by_time() {
        let answered = |backend: &str, sent: u64, done: u64| Answered {
            due: Duration::from_secs(sent),
            sent: Duration::from_secs(sent),
            done: Duration::from_secs(done),
            backend: backend.to_owned(),
            is_expected: true,
            body: Bytes::from_static(b"{\"usage\":{\"prompt_tokens\":10}}"),
        };
        // One engine has 2 for 2 s and 1 for 2 s, another 1 for 2 s meanwhile: at most 2, 2, 1, 1, all
        // together 3, 3, 1, 1 over four engines.
        let all = [answered("a", 0, 4), answered("a", 0, 2), answered("b", 0, 2)];
        assert!((fullest_ratio(&all) - 6.0 / (8.0 / 4.0)).abs() < 1e-9);
        // Spread evenly it is 1.
        let even = ["a", "b", "c", "d"].map(|engine| answered(engine, 0, 1));
        assert!((fullest_ratio(&even) - 1.0).abs() < 1e-9);
        assert!(hit_ratio(&all).is_err());
    }
}
