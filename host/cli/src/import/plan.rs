//! The routing that is written, profile by profile.

use routing::Needs;
use scorers::spec::{PluginSpec, RoutingSpec};
use serde_json::{Map, Value as Json};

use super::catalog::{Kind, Verdict};
use super::engines::Engines;
use super::epp::{Epp, Profile, ProfilePlugin};
use super::handlers::Handler;
use super::node::Node;
use super::parameters::{Converted, convert as convert_parameters};

/// What is written.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub profiles: Vec<PlannedProfile>,
    pub handler: Handler,
    /// Parameters of the approximate producer, where something reads it.
    pub approximate: Option<Map<String, Json>>,
    pub retries: u64,
    pub metrics_interval_ms: Option<u64>,
    pub engines: Engines,
}

#[derive(Debug, Default)]
pub(super) struct PlannedProfile {
    pub name: String,
    pub filters: Vec<Planned>,
    pub scorers: Vec<Planned>,
    pub picker: String,
    /// Whether its weights were above what they may be here, and all were scaled.
    pub is_scaled: bool,
}

/// A plugin of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Planned {
    pub kind: String,
    /// Where another of its list has the type.
    pub name: Option<String>,
    /// Scorers have one.
    pub weight: Option<f64>,
    pub parameters: Map<String, Json>,
}

impl Plan {
    /// Labels and attributes of endpoints that the plugins read.
    pub(super) fn needs(&self) -> Needs {
        let mut all = Needs::default();
        for profile in &self.profiles {
            let specs = |list: &[Planned]| list.iter().map(Planned::spec).collect();
            let spec = RoutingSpec::short(specs(&profile.filters), specs(&profile.scorers), None);
            // What cannot be built the loader refuses, with a better message.
            if let Ok(built) = spec.build(1) {
                // False says that sessions are found in two ways, which is no matter here.
                all.add(built.needs);
            }
        }
        all
    }
}

impl Planned {
    fn spec(&self) -> PluginSpec {
        PluginSpec {
            r#type: self.kind.clone(),
            name: self.name.clone(),
            weight: self.weight,
            parameters: self.parameters.clone(),
            ..PluginSpec::default()
        }
    }
}

/// Those of llm-d's default configuration (`pkg/epp/config/loader/defaults.go`), ours, and weights.
pub(super) const DEFAULT_SCORERS: [(&str, &str, f64); 3] = [
    ("queue-scorer", "queue", 2.0),
    ("kv-cache-utilization-scorer", "kv-cache-utilization", 2.0),
    ("prefix-cache-scorer", "prefix-cache", 3.0),
];

/// Greatest weight of a scorer here.
const MAX_WEIGHT: f64 = 1000.0;

/// What the profiles made of a plugin.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// `scorers: queue` and the like; empty if no profile that is written names it.
    pub ours: Vec<String>,
    pub losses: Vec<String>,
    pub impossible: Option<String>,
}

impl Outcome {
    fn say(&mut self, ours: String) {
        if !self.ours.contains(&ours) {
            self.ours.push(ours);
        }
    }
}

/// Plans one profile after the other, as far as one knows of the other.
pub(super) struct Planner<'a> {
    epp: &'a Epp,
    /// By plugin, in the order of the file.
    pub outcomes: Vec<Outcome>,
    /// Endpoints that a picker gives and, where one is named, which it is.
    pub picked: Vec<(u64, Option<usize>)>,
    /// How sessions are found; all plugins find them in one way here.
    session: Option<Map<String, Json>>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(epp: &'a Epp) -> Self {
        let outcomes = epp.plugins.iter().map(|_| Outcome::default()).collect();
        Self { epp, outcomes, picked: Vec::new(), session: None }
    }

    pub(super) fn profile(&mut self, profile: &Profile) -> PlannedProfile {
        let mut planned = PlannedProfile {
            name: profile.name.clone(),
            picker: "max-score".into(),
            ..PlannedProfile::default()
        };
        if profile.has_default_scorers {
            planned.scorers.extend(DEFAULT_SCORERS.map(|(_, kind, weight)| Planned {
                kind: kind.to_owned(),
                weight: Some(weight),
                ..Planned::default()
            }));
        }
        self.picked.push((1, None));
        for reference in &profile.plugins {
            self.plugin(reference, &mut planned);
        }
        name_apart(&mut planned.filters);
        name_apart(&mut planned.scorers);
        let most = planned.scorers.iter().filter_map(|scorer| scorer.weight).fold(0.0, f64::max);
        if most > MAX_WEIGHT {
            planned.is_scaled = true;
            // Only how weights compare decides, with every picker.
            for weight in planned.scorers.iter_mut().filter_map(|scorer| scorer.weight.as_mut()) {
                *weight *= MAX_WEIGHT / most;
            }
        }
        planned
    }

    fn plugin(&mut self, reference: &ProfilePlugin, planned: &mut PlannedProfile) {
        let named = |name: &str| self.epp.plugins.iter().position(|plugin| plugin.name == name);
        let Some(at) = named(&reference.reference) else { return };
        let plugin = &self.epp.plugins[at];
        let Some(entry) = plugin.entry.filter(|entry| entry.is_for_profiles()) else { return };
        let is_filter_of_detector = entry.kind == Kind::SaturationDetector;
        if matches!(entry.verdict, Verdict::Unsupported { .. }) && !is_filter_of_detector {
            return;
        }
        let outcome = &mut self.outcomes[at];
        let Converted { mut parameters, losses, impossible } = convert_parameters(plugin);
        outcome.losses = losses;
        if impossible.is_some() {
            outcome.impossible = impossible;
            return;
        }
        if entry.name.starts_with("topology-affinity") {
            topology_labels(self.epp, &mut parameters);
        }
        if entry.ours == "session-affinity" {
            let known = self.session.get_or_insert_with(|| parameters.clone());
            if *known != parameters {
                outcome.impossible = Some(
                    "sessions are found in one way here, by the plugin named first".to_owned(),
                );
                return;
            }
        }
        let name = Some(plugin.name.clone());
        let kind = if is_filter_of_detector { "utilization" } else { entry.ours }.to_owned();
        match entry.kind {
            Kind::Picker => {
                let given = plugin.parameters.get("maxNumOfEndpoints");
                let most = given.and_then(|node| node.json().as_u64()).unwrap_or(1).max(1);
                if let Some(last) = self.picked.last_mut() {
                    *last = (most, Some(at));
                }
                outcome.say(format!("picker: {kind}"));
                planned.picker = kind;
            }
            Kind::Filter | Kind::SaturationDetector => {
                outcome.say(format!("filters: {kind}"));
                planned.filters.push(Planned { kind, name, weight: None, parameters });
            }
            _ => {
                // llm-d's default.
                let weight = reference.weight.unwrap_or(1.0);
                if weight < 0.0 {
                    outcome.impossible = Some(format!(
                        "weight {weight}: no weight is below 0 here; endpoint-attribute may be \
                         higher_is_better"
                    ));
                    return;
                }
                if entry.name == "context-length-aware" && filters_too(&plugin.parameters) {
                    outcome.say(format!("filters: {kind}"));
                    let (kind, name, parameters) = (kind.clone(), name.clone(), parameters.clone());
                    planned.filters.push(Planned { kind, name, weight: None, parameters });
                }
                outcome.say(format!("scorers: {kind}"));
                planned.scorers.push(Planned { kind, name, weight: Some(weight), parameters });
            }
        }
    }
}

fn filters_too(parameters: &Node) -> bool {
    parameters.get("enableFiltering").map(Node::json) == Some(true.into())
}

/// Keeps the names of plugins whose type is there more than once, in our letters and each once.
fn name_apart(plugins: &mut [Planned]) {
    let kinds: Vec<String> = plugins.iter().map(|plugin| plugin.kind.clone()).collect();
    let mut taken: Vec<String> = Vec::new();
    for plugin in plugins {
        if kinds.iter().filter(|kind| **kind == plugin.kind).count() == 1 {
            plugin.name = None;
            taken.push(plugin.kind.clone());
            continue;
        }
        let plain = plain_name(plugin.name.as_deref().unwrap_or(&plugin.kind));
        let mut name = plain.clone();
        let mut n = 2;
        while taken.contains(&name) || (kinds.contains(&name) && name != plugin.kind) {
            name = format!("{plain}-{n}");
            n += 1;
        }
        taken.push(name.clone());
        plugin.name = Some(name).filter(|name| *name != plugin.kind);
    }
}

/// A name in the letters that names have here.
pub(super) fn plain_name(name: &str) -> String {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let name: String = name.chars().take(60).map(plain).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// The extractor's labels are the plugin's own here.
fn topology_labels(epp: &Epp, parameters: &mut Map<String, Json>) {
    let Some(extractor) = epp.of_type("topology-extractor").next() else { return };
    let named = ["host", "rack", "zone", "region"].into_iter().filter_map(|level| {
        let label = extractor.parameters.get(level).and_then(Node::text)?;
        Some((level.to_owned(), Json::from(label)))
    });
    let labels: Map<String, Json> = named.collect();
    if !labels.is_empty() {
        parameters.insert("labels".to_owned(), labels.into());
    }
}
