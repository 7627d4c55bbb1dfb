//! KV events of inference engines: what an engine announces about the blocks in its KV cache,
//! read from its publisher in order and without holes.
//!
//! - [`decode()`] turns one MessagePack payload into an [`EventBatch`], whatever release of vLLM
//!   or SGLang wrote it.
//! - [`Cursor`] is the state machine of one publisher: sequence numbers, gaps, replay, restarts.
//!   It does no I/O and reads no clock.
//! - [`follow()`] joins the two to the sockets of one publisher that listens, [`listen()`] to any
//!   number of publishers that connect. Only [`zmtp`] knows ZMQ.
//! - [`trtllm`] polls the event list of TensorRT-LLM, and gives the same updates.

mod cursor;
mod decode;
mod event;
mod follow;
mod listen;
mod message;
mod raw;
mod release;
mod replay;
mod session;
mod source;
mod topic;
pub mod trtllm;
pub mod zmtp;

pub use cursor::{
    Action, Cursor, CursorCounts, Message, Position, ResetReason, Resume, SourceState,
};
pub use decode::{DecodeError, MAX_BATCH_EVENTS, MAX_FRAME_BYTES, decode};
pub use event::{BlockRemoved, BlockStored, EngineKey, EventBatch, ExtraKeys, KvEvent};
pub use follow::{SourceConfig, follow, follow_raw, follow_with};
pub use listen::{CountersOf, Directory, EventListener, ListenConfig, ListenUpdate, listen};
pub use raw::RawUpdate;
pub use release::{Encoding, Releases};
pub use source::{Counters, Counts, SourceUpdate, Timing};
pub use topic::Topic;
