//! What each worker of a gateway would do with a request, over and over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Between two questions to a worker. Asking without a pause would take the time that is measured from
/// daemon and gateway, where cores are few.
const PAUSE: Duration = Duration::from_millis(1);
/// Connections that are tried until each worker has one: the listener deals them out evenly.
const MAX_CONNECTIONS: u32 = 8;

/// A connection to each worker's probe listener.
pub(crate) struct Workers {
    connections: Vec<Connection>,
    /// Questions that were answered, and the time they took.
    pub(crate) trips: Vec<Duration>,
}

/// When a worker's decisions changed.
pub(crate) struct Seen {
    /// The last question whose answer was another was asked then.
    pub(crate) last_miss: Instant,
    /// The first answer that names the holder was there then.
    pub(crate) hit: Instant,
}

impl Workers {
    /// Connects to the gateway whose feed is at `feed`, until every worker has a connection.
    ///
    /// # Errors
    ///
    /// No listener, or workers that are not reached.
    pub(crate) async fn open(feed: &Path, workers: u32, question: &Bytes) -> Result<Self> {
        let mut name = feed.file_stem().unwrap_or_default().to_owned();
        name.push("-probe.sock");
        let socket: PathBuf = feed.with_file_name(name);
        let (mut by_vm, mut spare) = (BTreeMap::new(), Vec::new());
        for _ in 0..workers * MAX_CONNECTIONS {
            let mut connection = Connection::open(&socket).await?;
            let said = connection.ask(question.clone()).await?;
            let vm = said["vm"].as_str().with_context(|| format!("no decision: {said}"))?;
            match by_vm.contains_key(vm) {
                // Kept until all are found: the balance counts open connections.
                true => spare.push(connection),
                false => drop(by_vm.insert(vm.to_owned(), connection)),
            }
            if by_vm.len() == workers as usize {
                break;
            }
        }
        ensure!(by_vm.len() == workers as usize, "{} of {workers} workers reached", by_vm.len());
        Ok(Self { connections: by_vm.into_values().collect(), trips: Vec::new() })
    }

    /// Asks one worker, each in turn. Gives its decision and the time that took.
    ///
    /// # Errors
    ///
    /// A worker that does not answer.
    pub(crate) async fn ask(&mut self, question: Bytes) -> Result<(Value, Duration)> {
        self.connections.rotate_left(1);
        let connection = self.connections.first_mut().context("a worker")?;
        let asked = Instant::now();
        Ok((connection.ask(question).await?, asked.elapsed()))
    }

    /// Asks every worker until each picks `holder`. `None` of a worker that does not within `patience`.
    ///
    /// # Errors
    ///
    /// A worker that does not answer.
    pub(crate) async fn watch(
        &mut self,
        question: &Bytes,
        holder: &str,
        patience: Duration,
    ) -> Result<Vec<Option<Seen>>> {
        let mut tasks = JoinSet::new();
        for connection in self.connections.drain(..) {
            let (question, holder) = (question.clone(), holder.to_owned());
            tasks.spawn(async move { connection.watch(question, &holder, patience).await });
        }
        let mut all = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (connection, seen, trips) = done??;
            self.connections.push(connection);
            self.trips.extend(trips);
            all.push(seen);
        }
        Ok(all)
    }
}

struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    async fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; a failure shows at the next question.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    async fn ask(&mut self, question: Bytes) -> Result<Value> {
        let request = Request::post("/v1/completions")
            .header("host", "probe")
            .header("content-type", "application/json")
            .header("x-wasm-epp-pool", "pool")
            .body(Full::new(question))?;
        self.0.ready().await?;
        let answer = self.0.send_request(request).await?.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&answer)
            .with_context(|| String::from_utf8_lossy(&answer).into_owned())
    }

    async fn watch(
        mut self,
        question: Bytes,
        holder: &str,
        patience: Duration,
    ) -> Result<(Self, Option<Seen>, Vec<Duration>)> {
        let started = Instant::now();
        let (mut last_miss, mut trips) = (started, Vec::new());
        loop {
            let asked = Instant::now();
            let said = self.ask(question.clone()).await?;
            let answered = Instant::now();
            trips.push(answered - asked);
            if said["picked"][0] == holder {
                return Ok((self, Some(Seen { last_miss, hit: answered }), trips));
            }
            last_miss = asked;
            if started.elapsed() > patience {
                return Ok((self, None, trips));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
