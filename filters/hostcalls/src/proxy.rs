//! The proxy-wasm host. The only unsafe code of the project.
#![expect(unsafe_code, reason = "the proxy-wasm ABI is raw pointers")]

use std::ptr::null_mut;

use crate::{Expect, Host, Level, Status};

/// The host that loaded this module.
#[derive(Clone, Copy, Default)]
pub struct ProxyHost;

const OK: u32 = 0;
const EMPTY: u32 = 7;
const REQUEST_HEADERS: u32 = 0;
const RESPONSE_HEADERS: u32 = 2;
const REQUEST_BODY: u32 = 0;
const RESPONSE_BODY: u32 = 1;
const PLUGIN_CONFIGURATION: u32 = 7;
const COUNTER: u32 = 0;
const HISTOGRAM: u32 = 2;
const CLOCK_MONOTONIC: u32 = 1;
/// A CAS number the host never gives out, so it matches no held value, while a missing key takes
/// any: "create if absent" (cpp-host `shared_data.cc`; the counter starts at 1 and grows).
const IMPOSSIBLE_CAS: u32 = u32::MAX;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, data: *const u8, size: usize) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_property(path: *const u8, path_size: usize, data: *const u8, size: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        data: *const u8,
        size: usize,
        cas: u32,
    ) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        data: *const u8,
        size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: u32, key: *const u8, key_size: usize) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_buffer_bytes(
        buffer: u32,
        start: usize,
        size: usize,
        data: *const u8,
        data_size: usize,
    ) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u32;
    fn random_get(data: *mut u8, size: usize) -> u32;
}

fn check(status: u32) -> Result<(), Status> {
    match status {
        OK => Ok(()),
        1 => Err(Status::NotFound),
        2 => Err(Status::BadArgument),
        8 => Err(Status::CasMismatch),
        10 => Err(Status::InternalFailure),
        other => Err(Status::Other(other)),
    }
}

/// Takes ownership of what a host call returned; `None` when it does not exist.
fn returned(status: u32, data: *mut u8, size: usize) -> Result<Option<Vec<u8>>, Status> {
    match check(status) {
        Ok(()) if data.is_null() => Ok(Some(Vec::new())),
        // SAFETY: the host filled memory it got from this module's `proxy_on_memory_allocate`,
        // which leaks a boxed slice of exactly `size` bytes and passes ownership to the caller.
        Ok(()) => Ok(Some(unsafe { Vec::from_raw_parts(data, size, size) })),
        Err(Status::NotFound) => Ok(None),
        Err(Status::Other(EMPTY)) => Ok(None),
        Err(other) => Err(other),
    }
}

impl Host for ProxyHost {
    fn monotonic_ns(&self) -> u64 {
        let mut now = 0u64;
        // SAFETY: writes one u64 behind a valid pointer.
        match unsafe { clock_time_get(CLOCK_MONOTONIC, 1, &mut now) } {
            0 => now,
            _ => 0,
        }
    }

    fn random_u64(&self) -> u64 {
        let mut bytes = [0u8; 8];
        // SAFETY: fills the eight bytes behind a valid pointer. On failure they stay 0.
        unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
        u64::from_le_bytes(bytes)
    }

    fn wants_log(&self, level: Level) -> bool {
        let mut wanted = u32::MAX;
        // SAFETY: writes one u32 behind a valid pointer.
        let status = unsafe { proxy_get_log_level(&mut wanted) };
        status == OK && wanted <= level as u32
    }

    fn log(&self, level: Level, line: &str) {
        // SAFETY: the host copies the line before it returns. A line that cannot be written is lost.
        unsafe { proxy_log(level as u32, line.as_ptr(), line.len()) };
    }

    fn shared(&self, key: &[u8]) -> Result<Option<(Vec<u8>, u32)>, Status> {
        let (mut data, mut size, mut cas) = (null_mut(), 0usize, 0u32);
        // SAFETY: the out pointers are valid; see `returned` for ownership.
        let status = unsafe {
            proxy_get_shared_data(key.as_ptr(), key.len(), &mut data, &mut size, &mut cas)
        };
        Ok(returned(status, data, size)?.map(|value| (value, cas)))
    }

    fn set_shared(&self, key: &[u8], value: &[u8], expect: Expect) -> Result<(), Status> {
        let cas = match expect {
            Expect::Anything => 0,
            Expect::Absent => IMPOSSIBLE_CAS,
            Expect::Unchanged(cas) => cas,
        };
        // SAFETY: the host copies key and value before it returns.
        check(unsafe {
            proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas)
        })
    }

    fn property(&self, path: &[&str]) -> Result<Option<Vec<u8>>, Status> {
        let path = path.join("\0");
        let (mut data, mut size) = (null_mut(), 0usize);
        // SAFETY: the out pointers are valid; see `returned` for ownership.
        let status = unsafe { proxy_get_property(path.as_ptr(), path.len(), &mut data, &mut size) };
        returned(status, data, size)
    }

    fn set_property(&self, name: &str, value: &[u8]) -> Result<(), Status> {
        // SAFETY: the host copies name and value before it returns.
        check(unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
    }

    fn request_header(&self, name: &str) -> Result<Option<Vec<u8>>, Status> {
        header(REQUEST_HEADERS, name)
    }

    fn set_request_header(&self, name: &str, value: Option<&str>) -> Result<(), Status> {
        // SAFETY: the host copies name and value before it returns.
        check(unsafe {
            match value {
                Some(value) => proxy_replace_header_map_value(
                    REQUEST_HEADERS,
                    name.as_ptr(),
                    name.len(),
                    value.as_ptr(),
                    value.len(),
                ),
                None => proxy_remove_header_map_value(REQUEST_HEADERS, name.as_ptr(), name.len()),
            }
        })
    }

    fn request_body(&self, max_bytes: usize) -> Result<Vec<u8>, Status> {
        buffer(REQUEST_BODY, 0, max_bytes)
    }

    fn splice_request_body(&self, take: usize, bytes: &[u8]) -> Result<(), Status> {
        set_buffer(REQUEST_BODY, take, bytes)
    }

    fn response_header(&self, name: &str) -> Result<Option<Vec<u8>>, Status> {
        header(RESPONSE_HEADERS, name)
    }

    fn set_response_header(&self, name: &str, value: &str) -> Result<(), Status> {
        // SAFETY: the host copies name and value before it returns.
        check(unsafe {
            proxy_replace_header_map_value(
                RESPONSE_HEADERS,
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            )
        })
    }

    fn remove_response_header(&self, name: &str) -> Result<(), Status> {
        // SAFETY: the host reads the name before it returns.
        check(unsafe { proxy_remove_header_map_value(RESPONSE_HEADERS, name.as_ptr(), name.len()) })
    }

    fn response_chunk(&self, start: usize, max_bytes: usize) -> Result<Vec<u8>, Status> {
        buffer(RESPONSE_BODY, start, max_bytes)
    }

    fn replace_response_chunk(&self, len: usize, bytes: &[u8]) -> Result<(), Status> {
        set_buffer(RESPONSE_BODY, len, bytes)
    }

    fn respond(&self, status: u32, headers: &[(&str, &str)], body: &[u8]) -> Result<(), Status> {
        let headers = pairs(headers);
        // SAFETY: the host copies everything before it returns. -1: not a gRPC answer.
        check(unsafe {
            proxy_send_local_response(
                status,
                [].as_ptr(),
                0,
                body.as_ptr(),
                body.len(),
                headers.as_ptr(),
                headers.len(),
                -1,
            )
        })
    }

    fn counter(&self, name: &str) -> Result<u32, Status> {
        metric(COUNTER, name)
    }

    fn count(&self, counter: u32, by: u64) -> Result<(), Status> {
        // SAFETY: plain numbers.
        check(unsafe { proxy_increment_metric(counter, by as i64) })
    }

    fn histogram(&self, name: &str) -> Result<u32, Status> {
        metric(HISTOGRAM, name)
    }

    fn record(&self, histogram: u32, value: u64) -> Result<(), Status> {
        // SAFETY: plain numbers.
        check(unsafe { proxy_record_metric(histogram, value) })
    }

    fn set_tick_period_ms(&self, period_ms: u32) -> Result<(), Status> {
        // SAFETY: a plain number.
        check(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
    }

    fn configuration(&self) -> Result<Vec<u8>, Status> {
        buffer(PLUGIN_CONFIGURATION, 0, usize::MAX >> 1)
    }
}

/// Header pairs as the ABI has them: their number, the sizes of each, then each with a zero byte
/// after name and value.
fn pairs(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = (headers.len() as u32).to_le_bytes().to_vec();
    for (name, value) in headers {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((value.len() as u32).to_le_bytes());
    }
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend(text.as_bytes());
        bytes.push(0);
    }
    bytes
}

fn metric(kind: u32, name: &str) -> Result<u32, Status> {
    let mut id = 0u32;
    // SAFETY: the host copies the name and writes one u32 behind a valid pointer.
    check(unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &mut id) })?;
    Ok(id)
}

fn header(map: u32, name: &str) -> Result<Option<Vec<u8>>, Status> {
    let (mut data, mut size) = (null_mut(), 0usize);
    // SAFETY: the out pointers are valid; see `returned` for ownership.
    let status =
        unsafe { proxy_get_header_map_value(map, name.as_ptr(), name.len(), &mut data, &mut size) };
    returned(status, data, size)
}

fn buffer(which: u32, start: usize, max_bytes: usize) -> Result<Vec<u8>, Status> {
    let (mut data, mut size) = (null_mut(), 0usize);
    // SAFETY: the out pointers are valid; see `returned` for ownership.
    let status = unsafe { proxy_get_buffer_bytes(which, start, max_bytes, &mut data, &mut size) };
    Ok(returned(status, data, size)?.unwrap_or_default())
}

/// Only the front of a buffer can be replaced: Envoy refuses any other start within it.
fn set_buffer(which: u32, take: usize, bytes: &[u8]) -> Result<(), Status> {
    // SAFETY: the host copies the bytes before it returns.
    check(unsafe { proxy_set_buffer_bytes(which, 0, take, bytes.as_ptr(), bytes.len()) })
}
