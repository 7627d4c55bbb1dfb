//! `metrics`.

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, MetricType};

use crate::info;

/// One metric of each kind.
#[derive(Clone, Copy)]
pub(crate) struct Metrics {
    counter: u32,
    gauge: u32,
    histogram: u32,
}

impl Metrics {
    /// Defines them; their names begin with `prefix`.
    pub(crate) fn define(prefix: &str) -> Option<Self> {
        let define = |kind, name: &str| {
            hostcalls::define_metric(kind, &format!("{prefix}.wasm_{name}")).ok()
        };
        Some(Self {
            counter: define(MetricType::Counter, "counter")?,
            gauge: define(MetricType::Gauge, "gauge")?,
            histogram: define(MetricType::Histogram, "histogram")?,
        })
    }

    pub(crate) fn of_stream(self) -> OfStream {
        OfStream(self)
    }
}

/// Headers say which metric to change, and by how much.
pub(crate) struct OfStream(Metrics);

impl Context for OfStream {}

impl HttpContext for OfStream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let value = self.get_http_request_header("x-envoy-wasm-metric-value");
        let value: i64 = value.and_then(|value| value.parse().ok()).unwrap_or(0);
        let Metrics { counter, gauge, histogram } = self.0;
        let changed = match self.get_http_request_header("x-envoy-wasm-metric").as_deref() {
            Some("counter") => hostcalls::increment_metric(counter, value),
            Some("gauge") => hostcalls::record_metric(gauge, value.unsigned_abs()),
            Some("histogram") => hostcalls::record_metric(histogram, value.unsigned_abs()),
            _ => return Action::Continue,
        };
        info(&format!("changed by {value}: {changed:?}"));
        let now = [counter, gauge].map(hostcalls::get_metric);
        info(&format!("counter and gauge are {now:?}"));
        Action::Continue
    }
}
