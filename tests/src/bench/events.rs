//! Batches of KV events as vLLM from 0.24 writes them.

use anyhow::Result;
use rmp::encode;

/// One event of a batch, on the GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    Stored { parent: Option<u64>, hashes: &'a [u64], tokens: &'a [u32] },
    Removed { hashes: &'a [u64] },
}

/// `[ts, [event, ..], 0]`; blocks have `tokens / hashes` tokens each.
///
/// # Errors
///
/// None that happens: a vector takes all that is written.
pub(crate) fn batch(ts: f64, events: &[Event]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(512);
    encode::write_array_len(&mut out, 3)?;
    encode::write_f64(&mut out, ts)?;
    encode::write_array_len(&mut out, events.len() as u32)?;
    for event in events {
        match event {
            Event::Stored { parent, hashes, tokens } => stored(&mut out, *parent, hashes, tokens)?,
            Event::Removed { hashes } => {
                encode::write_map_len(&mut out, 3)?;
                tagged(&mut out, "BlockRemoved", hashes)?;
            }
        }
    }
    encode::write_uint(&mut out, 0)?;
    Ok(out)
}

fn stored(out: &mut Vec<u8>, parent: Option<u64>, hashes: &[u64], tokens: &[u32]) -> Result<()> {
    encode::write_map_len(out, 8)?;
    tagged(out, "BlockStored", hashes)?;
    encode::write_str(out, "token_ids")?;
    encode::write_array_len(out, tokens.len() as u32)?;
    for token in tokens {
        encode::write_uint(out, u64::from(*token))?;
    }
    encode::write_str(out, "block_size")?;
    encode::write_uint(out, (tokens.len() / hashes.len().max(1)) as u64)?;
    encode::write_str(out, "parent_block_hash")?;
    match parent {
        Some(hash) => drop(encode::write_uint(out, hash)?),
        None => encode::write_nil(out)?,
    }
    for name in ["lora_id", "lora_name"] {
        encode::write_str(out, name)?;
        encode::write_nil(out)?;
    }
    Ok(())
}

/// Three entries of the map: tag, hashes, medium.
fn tagged(out: &mut Vec<u8>, tag: &str, hashes: &[u64]) -> Result<()> {
    encode::write_str(out, "type")?;
    encode::write_str(out, tag)?;
    encode::write_str(out, "block_hashes")?;
    encode::write_array_len(out, hashes.len() as u32)?;
    for hash in hashes {
        encode::write_u64(out, *hash)?;
    }
    encode::write_str(out, "medium")?;
    encode::write_str(out, "GPU")?;
    Ok(())
}
