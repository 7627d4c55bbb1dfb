//! The scorer `no-hit-lru` as a component.

wasm_epp_sdk::scorer!(scorers::scorer::NoHitLru);
