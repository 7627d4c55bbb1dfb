//! The behaviours of the proxy-wasm Rust SDK's examples, written anew and small, in one module: a
//! plugin's root id is the name of the example. What the examples have fixed and a test must choose (a
//! cluster, a prefix of names) is the plugin's configuration.
//!
//! `envoy_tcp_routing` is not here, as it is a TCP filter.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, reason = "the exported entry point is the macro's")]

mod bodies;
mod callouts;
mod headers;
mod metrics;

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{ContextType, LogLevel};

use metrics::Metrics;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Trace);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

/// A line at level info. A host that refuses it says so where the test looks for the line.
fn info(line: &str) {
    let _ = hostcalls::log(LogLevel::Info, line);
}

/// The header that several examples sign their answers with, in the capitals they write it with.
const POWERED_BY: (&str, &str) = ("Powered-By", "proxy-wasm");

#[derive(Default)]
struct Root {
    example: String,
    configuration: Vec<u8>,
    metrics: Option<Metrics>,
}

impl Root {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.configuration).into_owned()
    }
}

impl Context for Root {}

impl RootContext for Root {
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn on_vm_start(&mut self, _: usize) -> bool {
        let root_id = self.get_property(vec!["plugin_root_id"]).unwrap_or_default();
        if root_id == b"hello_world" {
            info("Hello, World!");
            self.set_tick_period(Duration::from_millis(10));
        }
        true
    }

    fn on_configure(&mut self, _: usize) -> bool {
        let root_id = self.get_property(vec!["plugin_root_id"]).unwrap_or_default();
        self.example = String::from_utf8_lossy(&root_id).into_owned();
        self.configuration = self.get_plugin_configuration().unwrap_or_default();
        if self.example == "metrics" {
            self.metrics = Metrics::define(&self.text());
            return self.metrics.is_some();
        }
        true
    }

    /// The clock and the random byte are WASI's, as in the example; what differs between any two runs is
    /// checked here and not logged. It ticks once, so that the log does not depend on the time.
    fn on_tick(&mut self) {
        self.set_tick_period(Duration::ZERO);
        let (wasi, proxy) = (SystemTime::now(), self.get_current_time());
        let apart = wasi.duration_since(proxy).unwrap_or_else(|earlier| earlier.duration());
        let since = wasi.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_now = apart < Duration::from_secs(60) && !since.is_zero();
        // Of 64 bytes, not all are one.
        let bytes: Vec<u64> = (0..64).map(|i| RandomState::new().hash_one(i) & 255).collect();
        let is_lucky = bytes.iter().any(|byte| Some(byte) != bytes.first());
        info(&format!("It's now: {is_now}, your lucky number is drawn: {is_lucky}."));
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(match self.example.as_str() {
            "hello_world" => Box::new(Quiet),
            "http_headers" => Box::new(headers::Logged),
            "http_config" => Box::new(headers::Configured(self.text())),
            "envoy_filter_metadata" => Box::new(headers::Metadata),
            "http_body" => Box::new(bodies::Redacted),
            "http_auth_random" => Box::new(callouts::HttpAuth(self.text())),
            "http_parallel_call" => Box::new(callouts::Parallel::new(self.text())),
            "grpc_auth_random" => Box::new(callouts::GrpcAuth(self.text())),
            "metrics" => Box::new(self.metrics?.of_stream()),
            other => {
                info(&format!("no example {other:?} for stream {id}"));
                return None;
            }
        })
    }
}

/// A stream that an example has no callbacks for.
struct Quiet;
impl Context for Quiet {}
impl HttpContext for Quiet {}
