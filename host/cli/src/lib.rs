//! The wasm-epp binary as a library: its configuration file, the gateway files rendered from it,
//! the daemon, the simulated engine, and the importer of llm-d's configuration.

pub mod config;
pub mod doctor;
pub mod import;
mod model_files;
pub mod modules;
pub mod new_scorer;
pub mod render;
pub mod serve;
pub mod simulate;
