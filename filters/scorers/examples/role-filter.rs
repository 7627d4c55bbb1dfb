//! The filter `role` as a module of its own.

wasm_epp_sdk::filter!(scorers::filter::Role);
