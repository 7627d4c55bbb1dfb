//! `bench chain`: what each scorer module costs an Envoy worker, per request and per streamed chunk.
//!
//! One Envoy with one worker; the modules are rendered into it while it runs. A second listener has
//! intake and picker without places for modules between them, and is measured without modules. Rounds
//! alternate between the numbers of modules.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use testbed::{Backend, Client, Stand, StandOptions, port, root, wait_until};
use tokio::task::JoinSet;

use crate::cpu::{filler, worker_ns};
use crate::listeners::read_yaml;
use crate::load::{self, Shot};
use crate::table::{aligned, median, rounded};

const PATH: &str = "/v1/completions";
/// Modules in the chain; 0 is places without any.
const MODULES: [usize; 4] = [0, 1, 2, 4];

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Endpoints of the pool; each is one score of each module
    #[arg(long, default_value_t = 16)]
    endpoints: usize,
    /// Measured rounds; one more goes before them and is dropped
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Requests per round and number of modules
    #[arg(long, default_value_t = 3000)]
    requests: usize,
    /// Streams at a time, whose chunks are measured
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// Tokens, and so chunks, per stream
    #[arg(long, default_value_t = 400)]
    tokens: usize,
}

pub(crate) async fn run(flags: &Flags) -> Result<(String, Value)> {
    let bench = Bench::start(flags).await?;
    // Without places, then MODULES.
    let mut requests: Vec<Vec<f64>> = vec![Vec::new(); MODULES.len() + 1];
    let mut chunks = requests.clone();
    for round in 0..=flags.rounds {
        for turn in 0..MODULES.len() {
            let which = (turn + round) % MODULES.len();
            bench.load_modules(MODULES[which]).await?;
            let mut listeners = vec![(which + 1, bench.stand.gateway)];
            if MODULES[which] == 0 {
                listeners.push((0, bench.bare));
            }
            for (column, listener) in listeners {
                let request = bench.request_us(listener, flags).await?;
                let chunk = bench.chunk_us(listener, flags).await?;
                eprintln!("round {round}, column {column}: {request:.1} us, chunk {chunk:.2} us");
                if round > 0 {
                    requests[column].push(request);
                    chunks[column].push(chunk);
                }
            }
        }
    }
    let names = ["no places", "0 of 4", "1 of 4", "2 of 4", "4 of 4"];
    let mut rows = vec![
        ["modules", "request", "over 0", "per module", "chunk", "over 0"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut results = Vec::new();
    let over = |all: &[Vec<f64>], column: usize| {
        let each: Vec<f64> = all[column].iter().zip(&all[1]).map(|(a, b)| a - b).collect();
        median(&each)
    };
    for (column, name) in names.into_iter().enumerate() {
        let (request, chunk) = (over(&requests, column), over(&chunks, column));
        let modules = column.checked_sub(1).map_or(0, |which| MODULES[which]);
        let each = (modules > 0).then(|| request / modules as f64);
        rows.push(vec![
            name.to_owned(),
            format!("{:.1} us", median(&requests[column])),
            format!("{request:+.1} us"),
            each.map_or("".into(), |each| format!("{each:+.1} us")),
            format!("{:.2} us", median(&chunks[column])),
            format!("{chunk:+.2} us"),
        ]);
        results.push(json!({
            "chain": name, "modules": modules, "request_us": rounded(median(&requests[column])),
            "request_over_none_us": rounded(request), "per_module_us": each.map(rounded),
            "chunk_us": rounded(median(&chunks[column])), "chunk_over_none_us": rounded(chunk),
            "rounds": {"request": requests[column], "chunk": chunks[column]},
        }));
    }
    let table = format!(
        "CPU of the worker with {} endpoints, median of {} rounds of {} requests and {} streams of \
         {} chunks; differences by round\n{}",
        flags.endpoints,
        flags.rounds,
        flags.requests,
        flags.streams,
        flags.tokens,
        aligned(&rows)
    );
    let result = json!({
        "bench": "chain", "endpoints": flags.endpoints, "rounds": flags.rounds,
        "requests": flags.requests, "streams": flags.streams, "tokens": flags.tokens,
        "chains": results,
    });
    Ok((table, result))
}

struct Bench {
    stand: Stand,
    /// The pool's endpoints: what they cost does not matter.
    _backends: Vec<Backend>,
    /// The listener without places.
    bare: SocketAddr,
}

impl Bench {
    async fn start(flags: &Flags) -> Result<Self> {
        let page = std::fs::read(root().join("tests/golden/metrics/vllm-metrics.txt"))?;
        let mut backends = Vec::new();
        for _ in 0..flags.endpoints {
            backends.push(Backend::start(page.clone()).await?);
        }
        let mut stand = Stand::prepare(StandOptions {
            engines: Vec::new(),
            others: backends.iter().map(|backend| backend.address).collect(),
            ..StandOptions::default()
        })
        .await?;
        stand.render()?;
        let bare = SocketAddr::from(([127, 0, 0, 1], port()?));
        add_bare_listener(&stand, bare)?;
        stand.start_envoy(&[]).await?;
        stand.start_daemon()?;
        stand.wait_ready().await?;
        Ok(Self { stand, _backends: backends, bare })
    }

    /// Renders so many modules into the gateway and waits until each has scored a request.
    async fn load_modules(&self, count: usize) -> Result<()> {
        self.stand.write_config()?;
        let file = self.stand.config_file();
        let mut text = std::fs::read_to_string(&file)?;
        text.push_str("routing:\n  scorers:\n  - {type: prefix-cache, weight: 3}\n  - {type: queue, weight: 2}\n  - {type: kv-cache-utilization, weight: 2}\n  - {type: no-hit-lru, weight: 2}\n");
        let module = root().join("target/wasm/steady-scorer.wasm");
        for number in 0..count {
            let _ = writeln!(
                text,
                "  - {{type: module, name: m{number}, module: {}, parameters: {{best: none, others: 0.5}}}}",
                module.display()
            );
        }
        std::fs::write(&file, text)?;
        // The listener of the bench's own is in envoy.yaml, which is read at start only.
        self.stand.render()?;
        self.log_level("debug").await?;
        let client = self.stand.client();
        wait_until("the modules score", Duration::from_secs(60), async || {
            let body = json!({"model": "tiny", "prompt": "is it there", "max_tokens": 1});
            let answer = client.post(PATH, &body).await.ok()?;
            let line = self.stand.pod_scores(answer.header("x-request-id")).await.ok()?;
            let modules = line.record["modules"].as_object()?;
            (modules.len() == count && modules.values().all(Value::is_object)).then_some(())
        })
        .await?;
        self.log_level("info").await
    }

    async fn log_level(&self, level: &str) -> Result<()> {
        let path = format!("/logging?wasm={level}");
        let answer = Client::new(self.stand.envoy_admin).send("POST", &path, &[], "").await?;
        ensure!(answer.status.is_success(), "{path}: {answer:?}");
        Ok(())
    }

    /// Microseconds of worker CPU per request of 8 KiB.
    async fn request_us(&self, listener: SocketAddr, flags: &Flags) -> Result<f64> {
        let body = json!({"model": "tiny", "prompt": filler(1, 8_000), "max_tokens": 1});
        let body = Bytes::from(body.to_string());
        let shots = Arc::new(vec![Shot { path: PATH, body, backend: None }]);
        let process = self.stand.envoy.as_ref().context("Envoy runs")?.id();
        // VMs that were just made are slower for a while.
        load::run(listener, &shots, 4, flags.requests / 4).await?;
        let before = worker_ns(process)?;
        load::run(listener, &shots, 4, flags.requests).await?;
        Ok((worker_ns(process)? - before) as f64 / 1000.0 / flags.requests as f64)
    }

    /// Microseconds of worker CPU per chunk of streams, with their requests' share.
    async fn chunk_us(&self, listener: SocketAddr, flags: &Flags) -> Result<f64> {
        let process = self.stand.envoy.as_ref().context("Envoy runs")?.id();
        let before = worker_ns(process)?;
        let mut streams = JoinSet::new();
        for number in 0..flags.streams {
            let body = json!({
                "model": "tiny", "prompt": format!("stream {number}"), "stream": true,
                "max_tokens": flags.tokens,
            });
            streams.spawn(stream(listener, body.to_string()));
        }
        while let Some(done) = streams.join_next().await {
            ensure!(done?? == flags.tokens, "a stream has not as many events as were asked for");
        }
        // As the backends sent them; some may have reached the client together.
        let chunks = (flags.streams * flags.tokens) as f64;
        Ok((worker_ns(process)? - before) as f64 / 1000.0 / chunks)
    }
}

/// Streams once, and gives the number of events that came.
async fn stream(listener: SocketAddr, body: String) -> Result<usize> {
    let socket = tokio::net::TcpStream::connect(listener).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // Ends with the sender; a failure shows at the request.
    tokio::spawn(connection);
    let request = Request::post(PATH)
        .header("host", listener.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    ensure!(response.status().is_success(), "a stream was answered {}", response.status());
    let body = response.into_body().collect().await?.to_bytes();
    Ok(body.windows(6).filter(|window| window == b"data: ").count())
}

/// Adds a copy of the inference listener without places for modules.
fn add_bare_listener(stand: &Stand, bare: SocketAddr) -> Result<()> {
    let file = stand.rendered().join("envoy.yaml");
    let mut config: Value = read_yaml(&file)?;
    let listeners = config["static_resources"]["listeners"].as_array_mut().context("listeners")?;
    let inference = listeners.iter().find(|listener| listener["name"] == "inference");
    let mut listener = inference.context("the inference listener")?.clone();
    listener["name"] = json!("bare");
    listener["address"]["socket_address"]["port_value"] = json!(bare.port());
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    manager["stat_prefix"] = json!("bare");
    let filters = manager["http_filters"].as_array_mut().context("filters")?;
    filters
        .retain(|filter| !filter["name"].as_str().is_some_and(|name| name.starts_with("scorer-")));
    listeners.push(listener);
    // JSON is YAML.
    Ok(std::fs::write(&file, config.to_string())?)
}
