//! The wasm-epp binary as a library: its configuration file, the gateway files rendered from it,
//! the daemon, the simulated engine, the importer of llm-d's configuration, and the runner of modules
//! without a gateway.

pub mod config;
pub mod doctor;
pub mod follow;
pub mod import;
mod model_files;
pub mod modules;
pub mod new_scorer;
pub mod package;
pub mod render;
pub mod run;
pub mod serve;
pub mod simulate;
