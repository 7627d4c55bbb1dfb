//! A real vLLM's sessions: what the modules predict before each request, against what the engine
//! says it had cached.
//!
//! The recorded frames come from a publisher on pyzmq, so neither the bytes nor the socket are
//! ours; daemon, Envoy and modules are real. The engine's HTTP side is a server that says the
//! recorded counts, so the meter judges the same predictions by the same truth.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Backend, Engine, Stand, StandOptions, root, wait_until};

use crate::support::counters;

/// Tokens per block of the recorded engine.
const BLOCK: i64 = 32;
/// The index cuts text every 64 bytes, so a match may end up to one stride before the block's end:
/// floor((64 - 2) / 32) + 1 blocks at one byte per token.
const MAX_UNDER: i64 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn predictions_agree_with_a_real_engine_that_keeps_everything() {
    play("session-chat-large-cache.jsonl", &CHATS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_agree_with_a_real_engine_that_evicts() {
    play("session-chat-small-cache.jsonl", &CHATS).await;
}

/// A shared system prompt is worth 0 to the second user and 576 tokens to the third; a cut is worth
/// 0 once and 256 tokens the next time: what the windowed group keeps decides. The prompts are token
/// ids, whose strides end where blocks do, so every prediction must be exact.
#[tokio::test(flavor = "multi_thread")]
async fn predictions_agree_with_a_real_engine_that_has_windows() {
    play("session-hybrid.jsonl", &HYBRID).await;
}

/// What a session is held to.
struct Bounds {
    /// Blocks a prediction may be under.
    max_under: i64,
    /// Requests there must be.
    requests: usize,
    token_id_prompts: bool,
}

const CHATS: Bounds = Bounds { max_under: MAX_UNDER, requests: 59, token_id_prompts: false };
const HYBRID: Bounds = Bounds { max_under: 0, requests: 25, token_id_prompts: true };

/// One recorded request, and how many frames followed it.
struct Recorded {
    label: String,
    path: String,
    /// As recorded: the order of keys in a tool is a part of the prompt.
    request: String,
    prompt_tokens: i64,
    cached_tokens: i64,
    frames: u64,
}

async fn play(name: &str, bounds: &Bounds) {
    let path = root().join("tests/golden/kv-events").join(name);
    let Some(python) = python() else { return };
    let session = read(&std::fs::read_to_string(&path).unwrap());
    let mut publisher = Publisher::start(&python, &path);
    let (stand, backend) = start(&publisher, bounds).await;
    let endpoint = backend.address.to_string();
    let client = stand.client();

    let mut table = Table::default();
    let mut sent = 0;
    for recorded in &session {
        let headers = [("content-type", "application/json")];
        backend.answer_with(recorded.answer());
        let body = recorded.request.clone();
        let answer = client.send("POST", &recorded.path, &headers, body).await.unwrap();
        assert_eq!(answer.status, 200, "{}: {answer:?}", recorded.label);
        let line = stand.pod_scores(answer.header("x-request-id")).await.unwrap();
        assert!(line.record["unmatched"].is_null(), "{}: {line:?}", recorded.label);
        let blocks = line.scores().and_then(|scores| scores.get(&endpoint).copied()).unwrap_or(0);
        table.add(recorded, blocks as i64);
        if recorded.frames > 0 {
            publisher.send(recorded.frames);
            sent += recorded.frames;
            let all_but_one = BTreeMap::from([(endpoint.clone(), sent - 1)]);
            stand.settled(&endpoint, &all_but_one).await.unwrap();
        }
    }
    table.check(name, bounds);
    check_meter(&stand, &session).await;
}

/// The meter finds none of the predictions wrong either, and has counted what the engine did. Until
/// the engine names a hit it may be one that never reports.
async fn check_meter(stand: &Stand, session: &[Recorded]) {
    let judged = session.iter().skip_while(|recorded| recorded.cached_tokens == 0);
    let sum = |of: fn(&Recorded) -> i64| judged.clone().map(of).sum::<i64>() as u64;
    let (prompt, cached) = (sum(|r| r.prompt_tokens), sum(|r| r.cached_tokens));
    let counts = wait_until("the last answer is counted", Duration::from_secs(10), async || {
        let counts = counters(stand, "wasm_epp_meter_").await;
        (counts.get("answers") == Some(&(session.len() as u64))).then_some(counts)
    });
    let counts = counts.await.unwrap();
    println!("meter: {counts:?}");
    assert_eq!((counts["prompt_tokens"], counts["cached_tokens"]), (prompt, cached));
    assert!(counts["predictions_right"] > 0);
    for wrong in ["predictions_over", "predictions_under", "shortfall_state_wrong_tokens"] {
        assert!(!counts.contains_key(wrong), "{wrong}: {counts:?}");
    }
}

/// Everything, with one endpoint whose events are the publisher's.
async fn start(publisher: &Publisher, bounds: &Bounds) -> (Stand, Backend) {
    let page = std::fs::read(root().join("tests/golden/metrics/vllm-metrics.txt")).unwrap();
    let backend = Backend::start(page).await.unwrap();
    let options = StandOptions {
        engines: Vec::new(),
        more_config: "meter: {share: 1}\n".to_owned(),
        token_id_prompts: bounds.token_id_prompts,
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await.unwrap();
    stand.engines.push(Engine {
        http: backend.address,
        kv_events: Some(format!("tcp://127.0.0.1:{}", publisher.ports["pub"])),
        replay: Some(format!("tcp://127.0.0.1:{}", publisher.ports["replay"])),
        process: None,
    });
    stand.write_config().unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    (stand, backend)
}

impl Recorded {
    /// The engine's answer as far as it counts, a miss left out as vLLM does.
    fn answer(&self) -> String {
        let (prompt, cached) = (self.prompt_tokens, self.cached_tokens);
        let details = (cached > 0).then(|| json!({"cached_tokens": cached}));
        let usage = json!({"prompt_tokens": prompt, "prompt_tokens_details": details});
        json!({"object": "text_completion", "choices": [], "usage": usage}).to_string()
    }
}

fn read(session: &str) -> Vec<Recorded> {
    let mut all: Vec<Recorded> = Vec::new();
    for text in session.lines() {
        let line: Value = serde_json::from_str(text).unwrap();
        if !line["event"].is_null() {
            all.last_mut().expect("a frame follows a request").frames += 1;
            continue;
        }
        all.push(Recorded {
            label: line["label"].as_str().unwrap().to_owned(),
            path: line["path"].as_str().unwrap().to_owned(),
            request: raw_request(text).to_owned(),
            prompt_tokens: line["prompt_tokens"].as_i64().unwrap(),
            cached_tokens: line["cached_tokens"].as_i64().unwrap(),
            frames: 0,
        });
    }
    all
}

/// The text of a line's request.
fn raw_request(line: &str) -> &str {
    let (_, from) = line.split_once("\"request\": ").unwrap();
    let mut values = serde_json::Deserializer::from_str(from).into_iter::<Value>();
    values.next().unwrap().unwrap();
    &from[..values.byte_offset()]
}

/// Predictions beside the truth, in blocks.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
}

struct Row {
    label: String,
    prompt_tokens: i64,
    predicted: i64,
    truth: i64,
    is_salted: bool,
}

impl Table {
    fn add(&mut self, recorded: &Recorded, predicted: i64) {
        assert_eq!(recorded.cached_tokens % BLOCK, 0, "{}", recorded.label);
        self.rows.push(Row {
            label: recorded.label.clone(),
            prompt_tokens: recorded.prompt_tokens,
            predicted,
            truth: recorded.cached_tokens / BLOCK,
            is_salted: recorded.label.starts_with("salt "),
        });
    }

    /// Prints the table, then holds each row and the mean to their bounds.
    fn check(&self, name: &str, bounds: &Bounds) {
        println!("\n{name}: predicted and cached tokens, difference in blocks");
        println!(
            "{:<18} {:>7} {:>9} {:>6} {:>5}",
            "request", "prompt", "predicted", "truth", "diff"
        );
        let mut wrong = Vec::new();
        for row in &self.rows {
            let over = row.predicted - row.truth;
            // A salt is a namespace: nothing of another one's may show.
            let is_leak = row.is_salted && row.truth == 0 && row.predicted != 0;
            // Generated text that is fed back is no exception: blocks that its tokenizer would cut
            // otherwise are unlisted before the next request.
            let is_wrong = over < -bounds.max_under || over > 0 || is_leak;
            let mark = if is_wrong { "  wrong" } else { "" };
            println!(
                "{:<18} {:>7} {:>9} {:>6} {over:>+5}{mark}",
                row.label,
                row.prompt_tokens,
                row.predicted * BLOCK,
                row.truth * BLOCK
            );
            if is_wrong {
                wrong.push(&row.label);
            }
        }
        let count = |wanted: fn(i64) -> bool| {
            self.rows.iter().filter(|row| wanted(row.predicted - row.truth)).count()
        };
        let requests = self.rows.len();
        let under: i64 = self.rows.iter().map(|row| (row.truth - row.predicted).max(0)).sum();
        let mean_under = under as f64 / requests as f64;
        let over: i64 = self.rows.iter().map(|row| (row.predicted - row.truth).max(0)).sum();
        println!(
            "{requests} requests: {} exact, {} under ({mean_under:.2} blocks in the mean of all), \
             {} over ({over} blocks in all)",
            count(|diff| diff == 0),
            count(|diff| diff < 0),
            count(|diff| diff > 0),
        );
        assert!(requests >= bounds.requests, "{name} is cut");
        assert!(wrong.is_empty(), "{name}: out of bounds: {wrong:?}");
        assert!(mean_under <= 1.0, "{name}: {mean_under} blocks under in the mean");
    }
}

/// A Python with pyzmq. Without one the test is skipped, but not in CI.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("WASM_EPP_PYTHON")
        .map_or_else(|| root().join(".local/venv/bin/python"), PathBuf::from);
    let works = Command::new(&python)
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

/// `publisher.py` of the golden files: a PUB socket of libzmq that plays the session's frames.
struct Publisher {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    ports: Value,
}

impl Publisher {
    fn start(python: &PathBuf, session: &PathBuf) -> Self {
        let mut child = Command::new(python)
            .arg(root().join("tests/golden/kv-events/publisher.py"))
            .arg(session)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut publisher = Self { child, stdin, stdout, ports: Value::Null };
        publisher.ports = publisher.answer();
        publisher
    }

    /// Publishes the next frames.
    fn send(&mut self, frames: u64) {
        writeln!(self.stdin, "send {frames}").unwrap();
        self.answer();
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
