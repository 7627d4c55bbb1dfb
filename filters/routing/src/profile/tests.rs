//! Scenario files decide; the arithmetic in them is computed by hand from the formulas they state.

use super::*;
use crate::{InFlight, Load, PrefixMatch, SourceState, scorer_of_type};

fn default_profile() -> Profile {
    profile(&[
        ("prefix-cache", 3.0),
        ("queue", 2.0),
        ("kv-cache-utilization", 2.0),
        ("no-hit-lru", 2.0),
    ])
}

fn profile(scorers: &[(&str, f32)]) -> Profile {
    let scorers = scorers
        .iter()
        .map(|(name, weight)| WeightedScorer {
            weight: *weight,
            scorer: scorer_of_type(name).unwrap(),
        })
        .collect();
    Profile { scorers, destinations: 3 }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    (text != "?").then(|| text.parse().ok().unwrap())
}

/// Runs a scenario file: blocks of `pool`, `request`, endpoint lines and `expect` lines.
fn check(file: &str) {
    let mut profile = default_profile();
    let mut request = RequestFeatures::default();
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut history = PickHistory::default();
    let mut expectations = 0;
    for (at, line) in file.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap().split_whitespace().collect();
        let Some((head, fields)) = words.split_first() else { continue };
        let field = |name: &str| {
            fields.iter().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        match *head {
            "pool" => {
                candidates.clear();
                history = PickHistory::default();
                request.strides = number(field("strides").unwrap_or("0")).unwrap();
            }
            "profile" => {
                let scorers: Vec<(&str, f32)> = fields
                    .iter()
                    .map(|field| field.split_once('*').unwrap())
                    .map(|(name, weight)| (name, weight.parse().unwrap()))
                    .collect();
                profile = self::profile(&scorers);
            }
            "expect" => {
                expectations += 1;
                let outcomes: Vec<Result<Decision, NoDecision>> = (0..16)
                    .map(|seed| profile.run(&request, &candidates, &history, seed))
                    .collect();
                let name = |i: &usize| candidates[*i].address.clone();
                if let Some(reason) = field("none") {
                    assert!(
                        outcomes.iter().all(|o| o.as_ref().unwrap_err().reason() == reason),
                        "line {}",
                        at + 1
                    );
                    continue;
                }
                let first: std::collections::BTreeSet<String> =
                    outcomes.iter().map(|o| name(&o.as_ref().unwrap().targets[0])).collect();
                let winners: Vec<String> = first.into_iter().collect();
                assert_eq!(winners.join("|"), field("first").unwrap(), "line {}: {line}", at + 1);
                let decision = outcomes[0].as_ref().unwrap();
                if let Some(scores) = field("scores") {
                    let got: Vec<String> = decision
                        .totals
                        .iter()
                        .map(|total| total.map_or("-".into(), |total| format!("{total:.2}")))
                        .collect();
                    assert_eq!(got.join(","), scores, "line {}: {line}", at + 1);
                }
                if let Some(order) = field("order") {
                    let got: Vec<String> = decision.targets.iter().map(name).collect();
                    assert_eq!(got.join(","), order, "line {}: {line}", at + 1);
                }
                if let Some(tie) = field("tie") {
                    assert_eq!(decision.was_tie.to_string(), tie, "line {}: {line}", at + 1);
                }
            }
            address => {
                let strides = number(field("prefix").unwrap_or("0")).unwrap();
                history.any.push(number(field("picked").unwrap_or("0")).unwrap());
                history.cold.push(number(field("cold").unwrap_or("0")).unwrap());
                candidates.push(Candidate {
                    slot: candidates.len() as u16,
                    address: address.to_owned(),
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
                        speculative_strides: number(field("sent").unwrap_or("0")).unwrap(),
                        ..PrefixMatch::default()
                    },
                    in_flight: InFlight {
                        requests: number(field("flight").unwrap_or("0")).unwrap(),
                        tokens: number(field("tokens").unwrap_or("0")).unwrap(),
                    },
                });
            }
        }
    }
    assert!(expectations > 0, "no expectation in the scenario");
}

#[test]
fn scenarios() {
    check(include_str!("../../../../tests/scenarios/default-profile.txt"));
    check(include_str!("../../../../tests/scenarios/in-flight.txt"));
    check(include_str!("../../../../tests/scenarios/ties.txt"));
    check(include_str!("../../../../tests/scenarios/unknown-readings.txt"));
}

struct Fixed(Vec<f32>);

impl Scorer for Fixed {
    fn type_name(&self) -> &'static str {
        "fixed"
    }
    fn score(&self, _: &RequestFeatures, _: &[Candidate], _: &PickHistory) -> Vec<f32> {
        self.0.clone()
    }
}

#[test]
fn scores_that_are_absent_not_finite_or_out_of_range_harm_nobody() {
    let candidates: Vec<Candidate> = (0..3)
        .map(|slot| Candidate {
            slot,
            load: Load { is_ready: true, ..Load::default() },
            ..Candidate::default()
        })
        .collect();
    let run = |scores: Vec<f32>| {
        let profile = Profile {
            scorers: vec![WeightedScorer { weight: 2.0, scorer: Box::new(Fixed(scores)) }],
            destinations: 1,
        };
        profile
            .run(&RequestFeatures::default(), &candidates, &PickHistory::default(), 1)
            .unwrap()
            .totals
    };
    assert_eq!(run(vec![f32::NAN, 0.5, f32::INFINITY]), [Some(0.0), Some(1.0), Some(0.0)]);
    assert_eq!(run(vec![7.0, -3.0]), [Some(2.0), Some(0.0), Some(0.0)]);
    assert_eq!(run(vec![]), [Some(0.0); 3]);
}
