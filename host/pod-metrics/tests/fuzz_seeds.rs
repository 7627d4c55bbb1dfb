//! The fuzz target of this crate over its seeds and damaged ones, on stable.

#![expect(unreachable_pub, reason = "the included files are modules of a library as well")]

use std::path::Path;

#[path = "../../../tests/fuzz/src/page.rs"]
mod page;
#[path = "../../../tests/fuzz/src/smoke.rs"]
mod smoke;

#[test]
fn pages_are_read_or_refused() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds/page");
    assert!(smoke::replay(&seeds, 1000, page::parse) >= 4);
}
