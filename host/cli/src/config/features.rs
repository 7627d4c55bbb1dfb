//! Labels, attributes, objectives, and what modules read of them.

use std::collections::{BTreeMap, HashSet};

use feed::{MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS};
use routing::{ENGINE_ATTRIBUTES, Needs, ParameterError, SessionSource};
use scorers::SCORERS;
use serde_json::{Map, Value};

use super::Pool;
use super::check::{filled, unique, within};
use super::error::Refused;
use super::raw::{RawFeatures, RawObjective};

/// A named priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objective {
    /// The name that requests use.
    pub name: String,
    /// Higher is more important.
    pub priority: i32,
    /// The only pool whose requests may use it.
    pub pool: Option<String>,
}

/// Most objectives: they are part of intake's configuration.
const MAX_OBJECTIVES: usize = 256;

pub(super) fn objectives(
    list: Vec<RawObjective>,
    pools: &[Pool],
) -> Result<Vec<Objective>, Refused> {
    if list.len() > MAX_OBJECTIVES {
        let expected = format!("at most {MAX_OBJECTIVES} of them");
        return Err(Refused::new("objectives", list.len(), expected));
    }
    let mut seen = HashSet::new();
    let mut objectives = Vec::with_capacity(list.len());
    for (i, raw) in list.into_iter().enumerate() {
        let key = format!("objectives[{i}]");
        if let Some(pool) = &raw.pool
            && !pools.iter().any(|known| known.name == *pool)
        {
            let known: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
            let expected = format!("one of the pools: {}", known.join(", "));
            return Err(Refused::new(format!("{key}.pool"), pool, expected));
        }
        let name = filled(&format!("{key}.name"), raw.name)?;
        let of_pool = format!("{name} of pool {}", raw.pool.as_deref().unwrap_or("*"));
        unique(&format!("{key}.name"), &of_pool, &mut seen)?;
        let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
        let priority = within(&format!("{key}.priority"), raw.priority, min, max)?;
        objectives.push(Objective { name, priority, pool: raw.pool });
    }
    Ok(objectives)
}

/// Labels as Kubernetes has them.
pub(super) fn labels(
    key: &str,
    labels: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Refused> {
    few(key, labels.len())?;
    for (name, value) in &labels {
        label_name(key, name)?;
        if !(value.is_empty() || is_label(value)) {
            let expected = format!(
                "at most {MAX_LABEL_VALUE_BYTES} of [A-Za-z0-9-_.], first and last a letter or digit"
            );
            return Err(Refused::new(format!("{key}.{name}"), value, expected));
        }
    }
    Ok(labels)
}

/// Numbers by names like those of labels.
pub(super) fn attributes(
    key: &str,
    attributes: BTreeMap<String, f64>,
) -> Result<BTreeMap<String, f32>, Refused> {
    few(key, attributes.len())?;
    let mut checked = BTreeMap::new();
    for (name, value) in attributes {
        attribute_name(key, &name)?;
        let number = value as f32;
        if !number.is_finite() {
            return Err(Refused::new(format!("{key}.{name}"), value, "a finite number of 32 bits"));
        }
        checked.insert(name, number);
    }
    Ok(checked)
}

/// Adds what modules read by `routing.features`.
pub(super) fn add(raw: RawFeatures, needs: &mut Needs) -> Result<(), Refused> {
    let key = |name: &str| format!("routing.features.{name}");
    for (name, list) in
        [("headers", &raw.headers), ("labels", &raw.labels), ("attributes", &raw.attributes)]
    {
        few(&key(name), list.len())?;
        let mut seen = HashSet::new();
        list.iter().try_for_each(|item| unique(&key(name), item, &mut seen))?;
    }
    raw.labels.iter().try_for_each(|name| label_name(&key("labels"), name))?;
    raw.attributes.iter().try_for_each(|name| attribute_name(&key("attributes"), name))?;
    raw.headers.iter().try_for_each(|name| header_name(&key("headers"), name))?;
    let session = match raw.session {
        Some(parameters) => session(&key("session"), parameters)?,
        None => None,
    };
    let RawFeatures { headers, labels, attributes, request_control, rates, .. } = raw;
    if !needs.add(Needs { headers, labels, attributes, request_control, rates, session }) {
        let expected = "sessions to be found as the plugins find them, or no such key";
        return Err(Refused::new(key("session"), "another way", expected));
    }
    // The gateway refuses more, and counts those of built-in plugins too.
    for (name, all) in
        [("headers", &needs.headers), ("labels", &needs.labels), ("attributes", &needs.attributes)]
    {
        if all.len() > MAX_LABELS {
            let expected = format!("at most {MAX_LABELS} with those that plugins read");
            return Err(Refused::new(key(name), all.len(), expected));
        }
    }
    Ok(())
}

/// How sessions are found, from parameters as the plugin `session-affinity` has them.
fn session(key: &str, parameters: Map<String, Value>) -> Result<Option<SessionSource>, Refused> {
    let Some(plugin) = SCORERS.iter().find(|scorer| scorer.name == "session-affinity") else {
        return Ok(None);
    };
    match plugin.build(parameters) {
        Ok(built) => Ok(built.needs().session),
        Err(ParameterError { key: of, value, accepted }) => {
            let key = if of.is_empty() { key.to_owned() } else { format!("{key}.{of}") };
            Err(Refused { key, value, expected: accepted })
        }
    }
}

fn few(key: &str, count: usize) -> Result<(), Refused> {
    if count <= MAX_LABELS {
        return Ok(());
    }
    Err(Refused::new(key, count, format!("at most {MAX_LABELS} of them")))
}

/// First and last a letter or digit, between them also `-_.`.
fn is_label(text: &str) -> bool {
    let is_end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL_VALUE_BYTES
        && is_end(text.bytes().next())
        && is_end(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn label_name(key: &str, name: &str) -> Result<(), Refused> {
    let (prefix, own) = name.rsplit_once('/').map_or((None, name), |(p, own)| (Some(p), own));
    let is_domain = |domain: &str| {
        (1..=253).contains(&domain.len())
            && domain
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    if name.len() <= MAX_LABEL_KEY_BYTES && is_label(own) && prefix.is_none_or(is_domain) {
        return Ok(());
    }
    Err(Refused::new(key, name, "names of labels as Kubernetes has them, like \"llm-d.ai/role\""))
}

fn attribute_name(key: &str, name: &str) -> Result<(), Refused> {
    if ENGINE_ATTRIBUTES.contains(&name) {
        let expected = "another name: every endpoint has this one, from its metrics";
        return Err(Refused::new(key, name, expected));
    }
    label_name(key, name)
}

fn header_name(key: &str, name: &str) -> Result<(), Refused> {
    let is_part =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    if (1..=128).contains(&name.len()) && name.bytes().all(is_part) {
        return Ok(());
    }
    Err(Refused::new(key, name, "a header's name in lower case, at most 128 bytes"))
}
