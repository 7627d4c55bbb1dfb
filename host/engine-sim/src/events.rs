//! KV events and their MessagePack forms (vLLM `vllm/distributed/kv_events.py`).

use anyhow::Result;
use rmp::encode as mp;

use crate::EventEncoding;

/// One event of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KvEvent {
    /// Blocks that follow each other were registered.
    Stored(Stored),
    /// One physical copy of a hash was evicted.
    Removed(u64),
    /// The whole cache was reset.
    Cleared,
}

/// The fields of `BlockStored` that vary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) hashes: Vec<u64>,
    pub(crate) parent: Option<u64>,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) block_size_tokens: usize,
    pub(crate) lora_name: Option<String>,
    /// One list per block, empty for none.
    pub(crate) extra_keys: Vec<Vec<String>>,
}

/// The rank every batch carries: this engine has one.
const DATA_PARALLEL_RANK: u64 = 0;
const MEDIUM: &str = "GPU";
const GROUP: u64 = 0;
const SPEC_KIND: &str = "full_attention";

type Buf = Vec<u8>;

/// The payload of one batch: `[ts, [event...], rank]`.
pub(crate) fn encode_batch(
    encoding: EventEncoding,
    unix_seconds: f64,
    events: &[KvEvent],
) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    mp::write_array_len(&mut out, 3)?;
    mp::write_f64(&mut out, unix_seconds)?;
    mp::write_array_len(&mut out, u32::try_from(events.len())?)?;
    for event in events {
        match encoding {
            EventEncoding::TaggedMap => write_map(&mut out, event)?,
            EventEncoding::TaggedArray => write_array(&mut out, event)?,
        }
    }
    mp::write_uint(&mut out, DATA_PARALLEL_RANK)?;
    Ok(out)
}

fn write_map(out: &mut Buf, event: &KvEvent) -> Result<()> {
    let (fields, tag) = match event {
        KvEvent::Stored(_) => (11, "BlockStored"),
        KvEvent::Removed(_) => (4, "BlockRemoved"),
        KvEvent::Cleared => (1, "AllBlocksCleared"),
    };
    mp::write_map_len(out, fields)?;
    mp::write_str(out, "type")?;
    mp::write_str(out, tag)?;
    match event {
        KvEvent::Stored(stored) => {
            mp::write_str(out, "block_hashes")?;
            write_uints(out, stored.hashes.iter().copied())?;
            mp::write_str(out, "parent_block_hash")?;
            write_option(out, stored.parent, |out, hash| Ok(mp::write_uint(out, hash).map(drop)?))?;
            mp::write_str(out, "token_ids")?;
            write_uints(out, stored.token_ids.iter().map(|&id| u64::from(id)))?;
            mp::write_str(out, "block_size")?;
            mp::write_uint(out, stored.block_size_tokens as u64)?;
            mp::write_str(out, "lora_id")?;
            mp::write_nil(out)?;
            mp::write_str(out, "medium")?;
            mp::write_str(out, MEDIUM)?;
            mp::write_str(out, "lora_name")?;
            write_option(out, stored.lora_name.as_deref(), |out, s| Ok(mp::write_str(out, s)?))?;
            mp::write_str(out, "extra_keys")?;
            write_extra_keys(out, &stored.extra_keys)?;
            mp::write_str(out, "group_idx")?;
            mp::write_uint(out, GROUP)?;
            mp::write_str(out, "kv_cache_spec_kind")?;
            mp::write_str(out, SPEC_KIND)?;
        }
        KvEvent::Removed(hash) => {
            mp::write_str(out, "block_hashes")?;
            write_uints(out, [*hash].into_iter())?;
            mp::write_str(out, "medium")?;
            mp::write_str(out, MEDIUM)?;
            mp::write_str(out, "group_idx")?;
            mp::write_uint(out, GROUP)?;
        }
        KvEvent::Cleared => {}
    }
    Ok(())
}

/// The fields of vLLM 0.23, the last release with positional events, which wrote all of them.
fn write_array(out: &mut Buf, event: &KvEvent) -> Result<()> {
    match event {
        KvEvent::Stored(stored) => {
            mp::write_array_len(out, 12)?;
            mp::write_str(out, "BlockStored")?;
            write_uints(out, stored.hashes.iter().copied())?;
            write_option(out, stored.parent, |out, hash| Ok(mp::write_uint(out, hash).map(drop)?))?;
            write_uints(out, stored.token_ids.iter().map(|&id| u64::from(id)))?;
            mp::write_uint(out, stored.block_size_tokens as u64)?;
            mp::write_nil(out)?;
            mp::write_str(out, MEDIUM)?;
            write_option(out, stored.lora_name.as_deref(), |out, s| Ok(mp::write_str(out, s)?))?;
            write_extra_keys(out, &stored.extra_keys)?;
            mp::write_uint(out, GROUP)?;
            mp::write_str(out, SPEC_KIND)?;
            mp::write_nil(out)?;
        }
        KvEvent::Removed(hash) => {
            mp::write_array_len(out, 4)?;
            mp::write_str(out, "BlockRemoved")?;
            write_uints(out, [*hash].into_iter())?;
            mp::write_str(out, MEDIUM)?;
            mp::write_uint(out, GROUP)?;
        }
        KvEvent::Cleared => {
            mp::write_array_len(out, 1)?;
            mp::write_str(out, "AllBlocksCleared")?;
        }
    }
    Ok(())
}

fn write_uints(out: &mut Buf, values: impl ExactSizeIterator<Item = u64>) -> Result<()> {
    mp::write_array_len(out, u32::try_from(values.len())?)?;
    for value in values {
        mp::write_uint(out, value)?;
    }
    Ok(())
}

fn write_option<T>(
    out: &mut Buf,
    value: Option<T>,
    write: impl FnOnce(&mut Buf, T) -> Result<()>,
) -> Result<()> {
    match value {
        Some(value) => write(out, value),
        None => Ok(mp::write_nil(out)?),
    }
}

fn write_extra_keys(out: &mut Buf, blocks: &[Vec<String>]) -> Result<()> {
    mp::write_array_len(out, u32::try_from(blocks.len())?)?;
    for keys in blocks {
        if keys.is_empty() {
            mp::write_nil(out)?;
            continue;
        }
        mp::write_array_len(out, u32::try_from(keys.len())?)?;
        for key in keys {
            mp::write_str(out, key)?;
        }
    }
    Ok(())
}
