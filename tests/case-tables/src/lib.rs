//! Each plugin's `cases.json`, which `generate_cases.py` computes from the formulas: the same cases for
//! every packaging of a plugin. And the scenario files, for whole decisions.

#![allow(clippy::expect_used, clippy::panic, reason = "a table that cannot be read fails the test")]

mod scenarios;

use std::collections::BTreeMap;
use std::path::Path;

use routing::{
    AdapterState, Candidate, Chance, InFlight, Load, PickHistory, PrefixMatch, Rates, Reliability,
    RequestFeatures, SourceState,
};
use serde::Deserialize;
use serde_json::{Map, Value};

pub use scenarios::{Scenario, scenarios};

/// The cases of a plugin, `kind` being `scorer`, `filter` or `picker`, of which there are at least 15.
///
/// # Panics
/// When its table is missing, not such a table, or short.
pub fn cases(kind: &str, name: &str) -> Vec<Case> {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../filters/scorers/src");
    let file = plugins.join(kind).join(name.replace('-', "_")).join("cases.json");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let cases: Vec<Case> =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    assert!(cases.len() >= 15, "{kind} {name} has {} cases", cases.len());
    cases
}

/// One case: what goes in, and what a plugin of its kind must say.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Case {
    /// What it is about.
    pub about: String,
    /// The plugin's parameters.
    pub parameters: Map<String, Value>,
    request: Request,
    candidates: Vec<Endpoint>,
    cold: Vec<u64>,
    picked: Vec<u64>,
    /// Of a picker: the candidates' totals.
    pub totals: Vec<f32>,
    tie: u64,
    draw: u64,
    /// Of a scorer: its scores.
    pub scores: Vec<Option<f64>>,
    /// Of a filter: who stays.
    pub keep: Vec<bool>,
    /// Of a picker: the order.
    pub order: Vec<usize>,
    /// Of a picker: whether a tie-break chose.
    pub was_tie: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Request {
    strides: u32,
    prompt_tokens: u32,
    headers: BTreeMap<String, String>,
    slo_ttft_ms: Option<f32>,
    slo_tpot_ms: Option<f32>,
    peer_labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Endpoint {
    waiting: Option<u32>,
    running: Option<u32>,
    kv: Option<f32>,
    source: Option<String>,
    reliability: Option<f32>,
    gpu_strides: u32,
    gpu_tokens: u32,
    sent_strides: u32,
    in_flight: u32,
    tokens: u64,
    adapter: Option<String>,
    session: bool,
    prefill_rate: Option<f32>,
    tpot_ms: Option<f32>,
    labels: BTreeMap<String, String>,
    attributes: BTreeMap<String, f32>,
}

impl Case {
    /// The request.
    pub fn request(&self) -> RequestFeatures {
        RequestFeatures {
            strides: self.request.strides,
            prompt_tokens: self.request.prompt_tokens,
            headers: self.request.headers.clone().into_iter().collect(),
            slo_ttft_ms: self.request.slo_ttft_ms,
            slo_tpot_ms: self.request.slo_tpot_ms,
            peer_labels: self.request.peer_labels.clone().into_iter().collect(),
            ..RequestFeatures::default()
        }
    }

    /// The endpoints.
    pub fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(slot, of): (usize, &Endpoint)| Candidate {
            slot: slot as u16,
            load: Load {
                is_ready: true,
                waiting: of.waiting,
                running: of.running,
                kv_usage_ratio: of.kv,
            },
            source: match of.source.as_deref() {
                None | Some("live") => SourceState::Live,
                Some("degraded") => SourceState::Degraded,
                Some("none") => SourceState::None,
                Some(other) => panic!("source {other}"),
            },
            reliability: match of.reliability {
                None => Reliability::FULL,
                Some(0.5) => Reliability::HALF,
                Some(0.25) => Reliability::QUARTER,
                Some(other) => panic!("reliability {other}"),
            },
            matched: PrefixMatch {
                gpu_strides: of.gpu_strides,
                gpu_tokens: of.gpu_tokens,
                any_strides: of.gpu_strides,
                any_tokens: of.gpu_tokens,
                gpu_blocks: 0,
                speculative_strides: of.sent_strides,
            },
            in_flight: InFlight { requests: of.in_flight, tokens: of.tokens },
            adapter: match of.adapter.as_deref() {
                None => AdapterState::Unknown,
                Some("active") => AdapterState::Active,
                Some("room") => AdapterState::Room,
                Some("waiting") => AdapterState::Waiting,
                Some("full") => AdapterState::Full,
                Some(other) => panic!("adapter {other}"),
            },
            has_session: of.session,
            rates: Rates { prefill_tokens_per_s: of.prefill_rate, tpot_ms: of.tpot_ms },
            labels: of.labels.clone().into_iter().collect(),
            attributes: of.attributes.clone().into_iter().collect(),
            ..Candidate::default()
        };
        self.candidates.iter().enumerate().map(candidate).collect()
    }

    /// When they were picked.
    pub fn history(&self) -> PickHistory {
        PickHistory { any: self.picked.clone(), cold: self.cold.clone() }
    }

    /// The seeds.
    pub fn chance(&self) -> Chance {
        Chance { tie: self.tie, draw: self.draw }
    }
}
