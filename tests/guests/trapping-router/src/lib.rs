//! The router as it is, but that it traps where a request's `x-trap` header tells it to: in `headers`
//! or the `body` of intake, in `response` headers of the picker.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, reason = "the exported entry point is the macro's")]
#![allow(clippy::panic, reason = "it is meant to trap")]

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root(router::root_context())));
}}

struct Root(Box<dyn RootContext>);

impl Context for Root {
    fn on_done(&mut self) -> bool {
        self.0.on_done()
    }
}

impl RootContext for Root {
    fn on_vm_start(&mut self, size: usize) -> bool {
        self.0.on_vm_start(size)
    }
    fn on_configure(&mut self, size: usize) -> bool {
        self.0.on_configure(size)
    }
    fn on_tick(&mut self) {
        self.0.on_tick();
    }
    fn get_type(&self) -> Option<ContextType> {
        self.0.get_type()
    }
    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        let inner = self.0.create_http_context(id)?;
        Some(Box::new(Stream { inner, place: None }))
    }
}

struct Stream {
    inner: Box<dyn HttpContext>,
    /// Where it is to trap.
    place: Option<String>,
}

impl Stream {
    fn trap_if(&self, place: &str) {
        if self.place.as_deref() == Some(place) {
            panic!("a router that traps in {place}");
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, count: usize, is_end: bool) -> Action {
        self.place = self.get_http_request_header("x-trap");
        let action = self.inner.on_http_request_headers(count, is_end);
        self.trap_if("headers");
        action
    }
    fn on_http_request_body(&mut self, size: usize, is_end: bool) -> Action {
        self.trap_if("body");
        self.inner.on_http_request_body(size, is_end)
    }
    fn on_http_request_trailers(&mut self, count: usize) -> Action {
        self.inner.on_http_request_trailers(count)
    }
    fn on_http_response_headers(&mut self, count: usize, is_end: bool) -> Action {
        self.trap_if("response");
        self.inner.on_http_response_headers(count, is_end)
    }
    fn on_log(&mut self) {
        self.inner.on_log();
    }
}
