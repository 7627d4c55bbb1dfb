//! From the file as read to the routing that we write, and what to say about it.

use super::catalog::{Kind, Verdict, nearest_entry};
use super::engines::{engines, metrics_interval};
use super::epp::{Epp, Plugin};
use super::handlers;
use super::parameters::{Converted, convert as convert_parameters};
use super::plan::{Outcome, Plan, Planner};
use super::prefixes::{PRECISE_TYPES, approximate};
use super::report::{Row, Trap};

/// Of our `routing.retries`.
const MAX_RETRIES: u64 = 10;

/// The plan and what was found on the way.
#[derive(Debug, Default)]
pub(super) struct Conversion {
    pub plan: Plan,
    pub rows: Vec<Row>,
    pub traps: Vec<Trap>,
    /// Why requests will be treated otherwise; empty if they will not.
    pub differences: Vec<String>,
}

impl Conversion {
    pub(super) fn trap(&mut self, code: &'static str, line: u64, text: impl Into<String>) {
        self.traps.push(Trap { code, line, text: text.into() });
    }
}

impl Epp {
    pub(super) fn plugin(&self, name: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|plugin| plugin.name == name)
    }

    pub(super) fn of_type<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Plugin> {
        self.plugins.iter().filter(move |plugin| plugin.kind == kind)
    }

    pub(super) fn precise(&self) -> impl Iterator<Item = &Plugin> {
        self.plugins.iter().filter(|plugin| PRECISE_TYPES.contains(&plugin.kind.as_str()))
    }

    /// Whether a profile names it.
    pub(super) fn is_in_a_profile(&self, name: &str) -> bool {
        self.profiles
            .iter()
            .flatten()
            .any(|profile| profile.plugins.iter().any(|plugin| plugin.reference == name))
    }

    pub(super) fn gate(&self, name: &str) -> bool {
        // The last one counts.
        let said = self.feature_gates.iter().rev().find_map(|gate| {
            let (key, value) = gate.it.split_once('=').unwrap_or((&gate.it, "true"));
            (key == name).then(|| value.trim().eq_ignore_ascii_case("true") || value.trim() == "1")
        });
        said.unwrap_or(false)
    }
}

pub(super) fn convert(epp: &Epp) -> Conversion {
    let mut conversion = Conversion::default();
    let profiles = handlers::profiles(epp, &mut conversion);
    let mut planner = Planner::new(epp);
    conversion.plan.profiles = profiles.iter().map(|profile| planner.profile(profile)).collect();
    let Planner { mut outcomes, picked, .. } = planner;
    // llm-d's pickers give one endpoint, and more only where they are told to.
    let most = picked.iter().map(|(most, _)| *most).max().unwrap_or(1);
    conversion.plan.retries = most.saturating_sub(1).min(MAX_RETRIES);
    for (own, picker) in picked {
        if let Some(outcome) = picker.and_then(|at| outcomes.get_mut(at)).filter(|_| own < most) {
            let loss = format!("maxNumOfEndpoints {own}: retries are the same for all profiles");
            outcome.losses.push(loss);
        }
    }
    handlers::name_profiles(&mut conversion);
    approximate(epp, &profiles, &mut conversion);
    conversion.plan.engines = engines(epp);
    conversion.plan.metrics_interval_ms = metrics_interval(epp);
    for (plugin, outcome) in epp.plugins.iter().zip(outcomes) {
        row(epp, plugin, &outcome, &mut conversion);
    }
    sections(epp, &mut conversion);
    conversion
}

fn row(epp: &Epp, plugin: &Plugin, outcome: &Outcome, conversion: &mut Conversion) {
    let mut row = Row {
        plugin: plugin.kind.clone(),
        name: plugin.name.clone(),
        line: plugin.line,
        ..Row::default()
    };
    let Some(entry) = plugin.entry else {
        row.verdict = DIFFERS.text();
        row.ours = "-".to_owned();
        row.remark =
            "llm-d v0.10 has no plugin of this type; one of your own can be a scorer module \
                      (wasm-epp new-scorer)"
                .to_owned();
        if let Some(near) = nearest_entry(&plugin.kind) {
            row.remark = format!("llm-d v0.10 has no plugin of this type; did you mean {near}?");
        }
        conversion.differences.push(format!("{}: unknown type", plugin.name));
        conversion.rows.push(row);
        return;
    };
    let (mut verdict, mut remark) = (entry.verdict, entry.remark.to_owned());
    row.ours = entry.ours.to_owned();
    if let Some(by_handler) = handlers::verdict(epp, plugin) {
        (verdict, remark) = (by_handler.verdict, by_handler.remark);
        row.ours = by_handler.ours.to_owned();
    }
    if entry.is_for_profiles() {
        row.ours = outcome.ours.join(", ");
        if entry.kind == Kind::SaturationDetector {
            (verdict, remark) = detector(epp, plugin, outcome, entry.remark);
        } else if outcome.ours.is_empty() && !matches!(verdict, Verdict::Unsupported { .. }) {
            // Nothing that is written names it, so nothing is lost.
            remark = "in no profile that is written: left out".to_owned();
            row.ours = "-".to_owned();
        }
    } else {
        let Converted { losses, .. } = convert_parameters(plugin);
        (verdict, remark) = with_losses(verdict, remark, &losses);
    }
    (verdict, remark) = with_losses(verdict, remark, &outcome.losses);
    if let Some(why) = &outcome.impossible {
        (verdict, remark) = (DIFFERS, why.clone());
    }
    let is_used = !entry.is_for_profiles()
        || epp.profiles.is_none()
        || epp.is_in_a_profile(&plugin.name)
        || entry.kind == Kind::SaturationDetector;
    if verdict == DIFFERS && is_used {
        conversion.differences.push(format!("{}: {}", plugin.name, verdict.text()));
    }
    row.verdict = verdict.text();
    if matches!(verdict, Verdict::Unsupported { .. }) || row.ours.is_empty() {
        row.ours = "-".to_owned();
    }
    row.remark = remark;
    conversion.rows.push(row);
}

const DIFFERS: Verdict = Verdict::Unsupported { differs: true };

fn with_losses(verdict: Verdict, remark: String, losses: &[String]) -> (Verdict, String) {
    if losses.is_empty() {
        return (verdict, remark);
    }
    let verdict = match verdict {
        Verdict::Supported | Verdict::Renamed => Verdict::Approximated,
        other => other,
    };
    let parts = std::iter::once(remark).filter(|remark| !remark.is_empty());
    (verdict, parts.chain(losses.iter().cloned()).collect::<Vec<_>>().join("; "))
}

/// A saturation detector is a filter where a profile names it, and what refuses requests otherwise.
fn detector(epp: &Epp, plugin: &Plugin, outcome: &Outcome, no_refusal: &str) -> (Verdict, String) {
    let named = [
        epp.flow_control.as_ref().and_then(|flow| flow.saturation_detector.as_ref()),
        epp.top_saturation_detector.as_ref(),
    ];
    let chosen = named.into_iter().flatten().next().map(|said| said.it.as_str());
    // The one that llm-d takes if none is named.
    let is_detector = chosen.unwrap_or("utilization-detector") == plugin.name;
    match (outcome.ours.is_empty(), is_detector) {
        (true, true) => (DIFFERS, no_refusal.to_owned()),
        (true, false) => (Verdict::NotNeeded, "named by nothing".to_owned()),
        (false, is_detector) => {
            let stale = "as a filter: an endpoint without a reading is kept, not one with an old one \
                         dropped";
            let refusal = if is_detector { "; as a detector it refuses nothing here" } else { "" };
            let remark = format!("{stale}{refusal}");
            (if is_detector { DIFFERS } else { Verdict::Approximated }, remark)
        }
    }
}

/// Rows of what is no plugin.
fn sections(epp: &Epp, conversion: &mut Conversion) {
    if epp.gate("flowControl") {
        let line = epp.flow_control.as_ref().map_or(0, |flow| flow.line);
        let gate = epp.feature_gates.iter().find(|gate| gate.it.starts_with("flowControl"));
        conversion.rows.push(Row {
            plugin: "flowControl".to_owned(),
            name: "(section)".to_owned(),
            line: if line > 0 { line } else { gate.map_or(0, |gate| gate.line) },
            verdict: DIFFERS.text(),
            ours: "-".to_owned(),
            remark: "no request waits in the gateway or is refused by it; limit what enters with \
                     Envoy's circuit breakers, its admission_control or a rate limit"
                .to_owned(),
        });
        conversion.differences.push("flowControl: not supported".to_owned());
    }
}
