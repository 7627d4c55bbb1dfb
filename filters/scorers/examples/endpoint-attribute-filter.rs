//! The filter `endpoint-attribute` as a module of its own.

wasm_epp_sdk::filter!(scorers::filter::EndpointAttribute);
