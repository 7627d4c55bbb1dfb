//! The scorer `running-requests` as a module of its own.

wasm_epp_sdk::scorer!(scorers::scorer::RunningRequests);
