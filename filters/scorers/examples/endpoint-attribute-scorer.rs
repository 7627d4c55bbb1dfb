//! The scorer `endpoint-attribute` as a module of its own.

wasm_epp_sdk::scorer!(scorers::scorer::EndpointAttribute);
