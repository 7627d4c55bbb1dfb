//! What is told of a decision, whatever profiles there are.

use feed::Features;
use routing::{Candidate, Decision, ModuleScores, NoDecision, Outcome, SourceState};
use serde_json::{Map, Value, json};

use super::is_lowered;
use crate::modules::Said;

/// Candidates' numbers by address, but for zeros.
fn by_address(features: &Features, of: impl Fn(&Candidate) -> u32) -> Map<String, Value> {
    let numbers = features.candidates.iter().map(|candidate| (candidate, of(candidate)));
    let nonzero = numbers.filter(|(_, number)| *number > 0);
    nonzero.map(|(candidate, number)| (candidate.address.to_string(), json!(number))).collect()
}

/// A shadow, and the endpoint the request would have gone to had it counted.
pub(super) type Shadow<'a> = (&'a str, Option<&'a str>);

/// What each shadow would have made of the decision, by itself.
pub(super) fn shadows<'a>(
    said: &Said<'a>,
    features: &'a Features,
    run: impl Fn(&ModuleScores) -> Result<Outcome, NoDecision>,
) -> Vec<Shadow<'a>> {
    let shadows = said.shadows.iter().map(|(name, at, scores)| {
        let with_it = run(&said.with_shadow(*at, scores)).ok();
        (*name, with_it.and_then(|outcome| first_address(features, &outcome)))
    });
    shadows.collect()
}

pub(super) fn first_address<'a>(features: &'a Features, outcome: &Outcome) -> Option<&'a str> {
    let first = outcome.primary.decision.targets.first()?;
    features.candidates.get(*first).map(|target| &*target.address)
}

/// The part that says nothing of profiles.
pub(super) fn explanation(
    features: &Features,
    said: &Said<'_>,
    decision: &Decision,
    list: &[&str],
    shadows: &[Shadow<'_>],
) -> Value {
    let held = by_address(features, |candidate| candidate.matched.gpu_blocks);
    let totals: Map<String, Value> = features
        .candidates
        .iter()
        .zip(&decision.totals)
        .filter_map(|(candidate, total)| {
            let rounded = (f64::from((*total)?) * 1e4).round() / 1e4;
            Some((candidate.address.to_string(), json!(rounded)))
        })
        .collect();
    let mut line = json!({
        "model": features.request.model,
        "scores": if held.is_empty() { Value::Null } else { Value::Object(held) },
        "modules": said.explanation(features),
        "totals": totals,
        "picked": list,
        "speculative": by_address(features, |candidate| candidate.matched.speculative_strides),
        "in_flight": by_address(features, |candidate| candidate.in_flight.requests),
        "was_tie": decision.was_tie,
        "prompt_bytes": features.request.prompt_bytes,
        "unmatched": features.request.unmatched_reason,
    });
    let guessed = by_address(features, |candidate| {
        let is_guess = candidate.source == SourceState::Approximate;
        if is_guess { candidate.matched.gpu_tokens } else { 0 }
    });
    if let (false, Some(line)) = (guessed.is_empty(), line.as_object_mut()) {
        line.insert("approximate".to_owned(), Value::Object(guessed));
    }
    let lowered = features.candidates.iter().filter(|candidate| is_lowered(candidate));
    if let (false, Some(line)) = (shadows.is_empty(), line.as_object_mut()) {
        let shadows = shadows.iter().map(|(name, other)| ((*name).to_owned(), json!(other)));
        line.insert("shadows".to_owned(), Value::Object(shadows.collect()));
    }
    let lowered: Map<String, Value> =
        lowered.map(|c| (c.address.to_string(), json!(c.reliability.ratio()))).collect();
    if let (false, Some(line)) = (lowered.is_empty(), line.as_object_mut()) {
        line.insert("prefix_weight_lowered".to_owned(), Value::Object(lowered));
    }
    line
}
