//! A module that stands where a scorer does and logs the features that a scorer gets there, so that
//! what a real proxy scored can be scored elsewhere:
//! `Recorded features REQUEST-ID HEX`, at level debug. It says no scores.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, reason = "the exported entry point is the macro's")]

use std::fmt::Write as _;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Debug);
    proxy_wasm::set_root_context(|_| Box::new(Recorder));
}}

struct Recorder;

impl Context for Recorder {}

impl RootContext for Recorder {
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Recorder))
    }
}

impl HttpContext for Recorder {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let id = self.get_property(vec!["request", "headers", "x-request-id"]);
        let features = self.get_property(vec!["wasm_epp.features"]);
        if let (Some(id), Some(features)) = (id, features) {
            let mut line = format!("Recorded features {} ", String::from_utf8_lossy(&id));
            for byte in features {
                // Writing to a text does not fail.
                let _ = write!(line, "{byte:02x}");
            }
            // Refused: whoever waits for the line says so.
            let _ = hostcalls::log(LogLevel::Debug, &line);
        }
        Action::Continue
    }
}
