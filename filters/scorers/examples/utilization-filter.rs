//! The filter `utilization` as a module of its own.

wasm_epp_sdk::filter!(scorers::filter::Utilization);
