//! The configuration that is written.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::Options;
use super::epp::Epp;
use super::handlers::Handler;
use super::plan::{Plan, Planned, PlannedProfile};

pub(super) fn write(file: &Path, epp: &Epp, plan: &Plan, options: &Options) -> String {
    let name =
        file.file_name().map_or_else(|| file.to_string_lossy(), |name| name.to_string_lossy());
    let mut out = format!(
        "# From {name} by `wasm-epp import`. An EndpointPickerConfig names no engines and no gateways:\n\
         # fill in the lines below and uncomment them. Keys left out have their defaults.\n\n"
    );
    skeleton(&mut out, plan, options);
    if let Some(ms) = plan.metrics_interval_ms {
        let _ = writeln!(out, "metrics: {{intervalMs: {ms}}}\n");
    }
    out.push_str("routing:\n");
    match plan.profiles.as_slice() {
        [only] => profile(&mut out, only, "  "),
        several => {
            out.push_str("  profiles:\n");
            for planned in several {
                let _ = writeln!(out, "  - name: {}", scalar(&planned.name));
                profile(&mut out, planned, "    ");
            }
        }
    }
    match &plan.handler {
        Handler::Header { header, default } if plan.profiles.len() > 1 => {
            let parameters = json!({"header": header, "default": default});
            handler(&mut out, "header", &parameters);
        }
        Handler::Disagg { decode, prefill, non_cached_tokens } => {
            let parameters =
                json!({"decode": decode, "prefill": prefill, "nonCachedTokens": non_cached_tokens});
            handler(&mut out, "disagg", &parameters);
        }
        _ => {}
    }
    if let Some(parameters) = &plan.approximate {
        let _ = writeln!(out, "  approximatePrefix: {}", flow(&Json::Object(parameters.clone())));
    }
    let comment = if plan.retries == 0 && !epp.is_empty {
        "   # as llm-d's pickers, which give one endpoint; 2 by default"
    } else {
        ""
    };
    let _ = writeln!(out, "  retries: {}{comment}", plan.retries);
    out
}

/// Every line of it begins with `# `; without that it is a part of the configuration.
fn skeleton(out: &mut String, plan: &Plan, options: &Options) {
    let engines = &plan.engines;
    let model = options.model.as_ref().or(engines.model.as_ref());
    let model = model.map_or("ORG/MODEL", String::as_str);
    let folder = format!("models/{}", model.rsplit('/').next().unwrap_or(model).to_lowercase());
    let mut line = |text: &str| {
        let _ = writeln!(out, "# {text}");
    };
    line("gateways:");
    line("- {name: gw-0, feed: \"unix:run/feed.sock\"}   # feed listeners the daemon pushes to");
    if let Some(port) = engines.listen_port {
        line(&format!(
            "kvEventsListen: tcp://*:{port}   # engines connect; topic kv@ADDRESS@MODEL"
        ));
    }
    line("pools:");
    line("- name: pool   # also the name of Envoy's cluster");
    line("  models:");
    line(&format!("  - name: {}", scalar(model)));
    line(&format!(
        "    folder: {}   # tokenizer.json, tokenizer_config.json, chat_template.jinja",
        scalar(&folder)
    ));
    line("  endpoints:   # one for each engine, and for each of its data-parallel ranks");
    line("  - address: 127.0.0.1:8000   # exactly as Envoy spells it");
    line(&format!("    engine: {}", if engines.is_sglang { "sglang" } else { "vllm" }));
    match (engines.listen_port, engines.event_port) {
        (Some(_), _) => {}
        (None, Some(port)) => line(&format!("    kvEvents: tcp://127.0.0.1:{port}")),
        (None, None) => line(
            "    # kvEvents: tcp://127.0.0.1:5557   # exact instead of approximate, where the engine has it",
        ),
    }
    match engines.replay_port {
        Some(port) => line(&format!("    replay: tcp://127.0.0.1:{port}")),
        None => line(
            "    # replay: tcp://127.0.0.1:5657   # the engine's replay_endpoint, for restarts",
        ),
    }
    let needs = plan.needs();
    if !needs.labels.is_empty() {
        let labels: Vec<String> = needs
            .labels
            .iter()
            .map(|name| format!("{}: {}", scalar(name), example(name)))
            .collect();
        let labels = labels.join(", ");
        line(&format!("    labels: {{{labels}}}   # of the pod; plugins below read them"));
    }
    if !needs.attributes.is_empty() {
        let attributes: Vec<String> =
            needs.attributes.iter().map(|name| format!("{}: 0", scalar(name))).collect();
        let attributes = attributes.join(", ");
        line(&format!("    attributes: {{{attributes}}}   # plugins below read them"));
    }
    out.push('\n');
}

/// A value that a label may have.
fn example(label: &str) -> &'static str {
    match label {
        "llm-d.ai/role" => "decode",
        "llm-d.ai/context-length-range" => "0-8192",
        _ => "VALUE",
    }
}

fn handler(out: &mut String, kind: &str, parameters: &Json) {
    let _ = writeln!(out, "  profileHandler: {{type: {kind}, parameters: {}}}", flow(parameters));
}

fn profile(out: &mut String, planned: &PlannedProfile, indent: &str) {
    list(out, "filters", &planned.filters, indent);
    list(out, "scorers", &planned.scorers, indent);
    let _ = writeln!(out, "{indent}picker: {{type: {}}}", scalar(&planned.picker));
}

fn list(out: &mut String, key: &str, plugins: &[Planned], indent: &str) {
    if plugins.is_empty() {
        // Left out, scorers would be our defaults.
        if key == "scorers" {
            let _ = writeln!(out, "{indent}scorers: []");
        }
        return;
    }
    let _ = writeln!(out, "{indent}{key}:");
    for Planned { kind, name, weight, parameters } in plugins {
        let name =
            name.as_ref().map_or_else(String::new, |name| format!(", name: {}", scalar(name)));
        let weight = weight.map_or_else(String::new, |weight| format!(", weight: {weight}"));
        let parameters = if parameters.is_empty() {
            String::new()
        } else {
            format!(", parameters: {}", flow(&Json::Object(parameters.clone())))
        };
        let _ = writeln!(out, "{indent}- {{type: {}{name}{weight}{parameters}}}", scalar(kind));
    }
}

fn flow(json: &Json) -> String {
    match json {
        Json::String(text) => scalar(text),
        Json::Array(items) => {
            format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", "))
        }
        Json::Object(map) => flow_map(map),
        other => other.to_string(),
    }
}

fn flow_map(map: &Map<String, Json>) -> String {
    let pairs: Vec<String> =
        map.iter().map(|(key, value)| format!("{}: {}", scalar(key), flow(value))).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// Bare where no reader takes it for anything but text, else as JSON, which YAML reads.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { Json::from(text).to_string() }
}
