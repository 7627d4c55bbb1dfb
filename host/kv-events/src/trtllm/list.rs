//! The JSON as `KVCacheEventSerializer` of TensorRT-LLM (1.0) writes it. Fields that a later
//! release adds are passed over.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;

use crate::event::EngineKey;

#[derive(serde::Deserialize)]
pub(super) struct Event {
    pub(super) event_id: u64,
    pub(super) data: Data,
    /// Attention window of the pool the event is about, where there are several.
    #[serde(default)]
    pub(super) window_size: Option<u64>,
    #[serde(default)]
    pub(super) attention_dp_rank: Option<u32>,
}

#[derive(serde::Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Data {
    Created,
    Stored {
        #[serde(default)]
        parent_hash: Option<Hash>,
        blocks: Vec<Block>,
    },
    Removed {
        block_hashes: Vec<Hash>,
    },
    Updated {
        block_hash: Hash,
        #[serde(default)]
        cache_level: Option<Diff>,
    },
    #[serde(other)]
    Unknown,
}

#[derive(serde::Deserialize)]
pub(super) struct Block {
    pub(super) block_hash: Hash,
    pub(super) tokens: Vec<Token>,
    #[serde(default)]
    pub(super) cache_level: u8,
    /// Hashes of multimodal content in the block.
    #[serde(default)]
    pub(super) mm_keys: Vec<de::IgnoredAny>,
}

#[derive(serde::Deserialize)]
pub(super) struct Token {
    pub(super) token_id: u32,
    /// Not zero for what is no text: multimodal content and prompt tables.
    #[serde(default)]
    pub(super) token_extra_id: u64,
}

/// Of the cache level.
#[derive(serde::Deserialize)]
pub(super) struct Diff {
    pub(super) new_value: u8,
}

/// A block hash, of either sign.
#[derive(Clone, Copy)]
pub(super) struct Hash(pub(super) EngineKey);

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Hash;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a block hash")
            }

            fn visit_u64<E>(self, hash: u64) -> Result<Hash, E> {
                Ok(Hash(EngineKey(hash)))
            }

            fn visit_i64<E>(self, hash: i64) -> Result<Hash, E> {
                Ok(Hash(EngineKey(hash as u64)))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// The events of a list one by one, so that one we cannot read does not take the rest with it.
pub(super) fn split(list: &[u8]) -> Result<Vec<&RawValue>, serde_json::Error> {
    serde_json::from_slice(list)
}

pub(super) fn read(event: &RawValue) -> Option<Event> {
    serde_json::from_str(event.get()).ok()
}
