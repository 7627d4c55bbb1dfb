//! The filter `prefix-cache-affinity` as a module of its own.

wasm_epp_sdk::filter!(scorers::filter::PrefixCacheAffinity);
