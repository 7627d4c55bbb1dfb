//! The feeder module: applies the daemon's batches to the gateway's shared data.
//!
//! It stands alone on a private listener. What it does not understand it refuses whole, and it
//! keeps no state of its own but counters: a feeder whose VM died loses nothing.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod apply;
#[cfg(target_arch = "wasm32")]
mod wasm;

pub use apply::{Feeder, PATH, accuracy};
