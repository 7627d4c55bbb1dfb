//! The plugins: scorers, filters of endpoints and pickers, by the names of llm-d without their
//! suffix, and the configuration that puts them together ([`spec`]).
//!
//! Formulas are llm-d's (router v0.10.0, `pkg/epp/framework/plugins/scheduling`) unless a plugin says
//! otherwise, with unknown readings made explicit: unknown is not zero. Each plugin is one folder with
//! its table of cases, which `generate_cases.py` computes from the formulas. The table of all of them
//! is in the README.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod filter;
mod names;
pub mod picker;
mod registry;
pub mod scorer;
pub mod spec;
#[cfg(test)]
mod tests;

pub use registry::{Entry, FILTERS, ModuleUse, PICKERS, SCORERS, suggestion};
