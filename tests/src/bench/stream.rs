//! `bench stream`: what a streamed chunk costs the gateway, at as many per second as this machine can
//! carry (up to 100 000).
//!
//! Listeners that differ in nothing else: without our filters, with them, with the meter on every tenth
//! answer, with the meter on all, and llm-d's endpoint picker, which sees every chunk. A round takes
//! each in turn, once with few events per stream and once with many: the difference is chunks alone,
//! without what requests cost.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use testbed::{Stand, StandOptions, port, root};
use tokio::task::JoinSet;

use crate::cpu::worker_ns;
use crate::listeners::Rendered;
use crate::peers::{Epp, EppPlan, find};
use crate::plot::{self, Axes, Series};
use crate::report::Report;
use crate::sse::{Reader, Server};
use crate::table::{aligned, median, quantile, rounded};
use crate::usage::Usage;

/// Events of the shorter streams.
const FEW: usize = 10;
/// What llm-d measured its picker with.
const MOST_PER_S: usize = 100_000;
/// A rate is carried when this part of it comes.
const CARRIED_RATIO: f64 = 0.95;
/// The part of the highest carried rate at which is measured: a processor that is never idle waits
/// for nobody, and chunks pile up.
const MEASURED_RATIO: f64 = 0.5;
/// Events that may reach the client joined with another, as a share of all: chunks are what is
/// compared, so they are to be as many on each way.
const MAX_JOINED_RATIO: f64 = 0.3;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Measured rounds; one more goes before them and is dropped
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Events per stream
    #[arg(long, default_value_t = 400)]
    events: usize,
    /// Milliseconds between two events of a stream
    #[arg(long, default_value_t = 4)]
    pace_ms: u64,
    /// Workers of Envoy
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// Measure at this rate and look for none
    #[arg(long, value_name = "CHUNKS/S")]
    rate: Option<usize>,
    /// Twice the rounds of longer streams
    #[arg(long)]
    full: bool,
}

/// A rate that was tried.
struct Step {
    offered_per_s: f64,
    come_per_s: f64,
    joined_ratio: f64,
}

impl Step {
    /// Whether the events came, and as chunks of their own.
    fn is_carried(&self) -> bool {
        self.come_per_s >= self.offered_per_s * CARRIED_RATIO
            && self.joined_ratio <= MAX_JOINED_RATIO
    }
}

/// One listener.
struct Arm {
    name: &'static str,
    listener: SocketAddr,
    /// Beside the gateway's workers.
    process: Option<u32>,
}

struct Bench {
    stand: Stand,
    arms: Vec<Arm>,
    missing: Option<String>,
    pace: Duration,
    _epp: Option<Epp>,
    _server: Server,
}

pub(crate) async fn run(flags: &Flags) -> Result<Report> {
    ensure!(flags.pace_ms > 0, "--pace-ms is 0, must be 1 or more");
    ensure!(flags.events > FEW, "--events is {}, must be more than {FEW}", flags.events);
    let (rounds, events) = match flags.full {
        true => (flags.rounds * 2, flags.events * 4),
        false => (flags.rounds, flags.events),
    };
    eprintln!("starting daemon and Envoy ...");
    let bench = Bench::start(flags).await?;
    let per_stream = 1000.0 / flags.pace_ms as f64;
    let mut ramp = Vec::new();
    let rate = match flags.rate {
        Some(rate) => rate as f64,
        None => {
            ramp = bench.ramp(per_stream, events).await?;
            let carried = ramp.iter().filter(|step| step.is_carried());
            let highest = carried.map(|step| step.offered_per_s).fold(0.0, f64::max);
            // Where not even the lowest is carried, what came of it.
            let highest = if highest > 0.0 {
                highest
            } else {
                ramp.first().map_or(0.0, |step| step.come_per_s)
            };
            highest * MEASURED_RATIO
        }
    };
    let streams = ((rate / per_stream) as usize).max(1);
    eprintln!("measuring with {streams} streams");

    let mut measured: Vec<Vec<Measured>> = bench.arms.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        for turn in 0..bench.arms.len() {
            let which = (turn + round) % bench.arms.len();
            let one = bench.measure(&bench.arms[which], streams, events).await?;
            if round > 0 {
                measured[which].push(one);
            }
        }
        let note = if round == 0 { " dropped" } else { "" };
        let line: Vec<String> = measured
            .iter()
            .filter_map(|all| all.last().map(|one| format!("{:.2}", one.worker_us)))
            .collect();
        eprintln!("round {round}:{note} {line:?} us per chunk");
    }
    report(&bench, flags, rate, &ramp, &measured)
}

/// Microseconds per event of one turn.
#[derive(Clone, Copy)]
struct Measured {
    /// Of the gateway's workers.
    worker_us: f64,
    /// Of the process beside them.
    beside_us: f64,
    joined_ratio: f64,
}

impl Bench {
    async fn start(flags: &Flags) -> Result<Self> {
        let pace = Duration::from_millis(flags.pace_ms);
        let page = std::fs::read(root().join("tests/golden/metrics/vllm-metrics.txt"))?;
        let server = Server::start(Bytes::from(page), pace).await?;
        let options = StandOptions {
            engines: Vec::new(),
            others: vec![server.address],
            workers: flags.workers,
            more_config: "meter: {share: 1}\n".to_owned(),
            ..StandOptions::default()
        };
        let mut stand = Stand::prepare(options).await?;
        stand.render()?;
        let mut config = Rendered::open(&stand.rendered())?;
        let mut arms = Vec::new();
        let mut arm = |name: &'static str| {
            let listener = SocketAddr::from(([127, 0, 0, 1], port()?));
            arms.push(Arm { name, listener, process: None });
            anyhow::Ok(listener)
        };
        let plain = config.inference("absent", arm("without")?)?.only(None)?;
        let routed = config.inference("routed", arm("with")?)?.without_meter()?;
        let tenth = config.inference("tenth", arm("meter on 10 %")?)?.metered(10)?;
        let all = config.inference("all", arm("meter on all")?)?.metered(100)?;
        for listener in [plain, routed, tenth, all] {
            config.add_listener(listener)?;
        }
        let program = find("bin/epp");
        let plan = program.is_ok().then(|| EppPlan::add(&mut config)).transpose()?;
        config.save()?;
        stand.start_envoy(&[]).await?;
        stand.start_daemon()?;
        stand.wait_ready().await?;
        let folder = stand.folder.path();
        let epp = match (plan, program) {
            (Some(plan), Ok(program)) => {
                let backends = [server.address];
                let started = plan.start(&program, &backends, flags.workers, folder);
                started.await.map_err(|why| format!("{why:#}"))
            }
            (_, Err(why)) => Err(why),
            (None, Ok(_)) => Err("not configured".to_owned()),
        };
        if let Ok(epp) = &epp {
            let process = Some(epp.process.id());
            arms.push(Arm { name: "llm-d epp", listener: epp.listener, process });
        }
        let missing = epp.as_ref().err().map(|why| format!("llm-d epp: {why}"));
        Ok(Self { stand, arms, missing, pace, _epp: epp.ok(), _server: server })
    }

    /// Doubles the streams through the listener without our filters while the rate is carried.
    async fn ramp(&self, per_stream: f64, events: usize) -> Result<Vec<Step>> {
        let mut ramp = Vec::new();
        let mut streams = 25;
        loop {
            let offered_per_s = streams as f64 * per_stream;
            let read = self.read(&self.arms[0], streams, events).await?;
            let joined_ratio = 1.0 - read.chunks as f64 / read.events as f64;
            let step = Step { offered_per_s, come_per_s: read.per_s, joined_ratio };
            eprintln!(
                "{offered_per_s:.0} events/s offered, {:.0} come, {:.0} % joined",
                step.come_per_s,
                joined_ratio * 100.0
            );
            let is_last = !step.is_carried() || offered_per_s >= MOST_PER_S as f64;
            ramp.push(step);
            if is_last {
                return Ok(ramp);
            }
            streams = (streams * 2).min(MOST_PER_S / per_stream as usize);
        }
    }

    async fn measure(&self, arm: &Arm, streams: usize, events: usize) -> Result<Measured> {
        let envoy = self.stand.envoy.as_ref().context("Envoy runs")?.id();
        let beside: Vec<u32> = arm.process.into_iter().collect();
        let spent = async |events: usize| {
            let (before, aside) = (worker_ns(envoy)?, Usage::of(&beside)?);
            let read = self.read(arm, streams, events).await?;
            let worker_us = (worker_ns(envoy)? - before) as f64 / 1e3;
            anyhow::Ok((worker_us, Usage::of(&beside)?.since(&aside) * 1e6, read))
        };
        let few = spent(FEW).await?;
        let many = spent(events).await?;
        let chunks = (many.2.events - few.2.events) as f64;
        let joined_ratio = 1.0 - many.2.chunks as f64 / many.2.events as f64;
        ensure!(
            joined_ratio <= MAX_JOINED_RATIO,
            "{}: {:.0} % of the events came joined: lower --rate",
            arm.name,
            joined_ratio * 100.0
        );
        Ok(Measured {
            worker_us: (many.0 - few.0) / chunks,
            beside_us: (many.1 - few.1) / chunks,
            joined_ratio,
        })
    }

    /// Reads so many streams beside each other, begun over one pace.
    async fn read(&self, arm: &Arm, streams: usize, events: usize) -> Result<Sum> {
        let mut readers = Vec::new();
        for number in 0..streams {
            readers.push(Reader::open(arm.listener, number).await?);
        }
        let mut tasks = JoinSet::new();
        for (number, mut reader) in readers.into_iter().enumerate() {
            let wait = self.pace.mul_f64(number as f64 / streams as f64);
            tasks.spawn(async move {
                tokio::time::sleep(wait).await;
                reader.read(events).await
            });
        }
        let mut sum = Sum::default();
        while let Some(read) = tasks.join_next().await {
            let read = read?.with_context(|| arm.name)?;
            sum.events += read.events;
            sum.chunks += read.chunks;
            sum.per_s += read.events as f64 / read.elapsed.as_secs_f64();
        }
        Ok(sum)
    }
}

#[derive(Default)]
struct Sum {
    events: usize,
    chunks: usize,
    /// Events per second, of all streams.
    per_s: f64,
}

fn report(
    bench: &Bench,
    flags: &Flags,
    rate: f64,
    ramp: &[Step],
    measured: &[Vec<Measured>],
) -> Result<Report> {
    let workers = |all: &[Measured]| all.iter().map(|one| one.worker_us).collect::<Vec<_>>();
    let without = workers(&measured[0]);
    let mut rows = vec![
        ["filters", "per chunk", "ratio", "quartiles", "beside", "joined"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut results = Vec::new();
    for (arm, all) in bench.arms.iter().zip(measured) {
        let us = workers(all);
        let ratios: Vec<f64> = us.iter().zip(&without).map(|(us, without)| us / without).collect();
        let of = |pick: fn(&Measured) -> f64| median(&all.iter().map(pick).collect::<Vec<_>>());
        let (beside, joined) = (of(|one| one.beside_us), of(|one| one.joined_ratio));
        let (low, high) = (quantile(&ratios, 0.25), quantile(&ratios, 0.75));
        rows.push(vec![
            arm.name.to_owned(),
            format!("{:.2} us", median(&us)),
            format!("{:.3}", median(&ratios)),
            format!("{low:.3} to {high:.3}"),
            if arm.process.is_some() { format!("{beside:.2} us") } else { "-".to_owned() },
            format!("{:.0} %", joined * 100.0),
        ]);
        results.push(json!({
            "filters": arm.name, "per_chunk_us": rounded(median(&us)),
            "ratio": rounded(median(&ratios)), "ratio_quartiles": [rounded(low), rounded(high)],
            "beside_us": arm.process.map(|_| rounded(beside)), "joined_ratio": rounded(joined),
            "rounds_us": us.iter().copied().map(rounded).collect::<Vec<_>>(),
        }));
    }
    let mut table = format!(
        "CPU of Envoy's workers per streamed event, requests taken out, at {rate:.0} per second; ratio \
         to the listener without our filters, by round; beside: the picker's process\n{}",
        aligned(&rows)
    );
    let carried = ramp.iter().filter(|step| step.is_carried());
    let most = carried.map(|step| step.come_per_s).fold(0.0, f64::max);
    if !ramp.is_empty() {
        table += &format!(
            "carried without our filters, client and engine on the same cores: {most:.0} of \
             {MOST_PER_S} per second\n"
        );
    }
    if let Some(missing) = &bench.missing {
        table += &format!("not compared: {missing}\n");
    }
    let points = |(index, all): (usize, &Vec<Measured>)| {
        let rounds = workers(all).into_iter().enumerate();
        let points = rounds.map(|(round, us)| ((round + 1) as f64, us)).filter(|(_, us)| *us > 0.0);
        Series { name: bench.arms[index].name.to_owned(), points: points.collect() }
    };
    let series: Vec<Series> = measured.iter().enumerate().map(points).collect();
    let axes = Axes { title: "Envoy worker CPU per streamed event", x: "round", y: "CPU (us)" };
    let ramp: Vec<Value> = ramp
        .iter()
        .map(|step| {
            json!({
                "offered_per_s": rounded(step.offered_per_s),
                "come_per_s": rounded(step.come_per_s),
                "joined_ratio": rounded(step.joined_ratio),
            })
        })
        .collect();
    let result = json!({
        "bench": "stream", "workers": flags.workers, "events_per_s": rounded(rate),
        "pace_ms": flags.pace_ms, "ramp": ramp, "filters": results, "missing": &bench.missing,
    });
    Ok(Report { table, result, plots: vec![("rounds", plot::lines(&axes, &series)?)] })
}
