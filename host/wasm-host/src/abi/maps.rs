//! Header maps. Which are there depends on the phase: one that is not is empty when read whole,
//! and `BadArgument` otherwise.

use super::call::{Call, Done};
use super::pairs;
use super::{MapKind, Status};
use crate::headers::HeaderMap;
use crate::state::lock;
use crate::stream::data::{Direction, StreamData};

fn kind(raw: u32) -> Result<MapKind, Status> {
    MapKind::from_raw(raw).ok_or(Status::BadArgument)
}

/// Reads a map that is there, in the stream or with its root context.
fn read<T>(
    call: &mut Call<'_>,
    kind: MapKind,
    read: impl FnOnce(&HeaderMap) -> T,
) -> Result<T, Absent> {
    if let Some(of_root) = of_root(call, kind) {
        let logging = call.stream().is_some_and(|(stream, _)| lock(&stream).logging);
        return of_root.map(|map| read(&map)).ok_or(Absent { logging });
    }
    let (stream, slot) = call.stream().ok_or(Absent { logging: false })?;
    let stream = lock(&stream);
    let logging = stream.logging;
    visible(&stream, slot, kind).map(read).ok_or(Absent { logging })
}

struct Absent {
    logging: bool,
}

/// A map of a callout's answer; `None` if the map is not of that sort.
fn of_root(call: &mut Call<'_>, kind: MapKind) -> Option<Option<HeaderMap>> {
    let root = call.state().root();
    let of_response = |part: fn(&crate::HttpResponse) -> Option<HeaderMap>| {
        root.as_ref().and_then(|root| root.response.as_ref().and_then(part))
    };
    Some(match kind {
        MapKind::CallHeaders => of_response(|response| Some(response.headers.clone())),
        MapKind::CallTrailers => of_response(|response| response.trailers.clone()),
        MapKind::GrpcInitial => root.and_then(|root| root.grpc_initial.clone()),
        MapKind::GrpcTrailing => root.and_then(|root| root.grpc_trailing.clone()),
        _ => return None,
    })
}

fn place(kind: MapKind) -> Option<(Direction, bool)> {
    Some(match kind {
        MapKind::RequestHeaders => (Direction::Request, false),
        MapKind::RequestTrailers => (Direction::Request, true),
        MapKind::ResponseHeaders => (Direction::Response, false),
        MapKind::ResponseTrailers => (Direction::Response, true),
        _ => return None,
    })
}

fn visible(stream: &StreamData, slot: usize, kind: MapKind) -> Option<&HeaderMap> {
    let (direction, trailers) = place(kind)?;
    let pipe = stream.pipes.get(direction as usize)?;
    let side = stream.filters.get(slot)?.sides.get(direction as usize)?;
    if stream.logging {
        return match (direction, trailers) {
            (Direction::Request, true) => None,
            (_, true) => pipe.trailers.as_ref(),
            (_, false) => pipe.headers.as_ref(),
        };
    }
    if trailers {
        pipe.trailers.as_ref().filter(|_| side.sees_trailers)
    } else {
        pipe.headers.as_ref().filter(|_| side.sees_headers)
    }
}

/// A map that can be changed; trailers are made by asking for them in the last body callback.
fn change(
    call: &mut Call<'_>,
    raw: u32,
    bytes: usize,
    change: impl FnOnce(&mut HeaderMap),
) -> Done {
    let kind = kind(raw)?;
    let (direction, trailers) = place(kind).ok_or(Status::BadArgument)?;
    let (stream, slot) = call.stream().ok_or(Status::BadArgument)?;
    let mut stream = lock(&stream);
    if trailers {
        add_trailers(&mut stream, slot, direction);
    }
    let limit = stream.retained_limit;
    let side = stream.side(slot, direction).ok_or(Status::BadArgument)?;
    let sees = if trailers { side.sees_trailers } else { side.sees_headers };
    let pipe = stream.pipe(direction);
    let map = if trailers { &mut pipe.trailers } else { &mut pipe.headers };
    let map = map.as_mut().filter(|_| sees).ok_or(Status::BadArgument)?;
    // An entry without name and value costs the host too.
    if map.byte_size() + 32 * map.len() + bytes > limit {
        return Err(Status::InternalFailure.into());
    }
    change(map);
    if kind == MapKind::RequestHeaders {
        stream.clear_route();
    }
    Ok(())
}

fn add_trailers(stream: &mut StreamData, slot: usize, direction: Direction) {
    let ended = stream.filters.get(slot).is_some_and(|filter| filter.end_of_stream);
    let in_body = stream.calling == Some((direction, slot));
    let Some(side) = stream.side(slot, direction) else { return };
    if side.sees_trailers || side.body.is_none() || !ended || !in_body {
        return;
    }
    side.sees_trailers = true;
    let pipe = stream.pipe(direction);
    if pipe.trailers.is_none() {
        pipe.trailers = Some(HeaderMap::new());
        pipe.trailers_added = true;
    }
}

pub(crate) fn get_header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key_ptr: u32,
    key_len: u32,
    value_ptr_ptr: u32,
    value_len_ptr: u32,
) -> Done {
    let map = kind(map)?;
    let key = call.read(key_ptr, key_len)?;
    let value = match read(call, map, |map| map.get(&key).map(<[u8]>::to_vec)) {
        Ok(value) => value.ok_or(Status::NotFound)?,
        Err(Absent { logging: true }) => return Err(Status::NotFound.into()),
        Err(Absent { logging: false }) => return Err(Status::BadArgument.into()),
    };
    call.give(&value, value_ptr_ptr, value_len_ptr)
}

pub(crate) fn get_header_map_pairs(
    call: &mut Call<'_>,
    map: u32,
    ptr_ptr: u32,
    len_ptr: u32,
) -> Done {
    let map = kind(map)?;
    let encode = |map: &HeaderMap| if map.is_empty() { vec![] } else { pairs::encode(map.iter()) };
    let bytes = read(call, map, encode).unwrap_or_default();
    call.give(&bytes, ptr_ptr, len_ptr)
}

pub(crate) fn get_header_map_size(call: &mut Call<'_>, map: u32, size_ptr: u32) -> Done {
    let map = kind(map)?;
    // Only of a stream's own maps: Envoy takes the changeable one.
    if place(map).is_none() {
        return Err(Status::BadArgument.into());
    }
    // Which there is none of for the access log.
    if call.stream().is_some_and(|(stream, _)| lock(&stream).logging) {
        return Err(Status::BadArgument.into());
    }
    let size = read(call, map, HeaderMap::byte_size).map_err(|_| Status::BadArgument)?;
    Ok(call.write_u32(size_ptr, u32::try_from(size).unwrap_or(u32::MAX))?)
}

pub(crate) fn set_header_map_pairs(call: &mut Call<'_>, map: u32, ptr: u32, len: u32) -> Done {
    kind(map)?;
    let bytes = call.read(ptr, len)?;
    let pairs = pairs::decode(&bytes);
    change(call, map, bytes.len(), |map| {
        map.clear();
        for (name, value) in &pairs {
            map.add(name, value);
        }
    })
}

fn key_and_value(
    call: &mut Call<'_>,
    map: u32,
    key: (u32, u32),
    value: (u32, u32),
) -> Result<(Vec<u8>, Vec<u8>), Status> {
    kind(map)?;
    Ok((call.read(key.0, key.1)?, call.read(value.0, value.1)?))
}

pub(crate) fn add_header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key_ptr: u32,
    key_len: u32,
    value_ptr: u32,
    value_len: u32,
) -> Done {
    let (key, value) = key_and_value(call, map, (key_ptr, key_len), (value_ptr, value_len))?;
    change(call, map, key.len() + value.len(), |map| map.add(&key, &value))
}

pub(crate) fn replace_header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key_ptr: u32,
    key_len: u32,
    value_ptr: u32,
    value_len: u32,
) -> Done {
    let (key, value) = key_and_value(call, map, (key_ptr, key_len), (value_ptr, value_len))?;
    change(call, map, key.len() + value.len(), |map| map.set(&key, &value))
}

pub(crate) fn remove_header_map_value(
    call: &mut Call<'_>,
    map: u32,
    key_ptr: u32,
    key_len: u32,
) -> Done {
    kind(map)?;
    let key = call.read(key_ptr, key_len)?;
    change(call, map, 0, |map| map.remove(&key))
}
