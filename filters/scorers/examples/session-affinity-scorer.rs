//! The scorer `session-affinity` as a module of its own.

wasm_epp_sdk::scorer!(scorers::scorer::SessionAffinity);
