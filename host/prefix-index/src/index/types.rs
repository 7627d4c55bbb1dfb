//! What goes into the index and what it says of itself.

use prefix::Seed;

use crate::node::EngineHash;

/// Where a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Usable at once.
    Gpu,
    /// Memory of the host: usable after a load.
    Offloaded,
    /// Disk or another machine: usable after a longer load. One with [`Self::Offloaded`] but for
    /// engines whose blocks are a set: there each tier has the block or not.
    Storage,
}

impl Tier {
    /// What a block's presence in this tier counts for in a set: a bit of the tier's field.
    pub(crate) fn set_bit(self) -> u16 {
        match self {
            Self::Gpu | Self::Offloaded => 1,
            Self::Storage => 2,
        }
    }
}

/// What an engine's stores and removals count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Presence {
    /// Physical blocks: each store adds one, each removal takes one (vLLM).
    #[default]
    Copies,
    /// Presence in a tree: stores may repeat, one removal ends it (SGLang, TensorRT-LLM).
    Set,
}

/// What the keys are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KeySpace {
    /// The text of the tokens.
    #[default]
    Text,
    /// The token ids themselves, four little-endian bytes each.
    TokenIds,
}

/// What an index is made for.
#[derive(Clone, Debug)]
pub struct IndexConfig {
    /// Canonical model name: part of every key.
    pub model: String,
    /// The pool's secret.
    pub seed: Seed,
    /// A power of two.
    pub bucket_count: u32,
    /// Strides beyond this are not listed, and counted.
    pub max_strides: usize,
    /// Text or token ids.
    pub key_space: KeySpace,
}

/// Blocks stored by one event, in chain order.
#[derive(Clone, Debug)]
pub struct StoredBlocks<'a> {
    /// One hash per block.
    pub hashes: &'a [EngineHash],
    /// Hash of the block before the first; `None` for a chain's start.
    pub parent: Option<EngineHash>,
    /// Token ids of all blocks.
    pub token_ids: &'a [u32],
    /// Tokens per block.
    pub block_size_tokens: u32,
    /// Where they are.
    pub tier: Tier,
    /// LoRA adapter by name.
    pub lora: Option<&'a str>,
    /// Cache salt of the chain.
    pub salt: Option<&'a str>,
    /// Per block: what the engine hashed beside the tokens and text does not show (media,
    /// embeddings), as a number; 0 for plain text. Empty means plain.
    pub beyond_text: &'a [u64],
}

/// [`StoredBlocks`] that outlive their event.
#[derive(Clone, Debug)]
pub struct Stored {
    pub(crate) hashes: Vec<EngineHash>,
    pub(crate) parent: Option<EngineHash>,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) block_size_tokens: u32,
    pub(crate) tier: Tier,
    pub(crate) lora: Option<String>,
    pub(crate) salt: Option<String>,
    pub(crate) beyond_text: Vec<u64>,
}

impl Stored {
    pub(crate) fn of(blocks: &StoredBlocks<'_>) -> Self {
        Self {
            hashes: blocks.hashes.to_vec(),
            parent: blocks.parent,
            token_ids: blocks.token_ids.to_vec(),
            block_size_tokens: blocks.block_size_tokens,
            tier: blocks.tier,
            lora: blocks.lora.map(str::to_owned),
            salt: blocks.salt.map(str::to_owned),
            beyond_text: blocks.beyond_text.to_vec(),
        }
    }

    pub(crate) fn as_blocks(&self) -> StoredBlocks<'_> {
        StoredBlocks {
            hashes: &self.hashes,
            parent: self.parent,
            token_ids: &self.token_ids,
            block_size_tokens: self.block_size_tokens,
            tier: self.tier,
            lora: self.lora.as_deref(),
            salt: self.salt.as_deref(),
            beyond_text: &self.beyond_text,
        }
    }
}

/// Counters and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Distinct blocks.
    pub nodes: usize,
    /// Distinct strides.
    pub strides: usize,
    /// (block, endpoint) pairs.
    pub held: usize,
    /// Blocks parked now for an unknown parent.
    pub parked: usize,
    /// Blocks ever parked.
    pub orphans: u64,
    /// Parked blocks whose parent came.
    pub attached: u64,
    /// Parked blocks given up, for age or room.
    pub expired: u64,
    /// Removals of blocks that are not held.
    pub unknown_removals: u64,
    /// Blocks announced by hash alone that are not known.
    pub unknown_announcements: u64,
    /// Token ids without bytes: the chain ends there.
    pub unknown_tokens: u64,
    /// Events whose token count does not fit their blocks.
    pub malformed: u64,
    /// Distinct blocks found not to be what their text would be tokenized to.
    pub non_canonical: u64,
    /// Strides not listed for the size limit.
    pub dropped_strides: u64,
    /// Blocks not taken because their endpoint has its share already.
    pub refused_blocks: u64,
}
