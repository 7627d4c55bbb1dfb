//! The filter `context-length-aware` as a module of its own.

wasm_epp_sdk::filter!(scorers::filter::ContextLengthAware);
