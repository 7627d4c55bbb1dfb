//! The scorer `active-request` as a module of its own.

wasm_epp_sdk::scorer!(scorers::scorer::ActiveRequest);
