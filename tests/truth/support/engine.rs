//! One engine: its publisher (Python's ZMQ and msgpack) and its metrics page.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use testbed::root;

use super::http::Server;

/// A Python with pyzmq and msgpack. Without one the test is skipped, but not in CI.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("WASM_EPP_PYTHON")
        .map_or_else(|| root().join(".local/venv/bin/python"), PathBuf::from);
    let works = Command::new(&python)
        .args(["-c", "import zmq, msgpack"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if works {
        return Some(python);
    }
    let why = format!("{} is missing or has no pyzmq or msgpack", python.display());
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}; run scripts/setup or set WASM_EPP_PYTHON");
    None
}

/// A PUB socket of libzmq, and a ROUTER for replays.
pub(crate) struct Publisher {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) pub_port: u64,
    pub(crate) replay_port: Option<u64>,
}

impl Publisher {
    /// `None` where the test is to be skipped.
    pub(crate) fn start(args: &[String]) -> Option<Self> {
        let mut child = Command::new(python()?)
            .arg(root().join("tests/golden/kv-events/publisher.py"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let ports = answer(&mut stdout);
        Some(Self {
            child,
            stdin,
            stdout,
            pub_port: ports["pub"].as_u64().unwrap_or(0),
            replay_port: ports["replay"].as_u64(),
        })
    }

    /// One command of the publisher's, and its answer.
    pub(crate) fn tell(&mut self, command: &str) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        answer(&mut self.stdout)
    }
}

fn answer(stdout: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    serde_json::from_str(&line).expect("an answer of the publisher")
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The HTTP side: a metrics page whose process start can be moved, and TensorRT-LLM's list.
pub(crate) struct Pages {
    pub(crate) server: Server,
    start: Arc<Mutex<f64>>,
    lists: Arc<Mutex<Vec<Value>>>,
}

impl Pages {
    pub(crate) async fn start() -> Self {
        let golden = std::fs::read_to_string(root().join("tests/golden/metrics/vllm-metrics.txt"));
        // The recorded cache is smaller than what some tests store.
        let is_kept = |line: &&str| {
            !line.contains("cache_config_info") && !line.starts_with("process_start_time_seconds ")
        };
        let golden: Vec<String> =
            golden.unwrap().lines().filter(is_kept).map(str::to_owned).collect();
        let golden = golden.join("\n");
        let start = Arc::new(Mutex::new(1e9));
        let lists: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (at, waiting) = (Arc::clone(&start), Arc::clone(&lists));
        let server = Server::start(move |path, _| match path {
            // Reading takes the events away, as the engine's own does.
            "/kv_cache_events" => {
                let events: Vec<Value> = std::mem::take(&mut *waiting.lock().unwrap());
                (200, Value::Array(events).to_string().into_bytes())
            }
            _ => {
                let start = *at.lock().unwrap();
                (200, format!("{golden}\nprocess_start_time_seconds {start}\n").into_bytes())
            }
        })
        .await;
        Self { server, start, lists }
    }

    /// The page is another process's from now on.
    pub(crate) fn restart(&self, start: f64) {
        *self.start.lock().unwrap() = start;
    }

    pub(crate) fn list(&self, events: impl IntoIterator<Item = Value>) {
        self.lists.lock().unwrap().extend(events);
    }
}
