//! A stream on its way through a chain: what it holds, and how it moves.

pub(crate) mod attributes;
pub(crate) mod data;
pub(crate) mod deliver;
pub(crate) mod iterate;
pub(crate) mod local_reply;
mod outcome;

pub use local_reply::LocalReply;
pub use outcome::{Message, Outcome, Pause, Warning};
