//! The part of WASI that Envoy has: output to the log, clocks, random bytes, the environment. No
//! files and no sockets.

use super::Status;
use super::call::{Call, Fail};
use crate::state::logs::LogLevel;

/// Error number of WASI.
pub(crate) type Errno = i32;

const SUCCESS: Errno = 0;
const BADF: Errno = 8;
const FAULT: Errno = 21;
const INVAL: Errno = 28;
const NOENT: Errno = 44;
const NOSYS: Errno = 52;
const NOTSUP: Errno = 58;
pub(crate) const NOTCAPABLE: Errno = 76;

/// Most bytes that one call of `random_get` gives (`limits.h` of the C++ host).
const RANDOM_BYTES: u32 = 64 * 1024;

/// Functions that only say no: name, parameters (`i` for 32 and `I` for 64 bits), error number.
pub(crate) const STUBS: &[(&str, &str, Errno)] = &[
    ("fd_advise", "iIIi", BADF),
    ("fd_allocate", "iII", BADF),
    ("fd_datasync", "i", BADF),
    ("fd_fdstat_set_flags", "ii", BADF),
    ("fd_fdstat_set_rights", "iII", BADF),
    ("fd_filestat_get", "ii", BADF),
    ("fd_filestat_set_size", "iI", BADF),
    ("fd_filestat_set_times", "iIIi", BADF),
    ("fd_pread", "iiiIi", BADF),
    ("fd_prestat_get", "ii", BADF),
    ("fd_prestat_dir_name", "iii", NOSYS),
    ("fd_pwrite", "iiiIi", BADF),
    ("fd_read", "iiii", NOSYS),
    ("fd_readdir", "iiiIi", BADF),
    ("fd_renumber", "ii", BADF),
    ("fd_sync", "i", BADF),
    ("fd_tell", "ii", BADF),
    ("path_create_directory", "iii", NOENT),
    ("path_filestat_get", "iiiii", NOENT),
    ("path_filestat_set_times", "iiiiIIi", NOENT),
    ("path_link", "iiiiiii", NOENT),
    ("path_open", "iiiiiIIii", NOENT),
    ("path_readlink", "iiiiii", NOENT),
    ("path_remove_directory", "iii", NOENT),
    ("path_rename", "iiiiii", NOENT),
    ("path_symlink", "iiiii", NOENT),
    ("path_unlink_file", "iii", NOENT),
    ("sock_accept", "iii", NOTSUP),
    ("sock_recv", "iiiiii", NOTSUP),
    ("sock_send", "iiiii", NOTSUP),
    ("sock_shutdown", "ii", NOTSUP),
    // Succeed without doing anything.
    ("args_get", "ii", SUCCESS),
    ("fd_close", "i", SUCCESS),
    ("fd_seek", "iIii", SUCCESS),
    ("sched_yield", "", SUCCESS),
];

fn fault(_: Status) -> Fail {
    // The caller turns this into FAULT; the status itself has no meaning in WASI.
    Fail::Status(Status::InvalidMemoryAccess)
}

type Wasi = Result<Errno, Fail>;

pub(crate) fn errno(outcome: Wasi) -> wasmtime::Result<Errno> {
    match outcome {
        Ok(errno) => Ok(errno),
        Err(Fail::Status(_)) => Ok(FAULT),
        Err(Fail::Trap(trap)) => Err(trap),
    }
}

pub(crate) fn fd_write(
    call: &mut Call<'_>,
    fd: u32,
    vectors: u32,
    count: u32,
    written_ptr: u32,
) -> Wasi {
    let level = match fd {
        1 => LogLevel::Info,
        2 => LogLevel::Error,
        _ => return Ok(BADF),
    };
    let most = call.shared().logs.line_bytes();
    let (mut text, mut written) = (Vec::new(), 0_u64);
    // A vector is eight bytes of the guest's memory, so a count past its end fails soon enough.
    for i in 0..u64::from(count) {
        let at =
            u32::try_from(u64::from(vectors) + 8 * i).map_err(|_| Status::InvalidMemoryAccess)?;
        let vector = call.read(at, 8).map_err(fault)?;
        let word = |at: usize| {
            let bytes = vector.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        if word(4) > 0 {
            let part = call.read_start(word(0), word(4), most.saturating_sub(text.len()));
            text.extend(part.map_err(fault)?);
            written += u64::from(word(4));
        }
    }
    if written > 0 {
        call.log(level, text.strip_suffix(b"\n").unwrap_or(&text));
    }
    call.write_u32(written_ptr, u32::try_from(written).unwrap_or(u32::MAX)).map_err(fault)?;
    Ok(SUCCESS)
}

pub(crate) fn fd_fdstat_get(call: &mut Call<'_>, fd: u32, stat_ptr: u32) -> Wasi {
    if fd != 1 && fd != 2 {
        return Ok(BADF);
    }
    let mut stat = [0; 24];
    // The right to write, and no other.
    stat[8] = 64;
    // A bad pointer is not an error, as in Envoy.
    let _ = call.write(stat_ptr, &stat);
    Ok(SUCCESS)
}

pub(crate) fn environ_sizes_get(call: &mut Call<'_>, count_ptr: u32, bytes_ptr: u32) -> Wasi {
    let environment = &call.state().environment;
    let bytes: usize = environment.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    let count = environment.len();
    call.write_u32(count_ptr, u32::try_from(count).unwrap_or(u32::MAX)).map_err(fault)?;
    call.write_u32(bytes_ptr, u32::try_from(bytes).unwrap_or(u32::MAX)).map_err(fault)?;
    Ok(SUCCESS)
}

pub(crate) fn environ_get(call: &mut Call<'_>, mut pointers: u32, mut text_ptr: u32) -> Wasi {
    let environment = call.state().environment.clone();
    for (name, value) in environment {
        call.write_u32(pointers, text_ptr).map_err(fault)?;
        let text = format!("{name}={value}\0");
        call.write(text_ptr, text.as_bytes()).map_err(fault)?;
        pointers = pointers.wrapping_add(4);
        text_ptr = text_ptr.wrapping_add(u32::try_from(text.len()).unwrap_or(u32::MAX));
    }
    Ok(SUCCESS)
}

pub(crate) fn args_sizes_get(call: &mut Call<'_>, count_ptr: u32, bytes_ptr: u32) -> Wasi {
    call.write_u32(count_ptr, 0).map_err(fault)?;
    call.write_u32(bytes_ptr, 0).map_err(fault)?;
    Ok(SUCCESS)
}

pub(crate) fn clock_time_get(call: &mut Call<'_>, clock: u32, _: u64, time_ptr: u32) -> Wasi {
    let now = match clock {
        0 => call.shared().wall_ns,
        1 => call.shared().monotonic_ns,
        _ => return Ok(NOTSUP),
    };
    call.write_u64(time_ptr, now).map_err(fault)?;
    Ok(SUCCESS)
}

pub(crate) fn clock_res_get(call: &mut Call<'_>, clock: u32, resolution_ptr: u32) -> Wasi {
    if clock > 1 {
        return Ok(NOTSUP);
    }
    call.write_u64(resolution_ptr, 1).map_err(fault)?;
    Ok(SUCCESS)
}

pub(crate) fn random_get(call: &mut Call<'_>, ptr: u32, len: u32) -> Wasi {
    if len > RANDOM_BYTES {
        return Ok(INVAL);
    }
    let mut bytes = Vec::new();
    while bytes.len() < usize::try_from(len).unwrap_or(0) {
        bytes.extend(call.shared().random().to_le_bytes());
    }
    bytes.truncate(usize::try_from(len).unwrap_or(0));
    if !bytes.is_empty() {
        call.write(ptr, &bytes).map_err(fault)?;
    }
    Ok(SUCCESS)
}

/// There is nothing to wait for: no event ever happens.
pub(crate) fn poll_oneoff(call: &mut Call<'_>, _: u32, _: u32, _: u32, events_ptr: u32) -> Wasi {
    call.write_u32(events_ptr, 0).map_err(fault)?;
    Ok(SUCCESS)
}
