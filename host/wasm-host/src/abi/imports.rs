//! Which imports a guest may have, and the functions behind them.

use super::call::{Call, Done, Fail};
use super::{AbiVersion, Status, buffers, callouts, general, grpc, maps, metrics, shared, wasi};
use crate::error::LoadError;
use crate::state::logs::LogLevel;
use crate::vm::report::RestrictedCall;
use crate::vm::state::VmState;
use std::collections::BTreeMap;
use wasmtime::{Caller, Engine, ExternType, FuncType, Linker, Val, ValType};

/// Both names of the one WASI.
const WASI: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// What a guest may call while it starts or allocates; anything else is a trap, as in Envoy.
const ALWAYS: [&str; 13] = [
    "proxy_log",
    "fd_write",
    "args_sizes_get",
    "args_get",
    "environ_sizes_get",
    "environ_get",
    "fd_prestat_get",
    "fd_prestat_dir_name",
    "clock_time_get",
    "clock_res_get",
    "random_get",
    "pthread_equal",
    "emscripten_notify_memory_growth",
];

/// Whether the call is refused: by the phase (a trap) or the allow-list.
fn refused(call: &mut Call<'_>, function: &'static str) -> wasmtime::Result<bool> {
    if let Some(phase) = call.state().phase
        && !ALWAYS.contains(&function)
    {
        return Err(RestrictedCall { function, phase }.into());
    }
    if call.state().allows(function) {
        return Ok(false);
    }
    let text = format!("Attempted call to restricted proxy-wasm capability: {function}");
    call.log(LogLevel::Error, text.as_bytes());
    Ok(true)
}

fn proxy(
    caller: Caller<'_, VmState>,
    function: &'static str,
    body: impl FnOnce(&mut Call<'_>) -> Done,
) -> wasmtime::Result<i32> {
    let mut call = Call::new(caller);
    if refused(&mut call, function)? {
        return Ok(Status::InternalFailure as i32);
    }
    match body(&mut call) {
        Ok(()) => Ok(Status::Ok as i32),
        Err(Fail::Status(status)) => Ok(status as i32),
        Err(Fail::Trap(trap)) => Err(trap),
    }
}

macro_rules! define {
    ($linker:ident, $types:ident; $($name:literal => $body:path: ($($arg:ident: $ty:ty),*);)*) => {
        $($types.insert(("env", $name), wasm(&[$(stringify!($ty)),*], true));
        $linker.func_wrap(
            "env",
            $name,
            |caller: Caller<'_, VmState>, $($arg: $ty),*| {
                proxy(caller, $name, |call| $body(call, $($arg),*))
            },
        )?;)*
    };
}

macro_rules! define_wasi {
    ($linker:ident, $types:ident; $($name:literal => $body:path: ($($arg:ident: $ty:ty),*);)*) => {
        $(for namespace in WASI {
            $types.insert((namespace, $name), wasm(&[$(stringify!($ty)),*], true));
            $linker.func_wrap(
                namespace,
                $name,
                |caller: Caller<'_, VmState>, $($arg: $ty),*| {
                    let mut call = Call::new(caller);
                    if refused(&mut call, $name)? {
                        return Ok(wasi::NOTCAPABLE);
                    }
                    wasi::errno($body(&mut call, $($arg),*))
                },
            )?;
        })*
    };
}

/// Type of each import by both parts of its name.
type Types = BTreeMap<(&'static str, &'static str), String>;

fn wasm(parameters: &[&str], result: bool) -> String {
    let parameters: Vec<_> =
        parameters.iter().map(|ty| if ty.ends_with("64") { "i64" } else { "i32" }).collect();
    format!("({}) -> ({})", parameters.join(" "), if result { "i32" } else { "" })
}

fn define(linker: &mut Linker<VmState>, types: &mut Types) -> wasmtime::Result<()> {
    define! { linker, types;
        "proxy_log" => general::log: (level: u32, ptr: u32, len: u32);
        "proxy_get_log_level" => general::get_log_level: (level: u32);
        "proxy_get_status" => general::get_status: (code: u32, ptr: u32, len: u32);
        "proxy_get_current_time_nanoseconds" => general::get_current_time_nanoseconds: (time: u32);
        "proxy_set_tick_period_milliseconds" => general::set_tick_period_milliseconds: (ms: u32);
        "proxy_get_property" => general::get_property: (path: u32, n: u32, ptr: u32, len: u32);
        "proxy_set_property" => general::set_property: (path: u32, n: u32, value: u32, len: u32);
        "proxy_set_effective_context" => general::set_effective_context: (context: u32);
        "proxy_done" => general::done: ();
        "proxy_continue_stream" => general::continue_stream: (kind: u32);
        "proxy_close_stream" => general::close_stream: (kind: u32);
        "proxy_send_local_response" => general::send_local_response: (code: u32, details: u32,
            details_len: u32, body: u32, body_len: u32, headers: u32, headers_len: u32, grpc: u32);
        "proxy_call_foreign_function" => general::call_foreign_function: (name: u32, n: u32,
            argument: u32, argument_len: u32, ptr: u32, len: u32);
        "proxy_get_header_map_value" => maps::get_header_map_value: (map: u32, key: u32, n: u32,
            ptr: u32, len: u32);
        "proxy_get_header_map_pairs" => maps::get_header_map_pairs: (map: u32, ptr: u32, len: u32);
        "proxy_get_header_map_size" => maps::get_header_map_size: (map: u32, size: u32);
        "proxy_set_header_map_pairs" => maps::set_header_map_pairs: (map: u32, ptr: u32, len: u32);
        "proxy_add_header_map_value" => maps::add_header_map_value: (map: u32, key: u32, n: u32,
            value: u32, len: u32);
        "proxy_replace_header_map_value" => maps::replace_header_map_value: (map: u32, key: u32,
            n: u32, value: u32, len: u32);
        "proxy_remove_header_map_value" => maps::remove_header_map_value: (map: u32, key: u32,
            n: u32);
        "proxy_get_buffer_bytes" => buffers::get_buffer_bytes: (buffer: u32, start: u32, n: u32,
            ptr: u32, len: u32);
        "proxy_get_buffer_status" => buffers::get_buffer_status: (buffer: u32, len: u32, flags: u32);
        "proxy_set_buffer_bytes" => buffers::set_buffer_bytes: (buffer: u32, start: u32, n: u32,
            ptr: u32, len: u32);
        "proxy_get_shared_data" => shared::get_shared_data: (key: u32, n: u32, ptr: u32, len: u32,
            cas: u32);
        "proxy_set_shared_data" => shared::set_shared_data: (key: u32, n: u32, ptr: u32, len: u32,
            cas: u32);
        "proxy_register_shared_queue" => shared::register_shared_queue: (name: u32, n: u32,
            token: u32);
        "proxy_resolve_shared_queue" => shared::resolve_shared_queue: (vm: u32, vm_len: u32,
            name: u32, n: u32, token: u32);
        "proxy_enqueue_shared_queue" => shared::enqueue_shared_queue: (token: u32, ptr: u32,
            len: u32);
        "proxy_dequeue_shared_queue" => shared::dequeue_shared_queue: (token: u32, ptr: u32,
            len: u32);
        "proxy_define_metric" => metrics::define_metric: (kind: u32, name: u32, n: u32, id: u32);
        "proxy_increment_metric" => metrics::increment_metric: (id: u32, offset: i64);
        "proxy_record_metric" => metrics::record_metric: (id: u32, value: u64);
        "proxy_get_metric" => metrics::get_metric: (id: u32, value: u32);
        "proxy_http_call" => callouts::http_call: (cluster: u32, cluster_len: u32, headers: u32,
            headers_len: u32, body: u32, body_len: u32, trailers: u32, trailers_len: u32,
            timeout: u32, token: u32);
        "proxy_grpc_call" => grpc::grpc_call: (target: u32, target_len: u32, service: u32,
            service_len: u32, method: u32, method_len: u32, metadata: u32, metadata_len: u32,
            message: u32, message_len: u32, timeout: u32, token: u32);
        "proxy_grpc_stream" => grpc::grpc_stream: (target: u32, target_len: u32, service: u32,
            service_len: u32, method: u32, method_len: u32, metadata: u32, metadata_len: u32,
            token: u32);
        "proxy_grpc_send" => grpc::grpc_send: (token: u32, message: u32, len: u32, end: u32);
        "proxy_grpc_close" => grpc::grpc_close: (token: u32);
        "proxy_grpc_cancel" => grpc::grpc_cancel: (token: u32);
    }
    types.insert(("env", "pthread_equal"), wasm(&["u32", "u32"], true));
    types.insert(("env", "emscripten_notify_memory_growth"), wasm(&["u32"], false));
    linker.func_wrap("env", "pthread_equal", |left: u32, right: u32| i32::from(left == right))?;
    linker.func_wrap("env", "emscripten_notify_memory_growth", |_: u32| {})?;
    define_wasi! { linker, types;
        "fd_write" => wasi::fd_write: (fd: u32, vectors: u32, count: u32, written: u32);
        "fd_fdstat_get" => wasi::fd_fdstat_get: (fd: u32, stat: u32);
        "environ_sizes_get" => wasi::environ_sizes_get: (count: u32, bytes: u32);
        "environ_get" => wasi::environ_get: (pointers: u32, text: u32);
        "args_sizes_get" => wasi::args_sizes_get: (count: u32, bytes: u32);
        "clock_time_get" => wasi::clock_time_get: (clock: u32, precision: u64, time: u32);
        "clock_res_get" => wasi::clock_res_get: (clock: u32, resolution: u32);
        "random_get" => wasi::random_get: (ptr: u32, len: u32);
        "poll_oneoff" => wasi::poll_oneoff: (input: u32, output: u32, count: u32, events: u32);
    }
    for namespace in WASI {
        types.insert((namespace, "proc_exit"), wasm(&["u32"], false));
        // Logged and ignored, as in Envoy: the guest goes on behind its own exit.
        linker.func_wrap(
            namespace,
            "proc_exit",
            |caller: Caller<'_, VmState>, code: u32| -> wasmtime::Result<()> {
                let mut call = Call::new(caller);
                if !refused(&mut call, "proc_exit")? {
                    call.log(LogLevel::Trace, format!("proc_exit({code})").as_bytes());
                }
                Ok(())
            },
        )?;
        for (name, params, errno) in wasi::STUBS {
            let params = params.chars().map(|c| if c == 'I' { ValType::I64 } else { ValType::I32 });
            let ty = FuncType::new(linker.engine(), params, [ValType::I32]);
            types.insert((namespace, name), signature(&ty));
            linker.func_new(namespace, name, ty, |caller, _, results| {
                let mut call = Call::new(caller);
                let errno = if refused(&mut call, name)? { wasi::NOTCAPABLE } else { *errno };
                if let Some(result) = results.first_mut() {
                    *result = Val::I32(errno);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

pub(crate) fn signature(ty: &FuncType) -> String {
    let join = |types: Vec<String>| types.join(" ");
    let params = join(ty.params().map(|ty| ty.to_string()).collect());
    let results = join(ty.results().map(|ty| ty.to_string()).collect());
    format!("({params}) -> ({results})")
}

/// Everything that a guest may import.
pub(crate) struct Imports {
    pub(crate) linker: Linker<VmState>,
    types: Types,
}

impl Imports {
    pub(crate) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(engine);
        let mut types = Types::new();
        define(&mut linker, &mut types)?;
        Ok(Self { linker, types })
    }

    /// Whether every import of a module has a function behind it, of the module's type and its
    /// version of the ABI.
    pub(crate) fn check(
        &self,
        name: &str,
        module: &wasmtime::Module,
        abi: AbiVersion,
    ) -> Result<(), LoadError> {
        for import in module.imports() {
            let wrong = |found: String, expected: &str| LoadError::ImportType {
                module: name.to_owned(),
                namespace: import.module().to_owned(),
                name: import.name().to_owned(),
                found,
                expected: expected.to_owned(),
            };
            let found = match import.ty() {
                ExternType::Func(found) => signature(&found),
                ExternType::Global(_) => return Err(wrong("a global".to_owned(), "a function")),
                ExternType::Table(_) => return Err(wrong("a table".to_owned(), "a function")),
                ExternType::Memory(_) => return Err(wrong("a memory".to_owned(), "a function")),
                _ => return Err(wrong("a tag".to_owned(), "a function")),
            };
            let newer = import.name() == "proxy_get_log_level" && abi == AbiVersion::V0_2_0;
            match self.types.get(&(import.module(), import.name())) {
                Some(_) if newer => {}
                Some(expected) if *expected == found => continue,
                Some(expected) => return Err(wrong(found, expected)),
                None => {}
            }
            return Err(LoadError::MissingImport {
                module: name.to_owned(),
                namespace: import.module().to_owned(),
                name: import.name().to_owned(),
            });
        }
        Ok(())
    }
}
