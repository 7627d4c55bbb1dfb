//! Scenario files decide; the arithmetic in them is computed by hand from the formulas they state.

#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use case_tables::{Scenario, scenarios};
use routing::{
    Candidate, Chance, Decision, KeptBy, Load, NamedFilter, NoDecision, PickHistory, Profile,
    RequestFeatures, ScoredBy, Scorer, WeightedScorer,
};
use scorers::SCORERS;
use scorers::picker::MaxScore;
use serde_json::Map;

fn seeded(seed: u64) -> Chance {
    Chance { tie: seed, draw: seed }
}

fn with(scorers: Vec<WeightedScorer>, destinations: usize) -> Profile {
    let (name, filters) = ("default".to_owned(), Vec::new());
    Profile { name, filters, scorers, picker: Box::new(MaxScore {}), destinations }
}

fn profile(scorers: &[(&str, f32)]) -> Profile {
    let scorer = |(name, weight): &(&str, f32)| {
        let entry = SCORERS.iter().find(|entry| entry.name == *name).unwrap();
        let scorer = ScoredBy::Own(entry.build(Map::new()).unwrap());
        WeightedScorer { name: (*name).to_owned(), weight: *weight, scorer }
    };
    with(scorers.iter().map(scorer).collect(), 3)
}

fn check(scenario: &Scenario) {
    let Scenario { at, request, candidates, history, expected, .. } = scenario;
    let scorers: Vec<(&str, f32)> =
        scenario.scorers.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
    let profile = profile(&scorers);
    let outcomes: Vec<Result<Decision, NoDecision>> =
        (0..16).map(|seed| profile.run(request, candidates, history, &[], seeded(seed))).collect();
    if let Some(reason) = expected.get("none") {
        let is_so = |outcome: &Result<Decision, NoDecision>| {
            outcome.as_ref().is_err_and(|none| none.reason() == reason)
        };
        assert!(outcomes.iter().all(is_so), "{at}");
        return;
    }
    let name = |i: &usize| candidates[*i].address.to_string();
    let first: std::collections::BTreeSet<String> =
        outcomes.iter().map(|o| name(&o.as_ref().unwrap().targets[0])).collect();
    let winners: Vec<String> = first.into_iter().collect();
    assert_eq!(winners.join("|"), expected["first"], "{at}");
    let decision = outcomes[0].as_ref().unwrap();
    if let Some(scores) = expected.get("scores") {
        let got: Vec<String> = decision
            .totals
            .iter()
            .map(|total| total.map_or("-".into(), |total| format!("{total:.2}")))
            .collect();
        assert_eq!(got.join(","), *scores, "{at}");
    }
    if let Some(order) = expected.get("order") {
        let got: Vec<String> = decision.targets.iter().map(name).collect();
        assert_eq!(got.join(","), *order, "{at}");
    }
    if let Some(tie) = expected.get("tie") {
        assert_eq!(decision.was_tie.to_string(), *tie, "{at}");
    }
}

#[test]
fn decisions_are_as_computed_by_hand() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 28, "{} scenarios", scenarios.len());
    scenarios.iter().for_each(check);
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
    let weighted = |scorer| WeightedScorer { name: "x".to_owned(), weight: 2.0, scorer };
    let own = |scores: Vec<Option<f32>>| {
        (with(vec![weighted(ScoredBy::Own(Box::new(Fixed(scores))))], 1), vec![])
    };
    let of_module =
        |scores| (with(vec![weighted(ScoredBy::Module(1))], 1), vec![None, Some(scores)]);
    let check = |scores: &[Option<f32>], expected: [f32; 3]| {
        for (profile, modules) in [own(scores.to_vec()), of_module(scores.to_vec())] {
            let request = RequestFeatures::default();
            let history = PickHistory::default();
            let decision =
                profile.run(&request, &candidates, &history, &modules, seeded(1)).unwrap();
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
    // A module that said nothing is left out.
    let (profile, _) = of_module(vec![]);
    let (request, history) = (RequestFeatures::default(), PickHistory::default());
    let decision = profile.run(&request, &candidates, &history, &[None, None], seeded(1)).unwrap();
    assert_eq!(decision.totals, [Some(0.0); 3]);
}

#[test]
fn what_modules_say_is_of_the_candidates_and_not_of_those_that_are_left() {
    let candidates = ready(&[true, false, true]);
    let modules = [Some(vec![Some(0.25), Some(1.0), Some(0.75)])];
    let scorer = ScoredBy::Module(0);
    let mut profile = with(vec![WeightedScorer { name: "x".to_owned(), weight: 1.0, scorer }], 1);
    let run = |profile: &Profile| {
        let (request, history) = (RequestFeatures::default(), PickHistory::default());
        profile.run(&request, &candidates, &history, &modules, seeded(1))
    };
    let decision = run(&profile).unwrap();
    assert_eq!(decision.totals, [Some(0.25), None, Some(0.75)]);
    assert_eq!(decision.targets, [2]);
    profile.filters.push(NamedFilter { name: "y".to_owned(), filter: KeptBy::Module(0) });
    let decision = run(&profile).unwrap();
    assert_eq!((decision.totals, decision.targets), (vec![None, None, Some(0.75)], vec![2]));
}
