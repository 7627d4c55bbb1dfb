//! The filter `label-selector` as a module of its own.

wasm_epp_sdk::filter!(scorers::filter::LabelSelector);
