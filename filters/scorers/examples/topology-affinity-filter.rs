//! The filter `topology-affinity` as a module of its own.

wasm_epp_sdk::filter!(scorers::filter::TopologyAffinity);
