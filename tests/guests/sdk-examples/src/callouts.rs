//! `http_auth_random`, `http_parallel_call` and `grpc_auth_random`. Each holds a request until servers of
//! the configured cluster have answered; the chance of the examples is what those answer.

use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, GrpcStatusCode};

use crate::{POWERED_BY, info};

const TIMEOUT: Duration = Duration::from_secs(5);

fn ask(context: &dyn Context, cluster: &str, path: &str) -> Option<u32> {
    let headers = vec![(":method", "GET"), (":path", path), (":authority", "httpbin.org")];
    let called = context.dispatch_http_call(cluster, headers, None, vec![], TIMEOUT);
    called.inspect_err(|status| info(&format!("no call of {path}: {status:?}"))).ok()
}

/// Lets a request pass if the first byte of an answer is even.
pub(crate) struct HttpAuth(pub(crate) String);

impl HttpContext for HttpAuth {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        match ask(self, &self.0, "/callout/bytes/1") {
            Some(_) => Action::Pause,
            None => Action::Continue,
        }
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_header(POWERED_BY.0, Some(POWERED_BY.1));
        Action::Continue
    }
}

impl Context for HttpAuth {
    fn on_http_call_response(&mut self, _: u32, headers: usize, size: usize, trailers: usize) {
        let has = (headers > 0, size, trailers);
        let body = self.get_http_call_response_body(0, size).unwrap_or_default();
        if body.first().is_some_and(|byte| byte % 2 == 0) {
            info(&format!("Access granted, {has:?}."));
            self.resume_http_request();
            return;
        }
        info(&format!("Access forbidden, {has:?}."));
        self.send_http_response(403, vec![POWERED_BY], Some(b"Access forbidden.\n"));
    }
}

/// Answers with the bodies of two calls that are under way at once, in the order they were made in.
pub(crate) struct Parallel {
    cluster: String,
    calls: Vec<(u32, Option<String>)>,
}

impl Parallel {
    pub(crate) fn new(cluster: String) -> Self {
        Self { cluster, calls: Vec::new() }
    }
}

impl HttpContext for Parallel {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let tokens =
            ["/callout/hello", "/callout/world"].map(|path| ask(self, &self.cluster, path));
        self.calls = tokens.into_iter().flatten().map(|token| (token, None)).collect();
        if self.calls.is_empty() { Action::Continue } else { Action::Pause }
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_header(POWERED_BY.0, Some(POWERED_BY.1));
        Action::Continue
    }
}

impl Context for Parallel {
    fn on_http_call_response(&mut self, token: u32, _: usize, size: usize, _: usize) {
        let body = self.get_http_call_response_body(0, size).unwrap_or_default();
        let body = String::from_utf8_lossy(&body).trim_end().to_owned();
        let place = self.calls.iter().position(|(of, _)| *of == token);
        info(&format!("call {place:?} says {body:?}"));
        if let Some((_, answer)) = place.and_then(|place| self.calls.get_mut(place)) {
            *answer = Some(body);
        }
        let all: Option<Vec<&str>> = self.calls.iter().map(|(_, body)| body.as_deref()).collect();
        if let Some(all) = all {
            self.send_http_response(200, vec![], Some(format!("{}\n", all.concat()).as_bytes()));
        }
    }
}

/// Lets a gRPC request pass if a call ends with an even status; others are not for it.
pub(crate) struct GrpcAuth(pub(crate) String);

impl HttpContext for GrpcAuth {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let kind = self.get_http_request_header("content-type").unwrap_or_default();
        if !kind.starts_with("application/grpc") {
            let body = b"Service accessible only to gRPC clients.\n";
            self.send_http_response(503, vec![POWERED_BY], Some(body));
            return Action::Pause;
        }
        let path = self.get_http_request_header(":path").unwrap_or_default();
        if path.starts_with("/grpc.reflection") {
            return Action::Continue;
        }
        let (service, method) = ("callout.GRPCBin", "RandomError");
        match self.dispatch_grpc_call(&self.0, service, method, vec![], None, TIMEOUT) {
            Ok(_) => Action::Pause,
            Err(status) => {
                info(&format!("no gRPC call: {status:?}"));
                Action::Continue
            }
        }
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_header(POWERED_BY.0, Some(POWERED_BY.1));
        Action::Continue
    }
}

impl Context for GrpcAuth {
    fn on_grpc_call_response(&mut self, _: u32, status: u32, size: usize) {
        if status.is_multiple_of(2) {
            info(&format!("Access granted, status {status}, {size} bytes."));
            self.resume_http_request();
            return;
        }
        info(&format!("Access forbidden, status {status}, {size} bytes."));
        let metadata = vec![(POWERED_BY.0, POWERED_BY.1.as_bytes())];
        let message = "Aborted by Proxy-Wasm!";
        self.send_grpc_response(GrpcStatusCode::Aborted, Some(message), metadata);
    }
}
