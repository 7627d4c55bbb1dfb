//! A little of `scripts/fuzz chain` in every run.

use testbed::chain_fuzz::{Corpus, Done, session};

#[test]
fn no_bytes_at_any_callback_end_a_module() {
    let Some(modules) = crate::modules() else { return };
    let corpus = Corpus::load().unwrap();
    let mut all = Done::default();
    for number in 0..10 {
        all += session(&modules, &corpus, number, 500).unwrap();
    }
    println!("{all:#?}");
    assert!(all.streams >= 5_000 && all.callbacks > 20 * all.streams);
    // It went the ways that matter, and not only those of refusals.
    assert!(all.picked > all.streams / 20 && all.answered > all.streams / 20);
    for way in ["picked", "rewritten", "fallback_state_malformed", "fallback_features_malformed"] {
        let count = all.counters.get(&format!("wasm_epp_requests_{way}_total"));
        assert!(count.is_some_and(|count| *count > 0), "{way}: {count:?}");
    }
}

#[test]
fn a_session_is_repeated_by_its_number() {
    let Some(modules) = crate::modules() else { return };
    let corpus = Corpus::load().unwrap();
    let done = session(&modules, &corpus, 7, 300).unwrap();
    assert_eq!(session(&modules, &corpus, 7, 300).unwrap(), done);
    assert_ne!(session(&modules, &corpus, 8, 300).unwrap(), done);
}
