//! Closed-loop load over kept connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use testbed::BACKEND_HEADER;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Header of a simulated engine's answers with its name.
const ENGINE_HEADER: &str = "x-sim-engine";

/// A request and, if that is to hold, the backend that must answer it.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    pub(crate) backend: Option<String>,
}

/// One kept connection to a listener.
pub(crate) struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("{address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; a failure shows at the next request.
        tokio::spawn(connection);
        Ok(Self { address, sender })
    }

    /// Posts, and gives the name of the backend that answered.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> Result<String> {
        Ok(self.exchange(path, body).await?.0)
    }

    /// Posts, and gives the name of the backend or engine that answered, and its answer.
    pub(crate) async fn exchange(&mut self, path: &str, body: Bytes) -> Result<(String, Bytes)> {
        let request = Request::post(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let name = |header: &str| response.headers().get(header).cloned();
        let backend = name(BACKEND_HEADER).or_else(|| name(ENGINE_HEADER));
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{path} answered {status}");
        let backend = backend
            .with_context(|| format!("no {BACKEND_HEADER} or {ENGINE_HEADER} in the answer"))?;
        Ok((backend.to_str()?.to_owned(), body))
    }
}

/// Sends `count` requests, the shots in turn, `connections` at a time.
pub(crate) async fn run(
    address: SocketAddr,
    shots: &Arc<Vec<Shot>>,
    connections: usize,
    count: usize,
) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (shots, next) = (Arc::clone(shots), Arc::clone(&next));
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                let shot = &shots[number % shots.len()];
                let backend = connection.post(shot.path, shot.body.clone()).await?;
                if let Some(expected) = &shot.backend {
                    ensure!(backend == *expected, "routed to {backend}, held by {expected}");
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// What a closed loop did in its time.
pub(crate) struct Closed {
    /// Of each request that was answered, in milliseconds.
    pub(crate) latencies_ms: Vec<f64>,
    pub(crate) elapsed: Duration,
}

impl Closed {
    pub(crate) fn rate_per_s(&self) -> f64 {
        self.latencies_ms.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends for so long, the shots in turn, `connections` at a time, wherever they may be answered.
pub(crate) async fn run_for(
    address: SocketAddr,
    shots: &Arc<Vec<Shot>>,
    connections: usize,
    time: Duration,
) -> Result<Closed> {
    let mut opened = Vec::new();
    for _ in 0..connections {
        opened.push(Connection::open(address).await?);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in opened {
        let (shots, next) = (Arc::clone(shots), Arc::clone(&next));
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let shot = &shots[next.fetch_add(1, Ordering::Relaxed) % shots.len()];
                let sent = Instant::now();
                connection.post(shot.path, shot.body.clone()).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies_ms = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies_ms.append(&mut done??);
    }
    Ok(Closed { latencies_ms, elapsed: start.elapsed() })
}
