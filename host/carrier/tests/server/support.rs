//! A real server, a publisher in Python, and what daemons hear.

use std::future::Future;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use carrier::{
    Address, CarrierConfig, ConsumeCounters, EngineName, Feed, PublishCounters, consume, publish,
};
use kv_events::{ResetReason, Resume, SourceConfig, SourceState, SourceUpdate, Timing};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// A server of Valkey or Redis. Without one the test is skipped, but not in CI.
fn program() -> Option<PathBuf> {
    let own = workspace().join(".local/bin/carrier-server");
    let program = std::env::var_os("WASM_EPP_CARRIER_SERVER").map_or(own, PathBuf::from);
    let works = std::process::Command::new(&program)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        skip(&format!(
            "{} does not run: run scripts/setup --carrier or set WASM_EPP_CARRIER_SERVER",
            program.display()
        ));
    }
    works.then_some(program)
}

/// Killed when dropped; what it has stored stays in its folder.
pub(crate) struct Server {
    program: PathBuf,
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    child: Option<Child>,
}

impl Server {
    pub(crate) async fn start() -> Option<Self> {
        let program = program()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Self { program, folder, address, child: None };
        server.start_again().await;
        Some(server)
    }

    /// With what is in its folder: every entry is on disk before it is acknowledged.
    pub(crate) async fn start_again(&mut self) {
        let child = Command::new(&self.program)
            .args(["--bind", "127.0.0.1", "--port", &self.address.port().to_string()])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""])
            .args(["--stream-node-max-entries", "10", "--loglevel", "warning"])
            .arg("--dir")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the server starts");
        self.child = Some(child);
        let started = async {
            while self.ask(&["PING"]).await.as_deref() != Some("+PONG\r\n") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        in_time("server", started).await;
    }

    pub(crate) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.expect("a server");
        }
    }

    /// The first bytes of the reply to a command, over a connection of its own.
    pub(crate) async fn ask(&self, parts: &[&str]) -> Option<String> {
        TcpStream::connect(self.address).ok()?;
        let mut stream = tokio::net::TcpStream::connect(self.address).await.ok()?;
        let mut text = format!("*{}\r\n", parts.len());
        parts.iter().for_each(|part| text += &format!("${}\r\n{part}\r\n", part.len()));
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut reply = vec![0; 4096];
        let read = stream.read(&mut reply).await.ok()?;
        Some(String::from_utf8_lossy(&reply[..read]).into_owned())
    }

    pub(crate) fn config(&self, max_entries: u64) -> Arc<CarrierConfig> {
        let server = self.address.to_string();
        Arc::new(CarrierConfig {
            address: Address { server, username: None, password: None },
            name: "test".to_owned(),
            max_entries,
            lease: Duration::from_secs(1),
        })
    }
}

/// A process that follows, as a task.
pub(crate) struct Follower {
    task: JoinHandle<()>,
    pub(crate) counters: Arc<PublishCounters>,
}

impl Follower {
    pub(crate) fn start(config: &Arc<CarrierConfig>, source: &SourceConfig) -> Self {
        let counters = Arc::<PublishCounters>::default();
        let (config, source, counted) = (config.clone(), source.clone(), counters.clone());
        let task = tokio::spawn(async move {
            match publish(config, source, timing(), Arc::default(), counted).await {}
        });
        Self { task, counters }
    }

    /// Without a farewell: its lease runs out.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub(crate) async fn holds(&self) {
        wait("a follower", || self.counters.values().is_holder).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A daemon, as far as one engine is concerned.
pub(crate) struct Daemon {
    updates: mpsc::Receiver<SourceUpdate>,
    state: Option<SourceState>,
    pub(crate) counters: Arc<ConsumeCounters>,
    task: JoinHandle<()>,
}

impl Daemon {
    pub(crate) fn start(
        config: &Arc<CarrierConfig>,
        source: &SourceConfig,
        resume: Option<Resume>,
        queue: usize,
    ) -> Self {
        let (sender, updates) = mpsc::channel(queue);
        let counters = Arc::<ConsumeCounters>::default();
        let engine = EngineName { endpoint: source.endpoint.clone(), topic: source.topic.clone() };
        let feed = Feed { engine, resume, updates: sender, counters: counters.clone() };
        let task = tokio::spawn(consume(config.clone(), vec![feed]));
        Self { updates, state: None, counters, task }
    }

    pub(crate) async fn next(&mut self) -> SourceUpdate {
        let update = in_time("update", self.updates.recv()).await.expect("a source");
        if let SourceUpdate::State(state) = update {
            self.state = Some(state);
        }
        update
    }

    /// Batches in the order in which they come, up to the one of this number; `gap` and `restart`
    /// for resets in between.
    pub(crate) async fn until(&mut self, last: u64) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            match heard_of(self.next().await) {
                Some(Heard::Batch(sequence, ..)) if sequence > last => {
                    panic!("batch {sequence} after {heard:?}")
                }
                Some(batch @ Heard::Batch(sequence, ..)) if sequence == last => {
                    heard.push(batch);
                    return heard;
                }
                Some(other) => heard.push(other),
                None => {}
            }
        }
    }

    /// Waits until this is what it was told last.
    pub(crate) async fn until_state(&mut self, state: SourceState) {
        while self.state != Some(state) {
            let update = self.next().await;
            assert!(heard_of(update.clone()).is_none(), "{update:?}");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a daemon applies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// Number, fingerprint, content.
    Batch(u64, u64, kv_events::EventBatch),
    Reset(ResetReason),
}

pub(crate) fn heard_of(update: SourceUpdate) -> Option<Heard> {
    match update {
        SourceUpdate::Batch { sequence, fingerprint, batch, .. } => {
            Some(Heard::Batch(sequence, fingerprint, batch))
        }
        SourceUpdate::Reset { reason } => Some(Heard::Reset(reason)),
        SourceUpdate::State(_) => None,
        SourceUpdate::Undecodable { error, .. } => panic!("{error}"),
    }
}

pub(crate) fn numbers(heard: &[Heard]) -> Vec<u64> {
    let number = |heard: &Heard| match heard {
        Heard::Batch(sequence, ..) => *sequence,
        Heard::Reset(reason) => panic!("reset: {reason:?}"),
    };
    heard.iter().map(number).collect()
}

/// An engine's publisher on libzmq.
pub(crate) struct Engine {
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _child: Child,
    pub(crate) source: SourceConfig,
}

impl Engine {
    /// Plays a captured session of a real engine.
    pub(crate) async fn start(args: &[&str]) -> Option<Self> {
        let python = std::env::var_os("WASM_EPP_PYTHON")
            .map_or_else(|| workspace().join(".local/venv/bin/python"), PathBuf::from);
        let imports = std::process::Command::new(&python)
            .args(["-c", "import zmq"])
            .stderr(Stdio::null())
            .status();
        if !imports.is_ok_and(|status| status.success()) {
            skip(&format!("{} is missing or has no pyzmq: run scripts/setup", python.display()));
            return None;
        }
        let mut child = Command::new(python)
            .arg(workspace().join("tests/golden/kv-events/publisher.py"))
            .arg(workspace().join("tests/golden/kv-events/session-chat-small-cache.jsonl"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python starts");
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ports = answer(&mut stdout).await;
        let at = |port: &Value| port.as_u64().map(|port| format!("tcp://127.0.0.1:{port}"));
        let source = SourceConfig {
            endpoint: at(&ports["pub"]).expect("a port"),
            replay: at(&ports["replay"]),
            topic: "kv@".to_owned(),
            resume: None,
        };
        Some(Self { stdin, stdout, _child: child, source })
    }

    pub(crate) async fn tell(&mut self, command: &str) -> Value {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.expect("a publisher");
        answer(&mut self.stdout).await
    }
}

async fn answer(stdout: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = stdout.next_line().await.expect("a publisher").expect("an answer");
    serde_json::from_str(&line).expect("json")
}

pub(crate) fn timing() -> Timing {
    Timing {
        connect: Duration::from_millis(500),
        replay_silence: Duration::from_millis(500),
        silence: Duration::from_secs(1),
        max_backoff: Duration::from_millis(200),
    }
}

pub(crate) async fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    in_time(what, until).await;
}

/// Long enough for a slow machine; what takes longer does not happen.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .unwrap_or_else(|_| panic!("no {what} in time"))
}
