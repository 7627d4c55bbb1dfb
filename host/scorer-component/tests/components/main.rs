//! Every scorer as a component beside the same scorer natively, and components that misbehave.

#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod drawn;
mod misbehaving;
mod other_languages;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use routing::{Candidate, PickHistory, RequestFeatures, Scorer};
use scorer_component::{ConfigureError, Limits, LoadError, LoadedComponent, Runtime};
use scorers::SCORERS;
use serde_json::{Map, Value};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/components")
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new(Limits::default()).unwrap())
}

/// A component that `scripts/build-modules` built.
fn component(name: &str) -> LoadedComponent {
    let file = folder().join(name).with_extension("wasm");
    let bytes = std::fs::read(&file)
        .unwrap_or_else(|e| panic!("{}: {e}: run scripts/build-modules", file.display()));
    runtime().load(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Scores as their bits, so that nothing passes for equal that is not.
fn bits(scores: &[Option<f32>], count: usize) -> Vec<Option<u32>> {
    let mut bits: Vec<_> = scores.iter().map(|score| score.map(f32::to_bits)).collect();
    bits.resize(count, None);
    bits
}

fn text(parameters: &Map<String, Value>) -> String {
    Value::Object(parameters.clone()).to_string()
}

/// Asserts that both say the same of this request.
fn compare(
    about: &str,
    (native, component): (&dyn Scorer, &mut scorer_component::ScorerComponent),
    (request, candidates, history): (&RequestFeatures, &[Candidate], &PickHistory),
) {
    let own = native.score(request, candidates, history);
    let said = component.score(request, candidates, history);
    let said = said.unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!(bits(&said, candidates.len()), bits(&own, candidates.len()), "{about}");
    let needs = (component.needs(), &native.needs());
    assert_eq!(needs.0, needs.1, "{about}");
}

#[test]
fn every_scorer_says_the_same_of_every_case_and_of_drawn_ones() {
    for entry in &SCORERS {
        let loaded = component(&format!("{}-scorer", entry.name));
        let mut rng = drawn::Numbers::new(entry.name);
        for (number, case) in case_tables::cases("scorer", entry.name).iter().enumerate() {
            let native = entry.build(case.parameters.clone()).unwrap();
            let mut scorer = loaded.configure(&text(&case.parameters)).unwrap();
            let (candidates, history) = (case.candidates(), case.history());
            let about = format!("{}, case {number} ({})", entry.name, case.about);
            let pair = (&*native, &mut scorer);
            compare(&about, pair, (&case.request(), &candidates, &history));
            for turn in 0..4 {
                let (request, candidates, history) = rng.situation();
                let about = format!("{}, drawn {turn} with case {number}", entry.name);
                let pair = (&*native, &mut scorer);
                compare(&about, pair, (&request, &candidates, &history));
            }
        }
    }
}

#[test]
fn nothing_is_lost_on_the_way() {
    let mut scorer = component("digest-scorer").configure("{}").unwrap();
    let mut rng = drawn::Numbers::new("digest");
    let mut digests = std::collections::BTreeSet::new();
    for turn in 0..64 {
        let (request, candidates, history) = rng.situation();
        let native = digest_scorer::Digest {};
        compare(&turn.to_string(), (&native, &mut scorer), (&request, &candidates, &history));
        digests.extend(bits(&native.score(&request, &candidates, &history), candidates.len()));
    }
    assert!(digests.len() > 200, "the situations are {} in all", digests.len());
}

#[test]
fn parameters_are_refused_in_the_same_words() {
    let loaded = component("load-aware-scorer");
    let native = SCORERS.iter().find(|entry| entry.name == "load-aware").unwrap();
    for parameters in [r#"{"threshold":0}"#, r#"{"treshold":1}"#, r#"{"threshold":"much"}"#] {
        let Value::Object(map) = serde_json::from_str(parameters).unwrap() else { panic!() };
        let own = native.build(map).err().unwrap().to_string();
        let said = loaded.configure(parameters).err().unwrap();
        assert_eq!(said, ConfigureError::Refused(own), "{parameters}");
    }
    for text in ["", "[]", "7", "{"] {
        let said = loaded.configure(text).err().unwrap().to_string();
        let expected = "parameters refused: parameters: not a JSON object: ";
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn what_is_no_such_component_is_not_loaded() {
    let load = |bytes: &[u8]| runtime().load(bytes).err().unwrap();
    let not_a_component = |bytes: &[u8]| match load(bytes) {
        LoadError::NotAComponent(reason) => reason,
        other => panic!("{other}"),
    };
    not_a_component(b"");
    not_a_component(b"\0asm");
    // A core module, as Envoy loads it.
    not_a_component(b"\0asm\x01\0\0\0");
    for text in ["(component)", r#"(component (import "a" (func)))"#] {
        let LoadError::OtherWorld(reason) = load(&foreign(text)) else { panic!("{text}") };
        assert!(reason.contains("wasm-epp:scoring/scorer") || reason.contains("`a`"), "{reason}");
    }
}

/// The smallest components that are none of ours: their bytes by the component model's binary format,
/// an empty one, and one that imports a function `a` of the first type.
fn foreign(text: &str) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    if text.contains("import") {
        // Section 7, types: one function without parameters and results.
        bytes.extend(b"\x07\x05\x01\x40\x00\x01\x00");
        // Section 10, imports: one, plainly named `a`, a function of type 0.
        bytes.extend(b"\x0a\x06\x01\x00\x01a\x01\x00");
    }
    bytes
}
