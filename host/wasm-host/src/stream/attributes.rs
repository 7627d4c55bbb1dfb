//! Properties of a stream by path, as `proxy_get_property` finds them.

use super::data::{Direction, StreamData};
use super::local_reply::grpc_status;
use crate::abi::Status;
use crate::headers::HeaderMap;
use crate::plugin::PluginConfig;
use crate::property::{Value, parts};
use std::collections::BTreeMap;

/// Names that Envoy answers to itself; any other is a guest's own property.
const ATTRIBUTES: [&[u8]; 11] = [
    b"request",
    b"response",
    b"connection",
    b"source",
    b"destination",
    b"upstream",
    b"metadata",
    b"filter_state",
    b"upstream_filter_state",
    b"xds",
    b"node",
];

/// Attributes that have attributes, and are there in every phase.
const OBJECTS: [&[u8]; 2] = [b"request", b"xds"];

/// Bytes of the property at `path`, for the filter in `slot` if there is a stream.
pub(crate) fn get(
    plugin: &PluginConfig,
    stream: Option<(&mut StreamData, usize)>,
    host: &Value,
    path: &[u8],
) -> Result<Vec<u8>, Status> {
    let parts = parts(path);
    let Some((first, rest)) = parts.split_first() else {
        return Err(Status::SerializationFailure);
    };
    let mut state = None;
    // What is an object of Envoy's own has no bytes as a whole; with a stream they are all there.
    if stream.is_some() && rest.is_empty() && OBJECTS.contains(first) {
        return Err(Status::SerializationFailure);
    }
    if let Some((data, slot)) = stream {
        data.choose_route();
        for given in [Some(&data.attributes), data.route.as_ref()].into_iter().flatten() {
            if let Some(value) = walk(given, &parts) {
                return Ok(value.serialize());
            }
        }
        if let Some(value) = computed(data, slot, &parts) {
            return Ok(value.serialize());
        }
        let mut name = b"wasm.".to_vec();
        name.extend_from_slice(first);
        state = data.filter_state.get(&name).map(|property| property.value.clone());
    }
    if let Some(value) = walk(host, &parts) {
        return Ok(value.serialize());
    }
    match (*first, rest) {
        (b"plugin_name", []) => Ok(plugin.name.clone().into_bytes()),
        (b"plugin_root_id", []) => Ok(plugin.root_id.clone().into_bytes()),
        (b"plugin_vm_id", []) => Ok(plugin.vm_id.clone().into_bytes()),
        // Envoy looks at the first part only, so a property with more of them can be set, not read.
        (first, []) if !ATTRIBUTES.contains(&first) => state.ok_or(Status::NotFound),
        _ => Err(Status::NotFound),
    }
}

fn walk<'a>(value: &'a Value, parts: &[&[u8]]) -> Option<&'a Value> {
    parts.iter().try_fold(value, |value, part| value.step(part))
}

fn computed(data: &StreamData, slot: usize, parts: &[&[u8]]) -> Option<Value> {
    match parts {
        [b"request", rest @ ..] => request(data, slot, rest),
        [b"response", rest @ ..] => response(data, slot, rest),
        [b"connection", b"id"] | [b"connection_id"] => Some(Value::Uint(data.connection_id)),
        [b"connection", b"mtls"] => Some(Value::Bool(false)),
        [b"filter_state", name] => Some(Value::Bytes(data.filter_state.get(*name)?.value.clone())),
        _ => None,
    }
}

/// The headers that a filter can see in this phase.
fn visible(data: &StreamData, slot: usize, direction: Direction) -> Option<&HeaderMap> {
    let (pipe, sides) = (&data.pipes[direction as usize], &data.filters.get(slot)?.sides);
    let sees = sides[direction as usize].sees_headers || data.logging;
    pipe.headers.as_ref().filter(|_| sees)
}

fn map(headers: &HeaderMap) -> Value {
    let mut map = BTreeMap::new();
    for (name, value) in headers.iter() {
        // Several values of one name are one, as in Envoy's attributes.
        let entry = map.entry(name.to_vec()).or_insert_with(Vec::new);
        if !entry.is_empty() {
            entry.push(b',');
        }
        entry.extend_from_slice(value);
    }
    Value::Map(map.into_iter().map(|(name, value)| (name, Value::Bytes(value))).collect())
}

/// All headers or one, by its name in any case of letters; none at all where a filter sees none.
fn of_map(headers: Option<&HeaderMap>, parts: &[&[u8]]) -> Option<Value> {
    let headers = headers.map_or_else(Value::map, map);
    match parts {
        [name] => headers.step(&name.to_ascii_lowercase()).cloned(),
        _ => walk(&headers, parts).cloned(),
    }
}

fn request(data: &StreamData, slot: usize, parts: &[&[u8]]) -> Option<Value> {
    let headers = visible(data, slot, Direction::Request);
    let named = |name: &str| Some(Value::from(headers?.get(name)?));
    match parts {
        [b"time"] => Some(Value::Int(i64::try_from(data.start_ns).unwrap_or(i64::MAX))),
        [b"protocol"] => Some("HTTP/1.1".into()),
        [b"size"] => {
            let announced = headers.and_then(|headers| headers.get_str("content-length"));
            let announced = announced.and_then(|length| length.parse::<i64>().ok());
            let received = i64::try_from(data.pipes[0].received).unwrap_or(i64::MAX);
            Some(Value::Int(announced.unwrap_or(received)))
        }
        [b"total_size"] => {
            let received = i64::try_from(data.pipes[0].received).unwrap_or(i64::MAX);
            let headers = headers.map_or(0, HeaderMap::byte_size);
            Some(Value::Int(received.saturating_add(i64::try_from(headers).unwrap_or(0))))
        }
        [b"path"] => named(":path"),
        [b"host"] => named(":authority"),
        [b"method"] => named(":method"),
        [b"scheme"] => named(":scheme"),
        [b"id"] => named("x-request-id"),
        [b"useragent"] => named("user-agent"),
        [b"referer"] => named("referer"),
        [b"url_path"] => {
            let path = headers?.get(":path")?;
            Some(Value::from(path.split(|byte| *byte == b'?').next().unwrap_or(path)))
        }
        [b"query"] => {
            let path = headers?.get(":path")?;
            let at = path.iter().position(|byte| *byte == b'?');
            Some(Value::from(at.and_then(|at| path.get(at + 1..)).unwrap_or(b"")))
        }
        [b"headers", rest @ ..] => of_map(headers, rest),
        _ => None,
    }
}

fn response(data: &StreamData, slot: usize, parts: &[&[u8]]) -> Option<Value> {
    match parts {
        [b"code"] => Some(Value::Int(i64::from(data.response_code?))),
        [b"code_details"] => Some(data.outcome.details.clone()?.into()),
        [b"flags"] => Some(Value::Int(0)),
        // Of any response: where nothing says it, it is made of the status.
        [b"grpc_status"] => {
            let said = [&data.pipes[1].trailers, &data.pipes[1].headers].into_iter().flatten();
            let said = said.filter_map(|map| map.get_str("grpc-status")).next();
            let code = data.response_code?;
            Some(Value::Int(match said {
                Some(said) => said.parse().unwrap_or(-1),
                None => i64::from(grpc_status(code)),
            }))
        }
        [b"size"] => {
            let sent = data.taken_response_bytes + data.outcome.downstream.body.len();
            Some(Value::Int(i64::try_from(sent).unwrap_or(i64::MAX)))
        }
        [b"headers", rest @ ..] => of_map(visible(data, slot, Direction::Response), rest),
        [b"trailers", rest @ ..] => {
            let sees = data.filters.get(slot)?.sides[1].sees_trailers || data.logging;
            let trailers = data.pipes[1].trailers.as_ref().filter(|_| sees)?;
            of_map(Some(trailers), rest)
        }
        _ => None,
    }
}
