//! `bench meter`: what a streamed chunk costs an Envoy worker, by what the meter does with it.
//!
//! One Envoy with one worker serves four listeners that differ in nothing else: without the module,
//! with the module and a share of 0, with a share of 1, and with streams that are asked for their
//! usage. A server of the bench's own streams events at a steady pace, so that each is a chunk.
//! Rounds alternate between the listeners, so that what the machine does meanwhile hits all.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use testbed::{Stand, StandOptions, port, root};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::cpu::worker_ns;
use crate::listeners::read_yaml;
use crate::table::{aligned, median, rounded};

const PATH: &str = "/v1/chat/completions";
const VARIANTS: [&str; 4] = ["absent", "unsampled", "sampled", "asked"];
/// Events that may reach Envoy joined with another, as a share of all: chunks are what is counted, but
/// they are to be of one size.
const MAX_JOINED_RATIO: f64 = 0.3;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Measured rounds; one more goes before them and is dropped
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Streams at a time
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// Events per stream
    #[arg(long, default_value_t = 500)]
    events: usize,
    /// Milliseconds between two events of a stream
    #[arg(long, default_value_t = 4)]
    pace_ms: u64,
}

pub(crate) async fn run(flags: &Flags) -> Result<(String, Value)> {
    ensure!(flags.pace_ms > 0 && flags.events > 0, "a pace and events");
    eprintln!("starting daemon and Envoy ...");
    let backend = serve(flags).await?;
    let (stand, listeners) = start(backend).await?;
    let mut measured: [Vec<f64>; 4] = Default::default();
    for round in 0..=flags.rounds {
        let mut line = [0.0; 4];
        for turn in 0..4 {
            let which = (turn + round) % 4;
            line[which] = measure(&stand, listeners[which], flags).await?;
        }
        let note = if round == 0 { " (dropped)" } else { "" };
        eprintln!("round {round}: {line:.2?} us{note}");
        if round > 0 {
            measured.iter_mut().zip(line).for_each(|(all, value)| all.push(value));
        }
    }
    check(&stand, flags).await?;

    let mut rows = vec![["meter", "per chunk", "over absent"].map(str::to_owned).to_vec()];
    let mut results = Vec::new();
    for (name, values) in VARIANTS.iter().zip(&measured) {
        let over: Vec<f64> = values.iter().zip(&measured[0]).map(|(a, b)| a - b).collect();
        let us = |value: f64| format!("{value:.2} us");
        rows.push(vec![(*name).to_owned(), us(median(values)), us(median(&over))]);
        let rounds: Vec<f64> = values.iter().copied().map(rounded).collect();
        results.push(json!({
            "meter": name, "per_chunk_us": rounded(median(values)),
            "over_absent_us": rounded(median(&over)), "rounds": rounds,
        }));
    }
    let table = format!(
        "CPU of the worker per streamed chunk, requests included, median of {} rounds of {} streams \
         of {} events; differences by round\n{}",
        flags.rounds,
        flags.streams,
        flags.events,
        aligned(&rows)
    );
    let result = json!({
        "bench": "meter", "rounds": flags.rounds, "streams": flags.streams,
        "events": flags.events, "variants": results,
    });
    Ok((table, result))
}

/// The share of 0 measured nothing, the share of 1 every stream, and each was asked that should be.
async fn check(stand: &Stand, flags: &Flags) -> Result<()> {
    let streams = ((flags.rounds + 1) * flags.streams) as u64;
    let count = async |name: &str| {
        stand.envoy_stat(&format!("wasmcustom.wasm_epp_meter_{name}_total")).await
    };
    // Of an asked stream the usage is found, of another it is not there.
    for name in ["usage_asked", "answers", "unreadable_no_usage"] {
        let counted = count(name).await?;
        ensure!(counted == streams, "{name} is {counted} after {streams} streams");
    }
    Ok(())
}

/// Starts everything; the listeners are in the order of the variants.
async fn start(backend: SocketAddr) -> Result<(Stand, [SocketAddr; 4])> {
    let options = StandOptions {
        engines: Vec::new(),
        others: vec![backend],
        more_config: "meter: {share: 1}\n".to_owned(),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await?;
    stand.render()?;
    let free = || anyhow::Ok(SocketAddr::from(([127, 0, 0, 1], port()?)));
    let listeners = [free()?, free()?, stand.gateway, free()?];
    add_listeners(&stand.rendered(), &listeners)?;
    stand.start_envoy(&[]).await?;
    stand.start_daemon()?;
    stand.wait_ready().await?;
    Ok((stand, listeners))
}

/// Adds copies of the rendered inference listener, which is the sampled one.
fn add_listeners(rendered: &Path, addresses: &[SocketAddr; 4]) -> Result<()> {
    let file = rendered.join("envoy.yaml");
    let mut config: Value = read_yaml(&file)?;
    let listeners = config["static_resources"]["listeners"].as_array_mut().context("listeners")?;
    let inference = listeners.iter().find(|listener| listener["name"] == "inference");
    let inference = inference.context("the inference listener")?.clone();
    let asked: Value = read_yaml(&rendered.join("ecds/meter.yaml"))?;
    let mut asked = asked["resources"][0]["typed_config"].clone();
    let configuration = asked["config"]["configuration"]["value"].as_str().context("a string")?;
    let configuration = configuration.replace("\"includeUsage\":false", "\"includeUsage\":true");
    asked["config"]["configuration"]["value"] = json!(configuration);
    for (which, name) in VARIANTS.iter().enumerate().filter(|(_, name)| **name != "sampled") {
        let mut listener = inference.clone();
        listener["name"] = json!(name);
        listener["address"]["socket_address"]["port_value"] = json!(addresses[which].port());
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        manager["stat_prefix"] = json!(name);
        let filters = manager["http_filters"].as_array_mut().context("filters")?;
        match *name {
            "absent" => filters.retain(|filter| filter["name"] != "meter"),
            "asked" => {
                let meter = filters.iter_mut().find(|filter| filter["name"] == "meter");
                let meter = meter.context("a meter")?;
                *meter = json!({"name": "meter", "disabled": true, "typed_config": asked});
            }
            _ => {}
        }
        let routes = manager["route_config"]["virtual_hosts"][0]["routes"].as_array_mut();
        let routes = routes.context("routes")?;
        match *name {
            "absent" => routes.retain(|route| route["match"]["runtime_fraction"].is_null()),
            "unsampled" => {
                for route in routes.iter_mut() {
                    if let Some(fraction) = route["match"].get_mut("runtime_fraction") {
                        fraction["default_value"]["numerator"] = json!(0);
                        fraction["runtime_key"] = json!("bench.meter_share");
                    }
                }
            }
            _ => {}
        }
        listeners.push(listener);
    }
    // JSON is YAML.
    Ok(std::fs::write(&file, config.to_string())?)
}

/// Microseconds of worker CPU per chunk.
async fn measure(stand: &Stand, listener: SocketAddr, flags: &Flags) -> Result<f64> {
    let process = stand.envoy.as_ref().context("Envoy runs")?.id();
    let before = worker_ns(process)?;
    let mut tasks = JoinSet::new();
    for number in 0..flags.streams {
        tasks.spawn(read(listener, number));
    }
    let mut chunks = 0;
    while let Some(read) = tasks.join_next().await {
        chunks += read??;
    }
    let spent = worker_ns(process)? - before;
    let sent = flags.streams * flags.events;
    let joined = 1.0 - chunks as f64 / sent as f64;
    ensure!(joined <= MAX_JOINED_RATIO, "{chunks} chunks of {sent} events: slow the pace down");
    Ok(spent as f64 / 1000.0 / chunks as f64)
}

/// Reads one stream; gives its chunks.
async fn read(listener: SocketAddr, number: usize) -> Result<usize> {
    let stream = TcpStream::connect(listener).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let content = format!("Stream {number}: say something.");
    let body = json!({
        "model": "tiny", "stream": true, "messages": [{"role": "user", "content": content}],
    });
    let request = Request::post(PATH)
        .header("host", "bench")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let mut response = sender.send_request(request).await?;
    ensure!(response.status().is_success(), "answered {}", response.status());
    let mut chunks = 0;
    while let Some(frame) = response.body_mut().frame().await {
        chunks += usize::from(frame?.is_data());
    }
    Ok(chunks)
}

/// Starts the server that streams.
async fn serve(flags: &Flags) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let page = Bytes::from(std::fs::read(root().join("tests/golden/metrics/vllm-metrics.txt"))?);
    let (events, pace) = (flags.events, Duration::from_millis(flags.pace_ms));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Without it the kernel would join events.
            let _ = stream.set_nodelay(true);
            let page = page.clone();
            let answer = service_fn(move |request| answer(request, page.clone(), events, pace));
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
        }
    });
    Ok(address)
}

type Answer = http_body_util::Either<Full<Bytes>, Stream>;

async fn answer(
    request: Request<Incoming>,
    page: Bytes,
    events: usize,
    pace: Duration,
) -> Result<Response<Answer>, Infallible> {
    let is_get = request.method() == http::Method::GET;
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if is_get {
        return Ok(Response::new(Answer::Left(Full::new(page))));
    }
    let asked = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let is_asked = asked["stream_options"]["include_usage"] == true;
    let mut interval = interval(pace);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = Stream { interval, left: events, is_asked };
    let mut response = Response::new(Answer::Right(stream));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

/// A chat's events, one at each tick; the last one is `[DONE]`, with the usage before it if asked.
struct Stream {
    interval: Interval,
    left: usize,
    is_asked: bool,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        ready!(self.interval.poll_tick(cx));
        self.left = left;
        let of = |choices: Value, usage: Option<Value>| {
            let mut event = json!({
                "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk",
                "created": 1_795_346_872, "model": "tiny", "choices": choices,
            });
            if let Some(usage) = usage {
                event["usage"] = usage;
            }
            format!("data: {event}\n\n")
        };
        let text = match (left, self.is_asked) {
            (0, false) => "data: [DONE]\n\n".to_owned(),
            (0, true) => {
                let usage = json!({"prompt_tokens": 20, "completion_tokens": 9});
                of(json!([]), Some(usage)) + "data: [DONE]\n\n"
            }
            _ => {
                let delta = json!({"content": " token"});
                of(json!([{"index": 0, "delta": delta, "finish_reason": null}]), None)
            }
        };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))))
    }
}
