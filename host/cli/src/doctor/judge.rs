//! From what the daemon says to what is wrong. No I/O.

use serde_json::Value;

use super::{Finding, Report};

/// Three heartbeats of the feed.
const ACK_AGE_MS: u64 = 3_000;
/// Prompt tokens that an engine reads without announcing a block only if it announces none. A prompt
/// shorter than a block is none, so a few say nothing.
const SILENT_TOKENS: u64 = 1_000;
/// Clocks of one network differ by less.
const CLOCK_AHEAD_MS: f64 = 50.0;
/// An engine's clock this far behind, or events this late, are worth a word.
const RECEIVE_LAG_MS: f64 = 1_000.0;
/// Rows of workers older than this are of idle workers or dead ones.
const BEAT_AGE_MS: u64 = 3_000;

/// Judges the answer of `/readyz`.
pub(super) fn judge(details: &Value) -> Report {
    let list = |key: &str| details[key].as_array().cloned().unwrap_or_default();
    let engines = list("endpoints");
    let gateways = list("gateways");
    let findings = engines.iter().map(engine).chain(gateways.iter().map(gateway)).collect();
    Report { findings }
}

/// Reads members; what is missing is absent, empty or zero.
struct Of<'v>(&'v Value);

impl Of<'_> {
    fn text(&self, key: &str) -> String {
        self.0[key].as_str().unwrap_or_default().to_owned()
    }

    fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or(0)
    }

    fn is(&self, key: &str) -> bool {
        self.0[key].as_bool().unwrap_or(false)
    }
}

fn engine(value: &Value) -> Finding {
    let of = Of(value);
    let state = of.text("source");
    let (mut problems, mut remarks) = (Vec::new(), Vec::new());
    if !of.is("ready") {
        problems.push(format!("its metrics do not answer: {}", of.text("error")));
    }
    problems.extend(source(value, &state));
    match of.text("rendering").as_str() {
        "differs" => {
            problems.push(format!("its prompts are not ours: {}", of.text("rendering_detail")))
        }
        "unverifiable" => remarks.push(format!(
            "its prompts cannot be compared with ours: {}",
            of.text("rendering_detail")
        )),
        _ => {}
    }
    problems.extend(carrier(&value["carrier"]));
    replay(&of, &mut problems, &mut remarks);
    silence(&of, &mut problems, &mut remarks);
    meaning(&of, value, &mut problems, &mut remarks);
    problems.extend(accuracy(&value["accuracy"]));
    clock(value, &mut remarks);
    let notes = engine_notes(&of, value);
    let name = of.text("address");
    Finding { kind: "engine", name, state, problems, remarks, notes, evidence: value.clone() }
}

fn source(value: &Value, state: &str) -> Vec<String> {
    let problem = match state {
        "live" => return vec![],
        "none" => "it has no kvEvents: routed by load only",
        "lost" => "its KV events cannot be reached",
        "resyncing" => "it is being caught up with",
        _ => {
            let doubts = value["doubts"].as_array().into_iter().flatten();
            return doubts.filter_map(Value::as_str).map(doubted).collect();
        }
    };
    vec![problem.to_owned()]
}

/// Hits that an engine must have left without a count before it counts as silent: a single one may
/// have been a miss, which engines leave out as well.
const SILENT_HITS: u64 = 3;

/// What the gateways' meters found of an engine's answers.
fn accuracy(value: &Value) -> Vec<String> {
    let of = Of(value);
    let (answers, silent) = (of.number("answers"), of.number("silent"));
    let (judged, over, under) = (of.number("judged"), of.number("over"), of.number("under"));
    let mut problems = Vec::new();
    if of.number("reported") == 0 && silent >= SILENT_HITS {
        problems.push(format!(
            "none of its {answers} measured answers says how many tokens were cached, and {silent} \
             should have: it needs --enable-prompt-tokens-details (vLLM) or --enable-cache-report \
             (SGLang)"
        ));
    }
    if let Some(weight) = value["prefix_weight_ratio"].as_f64().filter(|weight| *weight < 1.0) {
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

/// Why a source is degraded.
fn doubted(doubt: &str) -> String {
    let text = match doubt {
        "history" => "the start of its history was not available",
        "restart" => "its metrics say that it was restarted, its events do not",
        "connection" => "its connection broke, and without a replay nobody knows what was missed",
        "events" => "it sent events that are not understood",
        "hybrid" => "it has KV cache groups that are not understood",
        "ranks" => "several data-parallel ranks publish through one source",
        other => other,
    };
    text.to_owned()
}

/// What is wrong on the way by a carrier, where there is one.
fn carrier(value: &Value) -> Option<String> {
    if value["connected"] == false {
        return Some("the daemon has no connection to the carrier of its events".to_owned());
    }
    let is_left = value["follower"] == false;
    is_left.then(|| "nobody follows it: does wasm-epp follow run?".to_owned())
}

/// Only an answer proves a replay.
fn replay(of: &Of<'_>, problems: &mut Vec<String>, remarks: &mut Vec<String>) {
    if !of.is("has_events") || of.text("engine") == "tensorrt-llm" {
        return;
    }
    if !of.is("has_replay") {
        problems.push("it has no replay: what is missed stays missing".to_owned());
        return;
    }
    if of.text("replay") == "fails" {
        let (asked, failed) = (of.number("replays"), of.number("replays_failed"));
        problems.push(format!(
            "its replay does not answer ({failed} of {asked} failed, the last one too): what is missed stays missing"
        ));
    } else if of.number("replays_failed") > 0 {
        remarks
            .push(format!("{} replays failed, the last one did not", of.number("replays_failed")));
    }
}

/// Events that should be there and are not.
fn silence(of: &Of<'_>, problems: &mut Vec<String>, remarks: &mut Vec<String>) {
    if of.number("superseded") > 0 {
        remarks.push(format!(
            "another connection published under its topic: {} messages were refused",
            of.number("superseded")
        ));
    }
    let tokens = of.number("prompt_tokens_watched");
    if !of.is("has_events") || of.number("event_batches") > 0 || tokens < SILENT_TOKENS {
        return;
    }
    let sentence = format!(
        "it has read {tokens} prompt tokens since it is watched and announced nothing: are its KV events and prefix caching on?"
    );
    // Without the history, everything it read may have been cached before.
    if of.text("replay") == "works" { problems.push(sentence) } else { remarks.push(sentence) }
}

/// Whether what the events say can be what the gateway matches.
fn meaning(of: &Of<'_>, value: &Value, problems: &mut Vec<String>, remarks: &mut Vec<String>) {
    let (events, metrics) =
        (of.number("block_size_tokens"), value["metrics_block_size_tokens"].as_u64());
    if let Some(metrics) = metrics.filter(|m| events > 0 && *m != events) {
        problems.push(format!("its events say {events} tokens per block, its metrics {metrics}"));
    }
    let configured = of.text("engine");
    let engines: Vec<&str> = releases(value).filter_map(|r| r["engine"].as_str()).collect();
    if let (Some(first), false) = (engines.first(), engines.is_empty())
        && !engines.iter().any(|engine| engine.eq_ignore_ascii_case(&configured))
    {
        problems.push(format!(
            "its events are those of {first}, its configuration says engine: {configured}"
        ));
    }
    if value["encoding"].is_string() && engines.is_empty() {
        remarks.push("no release that is known writes events as it does".to_owned());
    }
    let unknown = of.number("unknown_tokens");
    if unknown > 0 {
        problems.push(format!(
            "{unknown} token ids have no bytes, and no text after them is matched: is the model folder another model's?"
        ));
    }
    if of.number("generated_blocks") > 0 && !of.is("has_checker") {
        remarks.push(
            "its tokenizer has no checker: matches may be too long by generated text".to_owned(),
        );
    }
}

fn clock(value: &Value, remarks: &mut Vec<String>) {
    match value["receive_lag_ms"].as_f64() {
        Some(ms) if ms <= -CLOCK_AHEAD_MS => remarks.push(format!(
            "its clock is ahead of the daemon's by {} ms or more: lags from its timestamps are too short",
            -ms
        )),
        Some(ms) if ms >= RECEIVE_LAG_MS => remarks.push(format!(
            "its last batch came {ms} ms after its timestamp: late, or its clock is behind"
        )),
        _ => {}
    }
}

fn releases(value: &Value) -> impl Iterator<Item = &Value> {
    value["releases"].as_array().into_iter().flatten()
}

fn engine_notes(of: &Of<'_>, value: &Value) -> Vec<String> {
    let age = match value["last_batch_ms"].as_u64() {
        Some(ms) => format!("last event {}.{} s ago", ms / 1000, ms % 1000 / 100),
        None => "no event yet".to_owned(),
    };
    let (held, tokens) = (of.number("held_blocks"), of.number("block_size_tokens"));
    let mut notes = vec![format!("{held} blocks of {tokens} tokens, {age}")];
    if let Some(form) = value["encoding"].as_str() {
        let names: Vec<&str> = releases(value).filter_map(|r| r["name"].as_str()).collect();
        let by = if names.is_empty() { "unknown release".to_owned() } else { names.join(", or ") };
        let hashes = value["hashes"].as_str().unwrap_or("no");
        notes.push(format!("events are {form} with {hashes} hashes: {by}"));
    }
    if of.is("has_events") {
        let (gaps, resets) = (of.number("gaps"), of.number("resets"));
        notes.push(format!(
            "{} batches, {gaps} gaps, {resets} resets; replay {}",
            of.number("event_batches"),
            if of.is("has_replay") { of.text("replay") } else { "not configured".to_owned() },
        ));
    }
    if let Some(ratio) = value["unchecked_ratio"].as_f64() {
        let generated = of.number("generated_blocks");
        let percent = (ratio * 1000.0).round() / 10.0;
        notes.push(format!("{percent} % of {generated} generated blocks unchecked"));
    }
    notes
}

fn gateway(value: &Value) -> Finding {
    let of = Of(value);
    let state = of.text("state");
    let (mut problems, mut remarks) = (Vec::new(), Vec::new());
    match state.as_str() {
        "live" | "standby" => {}
        "snapshot" => problems.push("it is being sent a snapshot".to_owned()),
        _ => problems.push(format!("it is not fed: {}", of.text("error"))),
    }
    let ack = value["last_ack_ms"].as_u64();
    if let Some(ms) = ack.filter(|ms| *ms > ACK_AGE_MS && state == "live") {
        problems.push(format!("it has not acked for {ms} ms"));
    }
    super::vms::judge(value, &mut problems, &mut remarks);
    let rows: Vec<Of<'_>> = value["rows"].as_array().into_iter().flatten().map(Of).collect();
    let mut builds: Vec<String> = rows
        .iter()
        .filter(|row| row.number("beat_age_ms") <= BEAT_AGE_MS)
        .map(|row| row.text("build"))
        .collect();
    builds.sort_unstable();
    builds.dedup();
    if builds.len() > 1 {
        remarks.push(format!("its workers run different builds: {}", builds.join(", ")));
    }
    if rows.is_empty() && state == "live" {
        remarks.push("no worker has decided a request yet".to_owned());
    }
    let notes = gateway_notes(&of, value, ack, &rows);
    let name = of.text("name");
    Finding { kind: "gateway", name, state, problems, remarks, notes, evidence: value.clone() }
}

fn gateway_notes(of: &Of<'_>, value: &Value, ack: Option<u64>, rows: &[Of<'_>]) -> Vec<String> {
    let (sequence, pending) = (of.number("sequence"), of.number("pending"));
    let age = ack.map_or("no ack yet".to_owned(), |ms| format!("last ack {ms} ms ago"));
    let mut notes = vec![format!(
        "{age}, epoch {}, {sequence} batches acked, {pending} changes pending",
        of.number("epoch")
    )];
    let lag = |key: &str| {
        let (p50, p99) = (value[key]["p50"].as_f64()?, value[key]["p99"].as_f64()?);
        Some(format!("p50 {p50} ms, p99 {p99} ms"))
    };
    for (key, from) in
        [("lag_published_ms", "the engine's timestamp"), ("lag_received_ms", "receipt")]
    {
        if let Some(lag) = lag(key) {
            notes.push(format!("from {from} to ack: {lag}"));
        }
    }
    for row in rows {
        let (build, beat) = (row.text("build"), row.number("beat_age_ms"));
        let (picked, fell_back) = (row.number("picked"), row.number("fell_back"));
        notes.push(format!(
            "worker of build {build}: last beat {beat} ms ago, {picked} picked, {fell_back} fell back"
        ));
    }
    notes
}

#[cfg(test)]
mod tests;
