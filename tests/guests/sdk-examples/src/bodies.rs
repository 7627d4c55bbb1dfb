//! `http_body`.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

/// Waits for all of a response and replaces it if it has a secret.
pub(crate) struct Redacted;

impl Context for Redacted {}

impl HttpContext for Redacted {
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        // The body's length may change, and headers cannot any more when it is seen.
        self.set_http_response_header("content-length", None);
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if !end_of_stream {
            return Action::Pause;
        }
        let body = self.get_http_response_body(0, size).unwrap_or_default();
        if String::from_utf8_lossy(&body).contains("secret") {
            let redacted = format!("Original message body ({size} bytes) redacted.\n");
            self.set_http_response_body(0, size, redacted.as_bytes());
        }
        Action::Continue
    }
}
