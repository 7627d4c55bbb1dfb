//! The file-watched filters: one resource, and so one hot swap, per filter.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::files::content_hash;
use super::{ModulePaths, features};
use crate::config::{Config, Model, ModelRewrite, Pool, RewriteTarget, Routing};

/// Router and feeder share it: shared data is kept per `vm_id`. A scorer module has one of its own,
/// so that one that dies takes no other with it.
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
    // For a request that no endpoint may serve.
    "proxy_send_local_response",
    // For a request that goes to another model.
    "proxy_set_buffer_bytes",
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

/// The meter changes bodies in one place each way, and has nothing to answer.
const METER_CAPABILITIES: &[&str] = &[
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
    "proxy_set_buffer_bytes",
    "proxy_set_property",
    "proxy_set_shared_data",
    // Only here: each costs a call into V8, and so the filter is on the metered routes alone.
    "proxy_on_response_body",
    "proxy_on_response_headers",
    "proxy_on_response_trailers",
];

/// A scorer reads its configuration, the features, and says its scores; the log is for why it refuses
/// a configuration.
const SCORER_CAPABILITIES: &[&str] =
    &["proxy_get_buffer_bytes", "proxy_get_property", "proxy_log", "proxy_set_property"];

/// The callbacks of a scorer: neither body nor response nor timer. Those of the life cycle are what
/// other languages' SDKs keep their books by.
const SCORER_CALLBACKS: &[&str] = &[
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_done",
    "proxy_on_request_headers",
    "proxy_on_vm_start",
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

/// Name of the filter in a place for a scorer module.
pub(super) fn place(number: usize) -> String {
    format!("scorer-{number}")
}

/// The place of each named module. One that has a place keeps it, so that what others do moves
/// nobody; the rest take the free ones in order. There are as many places as modules or more.
fn places_of(names: &[&str], places: usize, held: &BTreeMap<String, usize>) -> Vec<usize> {
    let kept = |name: &&str| held.get(*name).copied().filter(|place| *place < places);
    let taken: Vec<usize> = names.iter().filter_map(kept).collect();
    let mut free = (0..places).filter(|place| !taken.contains(place));
    names.iter().map(|name| kept(name).or_else(|| free.next()).unwrap_or(places)).collect()
}

/// The filters by name: intake and picker share one VM per worker, as vm_config is equal. A place
/// without a scorer holds a filter that does nothing. `held` are the places that modules have, `clusters`
/// the clusters of pools that are not called as the pools are.
pub(super) fn filters(
    config: &Config,
    modules: &ModulePaths,
    held: &BTreeMap<String, usize>,
    clusters: &BTreeMap<String, String>,
) -> Vec<(String, Value)> {
    let mut intake = intake(config, clusters);
    let mut picker = chosen_by(&config.routing);
    if config.meter.is_some() {
        picker["meter"] = json!(true);
    }
    if config.routing.has_served_header {
        picker["servedHeader"] = json!(true);
    }
    features::picker(config, &mut picker);
    // A dead VM goes on when every filter of it is configured anew, so a change of one is one of both.
    let both = revision(&modules.router, &json!([intake, picker]));
    (intake["revision"], picker["revision"]) = (json!(both), json!(both));
    // fail_open is deprecated in favour of failure_policy and is not the same: only it lets the
    // streams of a dead VM live. The two exclude each other.
    let fail_open = ("fail_open", json!(true));
    let reload = ("failure_policy", json!("FAIL_RELOAD"));
    let router = Loaded {
        file: &modules.router,
        vm_id: VM_ID,
        failure: fail_open.clone(),
        calls: ROUTER_CAPABILITIES,
        callbacks: CALLBACKS,
    };
    let feeder = Loaded {
        file: &modules.feeder,
        failure: reload,
        calls: FEEDER_CAPABILITIES,
        ..router.clone()
    };
    let mut filters = vec![
        ("intake".to_owned(), wasm("intake", &router, intake)),
        ("picker".to_owned(), wasm("picker", &router, picker)),
        ("feeder".to_owned(), wasm("feed", &feeder, json!({}))),
    ];
    let places = config.routing.module_places;
    let names: Vec<&str> = config.routing.modules.iter().map(|scorer| &*scorer.name).collect();
    let scorers = config.routing.modules.iter().zip(&modules.scorers);
    let scorers: BTreeMap<usize, _> =
        places_of(&names, places, held).into_iter().zip(scorers).collect();
    filters.extend((0..places).map(|number| {
        let filter = match scorers.get(&number) {
            None => super::envoy::stand_in(),
            Some((scorer, file)) => {
                let name = format!("scorer-{}", scorer.name);
                let loaded = Loaded {
                    file,
                    vm_id: &format!("{VM_ID}-{name}"),
                    failure: fail_open.clone(),
                    calls: SCORER_CAPABILITIES,
                    callbacks: SCORER_CALLBACKS,
                };
                let mut own = json!({"name": scorer.name, "parameters": scorer.parameters});
                own["revision"] = json!(revision(file, &own));
                wasm(&name, &loaded, own)
            }
        };
        (place(number), filter)
    }));
    if let (Some(meter), Some(module)) = (config.meter, &modules.meter) {
        let loaded = Loaded { file: module, calls: METER_CAPABILITIES, ..router.clone() };
        let configuration = json!({
            "includeUsage": meter.include_usage,
            "maxBodyBytes": config.routing.max_body_bytes,
        });
        filters.push(("meter".to_owned(), wasm("meter", &loaded, configuration)));
    }
    if let (false, Some(module)) = (config.model_rewrites.is_empty(), &modules.meter) {
        let loaded = Loaded {
            file: module,
            vm_id: RESTORER_VM_ID,
            calls: METER_CAPABILITIES,
            ..router.clone()
        };
        filters.push((RESTORER.to_owned(), wasm("restore", &loaded, json!({}))));
    }
    filters
}

/// The picker's configuration.
fn chosen_by(routing: &Routing) -> Value {
    let spec = &routing.spec;
    let mut picker = match spec.profiles.as_slice() {
        [only] if spec.is_short => {
            let mut picker = json!(only);
            picker.as_object_mut().map(|keys| keys.remove("name"));
            picker
        }
        profiles => json!({"profiles": profiles}),
    };
    picker["destinations"] = json!(routing.retries + 1);
    if let Some(handler) = &spec.profile_handler {
        picker["profileHandler"] = json!(handler);
    }
    picker
}

/// The filter that names the asked model in answers, which is the meter's module.
pub(super) const RESTORER: &str = "restorer";
/// A VM apart from the meter's: its death costs names, not measurements.
const RESTORER_VM_ID: &str = "wasm-epp-restorer";

/// Tells configurations apart: another module, other parameters, another number. A scorer's comes back
/// with each of its scores.
fn revision(file: &Path, configuration: &Value) -> u32 {
    let text = format!("{}\n{configuration}", file.file_name().unwrap_or_default().display());
    let digits = content_hash(text.as_bytes());
    // Hex digits by construction; 0 is for modules that do not tell.
    u32::from_str_radix(&digits[..8], 16).unwrap_or(1).max(1)
}

/// Configuration of intake. Where there are several pools it also says which models they have, as a
/// request must reach them without a daemon too.
fn intake(config: &Config, clusters: &BTreeMap<String, String>) -> Value {
    let model = |model: &Model| json!({"name": model.name, "aliases": model.aliases, "adapters": model.adapters});
    let is_one_of_several = config.pools.len() > 1;
    let pool = |pool: &Pool| {
        let mut value = json!({"name": pool.name});
        if let Some(cluster) = clusters.get(&pool.name) {
            value["cluster"] = json!(cluster);
        }
        if is_one_of_several {
            value["models"] = pool.models.iter().map(model).collect();
        }
        value
    };
    let mut intake = json!({
        "maxBodyBytes": config.routing.max_body_bytes,
        "maxStateAgeMs": config.routing.max_state_age_ms,
        "pools": config.pools.iter().map(pool).collect::<Vec<_>>(),
    });
    if let Some(approximate) = config.routing.approximate_prefix
        && config.pools.iter().any(Pool::may_be_silent)
    {
        intake["approximatePrefix"] = json!({
            "capacityTokens": approximate.capacity_tokens,
            "autoTune": approximate.auto_tune,
            "maxPrefixTokens": approximate.max_prefix_tokens,
        });
    }
    if !config.model_rewrites.is_empty() {
        let target =
            |target: &RewriteTarget| json!({"model": target.model, "weight": target.weight});
        let rule = |rule: &ModelRewrite| {
            let targets: Vec<Value> = rule.targets.iter().map(target).collect();
            json!({"models": rule.models, "targets": targets, "pool": rule.pool})
        };
        intake["rewrites"] = config.model_rewrites.iter().map(rule).collect();
    }
    if let [first, _, ..] = config.pools.as_slice() {
        intake["byModel"] = json!(first.name);
    }
    features::intake(config, &mut intake);
    intake
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

/// How a module is loaded.
#[derive(Clone)]
struct Loaded<'a> {
    file: &'a Path,
    vm_id: &'a str,
    failure: (&'static str, Value),
    calls: &'static [&'static str],
    callbacks: &'static [&'static str],
}

fn wasm(root_id: &str, loaded: &Loaded<'_>, configuration: Value) -> Value {
    let (failure_key, failure) = loaded.failure.clone();
    let allowed: serde_json::Map<String, Value> = [loaded.calls, loaded.callbacks, WASI]
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
                "vm_id": loaded.vm_id,
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"local": {"filename": loaded.file}},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_keeps_its_place_and_new_ones_take_what_is_free() {
        let check = |held: &[(&str, usize)], names: &[&str], expected: &[usize]| {
            let held = held.iter().map(|(name, place)| ((*name).to_owned(), *place)).collect();
            assert_eq!(places_of(names, 4, &held), expected, "{names:?} over {held:?}");
        };
        check(&[], &["a", "b"], &[0, 1]);
        check(&[("a", 0), ("b", 1)], &["b"], &[1]);
        check(&[("a", 0), ("b", 1)], &["c", "b"], &[0, 1]);
        check(&[("a", 0), ("b", 1)], &["d", "c", "a", "b"], &[2, 3, 0, 1]);
        // There were more places once.
        check(&[("a", 7)], &["b", "a"], &[0, 1]);
    }
}
