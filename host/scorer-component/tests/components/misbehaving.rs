//! Whatever a component does ends as a typed error, and the next call finds it well.

use routing::{Candidate, PickHistory, RequestFeatures};
use scorer_component::{CallError, ConfigureError, Limits, LoadedComponent, Runtime};

use crate::folder;

/// What a call ends with.
type Said = Result<Vec<Option<f32>>, CallError>;

const LIMITS: Limits = Limits { fuel: 20_000_000, memory_bytes: 16 << 20 };

fn unruly() -> LoadedComponent {
    let bytes = std::fs::read(folder().join("unruly-component.wasm"));
    let bytes = bytes.expect("target/components/unruly-component.wasm: run scripts/build-modules");
    Runtime::new(LIMITS).unwrap().load(&bytes).unwrap()
}

#[test]
fn a_call_that_goes_wrong_is_a_typed_error_and_the_next_one_goes_well() {
    let loaded = unruly();
    let candidates = vec![Candidate::default(); 3];
    let history = PickHistory::default();
    let (bad, good) =
        (RequestFeatures { strides: 1, ..RequestFeatures::default() }, RequestFeatures::default());
    let check = |does: &str, is_expected: &dyn Fn(&Said) -> bool| {
        let mut scorer = loaded.configure(does).unwrap();
        for _ in 0..2 {
            let said = scorer.score(&bad, &candidates, &history);
            assert!(is_expected(&said), "{does}: {said:?}");
            let said = scorer.score(&good, &candidates, &history);
            assert_eq!(said, Ok(vec![Some(1.0); 3]), "after {does}");
        }
    };
    let trapped = |why: &'static str| move |said: &Said| matches!(said, Err(CallError::Trap(reason)) if reason.contains(why));
    check("trap", &trapped("unreachable"));
    // Its stack lies at the bottom of its memory: what grows out of it is outside.
    check("recurse", &trapped("out of bounds memory access"));
    check("loop", &|said| *said == Err(CallError::OutOfFuel { fuel: LIMITS.fuel }));
    check("grow", &|said| {
        let Err(CallError::OutOfMemory { wanted_bytes, limit_bytes }) = said else { return false };
        *limit_bytes == LIMITS.memory_bytes && wanted_bytes > limit_bytes
    });
    check("short", &|said| *said == Err(CallError::ScoreCount { expected: 3, found: 2 }));
    check("long", &|said| *said == Err(CallError::ScoreCount { expected: 3, found: 4 }));
    check(
        "not-a-number",
        &|said| matches!(said, Err(CallError::NotFinite { candidate: 0, score }) if score.is_nan()),
    );
    check("infinite", &|said| {
        *said == Err(CallError::NotFinite { candidate: 0, score: f32::INFINITY })
    });
    // The profile clamps it, as it does what is built in.
    check("outside", &|said| *said == Ok(vec![Some(7.0); 3]));
}

#[test]
fn a_configuration_that_comes_to_no_answer_is_a_typed_error() {
    let loaded = unruly();
    let refused = |does: &str| loaded.configure(does).err().unwrap();
    assert!(matches!(refused("trap-at-once"), ConfigureError::Failed(CallError::Trap(_))));
    let fuel = LIMITS.fuel;
    assert_eq!(refused("loop-at-once"), ConfigureError::Failed(CallError::OutOfFuel { fuel }));
    let reason = "mood: \"bad\" is not accepted: expected \"good\"";
    assert_eq!(refused("refuse"), ConfigureError::Refused(reason.to_owned()));
    // Its initial memory alone is too much.
    let bytes = std::fs::read(folder().join("unruly-component.wasm")).unwrap();
    let small = Limits { memory_bytes: 1 << 16, ..LIMITS };
    let loaded = Runtime::new(small).unwrap().load(&bytes).unwrap();
    let ConfigureError::Failed(CallError::OutOfMemory { limit_bytes, .. }) =
        loaded.configure("").err().unwrap()
    else {
        panic!("it has the memory")
    };
    assert_eq!(limit_bytes, small.memory_bytes);
}
