//! What every engine holds, as text.
//!
//! Engines announce blocks by opaque hashes, each with its parent and token ids. This index follows
//! parents to the root, turns token ids into bytes, and lists an endpoint under the key of each
//! stride of text that it holds with everything before it. Because the key space is text, engines of
//! different block sizes, hash seeds and versions live in one index.
//!
//! A *node* is one block of one chain of text, shared by all endpoints. It *ends* the strides whose
//! last byte lies in it. An endpoint *holds* a node while its count in a tier is above 0, and
//! *reaches* it while it holds all its ancestors too. Each endpoint is listed under a stride iff it
//! reaches a node that ends it. A store whose parent is not known has no position: it is *parked*,
//! bounded and for a time, and attached when its parent comes. A node that nobody holds any more is
//! *retained* for a while, because a block that moves to another tier is announced by hash alone.
//!
//! An index can be written down ([`Index::export`]) and merged into one of another process of the
//! pool ([`Index::import`]), which then goes on as the first would have.

mod codec;
mod content;
mod dirty;
mod hybrid;
mod index;
mod node;
mod parked;
mod strides;

pub use codec::ImportError;
pub use hybrid::Window;
pub use index::{
    Imported, Index, IndexConfig, IndexStats, KeySpace, Presence, Stored, StoredBlocks, Tier,
};
pub use node::EngineHash;
