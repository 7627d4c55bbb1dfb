//! Log, clock, properties, contexts, streams, foreign functions.

use super::Status;
use super::call::{Call, Done, Fail};
use super::pairs;
use crate::foreign::{self, FILTER_STATE_FACTORIES};
use crate::state::events::{Event, EventKind};
use crate::state::lock;
use crate::state::logs::LogLevel;
use crate::stream::LocalReply;
use crate::stream::attributes;
use crate::stream::data::{Direction, Property};
use crate::vm::Action;
use std::sync::Arc;

pub(crate) fn log(call: &mut Call<'_>, level: u32, ptr: u32, len: u32) -> Done {
    let level = LogLevel::from_raw(level).ok_or(Status::BadArgument)?;
    let most = call.shared().logs.line_bytes();
    let text = call.read_start(ptr, len, most)?;
    call.log(level, &text);
    Ok(())
}

pub(crate) fn get_log_level(call: &mut Call<'_>, level_ptr: u32) -> Done {
    let level = call.shared().logs.level as u32;
    Ok(call.write_u32(level_ptr, level)?)
}

pub(crate) fn get_current_time_nanoseconds(call: &mut Call<'_>, time_ptr: u32) -> Done {
    let now = call.shared().wall_ns;
    Ok(call.write_u64(time_ptr, now)?)
}

pub(crate) fn get_status(
    call: &mut Call<'_>,
    code_ptr: u32,
    message_ptr_ptr: u32,
    message_len_ptr: u32,
) -> Done {
    let (code, message) = call.state().current().map_or((0, Vec::new()), |c| c.status.clone());
    call.write_u32(code_ptr, code)?;
    call.give(&message, message_ptr_ptr, message_len_ptr)
}

pub(crate) fn get_property(
    call: &mut Call<'_>,
    path_ptr: u32,
    path_len: u32,
    value_ptr_ptr: u32,
    value_len_ptr: u32,
) -> Done {
    let path = call.read(path_ptr, path_len)?;
    let plugin = call.state().current().map(|context| Arc::clone(&context.plugin));
    let plugin = plugin.ok_or(Status::NotFound)?;
    let stream = call.stream();
    let host = Arc::clone(&call.shared().attributes);
    let value = match stream {
        Some((stream, slot)) => {
            attributes::get(&plugin, Some((&mut lock(&stream), slot)), &host, &path)?
        }
        None => attributes::get(&plugin, None, &host, &path)?,
    };
    call.give(&value, value_ptr_ptr, value_len_ptr)
}

pub(crate) fn set_property(
    call: &mut Call<'_>,
    path_ptr: u32,
    path_len: u32,
    value_ptr: u32,
    value_len: u32,
) -> Done {
    let path = call.read(path_ptr, path_len)?;
    let value = call.read(value_ptr, value_len)?;
    let (stream, _) = call.stream().ok_or(Status::NotFound)?;
    let readonly = call.state().root().and_then(|root| root.declared.get(&path).copied());
    let mut name = b"wasm.".to_vec();
    name.extend_from_slice(&path);
    let mut stream = lock(&stream);
    let old =
        stream.filter_state.get(&name).map(|property| (property.readonly, property.value.len()));
    if old.is_some_and(|(readonly, _)| readonly) {
        return Err(Status::BadArgument.into());
    }
    match old {
        Some((_, len)) => stream.retain(value.len().saturating_sub(len))?,
        None => stream.retain(name.len() + value.len())?,
    }
    let readonly = readonly.unwrap_or(false);
    stream.filter_state.insert(name, Property { value, readonly });
    Ok(())
}

pub(crate) fn set_effective_context(call: &mut Call<'_>, context: u32) -> Done {
    // The context of the module itself, 0, is there too, and is as good as none.
    if context != 0 && !call.state().contexts.contains_key(&context) {
        return Err(Status::BadArgument.into());
    }
    call.state().effective = context;
    Ok(())
}

pub(crate) fn done(call: &mut Call<'_>) -> Done {
    let id = call.state().current_id();
    let context = call.state().contexts.get_mut(&id).ok_or(Status::NotFound)?;
    let root = context.as_root().filter(|root| root.pending_done).ok_or(Status::NotFound)?;
    root.pending_done = false;
    act(call, Action::Delete { root: id })
}

pub(crate) fn set_tick_period_milliseconds(call: &mut Call<'_>, period_ms: u32) -> Done {
    let (vm, id) = (call.state().uid, call.state().root_id());
    let root = call.state().root().ok_or(Status::BadArgument)?;
    root.tick_period_ms = period_ms;
    root.tick_generation += 1;
    let generation = root.tick_generation;
    if period_ms > 0 {
        let mut shared = call.shared();
        if shared.events.len() >= shared.limits.pending {
            return Err(Status::InternalFailure.into());
        }
        let due = shared.monotonic_ns.saturating_add(u64::from(period_ms) * 1_000_000);
        shared.events.push(due, Event { vm, root: id, kind: EventKind::Tick { generation } });
    }
    Ok(())
}

pub(crate) fn continue_stream(call: &mut Call<'_>, kind: u32) -> Done {
    let direction = match kind {
        0 => Direction::Request,
        1 => Direction::Response,
        // Of a TCP filter: there is no such stream, which Envoy does not mind.
        2 => return Ok(()),
        3 => return Err(Status::Unimplemented.into()),
        _ => return Err(Status::BadArgument.into()),
    };
    let Some((stream, slot)) = call.stream() else { return Ok(()) };
    let id = lock(&stream).id;
    act(call, Action::Continue { stream: id, slot, direction })?;
    // Whichever direction it is, as in Envoy.
    if let Some(side) = lock(&stream).side(slot, Direction::Request) {
        (side.sees_headers, side.sees_trailers, side.body) = (false, false, None);
    }
    Ok(())
}

pub(crate) fn close_stream(call: &mut Call<'_>, kind: u32) -> Done {
    match kind {
        0 | 1 => {}
        2 | 3 => return Ok(()),
        _ => return Err(Status::BadArgument.into()),
    }
    let Some((stream, _)) = call.stream() else { return Ok(()) };
    let mut stream = lock(&stream);
    if stream.outcome.details.is_none() {
        stream.outcome.details = Some("wasm_close_stream".to_owned());
    }
    act(call, Action::Reset { stream: stream.id })
}

#[expect(clippy::too_many_arguments, reason = "the ABI has as many")]
pub(crate) fn send_local_response(
    call: &mut Call<'_>,
    code: u32,
    details_ptr: u32,
    details_len: u32,
    body_ptr: u32,
    body_len: u32,
    headers_ptr: u32,
    headers_len: u32,
    grpc_status: u32,
) -> Done {
    let details = call.read(details_ptr, details_len)?;
    let body = call.read(body_ptr, body_len)?;
    let headers = call.read(headers_ptr, headers_len)?;
    let headers = pairs::decode(&headers);
    if let Some((stream, slot)) = call.stream() {
        let mut stream = lock(&stream);
        let id = stream.id;
        stream.retain(body.len())?;
        drop(stream);
        let details = String::from_utf8_lossy(&details);
        let reply = LocalReply {
            status: u16::try_from(code).unwrap_or(u16::MAX),
            headers,
            body,
            grpc_status: Some(grpc_status.cast_signed()).filter(|status| *status >= 0),
            details: details.replace(char::is_whitespace, "_"),
        };
        act(call, Action::LocalReply { stream: id, slot, reply })?;
    }
    call.state().stop_iteration = true;
    Ok(())
}

pub(crate) fn call_foreign_function(
    call: &mut Call<'_>,
    name_ptr: u32,
    name_len: u32,
    argument_ptr: u32,
    argument_len: u32,
    result_ptr_ptr: u32,
    result_len_ptr: u32,
) -> Done {
    let name = call.read(name_ptr, name_len)?;
    let argument = call.read(argument_ptr, argument_len)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    let function = call.shared().foreign.get(&name).cloned();
    let result = match function {
        Some(function) => function(&argument),
        None => builtin(call, &name, &argument),
    };
    let bytes = result.as_ref().map_or(&[][..], Vec::as_slice);
    // A guest that does not want the result passes null.
    if result_ptr_ptr != 0 && result_len_ptr != 0 {
        call.give(bytes, result_ptr_ptr, result_len_ptr)?;
    }
    result.map(|_| ()).map_err(Fail::Status)
}

fn builtin(call: &mut Call<'_>, name: &str, argument: &[u8]) -> Result<Vec<u8>, Status> {
    match name {
        "clear_route_cache" => {
            if let Some((stream, _)) = call.stream() {
                lock(&stream).clear_route();
            }
        }
        "declare_property" => {
            let declared = foreign::property_declaration(argument).ok_or(Status::BadArgument)?;
            let limit = call.shared().limits.metrics;
            let root = call.state().root().ok_or(Status::BadArgument)?;
            if root.declared.len() >= limit {
                return Err(Status::InternalFailure);
            }
            if root.declared.contains_key(&declared.name) {
                return Err(Status::BadArgument);
            }
            root.declared.insert(declared.name, declared.readonly);
        }
        "set_envoy_filter_state" => {
            let state = foreign::filter_state_argument(argument).ok_or(Status::BadArgument)?;
            if !FILTER_STATE_FACTORIES.contains(&state.path.as_slice()) {
                return Err(Status::NotFound);
            }
            let (stream, _) = call.stream().ok_or(Status::NotFound)?;
            let mut stream = lock(&stream);
            stream.retain(state.value.len())?;
            let property = Property { value: state.value, readonly: false };
            stream.filter_state.insert(state.path, property);
        }
        _ => return Err(Status::NotFound),
    }
    Ok(Vec::new())
}

fn act(call: &mut Call<'_>, action: Action) -> Done {
    if call.state().act(action) { Ok(()) } else { Err(Status::InternalFailure.into()) }
}
