//! What wasmtime makes of `wit/scorer.wit`: the only place that does.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]

wasmtime::component::bindgen!({ path: "../../wit", world: "scoring" });
