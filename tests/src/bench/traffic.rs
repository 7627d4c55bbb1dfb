//! Constant traffic: short requests at a rate, streams that are always open, and what went wrong with
//! any of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testbed::Client;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
/// A request or the next piece of a stream that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Failures that are told; all are counted.
const TOLD: u64 = 10;

/// What the traffic is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) requests_per_s: u32,
    pub(crate) streams: usize,
    /// Tokens of the longest stream; the shortest has an eighth.
    pub(crate) stream_tokens: u64,
}

/// What became of it so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: AtomicU64,
    pub(crate) failed_requests: AtomicU64,
    /// Streams that were begun.
    pub(crate) streams: AtomicU64,
    pub(crate) cut_streams: AtomicU64,
    open: AtomicU64,
    /// Fewest streams that were open at once, since all were.
    pub(crate) fewest_open: AtomicU64,
    told: AtomicU64,
}

impl Counts {
    fn failed(&self, counter: &AtomicU64, what: &str, error: &anyhow::Error) {
        counter.fetch_add(1, Ordering::Relaxed);
        if self.told.fetch_add(1, Ordering::Relaxed) < TOLD {
            eprintln!("FAILED {what}: {error:#}");
        }
    }
}

/// Traffic that runs until it is stopped.
pub(crate) struct Traffic {
    pub(crate) counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    started: Instant,
}

impl Traffic {
    /// Starts it and waits until all streams are open.
    pub(crate) async fn start(gateway: SocketAddr, rate: Rate) -> Result<Self> {
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        counts.fewest_open.store(u64::MAX, Ordering::Relaxed);
        let mut tasks = Vec::new();
        for lane in 0..rate.streams {
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            tasks.push(tokio::spawn(stream_lane(gateway, lane, rate, counts, stop)));
        }
        let all = rate.streams as u64;
        testbed::wait_until("all streams are open", PATIENCE, async || {
            (counts.open.load(Ordering::Relaxed) == all).then_some(())
        })
        .await?;
        tasks.push(tokio::spawn(watch(Arc::clone(&counts), Arc::clone(&stop))));
        let (counted, stopped) = (Arc::clone(&counts), Arc::clone(&stop));
        tasks.push(tokio::spawn(requests(gateway, rate, counted, stopped)));
        Ok(Self { counts, stop, tasks, started: Instant::now() })
    }

    /// Requests per second since the start.
    pub(crate) fn rate(&self) -> f64 {
        let requests = self.counts.requests.load(Ordering::Relaxed);
        requests as f64 / self.started.elapsed().as_secs_f64()
    }

    /// Begins nothing more and waits for what is under way.
    pub(crate) async fn finish(self) -> Result<Arc<Counts>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(self.counts)
    }
}

/// Sends at the rate whatever the answers take; late ones are sent after each other at once.
async fn requests(gateway: SocketAddr, rate: Rate, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    let client = Client::new(gateway);
    let mut ticks = interval(Duration::from_secs(1) / rate.requests_per_s);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    for number in 0u64.. {
        ticks.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        while under_way.try_join_next().is_some() {}
        let (client, counts) = (client.clone(), Arc::clone(&counts));
        under_way.spawn(async move {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = request(&client, number).await {
                counts.failed(&counts.failed_requests, "request", &error);
            }
        });
    }
    while under_way.join_next().await.is_some() {}
}

/// One request: its answer must be whole, and the engine must have received what was sent.
async fn request(client: &Client, number: u64) -> Result<()> {
    let prompt = format!("Topic {}: what does everyone remember? ", number % 97).repeat(12);
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1}).to_string();
    let sent: String =
        Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let headers = [("content-type", "application/json")];
    let answer = client.send("POST", COMPLETIONS, &headers, body).await?;
    ensure!(answer.status == 200, "answered {}: {:?}", answer.status, answer.body);
    ensure!(answer.header("x-sim-body-sha256") == sent, "the engine received another body");
    let text = answer.json()?["choices"][0]["text"].as_str().map(str::len);
    ensure!(text.is_some_and(|length| length > 0), "no text in {:?}", answer.body);
    Ok(())
}

/// One stream after the other.
async fn stream_lane(
    gateway: SocketAddr,
    lane: usize,
    rate: Rate,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
) {
    for turn in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Many lengths, so that no two lanes end together for long.
        let tokens = rate.stream_tokens * ((lane as u64 * 37 + turn * 23) % 56 + 8) / 64;
        counts.streams.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = stream(gateway, lane, tokens, &counts).await {
            counts.failed(&counts.cut_streams, "stream", &error);
        }
    }
}

/// One stream: every token, and the end that the API says.
async fn stream(gateway: SocketAddr, lane: usize, tokens: u64, counts: &Counts) -> Result<()> {
    let connection = TcpStream::connect(gateway).await?;
    connection.set_nodelay(true)?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await?;
    // Ends with the sender; a failure shows in the body.
    tokio::spawn(driver);
    let body = json!({
        "model": "tiny", "max_tokens": tokens, "stream": true,
        "messages": [{"role": "user", "content": format!("Stream of lane {lane}. ").repeat(20)}],
    });
    let request = Request::post(CHAT)
        .header("host", gateway.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request)).await??;
    ensure!(response.status() == 200, "answered {}", response.status());
    counts.open.fetch_add(1, Ordering::Relaxed);
    let text = read(response.into_body()).await;
    counts.open.fetch_sub(1, Ordering::Relaxed);
    let text = text?;
    ensure!(text.ends_with("data: [DONE]\n\n"), "it broke off: {:?}", tail(&text));
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let pieces = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let has_text = |piece: &Value| piece["choices"][0]["delta"]["content"].is_string();
    let pieces = pieces.filter(has_text).count() as u64;
    ensure!(pieces >= tokens, "{pieces} pieces of a stream of {tokens} tokens");
    Ok(())
}

async fn read(mut body: hyper::body::Incoming) -> Result<String> {
    let mut text = Vec::new();
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await? {
        if let Ok(data) = frame.context("reading a stream")?.into_data() {
            text.extend_from_slice(&data);
        }
    }
    Ok(String::from_utf8(text)?)
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(80);
    text.get(from..).unwrap_or(text)
}

/// Samples how many streams are open.
async fn watch(counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    let mut ticks = interval(Duration::from_millis(5));
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        counts.fewest_open.fetch_min(counts.open.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
