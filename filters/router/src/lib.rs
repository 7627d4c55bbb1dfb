//! The router module: two filters, `intake` and `picker`.
//!
//! `intake` waits for the body, renders the prompt, matches it against the pushed state and
//! publishes what it found; `picker` scores the candidates and names the destinations. Between them
//! any number of scorer modules may stand. Whatever goes wrong, the request goes on: without a
//! destination header the cluster's own policy routes it, and a counter says why. Answered here is only
//! a request that was restricted to endpoints of which none can serve it, and what the configuration
//! says is to be refused.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod approximate;
mod base64;
mod config;
mod conformance;
mod handover;
mod intake;
mod modules;
mod needs;
mod picker;
mod pools;
mod probe;
mod refusal;
mod report;
mod reservations;
mod rewrites;
mod rows;
mod session;
mod speculation;
mod state;
mod subset;
mod vm;
#[cfg(target_arch = "wasm32")]
mod wasm;

pub use config::{ApproximatePrefix, ConfigError, IntakeConfig, PickerConfig};
pub use conformance::{RESULT_HEADER, SELECTION_HEADER};
pub use handover::Handover;
pub use intake::{BodyStep, HeadersStep, Intake, Outcome};
pub use needs::{Needs, Objective};
pub use picker::{Answered, Picker};
pub use pools::{ModelNames, POOL_HEADER, PoolConfig, Pools};
pub use report::Report;
pub use reservations::{Published, Reservation, Reservations};
pub use rewrites::{Rewrite, Target};
pub use rows::Row;
pub use session::SessionAffinity;
pub use speculation::{Speculation, trail_of};
pub use state::{StateError, View};
pub use subset::{MAX_DESTINATIONS, SUBSET_PROPERTY, Subset, Unreadable};
pub use vm::Vm;
#[cfg(target_arch = "wasm32")]
pub use wasm::root_context;

/// Header that the proxy's `override_host` policy reads: `ip:port`, comma-separated, best first.
pub const DESTINATION_HEADER: &str = "x-gateway-destination-endpoint";
/// Response header with the endpoint that served the request.
pub const SERVED_HEADER: &str = "x-gateway-destination-endpoint-served";
/// Response header of a request that was not sent to any endpoint, by llm-d's name.
pub const DROPPED_HEADER: &str = "x-llm-d-request-dropped-reason";
/// Header that a P/D sidecar reads: the `ip:port` that computes the prompt (llm-d's name).
pub const PREFILLER_HEADER: &str = "x-prefiller-host-port";
