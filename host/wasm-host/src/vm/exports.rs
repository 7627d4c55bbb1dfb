//! What the host calls in a guest.

use std::fmt;
use wasmtime::{FuncType, ValType};

/// Type of a callback: so many `i32` parameters, and an `i32` result or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    params: usize,
    result: bool,
}

impl Signature {
    pub(crate) fn matches(self, found: &FuncType) -> bool {
        found.params().len() == self.params
            && found.params().all(|ty| matches!(ty, ValType::I32))
            && found.results().len() == usize::from(self.result)
            && found.results().all(|ty| matches!(ty, ValType::I32))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params = vec!["i32"; self.params].join(" ");
        write!(f, "({params}) -> ({})", if self.result { "i32" } else { "" })
    }
}

const fn of(params: usize, result: bool) -> Signature {
    Signature { params, result }
}

/// Exports that are called if they are there.
pub(crate) const CALLBACKS: &[(&str, Signature)] = &[
    ("_initialize", of(0, false)),
    ("_start", of(0, false)),
    ("main", of(2, true)),
    ("__main_void", of(0, true)),
    ("malloc", of(1, true)),
    ("proxy_on_memory_allocate", of(1, true)),
    ("proxy_on_vm_start", of(2, true)),
    ("proxy_on_configure", of(2, true)),
    ("proxy_on_tick", of(1, false)),
    ("proxy_on_context_create", of(2, false)),
    ("proxy_on_request_headers", of(3, true)),
    ("proxy_on_request_body", of(3, true)),
    ("proxy_on_request_trailers", of(2, true)),
    ("proxy_on_response_headers", of(3, true)),
    ("proxy_on_response_body", of(3, true)),
    ("proxy_on_response_trailers", of(2, true)),
    ("proxy_on_http_call_response", of(5, false)),
    ("proxy_on_grpc_receive_initial_metadata", of(3, false)),
    ("proxy_on_grpc_receive", of(3, false)),
    ("proxy_on_grpc_receive_trailing_metadata", of(3, false)),
    ("proxy_on_grpc_close", of(3, false)),
    ("proxy_on_queue_ready", of(2, false)),
    ("proxy_on_done", of(1, true)),
    ("proxy_on_log", of(1, false)),
    ("proxy_on_delete", of(1, false)),
];
