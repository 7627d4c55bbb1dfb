//! The file-watched filters: one resource, and so one hot swap, per filter.

use serde_json::{Value, json};

use super::ModulePaths;
use super::files::content_hash;
use crate::config::Config;

/// All modules of a gateway share it: shared data is kept per `vm_id`.
const VM_ID: &str = "wasm-epp";

/// Host calls and callbacks of intake and picker. Envoy withholds what is not listed: a host call
/// then fails, a callback is never called. The callback of response bodies is left out on purpose:
/// each filter that has it costs a call into V8 per streamed chunk. Both filters have one list, as
/// they share VMs, whose list is that of the filter that came first. The exports of allocation, ABI version
/// and start are not subject to the list.
const ROUTER_CAPABILITIES: &[&str] = &[
    "proxy_add_header_map_value",
    "proxy_define_metric",
    "proxy_get_buffer_bytes",
    "proxy_get_current_time_nanoseconds",
    "proxy_get_header_map_value",
    "proxy_get_log_level",
    "proxy_get_property",
    "proxy_get_shared_data",
    "proxy_increment_metric",
    "proxy_log",
    "proxy_record_metric",
    "proxy_remove_header_map_value",
    "proxy_replace_header_map_value",
    "proxy_set_property",
    "proxy_set_shared_data",
    "proxy_set_tick_period_milliseconds",
    // Callbacks, beyond those that the feeder has too.
    "proxy_on_response_headers",
    "proxy_on_tick",
];

/// The feeder answers by itself, and has no request to change.
const FEEDER_CAPABILITIES: &[&str] = &[
    "proxy_define_metric",
    "proxy_get_buffer_bytes",
    "proxy_get_current_time_nanoseconds",
    "proxy_get_header_map_value",
    "proxy_get_log_level",
    "proxy_get_property",
    "proxy_get_shared_data",
    "proxy_increment_metric",
    "proxy_log",
    "proxy_record_metric",
    "proxy_send_local_response",
    "proxy_set_shared_data",
];

/// Life cycle and request callbacks.
const CALLBACKS: &[&str] = &[
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_done",
    "proxy_on_log",
    "proxy_on_request_body",
    "proxy_on_request_headers",
    "proxy_on_request_trailers",
    "proxy_on_vm_start",
];

/// What Rust's standard library imports on wasm32-wasip1.
const WASI: &[&str] =
    &["clock_time_get", "environ_get", "environ_sizes_get", "fd_write", "proc_exit", "random_get"];

/// First lines of every resource file.
pub(super) const HEADER: &str = "\
# Written by `wasm-epp render`; changes are lost at the next run.
# Envoy reads this file when it is renamed into this folder. Proof of a swap is the statistic
# extension_config_discovery.http_filter.NAME.version_text showing the version_info below.
";

/// The filters by name: intake and picker share one VM per worker, as vm_config is equal.
pub(super) fn filters(config: &Config, modules: &ModulePaths) -> [(&'static str, Value); 3] {
    let pools: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    let scorers: Vec<Value> = config
        .routing
        .scorers
        .iter()
        .map(|scorer| json!({"type": scorer.kind, "weight": scorer.weight}))
        .collect();
    let intake = json!({
        "maxBodyBytes": config.routing.max_body_bytes,
        "maxStateAgeMs": config.routing.max_state_age_ms,
        "pools": pools,
    });
    let picker = json!({
        "destinations": config.routing.retries + 1,
        "scorers": scorers,
    });
    // fail_open is deprecated in favour of failure_policy and is not the same: only it lets the
    // streams of a dead VM live. The two exclude each other.
    let fail_open = ("fail_open", json!(true));
    let reload = ("failure_policy", json!("FAIL_RELOAD"));
    [
        ("intake", wasm("intake", &modules.router, intake, fail_open.clone(), ROUTER_CAPABILITIES)),
        ("picker", wasm("picker", &modules.router, picker, fail_open, ROUTER_CAPABILITIES)),
        ("feeder", wasm("feed", &modules.feeder, json!({}), reload, FEEDER_CAPABILITIES)),
    ]
}

/// The discovery response that holds one filter. Its version is the hash of its content.
pub(super) fn resource(name: &str, filter: Value) -> Value {
    let resource = json!({
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": name,
        "typed_config": filter,
    });
    json!({
        "version_info": content_hash(resource.to_string().as_bytes()),
        "resources": [resource],
    })
}

fn wasm(
    root_id: &str,
    module: &std::path::Path,
    configuration: Value,
    (failure_key, failure): (&str, Value),
    calls: &[&str],
) -> Value {
    let allowed: serde_json::Map<String, Value> = [calls, CALLBACKS, WASI]
        .concat()
        .into_iter()
        .map(|name| (name.to_owned(), json!({})))
        .collect();
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {
            "name": root_id,
            "root_id": root_id,
            failure_key: failure,
            // Without it a request paused in its headers never gets its body.
            "allow_on_headers_stop_iteration": true,
            "capability_restriction_config": {"allowed_capabilities": allowed},
            "configuration": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": configuration.to_string(),
            },
            "vm_config": {
                "vm_id": VM_ID,
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"local": {"filename": module}},
            },
        },
    })
}
