//! What the host calls. Contexts and tokens are not told: they are numbers of the host's choice.

use crate::{configure, create, run};

unsafe extern "C" {
    fn __wasm_call_ctors();
}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: the host calls this once, before anything else, as a reactor's start.
    unsafe { __wasm_call_ctors() }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Memory for the host to write to, which becomes a `Vec` of that length.
#[unsafe(export_name = "proxy_on_memory_allocate")]
pub(crate) extern "C" fn allocate(len: usize) -> *mut u8 {
    Box::leak(vec![0_u8; len].into_boxed_slice()).as_mut_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(id: u32, parent: u32) {
    create(id, parent);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_vm_start(id: u32, len: u32) -> u32 {
    configure(id, 6, len);
    run(id, "vm_start", &[]).unwrap_or(1)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(id: u32, len: u32) -> u32 {
    configure(id, 7, len);
    run(id, "configure", &[]).unwrap_or(1)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_done(id: u32) -> u32 {
    run(id, "done", &[]).unwrap_or(1)
}

macro_rules! callbacks {
    ($($export:ident = $name:literal($($hidden:ident),*; $($told:ident),*);)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $export(id: u32, $($hidden: u32,)* $($told: u32),*) {
                $(let _ = $hidden;)*
                run(id, $name, &[$($told),*]);
            }
        )*
    };
}

macro_rules! actions {
    ($($export:ident = $name:literal($($told:ident),*);)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $export(id: u32, $($told: u32),*) -> u32 {
                run(id, $name, &[$($told),*]).unwrap_or(0)
            }
        )*
    };
}

actions! {
    proxy_on_request_headers = "request_headers"(count, end_of_stream);
    proxy_on_request_body = "request_body"(bytes, end_of_stream);
    proxy_on_request_trailers = "request_trailers"(count);
    proxy_on_response_headers = "response_headers"(count, end_of_stream);
    proxy_on_response_body = "response_body"(bytes, end_of_stream);
    proxy_on_response_trailers = "response_trailers"(count);
}

callbacks! {
    proxy_on_tick = "tick"(;);
    proxy_on_queue_ready = "queue_ready"(token;);
    proxy_on_http_call_response = "http_call_response"(token; headers, bytes, trailers);
    proxy_on_grpc_receive_initial_metadata = "grpc_receive_initial_metadata"(token; count);
    proxy_on_grpc_receive = "grpc_receive"(token; bytes);
    proxy_on_grpc_receive_trailing_metadata = "grpc_receive_trailing_metadata"(token; count);
    proxy_on_grpc_close = "grpc_close"(token; status);
    proxy_on_log = "log"(;);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(id: u32) {
    run(id, "delete", &[]);
    crate::machine(|machine| machine.contexts.remove(&id));
}
