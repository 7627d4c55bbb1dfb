//! The scorer `context-length-aware` as a module of its own.

wasm_epp_sdk::scorer!(scorers::scorer::ContextLengthAware);
