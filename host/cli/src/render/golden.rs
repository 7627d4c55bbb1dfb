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
