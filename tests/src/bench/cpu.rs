//! `bench cpu`: what a request costs an Envoy worker, by what stands in its filter chain.
//!
//! One Envoy with one worker serves three listeners: `plain` without a wasm filter, `noop` with a
//! filter that waits for the body, `router` with intake and picker as rendered. They differ in
//! nothing else. Rounds alternate between them, so that what the machine does meanwhile hits all.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testbed::{port, root};

use crate::fleet::{Chat, Fleet};
use crate::listeners::{Rendered, read_yaml};
use crate::load::{self, Shot};
use crate::plot::{self, Axes, Series};
use crate::report::Report;
use crate::table::{aligned, median, rounded};

/// Conversations per size, a third on each engine.
const CHATS: usize = 6;
/// Part of a prompt that an engine must hold for the measurement to be of a deep match.
const MIN_HELD_RATIO: f64 = 0.7;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Sizes of the request bodies
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values_t = [1024, 8192, 65536])]
    sizes: Vec<usize>,
    /// Measure conversations of so many messages of a kilobyte instead
    #[arg(long, value_name = "COUNT", value_delimiter = ',')]
    messages: Vec<usize>,
    /// Measured rounds per size; one more goes before them and is dropped
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Requests per round and listener
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Connections at a time
    #[arg(long, default_value_t = 4)]
    connections: usize,
}

pub(crate) async fn run(flags: &Flags) -> Result<Report> {
    eprintln!("starting engines, daemon and Envoy ...");
    let bench = Bench::start().await?;
    let mut rows = vec![
        ["body", "plain", "noop", "router", "over noop", "over plain", "router/noop", "held"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut results = Vec::new();
    let shapes: Vec<Shape> = if flags.messages.is_empty() {
        flags.sizes.iter().copied().map(Shape::Bytes).collect()
    } else {
        flags.messages.iter().copied().map(Shape::Messages).collect()
    };
    for shape in shapes {
        let (shots, held) = bench.hold(shape).await?;
        let size = shots.first().map_or(0, |shot| shot.body.len());
        let mut measured: [Vec<f64>; 3] = Default::default();
        for round in 0..=flags.rounds {
            let mut line = [0.0; 3];
            for turn in 0..3 {
                let which = (turn + round) % 3;
                line[which] = bench.measure(which, &shots, flags).await?;
            }
            let note = if round == 0 { " (dropped)" } else { "" };
            eprintln!(
                "{shape}, round {round}: {:.1} {:.1} {:.1} us{note}",
                line[0], line[1], line[2]
            );
            if round > 0 {
                measured.iter_mut().zip(line).for_each(|(all, value)| all.push(value));
            }
        }
        let [plain, noop, router] = &measured;
        let pairs = |from: &[f64], what: fn(f64, f64) -> f64| {
            let each: Vec<f64> = router.iter().zip(from).map(|(r, f)| what(*r, *f)).collect();
            median(&each)
        };
        let over_noop = pairs(noop, |router, noop| router - noop);
        let over_plain = pairs(plain, |router, plain| router - plain);
        let ratio = pairs(noop, |router, noop| router / noop);
        let us = |value: f64| format!("{value:.1} us");
        rows.push(vec![
            shape.to_string(),
            us(median(plain)),
            us(median(noop)),
            us(median(router)),
            us(over_noop),
            us(over_plain),
            format!("{ratio:.2}"),
            format!("{:.0} %", held * 100.0),
        ]);
        let rounds = |values: &[f64]| values.iter().copied().map(rounded).collect::<Vec<_>>();
        results.push(json!({
            "body_bytes": size,
            "messages": shape.messages(),
            "held_ratio": rounded(held),
            "plain_us": rounded(median(plain)),
            "noop_us": rounded(median(noop)),
            "router_us": rounded(median(router)),
            "router_over_noop_us": rounded(over_noop),
            "router_over_plain_us": rounded(over_plain),
            "router_to_noop_ratio": rounded(ratio),
            "rounds": {"plain": rounds(plain), "noop": rounds(noop), "router": rounds(router)},
        }));
    }
    let table = format!(
        "CPU of the worker per request, median of {} rounds of {} requests; differences and ratio \
         by round\n{}",
        flags.rounds,
        flags.requests,
        aligned(&rows)
    );
    let result = json!({
        "bench": "cpu", "rounds": flags.rounds, "requests": flags.requests,
        "connections": flags.connections, "sizes": &results,
    });
    let curve = |name: &str, key: &str| Series {
        name: name.to_owned(),
        points: results
            .iter()
            .filter_map(|row| Some((row["body_bytes"].as_f64()?, row[key].as_f64()?)))
            .collect(),
    };
    let curves = [
        curve("plain", "plain_us"),
        curve("no-op filter", "noop_us"),
        curve("router", "router_us"),
    ];
    let axes =
        Axes { title: "Envoy worker CPU per request", x: "request body (bytes)", y: "CPU (us)" };
    let plots = vec![("request", plot::lines(&axes, &curves)?)];
    Ok(Report { table, result, plots })
}

/// What a row measures.
#[derive(Clone, Copy)]
enum Shape {
    /// Eight messages of so many bytes together.
    Bytes(usize),
    /// So many messages of a kilobyte.
    Messages(usize),
}

impl Shape {
    fn messages(self) -> usize {
        match self {
            Shape::Bytes(_) => 8,
            Shape::Messages(count) => count,
        }
    }

    /// The conversation of this shape, and how many messages of it an engine holds.
    fn conversation(self, number: usize) -> (Vec<Value>, usize) {
        match self {
            Shape::Bytes(size) => (conversation(number, size), 6),
            Shape::Messages(count) => {
                let role = |at: usize| if at.is_multiple_of(2) { "user" } else { "assistant" };
                let message = |at: usize| json!({"role": role(at), "content": filler(number * count + at, 960)});
                // Of one message, all.
                (((0..count).map(message).collect()), count.saturating_sub(2).max(1))
            }
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Shape::Bytes(size) => write!(f, "{size} bytes"),
            Shape::Messages(count) => write!(f, "{count} messages"),
        }
    }
}

struct Bench {
    fleet: Fleet,
    /// Plain, noop, router.
    listeners: [SocketAddr; 3],
}

impl Bench {
    async fn start() -> Result<Self> {
        let mut fleet = Fleet::prepare(1).await?;
        let free = || anyhow::Ok(SocketAddr::from(([127, 0, 0, 1], port()?)));
        let listeners = [free()?, free()?, fleet.stand.gateway];
        add_listeners(&fleet.stand.rendered(), listeners[0], listeners[1])?;
        fleet.start().await?;
        Ok(Self { fleet, listeners })
    }

    /// Has the engines hold conversations up to their last turn, and gives the requests with it
    /// and the part of them that is held.
    async fn hold(&self, shape: Shape) -> Result<(Arc<Vec<Shot>>, f64)> {
        let chat = |number: usize| {
            let (messages, held) = shape.conversation(number);
            Chat { messages, held }
        };
        let chats: Vec<Chat> = (0..CHATS).map(chat).collect();
        let (shots, held) = self.fleet.hold(&shape.to_string(), &chats, MIN_HELD_RATIO).await?;
        Ok((Arc::new(shots), held))
    }

    /// Microseconds of worker CPU per request.
    async fn measure(&self, which: usize, shots: &Arc<Vec<Shot>>, flags: &Flags) -> Result<f64> {
        let mut shots = Arc::clone(shots);
        if which < 2 {
            // Without the router any backend may answer.
            Arc::make_mut(&mut shots).iter_mut().for_each(|shot| shot.backend = None);
        }
        let process = self.fleet.stand.envoy.as_ref().context("Envoy runs")?.id();
        let before = worker_ns(process)?;
        load::run(self.listeners[which], &shots, flags.connections, flags.requests).await?;
        Ok((worker_ns(process)? - before) as f64 / 1000.0 / flags.requests as f64)
    }
}

/// Time on the processor of a process' worker threads so far, from the scheduler's statistics.
pub(crate) fn worker_ns(process: u32) -> Result<u64> {
    let mut sum = None;
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        // A thread that has ended meanwhile was no worker.
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else { continue };
        if name.starts_with("wrk:worker_") {
            let line = std::fs::read_to_string(task.join("schedstat"))?;
            let on_cpu = line.split(' ').next().context("schedstat is empty")?.parse::<u64>()?;
            sum = Some(sum.unwrap_or(0) + on_cpu);
        }
    }
    sum.with_context(|| format!("no thread of process {process} is called wrk:worker_N"))
}

/// Time on the processor of all threads of a process so far, to ten milliseconds.
pub(crate) fn process_ns(process: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may have blanks; user and system time are the 14th and 15th field.
    let fields = stat.rsplit_once(") ").context("stat has a name")?.1.split(' ').skip(11);
    let ticks = fields.take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks * 10_000_000)
}

/// Adds the two listeners to a rendered `envoy.yaml`: copies of the inference listener with other
/// filters.
fn add_listeners(rendered: &Path, plain: SocketAddr, noop: SocketAddr) -> Result<()> {
    let intake: Value = read_yaml(&rendered.join("ecds/intake.yaml"))?;
    // As intake is loaded, callbacks withheld and all, but for what it is.
    let mut filter = intake["resources"][0]["typed_config"].clone();
    filter["config"]["name"] = json!("noop");
    filter["config"]["root_id"] = json!("noop");
    filter["config"]["vm_config"]["vm_id"] = json!("noop");
    filter["config"]["vm_config"]["code"]["local"]["filename"] =
        json!(root().join("target/wasm/noop.wasm"));
    let noop_filter = json!({"name": "noop", "typed_config": filter});
    let mut config = Rendered::open(rendered)?;
    for (name, address, first) in [("plain", plain, None), ("noop", noop, Some(noop_filter))] {
        let listener = config.inference(name, address)?.only(first)?;
        config.add_listener(listener)?;
    }
    config.save()
}

/// Eight messages of about `size` bytes as JSON, the last two short; none like another number's.
pub(crate) fn conversation(number: usize, size: usize) -> Vec<Value> {
    // Around each text there are about 45 bytes of JSON.
    let text = size.saturating_sub(8 * 45 + 60);
    let parts = [4, 2, 2, 3, 2, 2, 1, 1];
    let roles = ["system", "user", "assistant", "user", "assistant", "user", "assistant", "user"];
    let part = |(at, (share, role)): (usize, (usize, &str))| {
        let content = filler(number * 8 + at, text * share / parts.iter().sum::<usize>());
        json!({"role": role, "content": content})
    };
    parts.into_iter().zip(roles).enumerate().map(part).collect()
}

pub(crate) fn filler(number: usize, bytes: usize) -> String {
    let sentence = |i: usize| {
        format!("Note {number}, line {i}: part {} waits for {}. ", i * 7 % 41, i * 3 % 17)
    };
    let mut text: String = (1..=bytes / 30 + 1).map(sentence).collect();
    text.truncate(bytes.max(8));
    text
}
