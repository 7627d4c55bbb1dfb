//! What the tests share: a request by either protocol, and what must hold of every answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testbed::{Answer, PodScores, Stand, get, root};

use crate::wire::{self, Parts};

pub(crate) const COMPLETIONS: &str = "/v1/completions";
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// The header that names the endpoint of an answer.
pub(crate) const SERVED: &str = "x-gateway-destination-endpoint-served";

/// How a client speaks to the gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    H1,
    H2,
}

pub(crate) const BOTH: [Protocol; 2] = [Protocol::H1, Protocol::H2];

impl Protocol {
    /// A POST whose body has a known length.
    pub(crate) async fn post(self, stand: &Stand, path: &str, body: &[u8]) -> Answer {
        self.send(stand, path, &[], body).await
    }

    /// The same with more headers.
    pub(crate) async fn send(
        self,
        stand: &Stand,
        path: &str,
        more: &[(&str, &[u8])],
        body: &[u8],
    ) -> Answer {
        let length = body.len().to_string();
        let mut headers: Vec<(&str, &[u8])> =
            vec![("content-type", b"application/json"), ("content-length", length.as_bytes())];
        headers.extend(more);
        match self {
            Self::H1 => wire::h1(stand.gateway, "POST", path, &headers, &[body]).await,
            Self::H2 => {
                wire::h2(stand.gateway, path, &headers, Parts { data: &[body], trailers: &[] })
                    .await
            }
        }
        .unwrap()
    }
}

/// A completion of one token.
pub(crate) fn completion(prompt: &str) -> Vec<u8> {
    json!({"model": "tiny", "prompt": prompt, "max_tokens": 1}).to_string().into_bytes()
}

/// The same, but for what the engine refuses: it is routed as a completion of this prompt would be,
/// and nobody holds more of the prompt afterwards.
pub(crate) fn question(prompt: &str) -> Vec<u8> {
    json!({"model": "tiny", "prompt": prompt, "max_tokens": 0}).to_string().into_bytes()
}

/// Text of `bytes` that shares its first stride with no other topic's.
pub(crate) fn prose(topic: &str, bytes: usize) -> String {
    let sentence = |i: usize| format!("Note {i} on {topic}: every engine remembers what it read. ");
    let mut text = String::new();
    for i in 0.. {
        if text.len() >= bytes {
            break;
        }
        text.push_str(&sentence(i));
    }
    text.truncate(bytes);
    text
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The engine that answered, having received exactly `sent`, and that the gateway names.
pub(crate) fn received(stand: &Stand, answer: &Answer, sent: &[u8]) -> String {
    let address = passed(stand, answer, sent);
    let named: Vec<_> = answer.headers.get_all(SERVED).iter().collect();
    assert_eq!(named, [address.as_str()], "{:?}", (answer.status, &answer.headers));
    address
}

/// The same through a gateway that may lack its modules.
pub(crate) fn passed(stand: &Stand, answer: &Answer, sent: &[u8]) -> String {
    let head = (answer.status, &answer.headers);
    assert_eq!(answer.header("x-sim-body-sha256"), sha256(sent), "{head:?}");
    let name = answer.header("x-sim-engine").strip_prefix("engine-");
    let number: usize = name.and_then(|n| n.parse().ok()).expect("x-sim-engine");
    stand.engines[number].http.to_string()
}

/// The same for a request that was served.
pub(crate) fn served(stand: &Stand, answer: &Answer, sent: &[u8]) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    received(stand, answer, sent)
}

/// Sends a prompt, and waits until the gateway knows who holds it.
pub(crate) async fn teach(stand: &Stand, body: &[u8]) -> String {
    let before = stand.event_batches().await.unwrap();
    let answer = Protocol::H1.post(stand, COMPLETIONS, body).await;
    let holder = served(stand, &answer, body);
    stand.settled(&holder, &before).await.unwrap();
    holder
}

/// The gateway's line for the request that was answered so.
pub(crate) async fn line(stand: &Stand, answer: &Answer) -> PodScores {
    stand.pod_scores(answer.header("x-request-id")).await.unwrap()
}

/// What the engine at `address` noted of the request that was answered so.
pub(crate) async fn noted(stand: &Stand, address: &str, answer: &Answer) -> Value {
    let engine = stand.engine(address).expect("an engine of the stand");
    let list = get(engine.http, "/sim/requests").await.unwrap().json().unwrap();
    let mut list = list.as_array().cloned().unwrap_or_default().into_iter();
    let id = answer.header("x-request-id");
    list.find(|entry| entry["x-request-id"] == id).expect("a request that the engine noted")
}

/// Requests left to the proxy's policy, by reason.
pub(crate) async fn fallbacks(stand: &Stand) -> BTreeMap<String, u64> {
    counters(stand, "wasm_epp_requests_fallback_").await
}

/// Asserts that `reason`, and nothing else, was counted once since `before`.
pub(crate) async fn assert_fell_back(
    stand: &Stand,
    before: &BTreeMap<String, u64>,
    reason: &str,
    times: u64,
) {
    let mut expected = before.clone();
    *expected.entry(reason.to_owned()).or_default() += times;
    assert_eq!(fallbacks(stand).await, expected, "expected {reason} once more");
}

/// Requests that were given a destination.
pub(crate) async fn picked(stand: &Stand) -> u64 {
    stand.envoy_stat("wasmcustom.wasm_epp_requests_picked_total").await.unwrap()
}

/// Counters of Envoy's by what follows `prefix` in their names.
pub(crate) async fn counters(stand: &Stand, prefix: &str) -> BTreeMap<String, u64> {
    let path = format!("/stats?filter=^wasmcustom.{prefix}");
    let page = get(stand.envoy_admin, &path).await.unwrap();
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let named = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let name = name.strip_prefix("wasmcustom.")?.strip_prefix(prefix)?;
        Some((name.strip_suffix("_total")?.to_owned(), value.parse().ok()?))
    });
    named.collect()
}

/// Builds `tests/go/NAME` into the folder. `None`, having said so, unless `WASM_EPP_GO` is set: Kubernetes' types
/// alone take a machine minutes.
pub(crate) fn go_program(name: &str, folder: &Path) -> Option<PathBuf> {
    if std::env::var_os("WASM_EPP_GO").is_none() {
        eprintln!("skipped: tests/go/{name} is built and run where WASM_EPP_GO is set");
        return None;
    }
    let program = folder.join(name);
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&program).arg(".");
    let built = build.current_dir(root().join("tests/go").join(name)).output().expect("Go");
    assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
    Some(program)
}

/// Runs the cases of one stand after each other; a failed one does not hide the rest.
pub(crate) struct Cases {
    stand: Rc<Stand>,
    failed: Vec<&'static str>,
}

impl Cases {
    pub(crate) fn of(stand: Stand) -> Self {
        Self { stand: Rc::new(stand), failed: Vec::new() }
    }

    pub(crate) async fn run<F>(&mut self, name: &'static str, case: impl FnOnce(Rc<Stand>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let started = std::time::Instant::now();
        let case = case(Rc::clone(&self.stand));
        let tasks = tokio::task::LocalSet::new();
        let task = tasks.spawn_local(case);
        if tasks.run_until(task).await.is_err() {
            eprintln!("case failed: {name}");
            self.failed.push(name);
        }
        eprintln!("{:6.2} s  {name}", started.elapsed().as_secs_f64());
    }

    pub(crate) fn end(self) {
        assert!(self.failed.is_empty(), "failed: {:?}", self.failed);
    }
}

/// `cases!(stand; one, two)` runs the functions in order and fails if one did.
macro_rules! cases {
    ($stand:expr; $($case:ident),+ $(,)?) => {{
        let mut cases = $crate::support::Cases::of($stand);
        $(cases.run(stringify!($case), $case).await;)+
        cases.end();
    }};
}
pub(crate) use cases;
