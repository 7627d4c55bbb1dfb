//! Shared data and queues.

use super::Status;
use super::call::{Call, Done};
use crate::state::events::{Event, EventKind};
use crate::state::queues::Consumer;

pub(crate) fn get_shared_data(
    call: &mut Call<'_>,
    key_ptr: u32,
    key_len: u32,
    value_ptr_ptr: u32,
    value_len_ptr: u32,
    cas_ptr: u32,
) -> Done {
    let key = call.read(key_ptr, key_len)?;
    let vm_id = call.state().vm_id.clone();
    let found = call.shared().data.get(&vm_id, &key).map(|(value, cas)| (value.to_vec(), cas));
    let (value, cas) = found.ok_or(Status::NotFound)?;
    call.give(&value, value_ptr_ptr, value_len_ptr)?;
    Ok(call.write_u32(cas_ptr, cas)?)
}

pub(crate) fn set_shared_data(
    call: &mut Call<'_>,
    key_ptr: u32,
    key_len: u32,
    value_ptr: u32,
    value_len: u32,
    cas: u32,
) -> Done {
    let key = call.read(key_ptr, key_len)?;
    let value = call.read(value_ptr, value_len)?;
    let vm_id = call.state().vm_id.clone();
    Ok(call.shared().data.set(&vm_id, &key, &value, cas)?)
}

pub(crate) fn register_shared_queue(
    call: &mut Call<'_>,
    name_ptr: u32,
    name_len: u32,
    token_ptr: u32,
) -> Done {
    let name = call.read(name_ptr, name_len)?;
    let consumer = Consumer { vm: call.state().uid, root: call.state().root_id() };
    let vm_id = call.state().vm_id.clone();
    let token = call.shared().queues.register(&vm_id, &name, consumer)?;
    Ok(call.write_u32(token_ptr, token)?)
}

/// An empty `vm_id` is the caller's own.
pub(crate) fn resolve_shared_queue(
    call: &mut Call<'_>,
    vm_id_ptr: u32,
    vm_id_len: u32,
    name_ptr: u32,
    name_len: u32,
    token_ptr: u32,
) -> Done {
    let vm_id = call.read(vm_id_ptr, vm_id_len)?;
    let name = call.read(name_ptr, name_len)?;
    let vm_id = if vm_id.is_empty() {
        call.state().vm_id.clone()
    } else {
        String::from_utf8(vm_id).map_err(|_| Status::NotFound)?
    };
    let token = call.shared().queues.resolve(&vm_id, &name).ok_or(Status::NotFound)?;
    Ok(call.write_u32(token_ptr, token)?)
}

pub(crate) fn enqueue_shared_queue(
    call: &mut Call<'_>,
    token: u32,
    data_ptr: u32,
    data_len: u32,
) -> Done {
    let data = call.read(data_ptr, data_len)?;
    let mut shared = call.shared();
    if shared.events.len() >= shared.limits.pending {
        return Err(Status::InternalFailure.into());
    }
    let Consumer { vm, root } = shared.queues.enqueue(token, &data)?;
    let now = shared.monotonic_ns;
    shared.events.push(now, Event { vm, root, kind: EventKind::QueueReady { token } });
    Ok(())
}

pub(crate) fn dequeue_shared_queue(
    call: &mut Call<'_>,
    token: u32,
    data_ptr_ptr: u32,
    data_len_ptr: u32,
) -> Done {
    let data = call.shared().queues.dequeue(token)?;
    call.give(&data, data_ptr_ptr, data_len_ptr)
}
