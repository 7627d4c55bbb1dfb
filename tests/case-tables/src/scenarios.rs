//! The scenario files: blocks of a pool's endpoints, and what is expected of a decision.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use routing::{
    Candidate, InFlight, Load, PickHistory, PrefixMatch, Reliability, RequestFeatures, SourceState,
};

/// A decision to be made, and what is expected of it.
pub struct Scenario {
    /// File and line of the expectation.
    pub at: String,
    /// Scorers of the profile and their weights.
    pub scorers: Vec<(String, f32)>,
    /// The request.
    pub request: RequestFeatures,
    /// The endpoints.
    pub candidates: Vec<Candidate>,
    /// When they were picked.
    pub history: PickHistory,
    /// What is expected, by name.
    pub expected: BTreeMap<String, String>,
}

const DEFAULT_PROFILE: [(&str, f32); 4] =
    [("prefix-cache", 3.0), ("queue", 2.0), ("kv-cache-utilization", 2.0), ("no-hit-lru", 2.0)];

/// The scenarios of all files.
///
/// # Panics
/// When a file cannot be read, or has none.
pub fn scenarios() -> Vec<Scenario> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file:?}: {e}"));
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let scenarios = read(&name, &text);
        assert!(!scenarios.is_empty(), "no expectation in {name}");
        all.extend(scenarios);
    }
    all
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    let parsed = || text.parse().unwrap_or_else(|_| panic!("not a number: {text}"));
    (text != "?").then(parsed)
}

fn read(name: &str, text: &str) -> Vec<Scenario> {
    let named = |(name, weight): &(&str, f32)| ((*name).to_owned(), *weight);
    let mut scorers: Vec<(String, f32)> = DEFAULT_PROFILE.iter().map(named).collect();
    let mut request = RequestFeatures::default();
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut history = PickHistory::default();
    let mut all = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((head, fields)) = words.split_first() else { continue };
        let field = |name: &str| {
            fields.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let count = |name: &str| number(field(name).unwrap_or("0")).unwrap_or(0);
        match *head {
            "pool" => {
                candidates.clear();
                history = PickHistory::default();
                request.strides = count("strides");
            }
            "profile" => {
                let weighted = |field: &&str| {
                    let (name, weight) = field.split_once('*').expect("NAME*WEIGHT");
                    (name.to_owned(), number(weight).expect("a weight"))
                };
                scorers = fields.iter().map(weighted).collect();
            }
            "expect" => {
                let pairs = fields.iter().filter_map(|field| field.split_once('='));
                all.push(Scenario {
                    at: format!("{name} line {}", at + 1),
                    scorers: scorers.clone(),
                    request: request.clone(),
                    candidates: candidates.clone(),
                    history: history.clone(),
                    expected: pairs.map(|(key, value)| (key.into(), value.into())).collect(),
                });
            }
            address => {
                history.any.push(number(field("picked").unwrap_or("0")).unwrap_or(0));
                history.cold.push(number(field("cold").unwrap_or("0")).unwrap_or(0));
                let slot = candidates.len() as u16;
                candidates.push(endpoint(slot, address, &field, &count));
            }
        }
    }
    all
}

fn endpoint<'a>(
    slot: u16,
    address: &str,
    field: &impl Fn(&str) -> Option<&'a str>,
    count: &impl Fn(&str) -> u32,
) -> Candidate {
    let strides = count("prefix");
    Candidate {
        slot,
        address: address.into(),
        load: Load {
            is_ready: field("ready") != Some("no"),
            waiting: number(field("waiting").unwrap_or("?")),
            running: number(field("running").unwrap_or("?")),
            kv_usage_ratio: number(field("kv").unwrap_or("?")),
        },
        source: match field("source") {
            Some("degraded") => SourceState::Degraded,
            _ => SourceState::Live,
        },
        block_size_tokens: 16,
        matched: PrefixMatch {
            gpu_strides: strides,
            any_strides: strides,
            speculative_strides: count("sent"),
            ..PrefixMatch::default()
        },
        reliability: match field("reliability") {
            Some("half") => Reliability::HALF,
            Some("quarter") => Reliability::QUARTER,
            _ => Reliability::FULL,
        },
        in_flight: InFlight { requests: count("flight"), tokens: u64::from(count("tokens")) },
        ..Candidate::default()
    }
}
