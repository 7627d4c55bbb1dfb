//! The fuzz targets of this crate over their seeds and damaged ones, on stable.

#![expect(unreachable_pub, reason = "the included files are modules of a library as well")]

use std::path::Path;

#[path = "../../../tests/fuzz/src/events.rs"]
mod events;
#[path = "../../../tests/fuzz/src/smoke.rs"]
mod smoke;

fn replay(name: &str, target: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds").join(name);
    assert!(smoke::replay(&seeds, 300, target) >= 6);
}

#[test]
fn payloads_are_decoded_or_refused() {
    replay("events", events::decode);
}

#[test]
fn streams_of_frames_keep_a_cursor_in_order() {
    replay("framing", events::framing);
}

#[test]
fn lists_of_tensorrt_llm_are_taken_or_refused() {
    replay("trtllm", events::trtllm);
}
