//! `http_headers`, `http_config` and `envoy_filter_metadata`.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::{POWERED_BY, info};

/// Logs all headers and answers `/hello` itself. The example says the context's id, which is a number of
/// the host's own.
pub(crate) struct Logged;

impl Context for Logged {}

impl HttpContext for Logged {
    fn on_http_request_headers(&mut self, count: usize, end_of_stream: bool) -> Action {
        info(&format!("-> {count} headers, end {end_of_stream}"));
        for (name, value) in self.get_http_request_headers() {
            info(&format!("-> {name}: {value}"));
        }
        if self.get_http_request_header(":path").as_deref() != Some("/hello") {
            return Action::Continue;
        }
        let headers = vec![("Hello", "World"), POWERED_BY];
        self.send_http_response(200, headers, Some(b"Hello, World!\n"));
        Action::Pause
    }

    fn on_http_response_headers(&mut self, count: usize, end_of_stream: bool) -> Action {
        info(&format!("<- {count} headers, end {end_of_stream}"));
        for (name, value) in self.get_http_response_headers() {
            info(&format!("<- {name}: {value}"));
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        info("completed.");
    }
}

/// Adds a header whose value is the configuration.
pub(crate) struct Configured(pub(crate) String);

impl Context for Configured {}

impl HttpContext for Configured {
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.add_http_response_header("custom-header", &self.0);
        Action::Continue
    }
}

/// Answers with what another filter left in the stream's dynamic metadata.
pub(crate) struct Metadata;

impl Context for Metadata {}

impl HttpContext for Metadata {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        const PATH: [&str; 4] =
            ["metadata", "filter_metadata", "envoy.filters.http.lua", "uppercased-custom-metadata"];
        let Some(data) = self.get_property(PATH.to_vec()) else { return Action::Continue };
        let Ok(data) = String::from_utf8(data) else { return Action::Continue };
        let body = format!("Custom response with Envoy metadata: {data:?}\n");
        let headers = vec![POWERED_BY, ("uppercased-metadata", data.as_str())];
        self.send_http_response(200, headers, Some(body.as_bytes()));
        Action::Pause
    }
}
