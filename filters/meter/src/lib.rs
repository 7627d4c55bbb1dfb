//! The meter: what was predicted of a request against what the engine says it had cached.
//!
//! It stands behind the picker, on the sampled share of the requests only: a filter with response
//! callbacks costs a call into V8 per streamed chunk. Of an answer it keeps a bounded tail, in which
//! it finds the engine's usage. It never holds an answer up and never changes one, but for one
//! thing: where it asked a stream for its usage, it takes the extra event out again.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod ask;
mod config;
mod events;
mod json;
mod judge;
mod restore;
mod stream;
mod tail;
mod usage;
#[cfg(target_arch = "wasm32")]
mod wasm;

pub use ask::{Edit, NoEdit, ask_for_usage};
pub use config::{ConfigError, MeterConfig};
pub use events::{Passed, UsageRemover};
pub use judge::{Judgement, Tokens, judge};
pub use restore::{Restorer, RestorerStream};
pub use stream::{Meter, MeterStream, RequestStep};
pub use tail::{TAIL_BYTES, Tail};
pub use usage::{Cached, Usage, find_usage};
