//! Each plugin's `cases.json`, which `generate_cases.py` computes from the formulas.

use case_tables::{Case, cases};

use crate::{FILTERS, PICKERS, SCORERS};

/// Runs `check` on every case of a plugin.
fn each(kind: &str, name: &str, check: impl Fn(&Case) -> Result<(), String>) {
    for (number, case) in cases(kind, name).iter().enumerate() {
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
