//! Buffers: bodies, answers of callouts, configurations.

use super::call::{Call, Done};
use super::{BufferKind, Status};
use crate::state::lock;
use crate::stream::data::Direction;
use std::sync::Arc;

fn kind(raw: u32) -> Result<BufferKind, Status> {
    BufferKind::from_raw(raw).ok_or(Status::BadArgument)
}

/// Runs `read` on the buffer's bytes, or says that there is none. A body that cannot be seen in this
/// phase is there and empty, as in Envoy.
fn read<T>(
    call: &mut Call<'_>,
    kind: BufferKind,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, Status> {
    let direction = match kind {
        BufferKind::RequestBody => Direction::Request,
        BufferKind::ResponseBody => Direction::Response,
        BufferKind::Downstream | BufferKind::Upstream | BufferKind::CallData => {
            return Ok(read(&[]));
        }
        BufferKind::VmConfiguration => return Ok(read(&call.state().vm_configuration)),
        BufferKind::PluginConfiguration => {
            let context = call.state().current().ok_or(Status::NotFound)?;
            let plugin = Arc::clone(&context.plugin);
            let root = context.as_root().filter(|root| root.configuring);
            return root.map(|_| read(&plugin.configuration)).ok_or(Status::NotFound);
        }
        BufferKind::CallBody => {
            let response = call.state().root().and_then(|root| root.response.as_ref());
            return response.map(|response| read(&response.body)).ok_or(Status::NotFound);
        }
        BufferKind::GrpcReceive => {
            let message = call.state().root().and_then(|root| root.grpc_message.as_ref());
            return Ok(read(message.map_or(&[], Vec::as_slice)));
        }
    };
    let Some((stream, slot)) = call.stream() else { return Ok(read(&[])) };
    let mut stream = lock(&stream);
    Ok(read(stream.body(slot, direction).map_or(&[], |body| body.as_slice())))
}

pub(crate) fn get_buffer_bytes(
    call: &mut Call<'_>,
    buffer: u32,
    start: u32,
    len: u32,
    ptr_ptr: u32,
    len_ptr: u32,
) -> Done {
    let buffer = kind(buffer)?;
    let (start, len) = (to_usize(start), to_usize(len));
    let bytes = read(call, buffer, |bytes| {
        let end = start.saturating_add(len).min(bytes.len());
        bytes.get(start..end).unwrap_or_default().to_vec()
    })?;
    call.give(&bytes, ptr_ptr, len_ptr)
}

pub(crate) fn get_buffer_status(
    call: &mut Call<'_>,
    buffer: u32,
    len_ptr: u32,
    flags_ptr: u32,
) -> Done {
    let buffer = kind(buffer)?;
    let len = read(call, buffer, <[u8]>::len)?;
    call.write_u32(len_ptr, u32::try_from(len).unwrap_or(u32::MAX))?;
    Ok(call.write_u32(flags_ptr, 0)?)
}

/// At 0, replaces the first `len` bytes (none: puts before); at or past the end, appends; in the
/// middle, refuses.
pub(crate) fn set_buffer_bytes(
    call: &mut Call<'_>,
    buffer: u32,
    start: u32,
    len: u32,
    data_ptr: u32,
    data_len: u32,
) -> Done {
    let buffer = kind(buffer)?;
    let direction = match buffer {
        BufferKind::RequestBody => Direction::Request,
        BufferKind::ResponseBody => Direction::Response,
        _ => {
            read(call, buffer, |_| ())?;
            call.read(data_ptr, data_len)?;
            return Err(Status::BadArgument.into());
        }
    };
    let data = call.read(data_ptr, data_len)?;
    let (stream, slot) = call.stream().ok_or(Status::BadArgument)?;
    let mut stream = lock(&stream);
    stream.body(slot, direction).ok_or(Status::BadArgument)?;
    stream.retain(data.len())?;
    let Some(body) = stream.body(slot, direction) else {
        return Err(Status::BadArgument.into());
    };
    if start == 0 {
        let end = to_usize(len).min(body.len());
        body.splice(..end, data);
    } else if to_usize(start) >= body.len() {
        body.extend_from_slice(&data);
    } else {
        return Err(Status::BadArgument.into());
    }
    Ok(())
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
