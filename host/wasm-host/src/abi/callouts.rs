//! HTTP callouts.

use super::Status;
use super::call::{Call, Done};
use super::pairs;
use crate::headers::HeaderMap;
use crate::state::events::{Event, EventKind, reset_response, timeout_response};
use crate::upstreams::{HttpCall, HttpReply};
use crate::vm::state::CallKind;
use std::time::Duration;

/// Clock time after `after`, in ns.
pub(crate) fn later(now_ns: u64, after: Duration) -> u64 {
    now_ns.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX))
}

#[expect(clippy::too_many_arguments, reason = "the ABI has as many")]
pub(crate) fn http_call(
    call: &mut Call<'_>,
    cluster_ptr: u32,
    cluster_len: u32,
    headers_ptr: u32,
    headers_len: u32,
    body_ptr: u32,
    body_len: u32,
    trailers_ptr: u32,
    trailers_len: u32,
    timeout_ms: u32,
    token_ptr: u32,
) -> Done {
    let cluster = call.read(cluster_ptr, cluster_len)?;
    let body = call.read(body_ptr, body_len)?;
    let headers = call.read(headers_ptr, headers_len)?;
    let trailers = call.read(trailers_ptr, trailers_len)?;
    // Written before anything is sent, so that a bad pointer sends nothing.
    call.write_u32(token_ptr, 0)?;
    let token = send(call, &cluster, &headers, body, &trailers, timeout_ms)?;
    Ok(call.write_u32(token_ptr, token)?)
}

fn send(
    call: &mut Call<'_>,
    cluster: &[u8],
    headers: &[u8],
    body: Vec<u8>,
    trailers: &[u8],
    timeout_ms: u32,
) -> Result<u32, Status> {
    // The ABI's number is unsigned, Envoy's is not.
    if timeout_ms.cast_signed() < 0 {
        return Err(Status::BadArgument);
    }
    let cluster = String::from_utf8(cluster.to_vec()).map_err(|_| Status::BadArgument)?;
    if !call.shared().upstreams.has_cluster(&cluster) {
        return Err(Status::BadArgument);
    }
    let mut headers: HeaderMap = pairs::decode(headers).into_iter().collect();
    if [":path", ":method", ":authority"].iter().any(|name| headers.get(name).is_none()) {
        return Err(Status::BadArgument);
    }
    if !body.is_empty() {
        headers.set("content-length", body.len().to_string());
    }
    let trailers = pairs::decode(trailers);
    let (vm, root) = (call.state().uid, call.state().root_id());
    let limit = call.shared().limits.pending;
    let pending = call.shared().events.len();
    let open = call.state().root().ok_or(Status::BadArgument)?.http_calls.len();
    if open.max(pending) >= limit {
        return Err(Status::InternalFailure);
    }
    let token = call.state().next_call(CallKind::Http);
    let timeout = (timeout_ms > 0).then(|| Duration::from_millis(u64::from(timeout_ms)));
    let request = HttpCall {
        cluster,
        headers,
        body,
        trailers: (!trailers.is_empty()).then(|| trailers.into_iter().collect()),
        timeout,
        token,
    };
    let mut shared = call.shared();
    let now = shared.monotonic_ns;
    let reply = match shared.upstreams.http_call(&request) {
        HttpReply::Response { after, response } => Some((after, Some(response))),
        HttpReply::Reset { after } => Some((after, Some(reset_response()))),
        HttpReply::Pending => None,
    };
    // Whichever comes first takes the token, and the other finds it gone.
    let answered = reply.map(|(after, response)| (later(now, after), response));
    let timed_out = timeout.map(|after| (later(now, after), Some(timeout_response())));
    for (due, response) in [answered, timed_out].into_iter().flatten() {
        shared.events.push(due, Event { vm, root, kind: EventKind::Http { token, response } });
    }
    drop(shared);
    if let Some(root) = call.state().root() {
        root.http_calls.insert(token);
    }
    Ok(token)
}
