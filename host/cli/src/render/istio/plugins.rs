//! Scorer modules as resources that Istio has for modules.

use std::path::Path;

use serde_json::{Value, json};

use super::Scorers;
use crate::config::{Config, Istio};

/// Highest priority comes first in the chain; each module has one less.
const FIRST_PRIORITY: i64 = 1_000;

fn name(number: usize) -> String {
    format!("wasm-epp-scorer-{number}")
}

/// Names that the first module's filter may have in the chain; none where modules come by EnvoyFilter or
/// there are none.
pub(super) fn anchors(config: &Config, istio: &Istio, scorers: Scorers) -> Vec<String> {
    if config.routing.modules.is_empty() {
        return Vec::new();
    }
    let of = format!("{}.{}", istio.namespace, name(0));
    match scorers {
        Scorers::EnvoyFilter => Vec::new(),
        Scorers::WasmPlugin => vec![
            // Up to 1.25 (with this typo), up to 1.29, and from 1.30 on.
            format!("extenstions.istio.io/wasmplugin/{of}"),
            format!("extensions.istio.io/wasmplugin/{of}"),
            format!("extensions.istio.io/trafficextension/{of}~istio-translated-wasmplugin"),
        ],
        Scorers::TrafficExtension => vec![format!("extensions.istio.io/trafficextension/{of}")],
    }
}

/// A resource for each place with a module.
pub(super) fn resources(istio: &Istio, scorers: Scorers, places: &[(String, Value)]) -> Vec<Value> {
    let modules = places.iter().filter_map(|(_, filter)| {
        let text = |pointer: &str| filter.pointer(pointer).and_then(Value::as_str);
        let file = text("/config/vm_config/code/local/filename")?;
        let root_id = text("/config/root_id")?;
        let configuration: Value =
            serde_json::from_str(text("/config/configuration/value")?).ok()?;
        Some((file, root_id, configuration))
    });
    modules
        .enumerate()
        .map(|(number, (file, root_id, configuration))| {
            let url = format!("file://{}", Path::new(file).display());
            let priority = FIRST_PRIORITY - number as i64;
            let labels = json!({"matchLabels": istio.selector});
            let (kind, spec) = match scorers {
                Scorers::TrafficExtension => (
                    "TrafficExtension",
                    json!({
                        "selector": labels,
                        "phase": "STATS",
                        "priority": priority,
                        "wasm": {
                            "url": url, "pluginName": root_id, "pluginConfig": configuration,
                            "failStrategy": "FAIL_RELOAD",
                        },
                    }),
                ),
                _ => (
                    "WasmPlugin",
                    json!({
                        "selector": labels,
                        // Behind authorization, and ahead of the picker.
                        "phase": "STATS",
                        "priority": priority,
                        "url": url, "pluginName": root_id, "pluginConfig": configuration,
                        // FAIL_OPEN cuts streams just the same, and does not come back.
                        "failStrategy": "FAIL_RELOAD",
                    }),
                ),
            };
            json!({
                "apiVersion": "extensions.istio.io/v1alpha1",
                "kind": kind,
                "metadata": {"name": name(number), "namespace": istio.namespace},
                "spec": spec,
            })
        })
        .collect()
}
