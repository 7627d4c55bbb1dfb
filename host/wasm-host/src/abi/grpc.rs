//! gRPC callouts: calls of one message, and streams.

use super::Status;
use super::call::{Call, Done};
use super::callouts::later;
use super::pairs;
use crate::state::events::{Event, EventKind};
use crate::upstreams::{GrpcCall, GrpcEvent, Schedule};
use crate::vm::context::GrpcStream;
use crate::vm::state::CallKind;
use std::time::Duration;

/// gRPC's UNAVAILABLE, which is what Envoy makes of its own 504.
const UNAVAILABLE: u32 = 14;

struct Opening {
    target: Vec<u8>,
    service: Vec<u8>,
    method: Vec<u8>,
    metadata: Vec<u8>,
    message: Vec<u8>,
    timeout_ms: u32,
    kind: CallKind,
}

#[expect(clippy::too_many_arguments, reason = "the ABI has as many")]
pub(crate) fn grpc_call(
    call: &mut Call<'_>,
    target_ptr: u32,
    target_len: u32,
    service_ptr: u32,
    service_len: u32,
    method_ptr: u32,
    method_len: u32,
    metadata_ptr: u32,
    metadata_len: u32,
    message_ptr: u32,
    message_len: u32,
    timeout_ms: u32,
    token_ptr: u32,
) -> Done {
    let opening = Opening {
        target: call.read(target_ptr, target_len)?,
        service: call.read(service_ptr, service_len)?,
        method: call.read(method_ptr, method_len)?,
        metadata: call.read(metadata_ptr, metadata_len)?,
        message: call.read(message_ptr, message_len)?,
        timeout_ms,
        kind: CallKind::GrpcCall,
    };
    let token = open(call, opening)?;
    Ok(call.write_u32(token_ptr, token)?)
}

#[expect(clippy::too_many_arguments, reason = "the ABI has as many")]
pub(crate) fn grpc_stream(
    call: &mut Call<'_>,
    target_ptr: u32,
    target_len: u32,
    service_ptr: u32,
    service_len: u32,
    method_ptr: u32,
    method_len: u32,
    metadata_ptr: u32,
    metadata_len: u32,
    token_ptr: u32,
) -> Done {
    let opening = Opening {
        target: call.read(target_ptr, target_len)?,
        service: call.read(service_ptr, service_len)?,
        method: call.read(method_ptr, method_len)?,
        metadata: call.read(metadata_ptr, metadata_len)?,
        message: Vec::new(),
        timeout_ms: 0,
        kind: CallKind::GrpcStream,
    };
    let token = open(call, opening)?;
    Ok(call.write_u32(token_ptr, token)?)
}

/// Cluster of a target: its name, or that in `GrpcService.envoy_grpc.cluster_name` (fields 1, 1).
fn cluster(target: &[u8]) -> Option<String> {
    let inner = |bytes: &[u8]| -> Option<Vec<u8>> {
        match bytes {
            [0x0a, len, rest @ ..] if *len < 0x80 => Some(rest.get(..usize::from(*len))?.to_vec()),
            _ => None,
        }
    };
    let name = inner(target).and_then(|service| inner(&service));
    String::from_utf8(name.unwrap_or_else(|| target.to_vec())).ok()
}

fn open(call: &mut Call<'_>, opening: Opening) -> Result<u32, Status> {
    let known = cluster(&opening.target)
        .is_some_and(|cluster| call.shared().upstreams.has_cluster(&cluster));
    if !known {
        return Err(Status::ParseFailure);
    }
    let limit = call.shared().limits.pending;
    let pending = call.shared().events.len();
    let root = call.state().root().ok_or(Status::BadArgument)?;
    if root.grpc_calls.len().max(root.grpc_streams.len()).max(pending) >= limit {
        return Err(Status::InternalFailure);
    }
    let token = call.state().next_call(opening.kind);
    let timeout = Duration::from_millis(u64::from(opening.timeout_ms));
    let timeout = (!timeout.is_zero()).then_some(timeout);
    let request = GrpcCall {
        target: opening.target,
        service: String::from_utf8_lossy(&opening.service).into_owned(),
        method: String::from_utf8_lossy(&opening.method).into_owned(),
        metadata: pairs::decode(&opening.metadata).into_iter().collect(),
        message: opening.message,
        timeout,
        token,
    };
    let mut events = match opening.kind {
        CallKind::GrpcStream => call.shared().upstreams.grpc_open(&request),
        _ => call.shared().upstreams.grpc_call(&request),
    };
    if let Some(after) = timeout {
        let message = "upstream request timeout".to_owned();
        events.push((after, GrpcEvent::Close { status: UNAVAILABLE, message }));
    }
    if let Some(root) = call.state().root() {
        match opening.kind {
            CallKind::GrpcStream => {
                root.grpc_streams.insert(token, GrpcStream::default());
            }
            _ => {
                root.grpc_calls.insert(token);
            }
        }
    }
    schedule(call, token, events);
    Ok(token)
}

fn schedule(call: &mut Call<'_>, token: u32, events: Schedule<GrpcEvent>) {
    let (vm, root) = (call.state().uid, call.state().root_id());
    let mut shared = call.shared();
    let now = shared.monotonic_ns;
    for (after, event) in events {
        let kind = EventKind::Grpc { token, event };
        shared.events.push(later(now, after), Event { vm, root, kind });
    }
}

fn is(token: u32, kind: CallKind) -> bool {
    token & 3 == kind as u32
}

pub(crate) fn grpc_send(
    call: &mut Call<'_>,
    token: u32,
    message_ptr: u32,
    message_len: u32,
    end_of_stream: u32,
) -> Done {
    let message = call.read(message_ptr, message_len)?;
    if !is(token, CallKind::GrpcStream) {
        return Err(Status::BadArgument.into());
    }
    let root = call.state().root().ok_or(Status::BadArgument)?;
    let stream = root.grpc_streams.get(&token).ok_or(Status::NotFound)?;
    if stream.local_closed || stream.remote_closed {
        return Ok(());
    }
    let limit = call.shared().limits.pending;
    if call.shared().events.len() >= limit {
        return Err(Status::InternalFailure.into());
    }
    let events = call.shared().upstreams.grpc_message(token, &message, end_of_stream != 0);
    schedule(call, token, events);
    Ok(())
}

pub(crate) fn grpc_close(call: &mut Call<'_>, token: u32) -> Done {
    let root = call.state().root().ok_or(Status::BadArgument)?;
    if is(token, CallKind::GrpcCall) {
        return if root.grpc_calls.remove(&token) { Ok(()) } else { Err(Status::NotFound.into()) };
    }
    if !is(token, CallKind::GrpcStream) {
        return Err(Status::BadArgument.into());
    }
    let stream = root.grpc_streams.get_mut(&token).ok_or(Status::NotFound)?;
    if stream.remote_closed {
        root.grpc_streams.remove(&token);
        return Ok(());
    }
    stream.local_closed = true;
    let events = call.shared().upstreams.grpc_message(token, &[], true);
    schedule(call, token, events);
    Ok(())
}

pub(crate) fn grpc_cancel(call: &mut Call<'_>, token: u32) -> Done {
    let root = call.state().root().ok_or(Status::BadArgument)?;
    let known = if is(token, CallKind::GrpcCall) {
        root.grpc_calls.remove(&token)
    } else if is(token, CallKind::GrpcStream) {
        root.grpc_streams.remove(&token).is_some()
    } else {
        return Err(Status::BadArgument.into());
    };
    if known { Ok(()) } else { Err(Status::NotFound.into()) }
}
