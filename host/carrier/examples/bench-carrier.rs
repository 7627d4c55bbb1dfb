//! `scripts/bench carrier`: what a batch costs whom, when daemons follow an engine and when they are
//! fed by a carrier, and where the two cross. The engine is a publisher on libzmq in Python, as vLLM's
//! is, which plays a captured session. Each part is a process of its own; times are of its CPU.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carrier::{Address, CarrierConfig, EngineName, Feed, consume, publish};
use kv_events::{SourceConfig, SourceUpdate, Timing, follow_with};
use tokio::sync::mpsc;

/// Batches that may be on their way, so that no queue overflows.
const CHUNK: u64 = 500;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["direct", endpoint] => hear(|sender| {
            let config = source(endpoint);
            tokio::spawn(follow_with(config, Timing::default(), Arc::default(), sender));
        }),
        ["carried", server, endpoint] => hear(|sender| {
            let engine = EngineName { endpoint: (*endpoint).to_owned(), topic: String::new() };
            let feed = Feed { engine, resume: None, updates: sender, counters: Arc::default() };
            tokio::spawn(consume(config(server), vec![feed]));
        }),
        ["follow", server, endpoint] => runtime().block_on(async {
            let counters = (Arc::default(), Arc::default());
            let (config, timing) = (config(server), Timing::default());
            match publish(config, source(endpoint), timing, counters.0, counters.1).await {}
        }),
        flags => bench(flags),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn source(endpoint: &str) -> SourceConfig {
    let endpoint = endpoint.to_owned();
    SourceConfig { endpoint, replay: None, topic: String::new(), resume: None }
}

fn config(server: &str) -> Arc<CarrierConfig> {
    Arc::new(CarrierConfig {
        address: Address { server: server.to_owned(), username: None, password: None },
        name: "bench".to_owned(),
        max_entries: 10_000,
        lease: Duration::from_secs(5),
    })
}

/// A daemon without an index: says the number of the last batch it has at every line that it reads.
fn hear(start: impl FnOnce(mpsc::Sender<SourceUpdate>)) {
    runtime().block_on(async {
        let (sender, mut updates) = mpsc::channel(1024);
        start(sender);
        let mut out = std::io::stdout();
        while let Some(update) = updates.recv().await {
            let sequence = match update {
                SourceUpdate::Batch { sequence, .. } => sequence,
                SourceUpdate::Reset { reason } => panic!("reset: {reason:?}"),
                _ => continue,
            };
            if (sequence + 1) % CHUNK == 0 || sequence < CHUNK {
                writeln!(out, "{sequence}").expect("a reader");
            }
        }
    });
}

/// A part, killed when dropped.
struct Part {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Part {
    fn start(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdin, stdout }
    }

    fn own(arguments: &[&str]) -> Self {
        Self::start(Command::new(std::env::current_exe().expect("this program")).args(arguments))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.stdout.read_line(&mut line).expect("a line") > 0, "a part ended");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.stdin, "{line}").expect("a part");
        self.line()
    }

    /// Reads until it has had this batch.
    fn until(&mut self, sequence: u64) {
        while self.line().parse::<u64>().expect("a number") < sequence {}
    }

    /// CPU time so far, of all its threads.
    fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/task", self.child.id());
        let tasks = std::fs::read_dir(path).expect("Linux");
        let of = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(tasks.flatten().map(of).sum())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU per batch in microseconds; daemons' is the mean of them.
#[derive(Clone, Copy, Default)]
struct Cost {
    engine: f64,
    follower: f64,
    server: f64,
    daemon: f64,
}

struct Setup {
    root: PathBuf,
    batches: u64,
}

impl Setup {
    fn engine(&self) -> (Part, String) {
        let mut engine = Part::start(
            Command::new(self.root.join(".local/venv/bin/python"))
                .arg(self.root.join("tests/golden/kv-events/publisher.py"))
                .arg(self.root.join("tests/golden/kv-events/session-chat-small-cache.jsonl"))
                .args(["--no-replay", "--buffer", "1"]),
        );
        let ports: serde_json::Value = serde_json::from_str(&engine.line()).expect("json");
        let endpoint = format!("tcp://127.0.0.1:{}", ports["pub"]);
        (engine, endpoint)
    }

    fn server(&self) -> (Part, String) {
        let own = self.root.join(".local/bin/carrier-server");
        let program = std::env::var_os("WASM_EPP_CARRIER_SERVER").map_or(own, PathBuf::from);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let port = address.port().to_string();
        let part = Part::start(
            Command::new(program).args(["--bind", "127.0.0.1", "--port", &port]).args([
                "--save",
                "",
                "--loglevel",
                "warning",
            ]),
        );
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "no server");
            std::thread::sleep(Duration::from_millis(20));
        }
        (part, address.to_string())
    }

    fn run(&self, daemons: usize, is_carried: bool) -> Cost {
        let (mut engine, endpoint) = self.engine();
        let carrier = is_carried.then(|| {
            let (server, address) = self.server();
            let follower = Part::own(&["follow", &address, &endpoint]);
            (server, follower, address)
        });
        let mut parts: Vec<Part> = (0..daemons)
            .map(|_| match &carrier {
                Some((_, _, address)) => Part::own(&["carried", address, &endpoint]),
                None => Part::own(&["direct", &endpoint]),
            })
            .collect();
        // One at a time until all hear; nothing tells when a subscription takes effect.
        std::thread::sleep(Duration::from_secs(1));
        let next = |answer: String| -> u64 {
            let answer: serde_json::Value = serde_json::from_str(&answer).expect("json");
            answer["next"].as_u64().expect("a number")
        };
        let mut sent = next(engine.tell("send 1"));
        for part in &mut parts {
            part.until(sent - 1);
        }
        sent = next(engine.tell(&format!("send {}", CHUNK - sent)));
        parts.iter_mut().for_each(|part| part.until(sent - 1));
        let now = |engine: &Part, parts: &[Part]| Cost {
            engine: engine.cpu().as_secs_f64(),
            follower: carrier.as_ref().map_or(0.0, |(_, part, _)| part.cpu().as_secs_f64()),
            server: carrier.as_ref().map_or(0.0, |(part, _, _)| part.cpu().as_secs_f64()),
            daemon: parts.iter().map(|part| part.cpu().as_secs_f64()).sum(),
        };
        let before = now(&engine, &parts);
        for _ in 0..self.batches / CHUNK {
            sent = next(engine.tell(&format!("send {CHUNK}")));
            parts.iter_mut().for_each(|part| part.until(sent - 1));
        }
        let after = now(&engine, &parts);
        let batches = (self.batches / CHUNK * CHUNK) as f64;
        let per = |before: f64, after: f64| (after - before) * 1e6 / batches;
        Cost {
            engine: per(before.engine, after.engine),
            follower: per(before.follower, after.follower),
            server: per(before.server, after.server),
            daemon: per(before.daemon, after.daemon) / daemons as f64,
        }
    }
}

/// Least squares of `y = a + b x`.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = covariance / variance;
    (y - slope * x, slope)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bench(flags: &[&str]) {
    let (mut batches, mut rounds, mut is_json) = (10_000, 3, false);
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        let mut number = || flags.next().and_then(|text| text.parse::<u64>().ok());
        match (*flag, ()) {
            ("--json", ()) => is_json = true,
            ("--batches", ()) => batches = number().unwrap_or(0),
            ("--rounds", ()) => rounds = number().unwrap_or(0),
            _ => batches = 0,
        }
        if batches < CHUNK || rounds == 0 {
            eprintln!("bench carrier: [--json] [--batches N, from {CHUNK}] [--rounds N, from 1]");
            std::process::exit(64);
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let setup = Setup { root, batches };
    let counts = [1, 2, 4, 8];
    let mut runs: Vec<(usize, bool, Vec<Cost>)> = counts
        .iter()
        .flat_map(|count| [(*count, false, Vec::new()), (*count, true, Vec::new())])
        .collect();
    // The arms take turns, so that what disturbs one disturbs all.
    for _ in 0..rounds {
        for (daemons, is_carried, costs) in &mut runs {
            costs.push(setup.run(*daemons, *is_carried));
        }
    }
    println!("CPU per batch in us, medians of {rounds} rounds of {batches} batches\n");
    println!("| daemons | way | engine | follower | server | each daemon |");
    println!("|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for (daemons, is_carried, costs) in &runs {
        let of = |part: fn(&Cost) -> f64| median(costs.iter().map(part).collect());
        let cost = Cost {
            engine: of(|cost| cost.engine),
            follower: of(|cost| cost.follower),
            server: of(|cost| cost.server),
            daemon: of(|cost| cost.daemon),
        };
        let way = if *is_carried { "carrier" } else { "direct" };
        println!(
            "| {daemons} | {way} | {:.1} | {:.1} | {:.1} | {:.1} |",
            cost.engine, cost.follower, cost.server, cost.daemon
        );
        rows.push((*daemons as f64, *is_carried, cost));
    }
    let points = |is_carried: bool, of: fn(&Cost) -> f64| -> Vec<(f64, f64)> {
        let rows = rows.iter().filter(|row| row.1 == is_carried);
        rows.map(|row| (row.0, of(&row.2))).collect()
    };
    let mean = |points: Vec<(f64, f64)>| {
        points.iter().map(|point| point.1).sum::<f64>() / points.len() as f64
    };
    let (base, subscriber) = line(&points(false, |cost| cost.engine));
    let (taken, given) = line(&points(true, |cost| cost.server));
    let follower = mean(points(true, |cost| cost.follower));
    let direct = mean(points(false, |cost| cost.daemon));
    let carried = mean(points(true, |cost| cost.daemon));
    println!(
        "\nengine {base:.1} + {subscriber:.1} per subscriber; server {taken:.1} + {given:.1} per \
         daemon; follower {follower:.1}; daemon {direct:.1} direct, {carried:.1} by the carrier"
    );
    // Of everything: M (subscriber + direct) against subscriber + follower + taken + M (given + carried).
    let saved = subscriber + direct - given - carried;
    let spent = subscriber + follower + taken;
    let crossover = (saved > 0.0).then(|| spent / saved);
    match crossover {
        Some(daemons) => {
            println!("all CPU together: less by the carrier from {daemons:.1} daemons")
        }
        None => println!("all CPU together: never less by the carrier"),
    }
    println!(
        "an engine at R batches/s spends M x {subscriber:.1} us x R on M daemons, {subscriber:.1} us \
         x R with a carrier: at 100 batches/s a percent of a core from {:.0} daemons",
        0.01 / (subscriber * 1e-6 * 100.0)
    );
    if is_json {
        let table: Vec<serde_json::Value> = rows
            .iter()
            .map(|(daemons, is_carried, cost)| {
                serde_json::json!({
                    "daemons": daemons, "carrier": is_carried, "engine_us": cost.engine,
                    "follower_us": cost.follower, "server_us": cost.server,
                    "daemon_us": cost.daemon,
                })
            })
            .collect();
        println!(
            "{}",
            serde_json::json!({
                "bench": "carrier", "batches": batches, "rounds": rounds, "table": table,
                "engine_us": {"base": base, "subscriber": subscriber},
                "server_us": {"base": taken, "daemon": given},
                "follower_us": follower,
                "daemon_us": {"direct": direct, "carrier": carried},
                "crossover_daemons": crossover,
            })
        );
    }
}
