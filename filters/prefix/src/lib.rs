//! Text keys of the prefix index, and matching over them.
//!
//! A prompt's bytes are cut every [`STRIDE_BYTES`]; each stride's key commits to everything before
//! it, so one key stands for one prefix. The daemon computes keys of what engines hold, the filter
//! computes keys of what a request asks for, and both go through this crate.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod keys;
mod matching;

pub use keys::{KeyChain, Namespace, STRIDE_BYTES, Seed, StrideKey, bucket_of, fingerprint_of};
pub use matching::{Depths, Holder, Listed, Stride, match_prefix};
