//! Publishers in Python, and what their followers say.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use kv_events::{
    Counters, DecodeError, ResetReason, SourceConfig, SourceState, SourceUpdate, Timing,
    follow_with,
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn session() -> PathBuf {
    workspace().join("tests/golden/kv-events/session-chat-small-cache.jsonl")
}

/// A Python with pyzmq. Without one the test is skipped, but not in CI.
pub(crate) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("WASM_EPP_PYTHON")
        .map_or_else(|| workspace().join(".local/venv/bin/python"), PathBuf::from);
    let works = std::process::Command::new(&python)
        .args(["-c", "import zmq"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if works {
        return Some(python);
    }
    let why = format!("{} is missing or has no pyzmq", python.display());
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}; run scripts/setup or set WASM_EPP_PYTHON");
    None
}

pub(crate) struct Publisher {
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    pub(crate) pub_port: u64,
    pub(crate) replay_port: Option<u64>,
    /// Killed when dropped.
    child: Child,
}

impl Publisher {
    pub(crate) async fn start(args: &[&str]) -> Option<Self> {
        let mut child = Command::new(python()?)
            .arg(workspace().join("tests/golden/kv-events/publisher.py"))
            .arg(session())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python starts");
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ports = answer(&mut stdout).await;
        Some(Self {
            stdin,
            stdout,
            pub_port: ports["pub"].as_u64().unwrap_or(0),
            replay_port: ports["replay"].as_u64(),
            child,
        })
    }

    pub(crate) async fn tell(&mut self, command: &str) -> Value {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.expect("a publisher");
        answer(&mut self.stdout).await
    }

    /// Makes the bytes the payload of the next batch.
    pub(crate) async fn publish(&mut self, payload: &[u8]) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        std::io::Write::write_all(&mut file, payload).expect("a file");
        self.tell(&format!("file {}", file.path().display())).await;
    }

    /// Publishes one batch at a time until the source has one. Nothing tells when a subscription
    /// takes effect.
    pub(crate) async fn send_until_heard(&mut self, source: &mut Source) -> String {
        let heard = async {
            loop {
                self.tell("send 1").await;
                let next = tokio::time::timeout(Duration::from_millis(100), source.next());
                if let Ok(word) = next.await {
                    return word;
                }
            }
        };
        in_time("batch", heard).await
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("a publisher");
    }

    pub(crate) fn source(&self) -> SourceConfig {
        SourceConfig {
            endpoint: format!("tcp://127.0.0.1:{}", self.pub_port),
            replay: self.replay_port.map(|port| format!("tcp://127.0.0.1:{port}")),
            topic: "kv@".to_owned(),
            resume: None,
        }
    }
}

async fn answer(stdout: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = stdout.next_line().await.expect("a publisher").expect("an answer");
    serde_json::from_str(&line).expect("json")
}

/// Long enough for a slow machine; what takes longer does not happen.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .unwrap_or_else(|_| panic!("no {what} in time"))
}

pub(crate) fn timing() -> Timing {
    Timing {
        connect: Duration::from_millis(500),
        replay_silence: Duration::from_millis(500),
        silence: Duration::from_secs(1),
        max_backoff: Duration::from_millis(200),
    }
}

/// An update as a word; batches give their number after a look at their content.
pub(crate) fn word(update: &SourceUpdate) -> String {
    match update {
        SourceUpdate::Batch { sequence, batch, .. } => {
            assert!(!batch.events.is_empty());
            sequence.to_string()
        }
        SourceUpdate::Reset { reason: ResetReason::Restart } => "restart".to_owned(),
        SourceUpdate::Reset { reason: ResetReason::Gap } => "gap".to_owned(),
        SourceUpdate::State(SourceState::Live { partial: false }) => "live".to_owned(),
        SourceUpdate::State(SourceState::Live { partial: true }) => "partial".to_owned(),
        SourceUpdate::State(state) => format!("{state:?}").to_lowercase(),
        SourceUpdate::Undecodable { sequence, error: DecodeError::TooLarge { bytes }, .. } => {
            format!("large:{sequence}:{bytes}")
        }
        SourceUpdate::Undecodable { sequence, .. } => format!("garbage:{sequence}"),
    }
}

pub(crate) struct Source {
    updates: mpsc::Receiver<SourceUpdate>,
    pub(crate) counters: Arc<Counters>,
}

impl Source {
    pub(crate) fn follow(config: SourceConfig) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let counters = Arc::<Counters>::default();
        tokio::spawn(follow_with(config, timing(), counters.clone(), sender));
        Self { updates, counters }
    }

    /// The next update as a word.
    pub(crate) async fn next(&mut self) -> String {
        word(&self.next_update().await)
    }

    pub(crate) async fn next_update(&mut self) -> SourceUpdate {
        in_time("update", self.updates.recv()).await.expect("a source")
    }

    /// Whether something waits.
    pub(crate) fn has_news(&self) -> bool {
        !self.updates.is_empty()
    }

    pub(crate) async fn expect(&mut self, words: &str) {
        for word in words.split_whitespace() {
            let got = self.next().await;
            assert_eq!(got, word, "of {words}");
        }
    }

    /// Reads up to `word`, and gives what came before it.
    pub(crate) async fn until(&mut self, word: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                got if got == word => return before,
                got => before.push(got),
            }
        }
    }

    /// Batches `first..=last` in order; states may come between them.
    pub(crate) async fn batches(&mut self, first: u64, last: u64) {
        for expected in first..=last {
            let before = self.until(&expected.to_string()).await;
            let batches: Vec<_> = before.iter().filter(|w| w.parse::<u64>().is_ok()).collect();
            assert!(batches.is_empty(), "{before:?} before {expected}");
            assert!(before.iter().all(|w| w == "live" || w == "resyncing"), "{before:?}");
        }
    }
}
