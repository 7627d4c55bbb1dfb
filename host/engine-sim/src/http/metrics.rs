//! `/metrics` with vLLM's names, labels and order of labels.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::App;
use crate::publisher::unix_seconds;

pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page(&app))
}

fn page(app: &App) -> String {
    let stats = app.stats.get();
    let totals = stats.totals;
    let model = escape(&app.config.model);
    let usage = stats.used_blocks as f64 / stats.usable_blocks.max(1) as f64;
    let mut page =
        Page { out: String::new(), labels: format!("engine=\"0\",model_name=\"{model}\"") };
    page.plain(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        "",
        app.started_s,
    );
    page.gauge(
        "num_requests_running",
        "Number of requests in model execution batches.",
        stats.running as f64,
    );
    page.gauge(
        "num_requests_waiting",
        "Number of requests waiting to be processed.",
        stats.waiting as f64,
    );
    page.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage);
    page.counter(
        "prefix_cache_queries",
        "Prefix cache queries, in terms of number of queried tokens.",
        totals.prefix_queries_tokens,
    );
    page.counter(
        "prefix_cache_hits",
        "Prefix cache hits, in terms of number of cached tokens.",
        totals.prefix_hits_tokens,
    );
    page.counter(
        "num_preemptions",
        "Cumulative number of preemption from the engine.",
        totals.preemptions,
    );
    page.counter("prompt_tokens", "Number of prefill tokens processed.", totals.prompt_tokens);
    page.counter(
        "generation_tokens",
        "Number of generation tokens processed.",
        totals.generated_tokens,
    );
    let finished = format!("{},finished_reason=\"length\"", page.labels);
    page.plain(
        "vllm:request_success_total",
        "counter",
        "Count of successfully processed requests.",
        &finished,
        totals.finished as f64,
    );
    let config = format!(
        "block_size=\"{}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"0\",\
         kv_cache_size_tokens=\"{}\",num_cpu_blocks=\"None\",num_gpu_blocks=\"{}\",\
         prefix_caching_hash_algo=\"sha256\"",
        app.config.block_size_tokens,
        app.config.block_size_tokens * app.config.num_blocks,
        app.config.num_blocks,
    );
    page.plain(
        "vllm:cache_config_info",
        "gauge",
        "Information of the LLMEngine CacheConfig",
        &config,
        1.0,
    );
    if !app.config.adapters.is_empty() {
        let [running, waiting] = &stats.adapters;
        let names = |adapters: &BTreeSet<String>| {
            escape(&adapters.iter().map(String::as_str).collect::<Vec<_>>().join(","))
        };
        let lora = format!(
            "max_lora=\"{}\",running_lora_adapters=\"{}\",waiting_lora_adapters=\"{}\"",
            app.config.adapters.len(),
            names(running),
            names(waiting),
        );
        page.plain(
            "vllm:lora_requests_info",
            "gauge",
            "Running stats on lora requests.",
            &lora,
            unix_seconds(),
        );
    }
    page.out
}

struct Page {
    out: String,
    labels: String,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let labels = self.labels.clone();
        self.plain(&format!("vllm:{name}"), "gauge", help, &labels, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let labels = self.labels.clone();
        self.plain(&format!("vllm:{name}_total"), "counter", help, &labels, value as f64);
    }

    fn plain(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: f64) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        // `{:?}` keeps the ".0" that prometheus_client for Python writes.
        let line =
            format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value:?}\n");
        // Writing to a String cannot fail.
        let _ = self.out.write_str(&line);
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
