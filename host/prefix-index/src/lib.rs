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
//! reaches a node that ends it.

mod dirty;
mod index;
mod node;
mod strides;

pub use index::{Index, IndexConfig, IndexStats, StoredBlocks, Tier};
pub use node::EngineHash;
