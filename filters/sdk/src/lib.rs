//! What a scorer is written with.
//!
//! A scorer is a type that implements [`Scorer`]: a pure function from a request's features and the
//! endpoints that may serve it to one score per endpoint. Its fields are its parameters, read from
//! the configuration by serde and checked by [`Scorer::check`]. [`scorer!`] packages it as a module
//! that any gateway loads between intake and picker; natively it is an ordinary library, tested with
//! [`fixtures`].
//!
//! ```
//! use serde::Deserialize;
//! use wasm_epp_sdk::{Candidate, OutOfRange, PickHistory, RequestFeatures, Scorer};
//!
//! /// Prefers short queues; from `full` waiting requests on an engine scores 0.
//! #[derive(Deserialize)]
//! struct ShortQueue {
//!     full: u32,
//! }
//!
//! impl Scorer for ShortQueue {
//!     fn score(
//!         &self,
//!         _: &RequestFeatures,
//!         endpoints: &[Candidate],
//!         _: &PickHistory,
//!     ) -> Vec<Option<f32>> {
//!         let free = |waiting: u32| 1.0 - waiting as f32 / self.full as f32;
//!         endpoints.iter().map(|endpoint| endpoint.load.waiting.map(free)).collect()
//!     }
//!
//!     fn check(&self) -> Result<(), OutOfRange> {
//!         OutOfRange::unless_within("full", self.full, 1..=1000)
//!     }
//! }
//!
//! wasm_epp_sdk::scorer!(ShortQueue);
//! # fn main() {}
//! ```
//!
//! The bytes that a module reads and writes, for authors in other languages, are in the README of
//! the crate `feed`.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

// What `wit-bindgen` generates names itself by this crate's name, here as in its users.
#[cfg(feature = "component")]
extern crate self as wasm_epp_sdk;

#[cfg(feature = "component")]
pub mod component;
mod configuration;
mod exports;
mod filtering;
#[cfg(not(target_arch = "wasm32"))]
pub mod fixtures;
mod module;

pub use configuration::ConfigError;
#[doc(hidden)]
pub use exports::glue;
pub use filtering::Filtering;
pub use module::Module;
pub use routing::{
    AdapterState, Candidate, Chance, EndpointFilter, InFlight, Load, Needs, OutOfRange,
    PickHistory, PrefixMatch, Rates, RequestFeatures, Scorer, SourceState,
};
