//! The configuration of profiles: as written, and as it runs.

use std::collections::BTreeSet;

use routing::{
    Handler, KeptBy, NamedFilter, Needs, ParameterError, Picker, Profile, Profiles, ScoredBy,
    WeightedScorer,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::picker::MaxScore;
use crate::{Entry, FILTERS, PICKERS, SCORERS, suggestion};

/// Type of the plugins that are modules of their own.
pub const MODULE: &str = "module";
/// Modules one gateway asks at most; each costs two host calls per request.
pub const MAX_MODULES: usize = 16;
/// Largest weight of a scorer.
pub const MAX_WEIGHT: f64 = 1000.0;
/// Name of the profile of the short form.
pub const DEFAULT_PROFILE: &str = "default";
/// Most profiles.
const MAX_PROFILES: usize = 16;

/// A plugin as written.
#[derive(Deserialize, Serialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PluginSpec {
    /// Its type.
    pub r#type: String,
    /// Its name where it is not its type, or a module's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of a scorer: its share of the sum, 1 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Its own parameters.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// Of a module: whether what it says is only recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<bool>,
}

/// A profile as written.
#[derive(Deserialize, Serialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    /// Its name.
    pub name: String,
    /// Filters, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<PluginSpec>,
    /// Scorers.
    #[serde(default)]
    pub scorers: Vec<PluginSpec>,
    /// The picker, `max-score` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picker: Option<PluginSpec>,
}

/// All that says how an endpoint is chosen.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RoutingSpec {
    /// The profiles.
    pub profiles: Vec<ProfileSpec>,
    /// Whether they were written in the short form: plugins of one profile without a name.
    pub is_short: bool,
    /// Who says which of them run.
    pub profile_handler: Option<PluginSpec>,
}

/// A module that a profile uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Whether what it says is only recorded.
    pub is_shadow: bool,
}

/// A configuration that can run.
pub struct Routing {
    /// The profiles.
    pub profiles: Profiles,
    /// The modules that they name by index, each once.
    pub modules: Vec<Module>,
    /// What all plugins read by name.
    pub needs: Needs,
}

/// Why a configuration is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecError {
    /// Path of the key.
    pub key: String,
    /// The plugin whose parameter it is.
    pub plugin: Option<String>,
    /// What was found; text is quoted.
    pub value: String,
    /// What is accepted.
    pub accepted: String,
}

impl std::error::Error for SpecError {}

impl std::fmt::Display for SpecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, plugin, value, accepted } = self;
        let of = plugin.as_ref().map(|plugin| format!(" of {plugin}")).unwrap_or_default();
        write!(f, "{key}{of}: {value} is not accepted: expected {accepted}")
    }
}

impl SpecError {
    fn new(key: impl Into<String>, value: impl Into<String>, accepted: impl Into<String>) -> Self {
        Self { key: key.into(), plugin: None, value: value.into(), accepted: accepted.into() }
    }

    fn quoted(key: impl Into<String>, value: &str, accepted: impl Into<String>) -> Self {
        Self::new(key, format!("{value:?}"), accepted)
    }

    fn parameter(path: &str, plugin: &str, error: ParameterError) -> Self {
        let ParameterError { key, value, accepted } = error;
        let dot = if key.is_empty() { "" } else { "." };
        let key = format!("{path}.parameters{dot}{key}");
        Self { key, plugin: Some(plugin.to_owned()), value, accepted }
    }
}

impl RoutingSpec {
    /// The short form: one profile without a name.
    pub fn short(
        filters: Vec<PluginSpec>,
        scorers: Vec<PluginSpec>,
        picker: Option<PluginSpec>,
    ) -> Self {
        let profile = ProfileSpec { name: DEFAULT_PROFILE.to_owned(), filters, scorers, picker };
        Self { profiles: vec![profile], is_short: true, profile_handler: None }
    }

    /// Checks it and makes it ready to run.
    ///
    /// # Errors
    /// When a plugin is not known or refuses its parameters, or names are not those of anything.
    pub fn build(&self, destinations: usize) -> Result<Routing, SpecError> {
        if !(1..=MAX_PROFILES).contains(&self.profiles.len()) {
            let accepted = format!("1 to {MAX_PROFILES} profiles");
            return Err(SpecError::new("profiles", self.profiles.len().to_string(), accepted));
        }
        let mut built = Builder::default();
        let mut profiles = Vec::with_capacity(self.profiles.len());
        let mut names = BTreeSet::new();
        for (i, profile) in self.profiles.iter().enumerate() {
            let path = if self.is_short { String::new() } else { format!("profiles[{i}].") };
            check_name(&format!("{path}name"), &profile.name)?;
            once(&format!("{path}name"), &profile.name, &mut names)?;
            profiles.push(built.profile(&path, profile, destinations)?);
        }
        let handler = built.handler(self.profile_handler.as_ref(), &profiles)?;
        let Builder { modules, needs } = built;
        Ok(Routing { profiles: Profiles { profiles, handler }, modules, needs })
    }
}

#[derive(Default)]
struct Builder {
    modules: Vec<Module>,
    needs: Needs,
}

impl Builder {
    fn profile(
        &mut self,
        path: &str,
        spec: &ProfileSpec,
        destinations: usize,
    ) -> Result<Profile, SpecError> {
        let (mut filters, mut scorers) = (Vec::new(), Vec::new());
        let mut names = Names::default();
        for (i, plugin) in spec.filters.iter().enumerate() {
            let path = format!("{path}filters[{i}]");
            without_weight(&path, plugin)?;
            let filter = if plugin.r#type == MODULE {
                KeptBy::Module(self.module(&path, plugin, &mut names)?)
            } else {
                let filter = entry(&path, &FILTERS, plugin, &format!(", {MODULE}"))?;
                let filter = with_parameters(&path, filter, plugin)?;
                self.read(&path, plugin, filter.needs())?;
                KeptBy::Own(filter)
            };
            let name = names.take(&path, plugin)?;
            filters.push(NamedFilter { name, filter });
        }
        let mut names = Names::default();
        for (i, plugin) in spec.scorers.iter().enumerate() {
            let path = format!("{path}scorers[{i}]");
            let weight = plugin.weight.unwrap_or(1.0);
            if !(0.0..=MAX_WEIGHT).contains(&weight) {
                let accepted = format!("a number from 0 to {MAX_WEIGHT}");
                return Err(SpecError::new(
                    format!("{path}.weight"),
                    format!("{weight:?}"),
                    accepted,
                ));
            }
            let scorer = if plugin.r#type == MODULE {
                ScoredBy::Module(self.module(&path, plugin, &mut names)?)
            } else {
                let scorer = entry(&path, &SCORERS, plugin, &format!(", {MODULE}"))?;
                let scorer = with_parameters(&path, scorer, plugin)?;
                self.read(&path, plugin, scorer.needs())?;
                ScoredBy::Own(scorer)
            };
            let name = names.take(&path, plugin)?;
            scorers.push(WeightedScorer { name, weight: weight as f32, scorer });
        }
        let picker: Box<dyn Picker> = match &spec.picker {
            None => Box::new(MaxScore {}),
            Some(plugin) => {
                let path = format!("{path}picker");
                without_weight(&path, plugin)?;
                only_type_and_parameters(&path, plugin)?;
                with_parameters(&path, entry(&path, &PICKERS, plugin, "")?, plugin)?
            }
        };
        Ok(Profile { name: spec.name.clone(), filters, scorers, picker, destinations })
    }

    /// Index of a module, which any number of profiles may name.
    fn module(
        &mut self,
        path: &str,
        plugin: &PluginSpec,
        names: &mut Names,
    ) -> Result<usize, SpecError> {
        let name = plugin.name.as_deref().unwrap_or_default();
        check_name(&format!("{path}.name"), name)?;
        once(&format!("{path}.name"), name, &mut names.modules)?;
        let module = Module { name: name.to_owned(), is_shadow: plugin.shadow.unwrap_or_default() };
        if let Some(at) = self.modules.iter().position(|known| known.name == name) {
            if self.modules.get(at) != Some(&module) {
                let accepted = format!("what {name} has where it was named before");
                let shadow = module.is_shadow.to_string();
                return Err(SpecError::new(format!("{path}.shadow"), shadow, accepted));
            }
            return Ok(at);
        }
        if self.modules.len() == MAX_MODULES {
            let accepted = format!("at most {MAX_MODULES} modules");
            return Err(SpecError::quoted(path, name, accepted));
        }
        self.modules.push(module);
        Ok(self.modules.len() - 1)
    }

    fn read(&mut self, path: &str, plugin: &PluginSpec, needs: Needs) -> Result<(), SpecError> {
        if self.needs.add(needs) {
            return Ok(());
        }
        let accepted = "sessions to be found as the plugins before find them";
        let error = SpecError::new(format!("{path}.parameters"), "another way", accepted);
        Err(SpecError { plugin: Some(plugin.r#type.clone()), ..error })
    }

    fn handler(
        &mut self,
        spec: Option<&PluginSpec>,
        profiles: &[Profile],
    ) -> Result<Handler, SpecError> {
        const PATH: &str = "profileHandler";
        let Some(spec) = spec else {
            return match profiles {
                [_] => Ok(Handler::Single),
                _ => Err(SpecError::new(
                    PATH,
                    "nothing",
                    "type header or disagg, for several profiles",
                )),
            };
        };
        without_weight(PATH, spec)?;
        only_type_and_parameters(PATH, spec)?;
        let parameters = |error| SpecError::parameter(PATH, &spec.r#type, error);
        let profile = |key: &str, name: &str| {
            let found = profiles.iter().position(|profile| profile.name == name);
            found.ok_or_else(|| {
                let names: Vec<&str> = profiles.iter().map(|p| p.name.as_str()).collect();
                let accepted = format!("one of the profiles: {}", names.join(", "));
                parameters(ParameterError {
                    key: key.to_owned(),
                    value: format!("{name:?}"),
                    accepted,
                })
            })
        };
        match spec.r#type.as_str() {
            "single" => {
                read::<NoParameters>(spec).map_err(parameters)?;
                match profiles {
                    [_] => Ok(Handler::Single),
                    _ => Err(SpecError::quoted(
                        format!("{PATH}.type"),
                        "single",
                        "header or disagg, for several profiles",
                    )),
                }
            }
            "header" => {
                let HeaderParameters { header, default } = read(spec).map_err(parameters)?;
                let named = crate::names::header_name("header", &header);
                named.map_err(|error| parameters(error.into()))?;
                let default = match profiles {
                    [_] => 0,
                    _ => profile("default", &default)?,
                };
                let header = header.to_ascii_lowercase();
                self.needs.add(Needs { headers: vec![header.clone()], ..Needs::default() });
                Ok(Handler::Header { header, default })
            }
            "disagg" => {
                let DisaggParameters { decode, prefill, non_cached_tokens } =
                    read(spec).map_err(parameters)?;
                routing::OutOfRange::unless_within("nonCachedTokens", non_cached_tokens, 0.0..=1e9)
                    .map_err(|error| parameters(error.into()))?;
                Ok(Handler::Disagg {
                    decode: profile("decode", &decode)?,
                    prefill: profile("prefill", &prefill)?,
                    non_cached_tokens: non_cached_tokens as u64,
                })
            }
            other => {
                let accepted = "one of single, header, disagg";
                Err(SpecError::quoted(format!("{PATH}.type"), other, accepted))
            }
        }
    }
}

#[derive(Deserialize)]
struct NoParameters {}

#[derive(Deserialize)]
#[serde(default)]
struct HeaderParameters {
    header: String,
    default: String,
}

impl Default for HeaderParameters {
    fn default() -> Self {
        Self { header: "epp-profile".to_owned(), default: "decode".to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DisaggParameters {
    decode: String,
    prefill: String,
    non_cached_tokens: f64,
}

impl Default for DisaggParameters {
    fn default() -> Self {
        let (decode, prefill) = ("decode".to_owned(), "prefill".to_owned());
        Self { decode, prefill, non_cached_tokens: 0.0 }
    }
}

fn read<T: serde::de::DeserializeOwned>(spec: &PluginSpec) -> Result<T, ParameterError> {
    Ok(routing::read_parameters(spec.parameters.clone())?)
}

/// Names that one list of plugins uses.
#[derive(Default)]
struct Names {
    own: BTreeSet<String>,
    modules: BTreeSet<String>,
}

impl Names {
    /// The plugin's name in explanations.
    fn take(&mut self, path: &str, plugin: &PluginSpec) -> Result<String, SpecError> {
        let name = plugin.name.as_ref().unwrap_or(&plugin.r#type);
        if plugin.r#type != MODULE {
            let key = if plugin.name.is_some() { "name" } else { "type" };
            if plugin.shadow.is_some() {
                let accepted = format!("none, as only plugins of type {MODULE} have it");
                return Err(SpecError::new(format!("{path}.shadow"), "a value", accepted));
            }
            check_name(&format!("{path}.{key}"), name)?;
            once(&format!("{path}.{key}"), name, &mut self.own)?;
        }
        Ok(name.clone())
    }
}

fn entry<P: ?Sized>(
    path: &str,
    entries: &'static [Entry<P>],
    plugin: &PluginSpec,
    more: &str,
) -> Result<&'static Entry<P>, SpecError> {
    entries.iter().find(|entry| entry.name == plugin.r#type).ok_or_else(|| {
        let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
        let nearest = suggestion(entries, &plugin.r#type);
        let nearest = nearest.map(|name| format!("; is {name} meant?")).unwrap_or_default();
        let accepted = format!("one of {}{more}{nearest}", names.join(", "));
        SpecError::quoted(format!("{path}.type"), &plugin.r#type, accepted)
    })
}

fn with_parameters<P: ?Sized>(
    path: &str,
    entry: &Entry<P>,
    plugin: &PluginSpec,
) -> Result<Box<P>, SpecError> {
    entry
        .build(plugin.parameters.clone())
        .map_err(|error| SpecError::parameter(path, entry.name, error))
}

fn without_weight(path: &str, plugin: &PluginSpec) -> Result<(), SpecError> {
    match plugin.weight {
        None => Ok(()),
        Some(weight) => {
            let accepted = "none, as only scorers have one";
            Err(SpecError::new(format!("{path}.weight"), weight.to_string(), accepted))
        }
    }
}

fn only_type_and_parameters(path: &str, plugin: &PluginSpec) -> Result<(), SpecError> {
    let given = [("name", plugin.name.is_some()), ("shadow", plugin.shadow.is_some())];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((key, _)) => {
            Err(SpecError::new(format!("{path}.{key}"), "a value", "only type and parameters"))
        }
    }
}

/// A name that is part of a property's, a counter's and a filter's.
fn check_name(key: &str, name: &str) -> Result<(), SpecError> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(SpecError::quoted(key, name, "1..=64 characters of [a-z0-9-]"))
}

fn once(key: &str, name: &str, seen: &mut BTreeSet<String>) -> Result<(), SpecError> {
    if seen.insert(name.to_owned()) {
        return Ok(());
    }
    Err(SpecError::quoted(key, name, "each one once; it was named before"))
}
