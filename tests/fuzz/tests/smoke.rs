//! Every target over its seeds and damaged ones, without libFuzzer.

use std::path::Path;

#[test]
fn every_target_survives_its_seeds_and_damaged_ones() {
    for (name, target) in fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
        assert!(fuzz::smoke::replay(&folder, 200, target) > 0, "{name}");
    }
}
