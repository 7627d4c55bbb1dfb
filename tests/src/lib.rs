//! Real Envoy, real modules, a real daemon and simulated engines on loopback ports.
//!
//! [`Stand`] is the whole arrangement; the demo, the end-to-end tests and the benchmarks start one
//! each and tear it down with it. Everything goes through the product's own front door: the
//! `wasm-epp` binary renders the configuration, runs the daemon and the engines.

mod api_server;
mod backend;
pub mod chain_fuzz;
mod client;
mod pod_scores;
mod process;
mod sibling;
mod stand;
pub mod wasmtime;

pub use api_server::ApiServer;
pub use backend::{BACKEND_HEADER, Backend};
pub use client::{Answer, Client, get};
pub use pod_scores::{PodScores, pod_scores};
pub use process::{Process, port, root, wait_until, wasm_epp};
pub use sibling::Sibling;
pub use stand::{
    Engine, EngineOptions, PoolOptions, Runtime, Stand, StandOptions, envoy, start_envoy,
};
