//! Every sample of `tests/golden/import` gives the report and the configuration beside it, and each
//! configuration loads. `WASM_EPP_WRITE_GOLDENS=1` writes them anew, to be read before they are kept.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::catalog::{self, Kind, Verdict};
use super::epp::duration_ms;
use super::*;
use crate::config;

/// Flags of a sample, in its header: `# flags: --model NAME`.
fn options(text: &str) -> Options {
    let flags = text.lines().find_map(|line| line.strip_prefix("# flags: ")).unwrap_or_default();
    let mut options = Options::default();
    let words: Vec<&str> = flags.split_whitespace().collect();
    for pair in words.chunks(2) {
        match pair {
            ["--engine-block-size", tokens] => options.engine_block_size = tokens.parse().ok(),
            ["--model", name] => options.model = Some((*name).to_owned()),
            other => panic!("{other:?} is no flag"),
        }
    }
    options
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/import")
}

/// Names and texts of all samples.
fn samples() -> Vec<(String, String)> {
    let mut samples = Vec::new();
    for entry in std::fs::read_dir(folder()).expect("the samples") {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix(".yaml").filter(|stem| !stem.ends_with(".expected")) {
            samples.push((stem.to_owned(), std::fs::read_to_string(&path).expect("readable")));
        }
    }
    samples.sort();
    assert!(samples.len() >= 25, "{}", samples.len());
    samples
}

#[track_caller]
fn imported(name: &str, text: &str) -> Imported {
    import(text, Path::new(name), &options(text)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn samples_give_their_golden_reports_and_configurations() {
    let writes = std::env::var_os("WASM_EPP_WRITE_GOLDENS").is_some();
    let mut differing = Vec::new();
    for (name, text) in samples() {
        let Imported { yaml, report } = imported(&format!("{name}.yaml"), &text);
        for (suffix, is) in [("report.txt", report.text()), ("expected.yaml", yaml)] {
            let path = folder().join(format!("{name}.{suffix}"));
            if writes {
                std::fs::write(&path, &is).expect("written");
            }
            let expected = std::fs::read_to_string(&path).unwrap_or_default();
            if is != expected {
                differing.push(format!("{}:\n{is}", path.display()));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// The names are listed by hand from llm-d's source, so that none can be forgotten here.
#[test]
fn the_table_has_exactly_llm_ds_plugin_types() {
    let listed = std::fs::read_to_string(folder().join("names.txt")).expect("the list");
    let listed: Vec<&str> =
        listed.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let known: Vec<&str> = catalog::entries().map(|entry| entry.name).collect();
    let unique: BTreeSet<&str> = known.iter().copied().collect();
    assert_eq!(unique.len(), known.len(), "a type twice");
    assert_eq!(unique, listed.iter().copied().collect(), "left: table, right: names.txt");
}

#[test]
fn every_entry_says_what_becomes_of_the_plugin() {
    for entry in catalog::entries() {
        let is_unsupported = matches!(entry.verdict, Verdict::Unsupported { .. });
        // The remark of these depends on the file.
        let is_by_handler = entry.kind == Kind::ProfileHandler;
        if is_unsupported && !is_by_handler {
            assert!(!entry.remark.is_empty(), "{}: why, and what instead", entry.name);
        }
        if matches!(entry.verdict, Verdict::Approximated | Verdict::NotNeeded) {
            assert!(!entry.remark.is_empty(), "{}: how", entry.name);
        }
        if entry.is_for_profiles() && !is_unsupported {
            assert!(!entry.ours.is_empty(), "{}", entry.name);
        }
        for parameter in entry.parameters {
            let default = parameter.default;
            let is_json = default.is_empty() || serde_json::from_str::<Json>(default).is_ok();
            assert!(is_json, "{}.{}: {default}", entry.name, parameter.name);
        }
    }
}

/// Each trap has a sample that walks into it.
#[test]
fn every_trap_has_a_sample() {
    let mut seen = BTreeSet::new();
    for (name, text) in samples() {
        seen.extend(imported(&name, &text).report.traps.into_iter().map(|trap| trap.code));
    }
    let expected = BTreeSet::from([
        "absolute-weights",
        "approximate-by-omission",
        "block-size",
        "block-size-clamped",
        "dangling-reference",
        "default-profile",
        "deprecated-api-version",
        "deprecated-block-size",
        "deprecated-plugin",
        "deprecated-position",
        "duplicate-name",
        "duplicate-reference",
        "estimate-tokenizer",
        "feature-gate",
        "flow-control-off",
        "inflight-bound-to-approximate",
        "misplaced-pod-discovery",
        "misplaced-token-processor",
        "model-name",
        "moved-parameter",
        "no-handler",
        "no-picker",
        "no-profiles",
        "not-for-profiles",
        "producer-not-wired",
        "profile-name",
        "several-handlers",
        "several-profiles",
        "unused-plugin",
        "weight-negative",
        "weight-without-score",
        "weight-zero",
        "weights-scaled",
    ]);
    assert_eq!(seen, expected);
}

fn load(yaml: &str) -> Result<config::Config, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.yaml");
    std::fs::write(&path, yaml).expect("written");
    config::load(&path).map_err(|error| error.to_string())
}

const POOLS: &str =
    "{name: a, models: [{name: m, folder: f}], endpoints: [{address: '127.0.0.1:8000'}]}";

/// Whether the loader reads this routing.
fn load_routing(routing: &Json) -> Result<config::Config, String> {
    load(&format!("pools: [{POOLS}]\nrouting: {routing}\n"))
}

/// Loads a written configuration, its skeleton uncommented.
#[track_caller]
fn loads(name: &str, yaml: &str) -> config::Config {
    let mut is_skeleton = false;
    let uncommented: Vec<&str> = yaml
        .lines()
        .map(|line| {
            is_skeleton = (is_skeleton || line.starts_with("# gateways:")) && !line.is_empty();
            if is_skeleton { line.strip_prefix("# ").expect("a comment") } else { line }
        })
        .collect();
    let text = uncommented.join("\n");
    let whole: Json = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    load(&whole.to_string()).unwrap_or_else(|error| panic!("{name}: {error}\n{whole:#}"))
}

#[test]
fn every_written_configuration_loads() {
    for (name, text) in samples() {
        let Imported { yaml, .. } = imported(&name, &text);
        let config = loads(&name, &yaml);
        assert_eq!(config.pools.len(), 1, "{name}: the skeleton is a whole configuration");
        assert_eq!(config.gateways[0].name, "gw-0", "{name}");
        assert!(config.warnings.is_empty(), "{name}: {:?}", config.warnings);
    }
}

#[test]
fn the_loader_takes_every_key_and_scorer_that_is_written() {
    let takes = |routing: Json| load_routing(&routing).is_ok();
    assert!(takes(json!({"scorers": []})), "the probe itself");
    for (key, value) in [
        ("filters", json!([{"type": "role", "parameters": {"role": "decode"}}])),
        ("picker", json!({"type": "max-score"})),
        ("profiles", json!([{"name": "default", "scorers": []}])),
        ("profileHandler", json!({"type": "single"})),
        ("approximatePrefix", json!({})),
    ] {
        assert!(takes(json!({key: value})), "{key}");
    }
    let ours = catalog::entries()
        .filter(|entry| entry.kind == Kind::Scorer && !entry.ours.is_empty())
        .map(|entry| entry.ours);
    for kind in ours.collect::<BTreeSet<_>>() {
        // These have parameters that must be there.
        if matches!(kind, "endpoint-attribute" | "header-label-affinity") {
            continue;
        }
        assert!(takes(json!({"scorers": [{"type": kind}]})), "{kind}");
    }
    let parameters = json!({"matchLengthWeight": 0.5});
    let scorer = json!({"type": "prefix-cache", "parameters": parameters});
    assert!(takes(json!({"scorers": [scorer]})));
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    match import(text, Path::new("epp.yaml"), &Options::default()) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => assert_eq!(error.to_string(), expected, "for:\n{text}"),
    }
}

const HEAD: &str = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";

#[test]
fn unknown_keys_are_refused_with_their_place_and_what_is_accepted() {
    let refused = |rest: &str, expected: &str| refused(&format!("{HEAD}{rest}"), expected);
    refused(
        "metadata: {name: x}",
        "epp.yaml:3: metadata: unknown key: expected one of apiVersion, kind, featureGates, \
         plugins, schedulingProfiles, dataLayer, flowControl, requestHandler, saturationDetector, \
         parser",
    );
    refused(
        "plugins:\n- type: load-aware-scorer\n  parameters:\n    treshold: 3\n",
        "epp.yaml:6: plugins[0].parameters.treshold: unknown key: expected one of threshold",
    );
    refused(
        "plugins:\n- type: queue-scorer\n  parameters: {x: 3}\n",
        "epp.yaml:5: plugins[0].parameters.x: unknown key: expected one of none, it has no keys",
    );
    refused(
        "plugins:\n- type: precise-prefix-cache-producer\n  parameters:\n    kvEventsConfig: \
         {podDiscoveryConfig: {port: 1}}\n",
        "epp.yaml:6: plugins[0].parameters.kvEventsConfig.podDiscoveryConfig.port: unknown key: \
         expected one of podLabelSelector, podNamespace, socketPort, replaySocketPort, \
         dataParallelSize, engineType",
    );
    refused(
        "schedulingProfiles:\n- name: a\n  plugins:\n  - {pluginRef: b, wieght: 2}\n",
        "epp.yaml:6: schedulingProfiles[0].plugins[0].wieght: unknown key: expected one of \
         pluginRef, weight",
    );
    refused(
        "flowControl:\n  priorityBands:\n  - {priority: 1, maxByte: 2}\n",
        "epp.yaml:5: flowControl.priorityBands[0].maxByte: unknown key: expected one of priority, \
         maxBytes, maxRequests, fairnessPolicyRef, orderingPolicyRef",
    );
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    let refused = |rest: &str, expected: &str| refused(&format!("{HEAD}{rest}"), expected);
    refused(
        "plugins:\n- type: load-aware-scorer\n  parameters: {threshold: many}\n",
        "epp.yaml:5: plugins[0].parameters.threshold: \"many\" is not accepted: expected a number",
    );
    refused(
        "plugins:\n- name: a\n",
        "epp.yaml:4: plugins[0].type: nothing is not accepted: expected a value",
    );
    refused(
        "plugins:\n- type: session-affinity-filter\n  parameters: {strategy: cookie}\n",
        "epp.yaml:5: plugins[0].parameters.strategy: \"cookie\" is not accepted: expected \
         encoded_endpoint_header or session_id",
    );
    refused(
        "plugins: {type: x}",
        "epp.yaml:3: plugins: keys and values is not accepted: expected a list",
    );
    refused(
        "flowControl: {defaultRequestTTL: soon}",
        "epp.yaml:3: flowControl.defaultRequestTTL: \"soon\" is not accepted: expected a duration \
         like \"5m\", or nanoseconds",
    );
    refused(
        "schedulingProfiles: [{name: a, plugins: [{pluginRef: b, weight: two}]}]",
        "epp.yaml:3: schedulingProfiles[0].plugins[0].weight: \"two\" is not accepted: expected a \
         number",
    );
}

#[test]
fn other_files_are_refused() {
    refused(
        "apiVersion: apps/v1\nkind: Deployment\n",
        "epp.yaml: it is a Deployment, not an EndpointPickerConfig, a ConfigMap or Helm values",
    );
    refused(
        "a: 1",
        "epp.yaml: there is no EndpointPickerConfig in it: neither at its top, nor under data or \
         pluginsCustomConfig",
    );
    refused(
        "apiVersion: llm-d.ai/v2\nkind: EndpointPickerConfig\n",
        "epp.yaml:1: apiVersion: \"llm-d.ai/v2\" is not accepted: expected llm-d.ai/v1alpha1 or \
         llm-d.ai/v1 or inference.networking.x-k8s.io/v1alpha1",
    );
    let one = "|\n    apiVersion: llm-d.ai/v1alpha1\n    kind: EndpointPickerConfig\n";
    refused(
        &format!("pluginsCustomConfig:\n  a.yaml: {one}  b.yaml: {one}"),
        "epp.yaml: there are several of kind EndpointPickerConfig in it (a.yaml, b.yaml), and \
         pluginsConfigFile names none; import them one by one",
    );
    let error = import("a: [", Path::new("epp.yaml"), &Options::default()).expect_err("no YAML");
    assert!(matches!(error, ImportError::Syntax { .. }), "{error}");
}

#[test]
fn lines_within_a_block_of_text_are_those_of_the_file() {
    refused(
        "kind: ConfigMap\ndata:\n  a.yaml: |\n    apiVersion: llm-d.ai/v1alpha1\n    kind: \
         EndpointPickerConfig\n    plugin: []\n",
        "epp.yaml:6: plugin: unknown key: expected one of apiVersion, kind, featureGates, plugins, \
         schedulingProfiles, dataLayer, flowControl, requestHandler, saturationDetector, parser",
    );
}

#[test]
fn an_unknown_type_is_a_difference_and_not_a_refusal() {
    let text = format!("{HEAD}plugins: [{{type: queue-scorrer}}, {{type: thunder-agent}}]");
    let report = imported("epp.yaml", &text).report;
    assert!(!report.is_ok());
    let remarks: Vec<&str> = report
        .rows
        .iter()
        .filter(|row| row.verdict == "not supported")
        .map(|row| row.remark.as_str())
        .collect();
    assert_eq!(remarks[0], "llm-d v0.10 has no plugin of this type; did you mean queue-scorer?");
    assert!(remarks[1].contains("wasm-epp new-scorer"), "{remarks:?}");
}

/// By Go's `time.ParseDuration`.
#[test]
fn durations_are_read_as_go_writes_them() {
    let check = |text: &str, ms: Option<f64>| assert_eq!(duration_ms(text), ms, "{text}");
    check("250ms", Some(250.0));
    check("1m30s", Some(90_000.0));
    check("1.5h", Some(5_400_000.0));
    check("2us", Some(0.002));
    check("0", Some(0.0));
    check("", None);
    check("5", None);
    check("5x", None);
    check("m5", None);
}

#[test]
fn a_near_name_is_suggested_and_a_far_one_is_not() {
    let near = |name: &str| nearest(name, ["queue-scorer", "by-label"].into_iter());
    assert_eq!(near("queue-scorrer"), Some("queue-scorer"));
    assert_eq!(near("by-labels"), Some("by-label"));
    assert_eq!(near("thunder-agent"), None);
}

#[test]
fn the_skeleton_has_the_labels_and_attributes_that_plugins_read() {
    let skeleton = |rest: &str| {
        let Imported { yaml, .. } = imported("labels", &format!("{HEAD}{rest}"));
        let config = loads("labels", &yaml);
        config.pools[0].endpoints[0].clone()
    };
    let endpoint = skeleton(
        "plugins:\n- type: decode-filter\n- type: context-length-aware\n- type: \
         header-label-affinity-scorer\n  parameters: {headerName: x-tier, labelKey: example.com/tier}\n\
         - type: endpoint-attribute-scorer\n  parameters: {attributeKey: power_watts, algorithm: {type: \
         linear_lower_is_better}}\nschedulingProfiles:\n- name: a\n  plugins:\n  - pluginRef: \
         decode-filter\n  - pluginRef: context-length-aware\n  - pluginRef: \
         header-label-affinity-scorer\n  - pluginRef: endpoint-attribute-scorer\n",
    );
    let labels: Vec<(&str, &str)> =
        endpoint.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        labels,
        [
            ("example.com/tier", "VALUE"),
            ("llm-d.ai/context-length-range", "0-8192"),
            ("llm-d.ai/role", "decode"),
        ]
    );
    assert_eq!(endpoint.attributes.keys().collect::<Vec<_>>(), ["power_watts"]);
    // Nobody reads any.
    let endpoint = skeleton("plugins:\n- type: queue-scorer\n");
    assert!(endpoint.labels.is_empty() && endpoint.attributes.is_empty());
}
