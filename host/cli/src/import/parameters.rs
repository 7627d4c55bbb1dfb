//! From a plugin's parameters to ours.

use serde_json::{Map, Value as Json, json};

use super::catalog::{Fate, Parameter, Shape};
use super::epp::{Plugin, duration_ms};
use super::node::{Node, Value};

/// Our parameters of one plugin.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Converted {
    pub parameters: Map<String, Json>,
    /// `key: why` of what has no counterpart and is not the default.
    pub losses: Vec<String>,
    /// Nothing does what the plugin is configured for; why.
    pub impossible: Option<String>,
}

/// What the table keeps, with what the type's own rules change about it.
pub(super) fn convert(plugin: &Plugin) -> Converted {
    let mut converted = Converted::default();
    let Some(entry) = plugin.entry else { return converted };
    converted.parameters = keep(&plugin.parameters, entry.parameters, "", &mut converted.losses);
    match entry.name {
        "decode-filter" | "prefill-filter" | "encode-filter" => {
            let role = entry.name.trim_end_matches("-filter");
            converted.parameters.insert("role".into(), role.into());
        }
        "by-label" => by_label(&plugin.parameters, &mut converted),
        "session-affinity-scorer" | "session-affinity-filter" => {
            session(&plugin.parameters, &mut converted);
        }
        "endpoint-attribute-filter" => attribute_filter(&mut converted),
        "utilization-detector" => utilization(&plugin.parameters, &mut converted),
        "concurrency-detector" => concurrency(&plugin.parameters, &mut converted),
        _ => {}
    }
    converted
}

fn keep(
    node: &Node,
    known: &'static [Parameter],
    path: &str,
    losses: &mut Vec<String>,
) -> Map<String, Json> {
    let mut kept = Map::new();
    let Value::Map(entries) = &node.value else { return kept };
    for (key, value) in entries {
        let Some(parameter) = known.iter().find(|parameter| parameter.name == key.name) else {
            continue;
        };
        if value.value == Value::Null {
            continue;
        }
        let path = format!("{path}{}", key.name);
        match parameter.fate {
            Fate::Read => {}
            Fate::Lost(why) => {
                if !is_default(value, parameter) {
                    losses.push(format!("{path}: {why}"));
                }
            }
            Fate::Kept => {
                kept.insert(key.name.clone(), kept_value(value, &parameter.shape, &path, losses));
            }
        }
    }
    kept
}

fn kept_value(value: &Node, shape: &'static Shape, path: &str, losses: &mut Vec<String>) -> Json {
    match (shape, &value.value) {
        (Shape::Object(known), _) => Json::Object(keep(value, known, &format!("{path}."), losses)),
        (Shape::Each(shape), Value::List(items)) => {
            items.iter().map(|item| kept_value(item, shape, path, losses)).collect()
        }
        _ => number(value.json()),
    }
}

/// 2 rather than 2.0.
fn number(json: Json) -> Json {
    match json.as_f64() {
        Some(it) if json.is_f64() && it.fract() == 0.0 && it.abs() < 1e15 => json!(it as i64),
        _ => json,
    }
}

fn is_default(value: &Node, parameter: &Parameter) -> bool {
    let Ok(default) = serde_json::from_str::<Json>(parameter.default) else { return false };
    let said = value.json();
    let ms = |json: &Json| match json {
        Json::String(text) => duration_ms(text),
        // Go's own unit of a duration.
        other => other.as_f64().map(|ns| ns / 1e6),
    };
    match (&parameter.shape, said.as_f64(), default.as_f64()) {
        (Shape::Duration, ..) => ms(&said) == ms(&default),
        (_, Some(said), Some(default)) => said == default,
        _ => said == default,
    }
}

/// `{label, validValues}` is a selector of one expression.
fn by_label(parameters: &Node, converted: &mut Converted) {
    let label = parameters.get("label").and_then(Node::text).unwrap_or_default();
    let values = parameters.get("validValues").map_or(json!([]), Node::json);
    let expression = json!([{"key": label, "operator": "In", "values": values}]);
    converted.parameters.insert("matchExpressions".into(), expression);
}

/// The parameters that session affinity had before v0.10 are written as those it has now.
fn session(parameters: &Node, converted: &mut Converted) {
    let text = |name: &str| parameters.get(name).and_then(Node::text);
    let ours = &mut converted.parameters;
    let is_by_id = text("algorithm") == Some("session_id_header");
    if is_by_id {
        ours.insert("strategy".into(), "session_id".into());
        // One header served both algorithms, and bindings lived for ten minutes.
        let header = text("headerName").unwrap_or("x-session-token");
        let ttl = parameters.get("evictionTtlSeconds").map_or(json!(600), Node::json);
        ours.insert(
            "sessionIdConfig".into(),
            json!({"sources": [{"header": header}], "evictionTtlSeconds": number(ttl)}),
        );
    } else if let Some(header) = text("headerName") {
        ours.insert("encodedEndpointHeaderConfig".into(), json!({"header": header}));
    }
    // Sources that are no header are gone; none at all is none of ours.
    if let Some(sources) =
        ours.get_mut("sessionIdConfig").and_then(|config| config.get_mut("sources"))
        && let Some(list) = sources.as_array_mut()
    {
        list.retain(|source| source.get("header").is_some());
        if list.is_empty() {
            converted.impossible =
                Some("sessions are read from headers, and no source is one".to_owned());
        }
    }
}

fn attribute_filter(converted: &mut Converted) {
    let algorithm = converted.parameters.get("algorithm").and_then(|it| it.get("type"));
    if let Some(kind) = algorithm.and_then(Json::as_str).filter(|kind| *kind != "threshold") {
        converted.impossible = Some(format!(
            "algorithm {kind}: only threshold is known here; a module may be a filter"
        ));
    }
}

/// The detector as a filter: its two limits, everyone if nobody is below them.
fn utilization(parameters: &Node, converted: &mut Converted) {
    let headroom = 1.0 + float(parameters, "headroom", 0.0);
    let waiting = float(parameters, "queueDepthThreshold", 5.0) * headroom;
    let usage = (float(parameters, "kvCacheUtilThreshold", 0.8) * headroom).min(1.0);
    let conditions = [("waiting-queue", waiting), ("kv-cache-utilization", usage)];
    limits(&conditions, converted);
}

fn concurrency(parameters: &Node, converted: &mut Converted) {
    let mode = ["concurrencyMode", "mode"]
        .into_iter()
        .find_map(|name| parameters.get(name).and_then(Node::text));
    let headroom = 1.0 + float(parameters, "headroom", 0.0);
    match mode.unwrap_or("requests") {
        "tokens" => {
            converted.impossible =
                Some("no filter bounds tokens in flight; the scorer token-load weighs them".into());
        }
        mode => {
            if mode == "hybrid" {
                converted.losses.push("concurrencyMode: requests are bounded, not tokens".into());
            }
            // An endpoint is out from its limit on, ours above the greatest value within.
            let most = (float(parameters, "maxConcurrency", 100.0) * headroom).ceil() - 1.0;
            limits(&[("active-requests", most)], converted);
        }
    }
}

fn limits(conditions: &[(&str, f64)], converted: &mut Converted) {
    // What is left of a product's rounding would be written out.
    let rounded = |most: f64| number(json!((most * 1e9).round() / 1e9));
    let conditions: Vec<Json> = conditions
        .iter()
        .map(|(metric, most)| json!({"metric": metric, "maxValue": rounded(*most)}))
        .collect();
    converted.parameters.insert("conditions".into(), conditions.into());
    converted.parameters.insert("fallbackOnEmpty".into(), true.into());
}

fn float(parameters: &Node, name: &str, default: f64) -> f64 {
    parameters.get(name).and_then(|node| node.json().as_f64()).unwrap_or(default)
}

pub(super) fn integer(parameters: &Node, path: &[&str]) -> Option<(i64, u64)> {
    let node = path.iter().try_fold(parameters, |node, name| node.get(name))?;
    match node.value {
        Value::Integer(it) => Some((it, node.line)),
        _ => None,
    }
}
