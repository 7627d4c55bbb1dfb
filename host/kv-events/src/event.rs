//! The events, independent of the release that encoded them.

use crate::release::Encoding;

/// Block hash as the engine reports it. Opaque: never compared with a hash of ours.
///
/// A 64-bit fold: `u64` as is, `i64` by its bits, bytes by their last eight, big-endian (vLLM's
/// own integer mode folds the same way, so both modes give the same key).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct EngineKey(pub u64);

/// All events of one scheduler step of one publisher.
#[derive(Clone, Debug, PartialEq)]
pub struct EventBatch {
    /// The engine's clock when the batch was made, in seconds since the Unix epoch; 0 where it does
    /// not say.
    pub ts: f64,
    /// In the order in which the engine applied them.
    pub events: Vec<KvEvent>,
    /// Rank of the publisher; absent before vLLM 0.9.1.
    pub data_parallel_rank: Option<u32>,
    /// How it was written.
    pub encoding: Encoding,
}

/// One change of an engine's cache.
#[derive(Clone, Debug, PartialEq)]
pub enum KvEvent {
    /// Blocks became available.
    Stored(BlockStored),
    /// Blocks are gone.
    Removed(BlockRemoved),
    /// Every block of the publisher is gone.
    AllBlocksCleared,
    /// A tag this release does not know.
    Unknown(String),
}

/// Blocks that became available, in chain order.
///
/// With full attention `token_ids` has `block_hashes.len() * block_size` entries. Groups with a
/// window skip blocks, so there it may have more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockStored {
    /// One per announced block.
    pub block_hashes: Vec<EngineKey>,
    /// Block before the first one; `None` at the start of a prompt.
    pub parent_block_hash: Option<EngineKey>,
    /// Tokens from the end of the parent on. Empty where a connector announces hashes only.
    pub token_ids: Vec<u32>,
    /// Tokens per block. Zero where a connector announces hashes only.
    pub block_size: u32,
    /// Name of the LoRA adapter, since vLLM 0.14.
    pub lora_name: Option<String>,
    /// Number of the LoRA adapter, meaningful to this server only.
    pub lora_id: Option<i64>,
    /// Where the blocks are, as the engine spells it (`GPU`, `CPU`, `CPU_PINNED`, ...).
    pub medium: Option<String>,
    /// What besides tokens went into each hash; one per block, empty if absent.
    pub extra_keys: Vec<ExtraKeys>,
    /// KV cache group, since vLLM 0.20.
    pub group_idx: Option<u32>,
    /// Kind of attention of the group, since vLLM 0.22.
    pub kv_cache_spec_kind: Option<String>,
    /// Window of the group in tokens, since vLLM 0.22.
    pub sliding_window: Option<u32>,
    /// Cache salt as a field of its own (SGLang 0.5.20 and later).
    pub cache_salt: Option<String>,
}

impl BlockStored {
    /// Salt of the chain's root: the `cache_salt` field, else the last string among the extra keys
    /// of the first block of a prompt that is not the LoRA name. vLLM salts that block only, so an
    /// event that continues a chain has no salt to tell.
    pub fn salt(&self) -> Option<&str> {
        if let Some(salt) = &self.cache_salt {
            return Some(salt);
        }
        if self.parent_block_hash.is_some() {
            return None;
        }
        self.beside_adapter(0).last().map(String::as_str)
    }

    /// Whether the hash of a block covers what its text does not show: media or embeddings.
    ///
    /// vLLM up to 0.18 gives media as bare strings, which stand between adapter and salt. A lone
    /// one in the first block of a prompt cannot be told from a salt and is taken for it, which
    /// names a space that no request asks for.
    pub fn is_beyond_text(&self, block: usize) -> bool {
        let Some(keys) = self.extra_keys.get(block) else { return false };
        let has_salt = block == 0 && self.parent_block_hash.is_none();
        let media = self.beside_adapter(block).len().saturating_sub(usize::from(has_salt));
        keys.multimodal || keys.embeds || media > 0
    }

    /// The strings of a block's extra keys after the LoRA name. That comes first, and another may
    /// be spelled like it.
    fn beside_adapter(&self, block: usize) -> &[String] {
        let strings = self.extra_keys.get(block).map_or(&[][..], |keys| &keys.strings);
        match strings.split_first() {
            Some((first, rest)) if self.lora_name.as_ref() == Some(first) => rest,
            _ => strings,
        }
    }
}

/// The extra keys of a block, reduced to what matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraKeys {
    /// LoRA name, media (up to vLLM 0.18) and cache salt, in order.
    pub strings: Vec<String>,
    /// The block holds multimodal content (`[identifier, offset]` pairs).
    pub multimodal: bool,
    /// The block holds prompt embeddings (bytes).
    pub embeds: bool,
}

/// Blocks that are gone, each one physical copy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockRemoved {
    /// One per removed copy.
    pub block_hashes: Vec<EngineKey>,
    /// Where the blocks were.
    pub medium: Option<String>,
    /// KV cache group.
    pub group_idx: Option<u32>,
}
