//! Scenario files decide; the arithmetic in them is computed by hand from the formulas they state.

use super::*;
use crate::{InFlight, Load, OutOfRange, PrefixMatch, Reliability, SourceState, scorer_of_type};

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
                    .map(|seed| profile.run(&request, &candidates, &history, &[], seed))
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
                    reliability: match field("reliability") {
                        Some("half") => Reliability::HALF,
                        Some("quarter") => Reliability::QUARTER,
                        _ => Reliability::FULL,
                    },
                    in_flight: InFlight {
                        requests: number(field("flight").unwrap_or("0")).unwrap(),
                        tokens: number(field("tokens").unwrap_or("0")).unwrap(),
                    },
                    ..Candidate::default()
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
    check(include_str!("../../../../tests/scenarios/wrong-predictions.txt"));
}

struct Fixed(Vec<Option<f32>>);

impl Scorer for Fixed {
    fn score(&self, _: &RequestFeatures, _: &[Candidate], _: &PickHistory) -> Vec<Option<f32>> {
        self.0.clone()
    }
}

fn ready(ready: &[bool]) -> Vec<Candidate> {
    let candidate = |(slot, is_ready): (usize, &bool)| Candidate {
        slot: slot as u16,
        load: Load { is_ready: *is_ready, ..Load::default() },
        ..Candidate::default()
    };
    ready.iter().enumerate().map(candidate).collect()
}

#[test]
fn scores_that_are_absent_not_finite_or_out_of_range_harm_nobody() {
    let candidates = ready(&[true; 3]);
    let own = |scores: Vec<Option<f32>>| {
        let scorers = vec![WeightedScorer { weight: 2.0, scorer: Box::new(Fixed(scores)) }];
        (Profile { scorers, destinations: 1 }, vec![])
    };
    let given = |scores| {
        (Profile { scorers: vec![], destinations: 1 }, vec![GivenScores { weight: 2.0, scores }])
    };
    let check = |scores: &[Option<f32>], expected: [f32; 3]| {
        for (profile, given) in [own(scores.to_vec()), given(scores.to_vec())] {
            let request = RequestFeatures::default();
            let history = PickHistory::default();
            let decision = profile.run(&request, &candidates, &history, &given, 1).unwrap();
            assert_eq!(decision.totals, expected.map(Some), "{scores:?}");
        }
    };
    // The median of 0.5 alone, of 1 and 0, and of 0.2, 0.4.
    check(&[Some(f32::NAN), Some(0.5), Some(f32::INFINITY)], [1.0; 3]);
    check(&[Some(7.0), Some(-3.0)], [2.0, 0.0, 1.0]);
    check(&[Some(0.2), None, Some(0.4)], [0.4, 0.6, 0.8]);
    check(&[], [0.0; 3]);
    check(&[None; 3], [0.0; 3]);
    check(&[Some(1.0), Some(0.0), Some(0.5), Some(1.0)], [2.0, 0.0, 1.0]);
}

#[test]
fn given_scores_are_of_the_candidates_and_not_of_those_that_are_left() {
    let candidates = ready(&[true, false, true]);
    let scores = vec![Some(0.25), Some(1.0), Some(0.75)];
    let profile = Profile { scorers: vec![], destinations: 1 };
    let given = [GivenScores { weight: 1.0, scores }];
    let decision = profile
        .run(&RequestFeatures::default(), &candidates, &PickHistory::default(), &given, 1)
        .unwrap();
    assert_eq!(decision.totals, [Some(0.25), None, Some(0.75)]);
    assert_eq!(decision.targets, [2]);
}

#[test]
fn a_range_names_key_value_and_what_is_accepted() {
    let within = |value| OutOfRange::unless_within("share", value, 0.0..=1.0);
    assert_eq!((within(0.0), within(1.0)), (Ok(()), Ok(())));
    assert_eq!(within(1.5).unwrap_err().to_string(), "share is 1.5, accepted is 0 to 1");
    assert!(within(f32::NAN).is_err());
}
