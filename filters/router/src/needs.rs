//! Features that only some plugins read: those that the configuration lists are looked up and
//! published, the others cost nothing.

use feed::{Accuracy, EngineAdapters, Key, LoadRecord, Table};
use hostcalls::Host;
use routing::{AdapterState, Candidate, Rates, RequestFeatures};
use serde::Deserialize;

use crate::config::ConfigError;
use crate::report::Report;
use crate::session::is_header_name;

/// Most headers, labels and attributes that may be listed, each.
const MAX_NAMES: usize = 16;
/// Longest value of a header that is published.
const MAX_HEADER_BYTES: usize = 256;

/// Headers by which clients say what they need, by llm-d's names, the old ones second
/// (`pkg/epp/metadata/consts.go`).
const OBJECTIVE: [&str; 2] = ["x-llm-d-inference-objective", "x-gateway-inference-objective"];
const FAIRNESS_ID: [&str; 2] = ["x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"];
const SLO_TTFT: [&str; 2] = ["x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"];
const SLO_TPOT: [&str; 2] = ["x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"];

/// A named priority, llm-d's `InferenceObjective`.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Objective {
    /// The name that requests use.
    pub name: String,
    /// Higher is more important.
    pub priority: i32,
    /// The only pool whose requests may use it; without one those of every pool may.
    pub pool: Option<String>,
}

/// What plugins read beyond what is always published.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// Headers of requests, in lower case.
    pub headers: Vec<String>,
    /// Labels of endpoints.
    pub labels: Vec<String>,
    /// Attributes of endpoints.
    pub attributes: Vec<String>,
    /// Whether anybody reads objective, fairness id and latency objectives.
    pub request_control: bool,
    /// Whether anybody reads how fast endpoints are.
    pub rates: bool,
    /// Priorities by name.
    pub objectives: Vec<Objective>,
}

impl Needs {
    pub(crate) fn check(self) -> Result<Self, ConfigError> {
        let range = |key, value: String, accepted: String| {
            Err(ConfigError::Range { filter: "intake", key, value, accepted })
        };
        let lists = [
            ("headers", &self.headers),
            ("labels", &self.labels),
            ("attributes", &self.attributes),
        ];
        for (key, names) in lists {
            if names.len() > MAX_NAMES {
                return range(
                    key,
                    format!("{} names", names.len()),
                    format!("at most {MAX_NAMES}"),
                );
            }
        }
        if let Some(name) = self.headers.iter().find(|name| !is_header_name(name)) {
            return range("headers[]", name.clone(), "a header's name in lower case".into());
        }
        let is_short = |name: &String| (1..=feed::MAX_LABEL_KEY_BYTES).contains(&name.len());
        for (key, names) in [("labels[]", &self.labels), ("attributes[]", &self.attributes)] {
            if let Some(name) = names.iter().find(|name| !is_short(name)) {
                let accepted = format!("1 to {} bytes", feed::MAX_LABEL_KEY_BYTES);
                return range(key, name.clone(), accepted);
            }
        }
        Ok(self)
    }

    /// What the request's headers say.
    pub(crate) fn request(
        &self,
        host: &impl Host,
        report: &mut Report,
        pool: &str,
        request: &mut RequestFeatures,
    ) {
        for name in &self.headers {
            if let Some(value) = text(host, name) {
                request.headers.push((name.clone(), value));
            }
        }
        if !self.request_control {
            return;
        }
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| text(host, name));
        request.priority = first(OBJECTIVE).map(|name| self.priority(pool, &name));
        request.fairness_id = first(FAIRNESS_ID).filter(|id| !id.is_empty());
        let mut slo = |names| {
            let said = first(names)?;
            let ms = said.trim().parse::<f32>().ok().filter(|ms| ms.is_finite() && *ms >= 0.0);
            if ms.is_none() {
                report.mishap(host, "slo_malformed");
            }
            ms
        };
        request.slo_ttft_ms = slo(SLO_TTFT);
        request.slo_tpot_ms = slo(SLO_TPOT);
    }

    /// Priority of an objective; 0 of one that nobody has configured, as in llm-d.
    fn priority(&self, pool: &str, name: &str) -> i32 {
        let is_of = |objective: &&Objective| {
            objective.name == name && objective.pool.as_deref().is_none_or(|of| of == pool)
        };
        self.objectives.iter().find(is_of).map_or(0, |objective| objective.priority)
    }

    /// What the daemon says of the candidates: labels, attributes, and where the request's adapter
    /// is, by its place in the directory.
    pub(crate) fn endpoints(
        &self,
        table: &Table,
        loads: &[LoadRecord],
        adapter: Option<u16>,
        candidates: &mut [Candidate],
    ) {
        if self.labels.is_empty() && self.attributes.is_empty() && adapter.is_none() {
            return;
        }
        for candidate in candidates {
            let slot = candidate.slot;
            let entry = table.endpoints.binary_search_by_key(&slot, |entry| entry.slot).ok();
            if let Some(entry) = entry.and_then(|at| table.endpoints.get(at)) {
                candidate.labels = listed(&self.labels, &entry.labels);
                candidate.attributes = listed(&self.attributes, &entry.attributes);
            }
            let record = loads.binary_search_by_key(&slot, |record| record.slot).ok();
            let told = record.and_then(|at| loads.get(at)?.adapters.as_ref());
            if let (Some(adapter), Some(told)) = (adapter, told) {
                candidate.adapter = adapter_state(told, adapter);
            }
        }
    }

    /// How fast the candidates were, where a meter has measured it.
    pub(crate) fn rates(
        &self,
        host: &impl Host,
        scope: u16,
        epoch: u64,
        candidates: &mut [Candidate],
    ) {
        if !self.rates {
            return;
        }
        let held = host.shared(Key::Accuracy(scope).encode().as_ref()).ok().flatten();
        let measured = held.and_then(|(value, _)| Accuracy::decode(&value).ok());
        let Some(measured) = measured.filter(|held| held.epoch == epoch) else { return };
        for candidate in candidates {
            let of = measured.of(candidate.slot);
            candidate.rates = Rates {
                prefill_tokens_per_s: of.prefill.tokens_per_s(),
                tpot_ms: of.decode.ms_per_token(),
            };
        }
    }
}

/// The cases of llm-d's `lora-affinity-scorer`, in their order.
fn adapter_state(told: &EngineAdapters, adapter: u16) -> AdapterState {
    if told.running.contains(&adapter) {
        AdapterState::Active
    } else if told.has_room {
        AdapterState::Room
    } else if told.waiting.contains(&adapter) {
        AdapterState::Waiting
    } else {
        AdapterState::Full
    }
}

/// The pairs whose names are listed, in the order of the list.
fn listed<T: Clone>(names: &[String], pairs: &[(String, T)]) -> Vec<(String, T)> {
    let of = |name| pairs.iter().find(|(known, _)| known == name).cloned();
    names.iter().filter_map(of).collect()
}

/// A header's value. What is no text, or long, is not there.
fn text(host: &impl Host, header: &str) -> Option<String> {
    let value = host.request_header(header).ok().flatten()?;
    String::from_utf8(value).ok().filter(|value| value.len() <= MAX_HEADER_BYTES)
}

#[cfg(test)]
mod tests;
