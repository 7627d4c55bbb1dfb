//! What a person or a dashboard sees of each request: counters and one log line.

use feed::ScorerRow;
use hostcalls::{CounterSet, Host, Level};
use serde_json::{Value, json};

use crate::probe;

/// Requests of one VM: counted here for its row, and by reason in the proxy's stats.
#[derive(Default)]
pub struct Report {
    counters: CounterSet,
    /// Of scorer modules, whose names are the user's: they cannot displace the others.
    by_scorer: CounterSet,
    /// Requests given a destination.
    pub picked: u64,
    /// Requests left to the proxy's own policy.
    pub fell_back: u64,
    /// What it last got of each scorer module, for its row.
    pub scorers: Vec<ScorerRow>,
}

impl Report {
    /// A request got a destination; `unmatched` says why its prompt was not matched, if so.
    pub fn picked(&mut self, host: &impl Host, unmatched: Option<&str>) {
        self.picked += 1;
        self.counters.add(host, "wasm_epp_requests_picked", "", "_total");
        if let Some(reason) = unmatched {
            self.counters.add(host, "wasm_epp_requests_unmatched_", reason, "_total");
        }
    }

    /// The match of a candidate counted less, as its predictions were wrong.
    pub fn lowered(&mut self, host: &impl Host) {
        self.counters.add(host, "wasm_epp_requests_prefix_weight_lowered", "", "_total");
    }

    /// A request goes on without a destination.
    /// A probe is no request: it is told why and not counted.
    pub fn fell_back(&mut self, host: &impl Host, reason: &str) {
        if probe::is_told(host, self, reason) {
            return;
        }
        self.fell_back += 1;
        self.counters.add(host, "wasm_epp_requests_fallback_", reason, "_total");
        let fields = || json!({"model": null, "scores": null, "picked": null, "reason": reason});
        log_scores(host, fields);
    }

    /// What the module in this place of the picker's list said: the revision of its configuration,
    /// or nothing.
    pub fn scored(&mut self, at: usize, scorer: u64, revision: Option<u32>) {
        if self.scorers.get(at).is_none_or(|row| row.scorer != scorer) {
            self.scorers.truncate(at);
            self.scorers.push(ScorerRow { scorer, ..ScorerRow::default() });
        }
        let Some(row) = self.scorers.get_mut(at) else { return };
        match revision {
            Some(revision) => (row.revision, row.absent) = (revision, 0),
            None => row.absent = row.absent.saturating_add(1),
        }
    }

    /// A request was answered here, as no endpoint may serve it.
    pub fn refused(&mut self, host: &impl Host, reason: &str) {
        self.counters.add(host, "wasm_epp_requests_refused_", reason, "_total");
        let fields = || json!({"model": null, "scores": null, "picked": null, "refused": reason});
        log_scores(host, fields);
    }

    /// A request went to the pool of its model, which is not that of the route it came by.
    pub fn rerouted(&mut self, host: &impl Host) {
        self.counters.add(host, "wasm_epp_requests_rerouted", "", "_total");
    }

    /// A request asks for another model now.
    pub fn rewritten(&mut self, host: &impl Host) {
        self.counters.add(host, "wasm_epp_requests_rewritten", "", "_total");
    }

    /// A scorer module had no score for a request.
    pub fn scores_absent(&mut self, host: &impl Host, scorer: &str) {
        self.by_scorer.add(host, "wasm_epp_scores_absent_", scorer, "_total");
    }

    /// A scorer module had scores for some of the candidates only.
    pub fn scores_incomplete(&mut self, host: &impl Host, scorer: &str) {
        self.by_scorer.add(host, "wasm_epp_scores_incomplete_", scorer, "_total");
    }

    /// A shadow scorer would have sent a request elsewhere, or to the same endpoint.
    pub fn shadowed(&mut self, host: &impl Host, scorer: &str, differs: bool) {
        let name = if differs { "wasm_epp_shadow_differs_" } else { "wasm_epp_shadow_agrees_" };
        self.by_scorer.add(host, name, scorer, "_total");
    }

    /// A request was served by another endpoint than the first of its list.
    pub fn moved(&mut self, host: &impl Host) {
        self.counters.add(host, "wasm_epp_requests_moved", "", "_total");
    }

    /// Something failed that did not change the request's fate.
    pub fn mishap(&mut self, host: &impl Host, name: &str) {
        self.counters.add(host, "wasm_epp_mishaps_", name, "_total");
    }
}

/// Writes the `Got pod scores` line, the proof of life that llm-d's users look for. Its fields are
/// put together only if somebody wants it.
pub(crate) fn log_scores(host: &impl Host, fields: impl FnOnce() -> Value) {
    if !host.wants_log(Level::Debug) {
        return;
    }
    let request_id = host
        .request_header("x-request-id")
        .ok()
        .flatten()
        .map(|id| String::from_utf8_lossy(&id).into_owned());
    let mut line = json!({ "request_id": request_id });
    if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields()) {
        line.extend(fields);
    }
    host.log(Level::Debug, &format!("Got pod scores {line}"));
}
