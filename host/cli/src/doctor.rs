//! `wasm-epp doctor`: is precise routing active?
//!
//! Everything is read from the daemon's own `/readyz`, so the answer is about what runs, not about
//! what the configuration hopes for.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;

/// A daemon that does not answer by then does not answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is read: a thousand endpoints take about 400 kB.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// What was found of one engine or gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `engine` or `gateway`.
    pub kind: &'static str,
    /// Address or name.
    pub name: String,
    /// State in a word.
    pub state: String,
    /// What is wrong, or worth knowing; one sentence each.
    pub problems: Vec<String>,
    /// Figures for a person.
    pub note: String,
}

/// All findings.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Engines first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// True when every engine and gateway is as it should be.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.problems.is_empty())
    }

    /// An aligned table, problems below their line.
    pub fn text(&self) -> String {
        let width = |of: fn(&Finding) -> usize| self.findings.iter().map(of).max().unwrap_or(0);
        let (names, states) = (width(|f| f.name.len()), width(|f| f.state.len()));
        let mut text = String::new();
        for f in &self.findings {
            let mark = if f.problems.is_empty() { "ok " } else { "BAD" };
            let line = format!(
                "{mark} {:<8} {:<names$}  {:<states$}  {}",
                f.kind, f.name, f.state, f.note
            );
            text.push_str(line.trim_end());
            text.push('\n');
            for problem in &f.problems {
                text.push_str(&format!("      {problem}\n"));
            }
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|f| json!({"kind": f.kind, "name": f.name, "state": f.state, "problems": f.problems, "note": f.note}))
            .collect();
        json!({"ok": self.is_well(), "findings": findings})
    }
}

/// Asks the daemon of this configuration.
///
/// # Errors
/// When no daemon answers at the configured admin address.
pub async fn examine(config: &Config) -> Result<Report> {
    let details = tokio::time::timeout(LIMIT, ask(config))
        .await
        .with_context(|| format!("no answer from {} within 5 s", config.admin))??;
    Ok(judge(&details))
}

async fn ask(config: &Config) -> Result<Value> {
    let what = || format!("ask the daemon at {}: is `wasm-epp serve` running?", config.admin);
    let mut stream = TcpStream::connect(config.admin).await.with_context(what)?;
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.with_context(what)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await.with_context(what)?;
    let text = String::from_utf8_lossy(&answer);
    let (_, body) = text.split_once("\r\n\r\n").with_context(what)?;
    serde_json::from_str(body).with_context(what)
}

fn judge(details: &Value) -> Report {
    let list = |key: &str| details[key].as_array().cloned().unwrap_or_default();
    let engines = list("endpoints");
    let gateways = list("gateways");
    let findings = engines.iter().map(engine).chain(gateways.iter().map(gateway)).collect();
    Report { findings }
}

fn engine(of: &Value) -> Finding {
    let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| of[key].as_u64().unwrap_or(0);
    let is = |key: &str| of[key].as_bool().unwrap_or(false);
    let state = text("source");
    let mut problems = Vec::new();
    if !is("ready") {
        problems.push(format!("its metrics do not answer: {}", text("error")));
    }
    match state.as_str() {
        "live" => {}
        "none" => problems.push("it has no kvEvents: routed by load only".to_owned()),
        "lost" => problems.push("its KV events cannot be reached".to_owned()),
        "resyncing" => problems.push("it is being caught up with".to_owned()),
        "degraded" if number("other_groups") > 0 => {
            problems.push("it has KV cache groups that are not understood".to_owned());
        }
        "degraded" if number("undecodable") > 0 => {
            problems.push("it sent events that are not understood".to_owned());
        }
        _ => problems.push("the start of its history was not available".to_owned()),
    }
    if is("has_events") && !is("has_replay") {
        problems.push("it has no replay: what is missed stays missing".to_owned());
    }
    let (events, metrics) = (number("block_size_tokens"), of["metrics_block_size_tokens"].as_u64());
    if let Some(metrics) = metrics.filter(|m| events > 0 && *m != events) {
        problems.push(format!("its events say {events} tokens per block, its metrics {metrics}"));
    }
    problems.extend(accuracy_problems(&of["accuracy"]));
    let age = match of["last_batch_ms"].as_u64() {
        Some(ms) => format!("last event {}.{} s ago", ms / 1000, ms % 1000 / 100),
        None => "no event yet".to_owned(),
    };
    let (held, resets) = (number("held_blocks"), number("resets"));
    let note = format!("{held} blocks of {events} tokens, {age}, {resets} resets");
    Finding { kind: "engine", name: text("address"), state, problems, note }
}

fn gateway(of: &Value) -> Finding {
    let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let state = text("state");
    let problems = match state.as_str() {
        "live" | "standby" => vec![],
        "snapshot" => vec!["it is being sent a snapshot".to_owned()],
        _ => vec![format!("it is not fed: {}", text("error"))],
    };
    let number = |key: &str| of[key].as_u64().unwrap_or(0);
    let (workers, sequence, pending) = (number("workers"), number("sequence"), number("pending"));
    let note = format!("{workers} workers, {sequence} batches acked, {pending} changes pending");
    Finding { kind: "gateway", name: text("name"), state, problems, note }
}

/// Hits that an engine must have left without a count before it counts as silent: a single one may
/// have been a miss, which engines leave out as well.
const SILENT_HITS: u64 = 3;

/// What the gateways' meters found of an engine's answers.
fn accuracy_problems(of: &Value) -> Vec<String> {
    let number = |key: &str| of[key].as_u64().unwrap_or(0);
    let (answers, silent) = (number("answers"), number("silent"));
    let (judged, over, under) = (number("judged"), number("over"), number("under"));
    let mut problems = Vec::new();
    if number("reported") == 0 && silent >= SILENT_HITS {
        problems.push(format!(
            "none of its {answers} measured answers says how many tokens were cached, and {silent} \
             should have: it needs --enable-prompt-tokens-details (vLLM) or --enable-cache-report \
             (SGLang)"
        ));
    }
    if let Some(weight) = of["prefix_weight_ratio"].as_f64().filter(|weight| *weight < 1.0) {
        problems.push(format!(
            "its predictions are wrong: {over} of the last {judged} were too high, so its matches \
             count by {weight}"
        ));
    }
    if under * 4 >= judged && under >= SILENT_HITS {
        problems.push(format!(
            "its predictions are wrong: {under} of the last {judged} were too low, so it holds more \
             than its events said"
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Value {
        json!({"address": "127.0.0.1:8000", "ready": true, "source": "live", "has_events": true,
            "has_replay": true, "block_size_tokens": 16, "metrics_block_size_tokens": 16,
            "last_batch_ms": 1234, "held_blocks": 7, "resets": 0})
    }

    #[test]
    fn all_is_well() {
        let gateway =
            json!({"name": "gw", "state": "live", "workers": 2, "sequence": 9, "pending": 0});
        let report = judge(&json!({"endpoints": [live()], "gateways": [gateway]}));
        assert!(report.is_well());
        let text = "ok  engine   127.0.0.1:8000  live  7 blocks of 16 tokens, last event 1.2 s ago, 0 resets\n\
                    ok  gateway  gw              live  2 workers, 9 batches acked, 0 changes pending\n";
        assert_eq!(report.text(), text);
        assert_eq!(report.json()["ok"], true);
    }

    #[test]
    fn a_measured_engine_that_is_right_is_well() {
        for accuracy in [
            json!({"answers": 9, "reported": 0, "silent": 2, "prefix_weight_ratio": 1.0}),
            json!({"answers": 99, "reported": 1, "silent": 9, "prefix_weight_ratio": 1.0}),
            json!({"reported": 9, "judged": 32, "over": 7, "under": 7, "prefix_weight_ratio": 1.0}),
        ] {
            let mut engine = live();
            engine["accuracy"] = accuracy;
            let report = judge(&json!({"endpoints": [engine], "gateways": []}));
            assert!(report.is_well(), "{:?}", report.findings);
        }
    }

    #[test]
    fn each_ill_has_its_sentence() {
        let check = |key: &str, value: Value, expected: &str| {
            let mut ill = live();
            ill[key] = value;
            let report = judge(&json!({"endpoints": [ill], "gateways": []}));
            assert!(!report.is_well());
            assert!(report.findings[0].problems[0].contains(expected), "{:?}", report.findings);
        };
        check("ready", json!(false), "metrics do not answer");
        check("source", json!("lost"), "cannot be reached");
        check("source", json!("none"), "routed by load only");
        check("source", json!("degraded"), "history was not available");
        check("has_replay", json!(false), "no replay");
        check("metrics_block_size_tokens", json!(32), "16 tokens per block, its metrics 32");
        let silent = json!({"answers": 9, "reported": 0, "silent": 4, "prefix_weight_ratio": 1.0});
        let expected = "none of its 9 measured answers says how many tokens were cached, and 4";
        check("accuracy", silent, expected);
        let over = json!({"reported": 9, "judged": 20, "over": 6, "prefix_weight_ratio": 0.5});
        check("accuracy", over, "6 of the last 20 were too high, so its matches count by 0.5");
        let under = json!({"reported": 9, "judged": 12, "under": 3, "prefix_weight_ratio": 1.0});
        check("accuracy", under, "3 of the last 12 were too low");
        let gateway = json!({"name": "gw", "state": "disconnected", "error": "refused"});
        let report = judge(&json!({"endpoints": [], "gateways": [gateway]}));
        assert_eq!(report.findings[0].problems, ["it is not fed: refused"]);
    }
}
