//! The scorer `kv-cache-utilization` as a module of its own.

wasm_epp_sdk::scorer!(scorers::scorer::KvCacheUtilization);
