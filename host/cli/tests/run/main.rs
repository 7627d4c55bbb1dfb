//! `wasm-epp run` as a person runs it.

mod gateway;
mod once;
mod support;
