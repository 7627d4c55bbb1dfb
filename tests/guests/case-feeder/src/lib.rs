//! A case in place of a request's own features. Under the root id `feed` it sets what headers say, before
//! scorers and picker: `x-set-property: NAME=HEX`, `x-set-shared: HEX=HEX`. Under `answer`, behind them,
//! it answers 200 with the property that `x-read-property` names, and 404 if there is none.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, reason = "the exported entry point is the macro's")]

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Debug);
    proxy_wasm::set_root_context(|_| Box::new(Root { feeds: false }));
}}

struct Root {
    feeds: bool,
}

impl Context for Root {}

impl RootContext for Root {
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn on_configure(&mut self, _: usize) -> bool {
        let root_id = self.get_property(vec!["plugin_root_id"]).unwrap_or_default();
        self.feeds = root_id == b"feed";
        self.feeds || root_id == b"answer"
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(if self.feeds { Box::new(Feed) } else { Box::new(Answer) })
    }
}

struct Feed;

impl Context for Feed {}

impl Feed {
    /// Does what one header says; nothing if it cannot be read or the host refuses.
    fn set(&self, name: &str, value: &str) -> Option<()> {
        let (key, value) = value.split_once('=')?;
        let value = bytes(value)?;
        match name {
            "x-set-property" => hostcalls::set_property(vec![key], Some(&value)).ok(),
            "x-set-shared" => {
                let key = String::from_utf8(bytes(key)?).ok()?;
                hostcalls::set_shared_data(&key, Some(&value), None).ok()
            }
            _ => Some(()),
        }
    }
}

impl HttpContext for Feed {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        for (name, value) in self.get_http_request_headers() {
            if name.starts_with("x-set-") && self.set(&name, &value).is_none() {
                self.send_http_response(400, vec![], Some(format!("{name}: {value}").as_bytes()));
                return Action::Pause;
            }
        }
        Action::Continue
    }
}

struct Answer;

impl Context for Answer {}

impl HttpContext for Answer {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let name = self.get_http_request_header("x-read-property").unwrap_or_default();
        match self.get_property(vec![&name]).filter(|value| !value.is_empty()) {
            Some(value) => self.send_http_response(200, vec![], Some(&value)),
            None => self.send_http_response(404, vec![], None),
        }
        Action::Pause
    }
}

/// Bytes of pairs of hexadecimal digits.
fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) {
        return None;
    }
    let digits = (0..hex.len()).step_by(2);
    digits.map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}
