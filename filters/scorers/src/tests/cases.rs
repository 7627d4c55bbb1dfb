//! Each plugin's `cases.json`, which `generate_cases.py` computes from the formulas.

use std::collections::BTreeMap;
use std::path::Path;

use routing::{
    AdapterState, Candidate, Chance, InFlight, Load, PickHistory, PrefixMatch, Rates, Reliability,
    RequestFeatures, SourceState,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{FILTERS, PICKERS, SCORERS};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Case {
    about: String,
    parameters: Map<String, Value>,
    request: Request,
    candidates: Vec<Endpoint>,
    cold: Vec<u64>,
    picked: Vec<u64>,
    totals: Vec<f32>,
    tie: u64,
    draw: u64,
    scores: Vec<Option<f64>>,
    keep: Vec<bool>,
    order: Vec<usize>,
    was_tie: bool,
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
    fn request(&self) -> RequestFeatures {
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

    fn candidates(&self) -> Vec<Candidate> {
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

    fn history(&self) -> PickHistory {
        PickHistory { any: self.picked.clone(), cold: self.cold.clone() }
    }

    fn chance(&self) -> Chance {
        Chance { tie: self.tie, draw: self.draw }
    }
}

/// Runs `check` on every case of a plugin, of which there are at least 15.
fn each(kind: &str, name: &str, check: impl Fn(&Case) -> Result<(), String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(kind);
    let file = folder.join(name.replace('-', "_")).join("cases.json");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(cases.len() >= 15, "{kind} {name} has {} cases", cases.len());
    for (number, case) in cases.iter().enumerate() {
        if let Err(difference) = check(case) {
            panic!("{kind} {name}, case {number} ({}): {difference}", case.about);
        }
    }
}

#[test]
fn scorers_score_as_computed_elsewhere() {
    for entry in &SCORERS {
        each("scorer", entry.name, |case| {
            let scorer = entry.build(case.parameters.clone()).map_err(|e| e.to_string())?;
            let candidates = case.candidates();
            let mut scores = scorer.score(&case.request(), &candidates, &case.history());
            scores.resize(candidates.len(), None);
            let is_near = |(got, expected): (&Option<f32>, &Option<f64>)| match (got, expected) {
                (Some(got), Some(expected)) => (f64::from(*got) - expected).abs() < 2e-6,
                (got, expected) => got.is_none() && expected.is_none(),
            };
            let is_equal =
                scores.len() == case.scores.len() && scores.iter().zip(&case.scores).all(is_near);
            is_equal.then_some(()).ok_or(format!("{scores:?}, expected {:?}", case.scores))
        });
    }
}

#[test]
fn filters_keep_as_computed_elsewhere() {
    for entry in &FILTERS {
        each("filter", entry.name, |case| {
            let filter = entry.build(case.parameters.clone()).map_err(|e| e.to_string())?;
            let (request, history) = (case.request(), case.history());
            let keep = filter.keep(&request, &case.candidates(), &history, case.chance());
            (keep == case.keep).then_some(()).ok_or(format!("{keep:?}, expected {:?}", case.keep))
        });
    }
}

#[test]
fn pickers_order_as_computed_elsewhere() {
    for entry in &PICKERS {
        each("picker", entry.name, |case| {
            let picker = entry.build(case.parameters.clone()).map_err(|e| e.to_string())?;
            let (candidates, history) = (case.candidates(), case.history());
            let picked = picker.pick(&case.totals, &candidates, &history, case.chance());
            let is_equal = picked.order == case.order && picked.was_tie == case.was_tie;
            let expected = || format!("{picked:?}, expected {:?} {}", case.order, case.was_tie);
            is_equal.then_some(()).ok_or_else(expected)
        });
    }
}
