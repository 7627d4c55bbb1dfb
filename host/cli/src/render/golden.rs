//! What is rendered of the example configurations, held to `tests/golden/render`. After a change that is meant:
//! `WASM_EPP_WRITE_GOLDEN=1 cargo test -p wasm-epp golden`, and read the difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{RenderError, Scorers};
use crate::config::{self, Config};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The example with stand-in modules, whose hashes never change, changed by `edit`.
fn example(gateway: &str, folder: &Path, edit: impl Fn(String) -> String) -> Config {
    let modules = folder.join("modules");
    std::fs::create_dir_all(&modules).expect("a folder");
    for name in ["router", "feeder", "meter", "mine"] {
        std::fs::write(modules.join(format!("{name}.wasm")), [b"\0asm", name.as_bytes()].concat())
            .expect("written");
    }
    let text = std::fs::read_to_string(root().join("envoy").join(gateway).join("wasm-epp.yaml"));
    let file = folder.join("wasm-epp.yaml");
    std::fs::write(&file, edit(text.expect("an example"))).expect("written");
    config::load(&file).expect("accepted")
}

/// The resources of a folder by their file's name.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "yaml"))
        .map(|entry| {
            let text = std::fs::read_to_string(entry.path()).expect("text");
            (entry.file_name().to_string_lossy().into_owned(), text)
        })
        .collect()
}

#[track_caller]
fn check(case: &str, rendered: &Path) {
    let golden = root().join("tests/golden/render").join(case);
    if std::env::var_os("WASM_EPP_WRITE_GOLDEN").is_some() {
        let _ = std::fs::remove_dir_all(&golden);
        std::fs::create_dir_all(&golden).expect("a folder");
        for (name, text) in files(rendered) {
            std::fs::write(golden.join(name), text).expect("written");
        }
    }
    let (have, expected) = (files(rendered), files(&golden));
    assert_eq!(have.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{case}");
    for (name, text) in have {
        assert_eq!(text, expected[&name], "{case}/{name}");
    }
}

const MORE: &str = "
- name: other
  models: [{name: other, folder: models/other}]
  endpoints: [{address: 10.0.0.13:8000}]

routing:";

/// A second pool, an answer's meter and a rewritten model: all that changes the chain and the routes.
fn all_of_it(text: String) -> String {
    text.replacen("\nrouting:", MORE, 1)
        .replace("    # poolCluster: service        #", "    poolCluster: inference-pool #")
        + "  - {pool: other, service: other.llm.svc.cluster.local, port: 8000}\n\
           meter: {share: 1.0}\n\
           modelRewrites: [{match: [{model: latest}], targets: [{model: other}]}]\n"
}

#[test]
fn golden_resources_are_what_is_rendered_for_istio() {
    type Edit = fn(String) -> String;
    let cases: [(&str, Scorers, Edit); 4] = [
        ("istio", Scorers::EnvoyFilter, |text| text),
        ("istio-wasmplugin", Scorers::WasmPlugin, |text| text),
        ("istio-trafficextension", Scorers::TrafficExtension, |text| text),
        ("istio-all", Scorers::EnvoyFilter, all_of_it),
    ];
    for (case, scorers, edit) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let config = example("istio", folder.path(), edit);
        let out = folder.path().join("out");
        let rendered = super::istio(&config, scorers, &out).expect("rendered");
        check(case, &out);
        assert!(rendered.unchanged.is_empty(), "{rendered:?}");
        assert!(super::istio(&config, scorers, &out).expect("again").written.is_empty());
    }
}

#[test]
fn golden_resources_are_what_is_rendered_for_envoy_gateway() {
    type Edit = fn(String) -> String;
    let cases: [(&str, Edit); 2] = [
        ("envoy-gateway", |text| text),
        ("envoy-gateway-places", |text| text.replace("mine: registry.example/mine:1.0.0", "{}")),
    ];
    for (case, edit) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let config = example("envoy-gateway", folder.path(), edit);
        let out = folder.path().join("out");
        super::envoy_gateway(&config, &out).expect("rendered");
        check(case, &out);
    }
}

/// The example with the feed over a network.
fn over_a_network(text: String) -> String {
    let feed = "feed: https://0.0.0.0:9500\n  feedTls: {ca: /tls/ca.crt, certificate: /tls/tls.crt, \
                key: /tls/tls.key, clientName: daemon.test}";
    let start = text.find("feed: \"unix:").expect("a feed");
    let end = start + text[start..].find('\n').expect("a line");
    format!(
        "gateways: [{{name: g, feed: 'https://gw.test:9500'}}]\nfeedTls: {{ca: a, certificate: b, key: c}}\n{}{feed}{}",
        &text[..start],
        &text[end..]
    )
}

/// All listeners of our own in a rendering, wherever they stand.
fn own_listeners(value: &serde_json::Value, found: &mut Vec<serde_json::Value>) {
    let name = value["name"].as_str().unwrap_or_default();
    if value["filter_chains"].is_array() && (name.ends_with("feed") || name.ends_with("probe")) {
        found.push(value.clone());
    }
    match value {
        serde_json::Value::Object(map) => {
            map.values().for_each(|value| own_listeners(value, found))
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| own_listeners(value, found)),
        _ => {}
    }
}

#[test]
fn every_listener_of_a_feed_over_a_network_wants_a_certificate() {
    let check = |file: &str, out: &Path, pods: &Path, secrets: &str| {
        let read = |path: &Path| -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let parts = text.split("---\n").filter(|part| !part.trim().is_empty());
            parts.filter_map(|part| serde_saphyr::from_str(part).ok()).collect()
        };
        let mut listeners = Vec::new();
        read(&out.join(file)).iter().for_each(|value| own_listeners(value, &mut listeners));
        assert_eq!(listeners.len(), 2, "{file}");
        for listener in listeners {
            assert_eq!(listener["address"]["socket_address"]["address"], "0.0.0.0");
            let chains = listener["filter_chains"].as_array().expect("chains");
            assert_eq!(chains.len(), 1, "another way in");
            let context = &chains[0]["transport_socket"]["typed_config"];
            assert_eq!(context["require_client_certificate"], true, "{listener}");
            let tls = &context["common_tls_context"];
            assert_eq!(tls["tls_params"]["tls_minimum_protocol_version"], "TLSv1_3");
            let configured = [
                &tls["tls_certificate_sds_secret_configs"][0],
                &tls["validation_context_sds_secret_config"],
            ];
            let held = configured.map(|secret| {
                let path = secret["sds_config"]["path_config_source"]["path"].as_str();
                let path = Path::new(path.expect("a path"));
                // What pods have under that path is here in the output.
                let here = out.join(secrets).join(path.file_name().expect("a name"));
                assert_eq!(path.parent(), Some(pods), "{file}");
                let held = read(&here)[0]["resources"][0].clone();
                assert_eq!(held["name"], secret["name"]);
                held
            });
            let file = |pointer: &str| held.iter().find_map(|held| held.pointer(pointer)).cloned();
            for (pointer, expected) in [
                ("/tls_certificate/certificate_chain/filename", "/tls/tls.crt"),
                ("/tls_certificate/private_key/filename", "/tls/tls.key"),
                ("/validation_context/trusted_ca/filename", "/tls/ca.crt"),
                (
                    "/validation_context/match_typed_subject_alt_names/0/matcher/exact",
                    "daemon.test",
                ),
            ] {
                assert_eq!(file(pointer), Some(expected.into()), "{pointer}");
            }
        }
    };
    let folder = tempfile::tempdir().expect("a folder");
    let config = |gateway: &str| example(gateway, folder.path(), over_a_network);
    let out = |gateway: &str| folder.path().join(gateway);
    let rendered = super::envoy(&config("istio"), &out("envoy")).expect("rendered");
    check("envoy.yaml", &rendered.dir, &rendered.dir.join("sds"), "sds");
    let rendered = super::istio(&config("istio"), Scorers::EnvoyFilter, &out("istio"));
    let rendered = rendered.expect("rendered");
    check("gateway.yaml", &rendered.dir, Path::new("/var/lib/wasm-epp/modules"), "modules");
    let rendered = super::envoy_gateway(&config("envoy-gateway"), &out("eg")).expect("rendered");
    check("patch-policy.yaml", &rendered.dir, Path::new("/var/lib/wasm-epp/sds"), "sds");
}

#[test]
fn what_a_gateway_cannot_do_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let metered = example("istio", folder.path(), |text| text + "meter: {share: 0.5}\n");
    let refused = super::istio(&metered, Scorers::EnvoyFilter, &out).expect_err("refused");
    assert!(matches!(&refused, RenderError::Unsupported { key, .. } if key == "meter.share"));
    let refused = super::envoy_gateway(&metered, &out).expect_err("refused");
    assert!(matches!(refused, RenderError::NoSection { section: "envoyGateway" }), "{refused}");
    assert!(!out.exists(), "something was written");
}
