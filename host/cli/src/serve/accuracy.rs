//! How right the gateways' predictions were, as their meters measured it.

use std::sync::PoisonError;

use feed::{AccuracyReport, SlotAccuracy};
use serde_json::{Value, json};

use super::GatewayHandle;

/// What each gateway last told, with its name. Taken before any scope is locked.
pub(crate) fn of_gateways(gateways: &[GatewayHandle]) -> Vec<(String, AccuracyReport)> {
    let of = |gateway: &GatewayHandle| {
        let status = gateway.status.lock().unwrap_or_else(PoisonError::into_inner);
        (gateway.name.clone(), status.accuracy.clone())
    };
    gateways.iter().map(of).collect()
}

/// What a gateway's report says of one endpoint; `None` where it measured nothing of it.
pub(crate) fn of_slot(report: &AccuracyReport, scope: u16, slot: u16) -> Option<SlotAccuracy> {
    let (_, accuracy) = report.scopes.iter().find(|(number, _)| *number == scope)?;
    let at = accuracy.slots.binary_search_by_key(&slot, |entry| entry.0).ok()?;
    Some(accuracy.slots[at].1)
}

/// One endpoint over all gateways: sums, and the lowest weight. `null` where no meter measured it.
pub(crate) fn details(reports: &[(String, AccuracyReport)], scope: u16, slot: u16) -> Value {
    let of = reports.iter().filter_map(|(_, report)| of_slot(report, scope, slot));
    let of: Vec<SlotAccuracy> = of.collect();
    let sum = |field: fn(&SlotAccuracy) -> u32| of.iter().map(field).map(u64::from).sum::<u64>();
    let weights = of.iter().map(|accuracy| accuracy.reliability().ratio());
    let Some(weight) = weights.reduce(f32::min) else { return Value::Null };
    json!({
        "answers": sum(|a| a.answers),
        "reported": sum(|a| a.reported),
        "silent": sum(|a| a.silent),
        "judged": sum(|a| u32::from(a.judged)),
        "over": sum(|a| a.over.count_ones()),
        "under": sum(|a| a.under.count_ones()),
        "prefix_weight_ratio": weight,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use feed::{Accuracy, Outcome};

    #[test]
    fn gateways_are_added_up_and_the_lowest_weight_counts() {
        let report = |outcomes: &[(Outcome, u32)]| {
            let mut accuracy = Accuracy { epoch: 1, slots: vec![] };
            for (outcome, times) in outcomes {
                (0..*times).for_each(|_| accuracy.observe(4, *outcome, true));
            }
            ("gw".to_owned(), AccuracyReport { scopes: vec![(2, accuracy)] })
        };
        let reports = [
            report(&[(Outcome::Right, 20), (Outcome::Under, 1)]),
            report(&[(Outcome::Right, 6), (Outcome::Over, 4), (Outcome::Nothing, 9)]),
            ("no meter".to_owned(), AccuracyReport::default()),
        ];
        let expected = json!({
            "answers": 40, "reported": 40, "silent": 0, "judged": 31, "over": 4, "under": 1,
            "prefix_weight_ratio": 0.5,
        });
        assert_eq!(details(&reports, 2, 4), expected);
        assert_eq!(details(&reports, 2, 5), Value::Null);
        assert_eq!(details(&reports, 3, 4), Value::Null);
    }
}
