//! The scorer `load-aware` as a module of its own.

wasm_epp_sdk::scorer!(scorers::scorer::LoadAware);
