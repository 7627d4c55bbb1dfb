//! The wasm-epp binary as a library: its configuration file, the gateway files rendered from it,
//! the daemon, and the simulated engine.

pub mod config;
pub mod doctor;
mod model_files;
pub mod modules;
pub mod new_scorer;
pub mod render;
pub mod serve;
pub mod simulate;
