//! KV events of inference engines: what a vLLM or SGLang process announces about the blocks in
//! its KV cache, read from its ZMQ publisher in order and without holes.
//!
//! - [`decode()`] turns one MessagePack payload into an [`EventBatch`], whatever release wrote it.
//! - [`Cursor`] is the state machine of one publisher: sequence numbers, gaps, replay, restarts.
//!   It does no I/O and reads no clock.
//! - [`follow`] joins the two to the sockets of one publisher. Only it knows ZMQ.

mod cursor;
mod decode;
mod event;
mod zmq;

pub use cursor::{Action, Cursor, Message, ResetReason, SourceState};
pub use decode::{DecodeError, MAX_BATCH_EVENTS, MAX_FRAME_BYTES, decode};
pub use event::{BlockRemoved, BlockStored, EngineKey, EventBatch, ExtraKeys, KvEvent};
pub use zmq::{SourceConfig, SourceUpdate, Timing, follow, follow_with};
