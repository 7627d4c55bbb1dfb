//! Where a number was measured.

use std::process::Command;

use serde_json::{Value, json};
use testbed::root;

/// Processor, Envoy, modules, and how busy others keep it; what cannot be told is null.
pub(crate) fn describe() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map(usize::from).ok();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|minute| minute.parse::<f64>().ok());
    let module = |name: &str| {
        let path = root().join("target/wasm").join(format!("{name}.wasm"));
        std::fs::metadata(path).map(|data| data.len()).ok()
    };
    json!({
        "cpu": model,
        "cores": cores,
        "load_average_before": load,
        "envoy": envoy_version(),
        "module_bytes": {
            "router": module("router"), "feeder": module("feeder"), "meter": module("meter"),
            "noop": module("noop"),
        },
        "is_optimized": cfg!(not(debug_assertions)),
    })
}

/// `machine` for people.
pub(crate) fn sentence(machine: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let sizes = &machine["module_bytes"];
    let debug = if machine["is_optimized"] == true { "" } else { ", UNOPTIMIZED build" };
    format!(
        "{}, {} cores, load average {} before, Envoy {}, router.wasm {} bytes, noop.wasm {} bytes{debug}",
        text(&machine["cpu"]),
        machine["cores"],
        machine["load_average_before"],
        text(&machine["envoy"]),
        sizes["router"],
        sizes["noop"],
    )
}

/// From `envoy  version: <commit>/<version>/<status>/<build>/<tls>`.
fn envoy_version() -> Option<String> {
    let output = Command::new(testbed::envoy().ok()?).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.trim().rsplit('/').nth(3)?.to_owned())
}
