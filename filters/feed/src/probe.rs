//! Probes: requests of the gateway's operator, on a listener of their own. Their decision is told and
//! has no effect.

/// A route whose name begins so answers probes; the rest of the name is the pool's. Only the
/// gateway's own configuration names routes, so no client can ask for it.
pub const PROBE_ROUTE_PREFIX: &str = "wasm_epp.probe/";

/// Name of the property that holds the decision of a probe, as a JSON object.
pub const EXPLANATION_PROPERTY: &str = "wasm_epp.explanation";
