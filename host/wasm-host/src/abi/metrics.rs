//! Metrics. A definition gives a number of its own; equal names of one kind are one metric.

use super::Status;
use super::call::{Call, Done};
use crate::state::metrics::{MetricKind, MetricName};

pub(crate) fn define_metric(
    call: &mut Call<'_>,
    kind: u32,
    name_ptr: u32,
    name_len: u32,
    id_ptr: u32,
) -> Done {
    let name = call.read(name_ptr, name_len)?;
    let kind = MetricKind::from_raw(kind).ok_or(Status::BadArgument)?;
    let name = (kind, name);
    let limit = call.shared().limits.metrics;
    if call.state().metrics.len() >= limit {
        return Err(Status::InternalFailure.into());
    }
    call.shared().metrics.define(&name)?;
    let id = call.state().next_metric(kind);
    call.state().metrics.insert(id, name);
    Ok(call.write_u32(id_ptr, id)?)
}

/// A number that was never given is unknown if its last two bits say a kind that has the
/// operation, and wrong otherwise.
fn name(call: &mut Call<'_>, id: u32, kinds: &[MetricKind]) -> Result<MetricName, Status> {
    let kind = MetricKind::from_raw(id & 3).filter(|kind| kinds.contains(kind));
    kind.ok_or(Status::BadArgument)?;
    call.state().metrics.get(&id).cloned().ok_or(Status::NotFound)
}

const NUMBERS: [MetricKind; 2] = [MetricKind::Counter, MetricKind::Gauge];

pub(crate) fn increment_metric(call: &mut Call<'_>, id: u32, offset: i64) -> Done {
    let name = name(call, id, &NUMBERS)?;
    Ok(call.shared().metrics.increment(&name, offset)?)
}

pub(crate) fn record_metric(call: &mut Call<'_>, id: u32, value: u64) -> Done {
    let name = call.state().metrics.get(&id).cloned().ok_or(Status::NotFound)?;
    Ok(call.shared().metrics.record(&name, value)?)
}

pub(crate) fn get_metric(call: &mut Call<'_>, id: u32, value_ptr: u32) -> Done {
    let (kind, name) = name(call, id, &NUMBERS)?;
    let value = call.shared().metrics.get(kind, &name).map(|metric| metric.value);
    Ok(call.write_u64(value_ptr, value.ok_or(Status::NotFound)?)?)
}
