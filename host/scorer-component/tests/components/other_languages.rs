//! A scorer in C passes the table of the one in Rust.

use std::process::Command;

use scorer_component::ConfigureError;
use scorers::SCORERS;

use crate::{bits, runtime, text};

/// Whether the compiler is there; CI must have it.
fn has_compiler(root: &std::path::Path) -> bool {
    let compiler = std::env::var("WASM_CC").unwrap_or_default();
    let zig = root.join(".local/venv/bin/python3");
    let zig = Command::new(zig).args(["-c", "import ziglang"]).output();
    let is_there = !compiler.is_empty() || zig.is_ok_and(|output| output.status.success());
    assert!(is_there || std::env::var_os("CI").is_none(), "no ziglang: run scripts/setup --c");
    is_there
}

#[test]
fn load_aware_in_c_scores_as_computed_elsewhere_and_as_in_rust() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if !has_compiler(&root) {
        eprintln!("skipped: no compiler of C for wasm, which scripts/setup --c gets");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("load-aware-c.wasm");
    let built = Command::new(root.join("wit/examples/c/build")).arg(&file).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let loaded = runtime().load(&std::fs::read(&file).unwrap()).unwrap();

    let native = SCORERS.iter().find(|entry| entry.name == "load-aware").unwrap();
    let mut known = 0;
    for (number, case) in case_tables::cases("scorer", "load-aware").iter().enumerate() {
        let mut scorer = loaded.configure(&text(&case.parameters)).unwrap();
        let (request, candidates, history) = (case.request(), case.candidates(), case.history());
        let said = scorer.score(&request, &candidates, &history).unwrap();
        let is_near = |(said, expected): (&Option<f32>, &Option<f64>)| match (said, expected) {
            (Some(said), Some(expected)) => (f64::from(*said) - expected).abs() < 2e-6,
            (said, expected) => said.is_none() && expected.is_none(),
        };
        assert!(said.iter().zip(&case.scores).all(is_near), "case {number}: {said:?}");
        let own = native.build(case.parameters.clone()).unwrap();
        let own = own.score(&request, &candidates, &history);
        assert_eq!(bits(&said, candidates.len()), bits(&own, candidates.len()), "case {number}");
        known += said.iter().flatten().count();
    }
    assert!(known > 60, "{known} scores in all");

    // What is refused, and what is accepted: as in Rust, if not in its words.
    let refused = |parameters: &str| match loaded.configure(parameters) {
        Err(ConfigureError::Refused(reason)) => Some(reason),
        Err(other) => panic!("{parameters}: {other}"),
        Ok(_) => None,
    };
    let accepted = "threshold: 0.5 is not accepted: expected 1 to 1000000";
    assert_eq!(refused(r#"{"threshold": 0.5}"#).unwrap(), accepted);
    let unknown = "treshold: a value is not accepted: expected one of threshold";
    assert_eq!(refused(r#"{"treshold": 1}"#).unwrap(), unknown);
    for bad in ["", "[]", "{", r#"{"threshold"}"#, r#"{"threshold":}"#, r#"{"threshold":1,}"#] {
        assert!(refused(bad).is_some(), "{bad}");
    }
    for bad in [r#"{"threshold":"1"}"#, r#"{"threshold":nan}"#, "{} x", r#"{"threshold":0x10}"#] {
        assert!(refused(bad).is_some(), "{bad}");
    }
    for good in ["{}", " { } ", r#"{"threshold":1}"#, "{\n\"threshold\" : 1.5e2 }"] {
        assert_eq!(refused(good), None, "{good}");
    }
}
