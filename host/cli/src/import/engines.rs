//! What the file says of the engines, for the skeleton.

use super::epp::{Epp, duration_ms};
use super::node::{Node, Value};
use super::parameters::integer;

/// What the file says of the engines, for the skeleton.
#[derive(Debug, Default)]
pub(super) struct Engines {
    pub model: Option<String>,
    pub is_sglang: bool,
    pub event_port: Option<i64>,
    pub replay_port: Option<i64>,
    /// Where engines connect by themselves.
    pub listen_port: Option<u16>,
}

pub(super) fn engines(epp: &Epp) -> Engines {
    let mut engines = Engines::default();
    let tokens = epp.of_type("token-producer").chain(epp.of_type("tokenizer"));
    engines.model = tokens
        .filter_map(|plugin| plugin.parameters.get("modelName").and_then(Node::text))
        .map(str::to_owned)
        .next();
    let Some(precise) = epp.precise().next() else { return engines };
    let events = precise.parameters.get("kvEventsConfig");
    let pods = [events, Some(&precise.parameters), precise.parameters.get("indexerConfig")]
        .into_iter()
        .flatten()
        .find_map(|node| node.get("podDiscoveryConfig"));
    let port = |name: &str| {
        let it = pods.and_then(|pods| integer(pods, &[name]))?.0;
        (1..=65_535).contains(&it).then_some(it)
    };
    engines.event_port = Some(port("socketPort").unwrap_or(5557));
    engines.replay_port = port("replaySocketPort");
    let says = |node: Option<&Node>| {
        node.and_then(|node| node.get("engineType")).and_then(Node::text) == Some("sglang")
    };
    engines.is_sglang = says(events) || says(pods);
    let listens = events.and_then(|events| events.get("zmqEndpoint")).and_then(Node::text);
    engines.listen_port = listens.and_then(|endpoint| endpoint.rsplit_once(':')?.1.parse().ok());
    engines
}

pub(super) fn metrics_interval(epp: &Epp) -> Option<u64> {
    let source = epp.of_type("metrics-data-source").next()?;
    let said = source.parameters.get("interval")?;
    let ms = match &said.value {
        Value::Text(text) => duration_ms(text)?,
        Value::Integer(ns) => *ns as f64 / 1e6,
        _ => return None,
    };
    // Our range.
    Some(ms.clamp(10.0, 60_000.0) as u64)
}
