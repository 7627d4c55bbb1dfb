//! MessagePack payload to events.
//!
//! A batch is a positional array `[ts, events, data_parallel_rank?, ..]`. An event is a tagged
//! array up to vLLM 0.23 and SGLang 0.5.19, a tagged map from vLLM 0.24 and SGLang 0.5.20 on; the
//! form is told per event. Fields were appended over the years and trailing defaults are left
//! out, so a missing tail means "absent" and an unknown tail or map field is passed over.

use rmp::Marker;

use crate::event::{BlockRemoved, BlockStored, EngineKey, EventBatch, ExtraKeys, KvEvent};
use crate::release::Field;

mod reader;

use reader::{Int, Reader, unexpected};

/// Largest payload that is looked at, in bytes. The largest legitimate one announces a whole
/// context: a million tokens take about five. Lower it and long prompts are lost.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// Most events in a batch. An event is at least two bytes on the wire but some 300 in memory, so
/// the frame limit alone would let a hostile batch grow a hundredfold. SGLang with a page of one
/// token announces one event per token of a prompt, which is the legitimate maximum.
pub const MAX_BATCH_EVENTS: usize = 1 << 18;

/// Why a payload is not a batch of events. Offsets count bytes from the start of the payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Larger than [`MAX_FRAME_BYTES`].
    #[error("payload of {bytes} bytes exceeds {MAX_FRAME_BYTES}")]
    TooLarge {
        /// Size of the payload.
        bytes: usize,
    },
    /// More than [`MAX_BATCH_EVENTS`] events.
    #[error("batch of {count} events exceeds {MAX_BATCH_EVENTS}")]
    TooManyEvents {
        /// What the batch claims.
        count: usize,
    },
    /// A value ends after the payload does, or a length claims more than is left.
    #[error("payload ends inside the value at byte {offset}")]
    Truncated {
        /// Start of the value.
        offset: usize,
    },
    /// A value of a type the field cannot have.
    #[error("unexpected {found} for {field} at byte {offset}")]
    Unexpected {
        /// Start of the value.
        offset: usize,
        /// Field or part that was read.
        field: &'static str,
        /// Type that was found.
        found: &'static str,
    },
    /// A number the field cannot hold.
    #[error("{field} out of range at byte {offset}")]
    OutOfRange {
        /// Start of the value.
        offset: usize,
        /// Field that was read.
        field: &'static str,
    },
    /// A string that is not UTF-8.
    #[error("{field} is not utf-8 at byte {offset}")]
    Utf8 {
        /// Start of the value.
        offset: usize,
        /// Field that was read.
        field: &'static str,
    },
    /// A field without which the event means nothing.
    #[error("{event} without {field} at byte {offset}")]
    Missing {
        /// Start of the event.
        offset: usize,
        /// Tag of the event.
        event: &'static str,
        /// Field that is missing.
        field: &'static str,
    },
    /// Bytes after the batch.
    #[error("bytes after the batch at byte {offset}")]
    Trailing {
        /// First of them.
        offset: usize,
    },
}

/// Decodes the payload of one message. Never panics, and allocates in proportion to `payload`.
pub fn decode(payload: &[u8]) -> Result<EventBatch, DecodeError> {
    if payload.len() > MAX_FRAME_BYTES {
        return Err(DecodeError::TooLarge { bytes: payload.len() });
    }
    let mut r = Reader::new(payload);
    let fields = r.array("batch")?;
    if fields < 2 {
        return Err(DecodeError::Missing { offset: 0, event: "batch", field: "events" });
    }
    let ts = r.float("ts")?;
    let count = r.array("events")?;
    if count > MAX_BATCH_EVENTS {
        return Err(DecodeError::TooManyEvents { count });
    }
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(event(&mut r)?);
    }
    let data_parallel_rank =
        if fields > 2 { optional(&mut r, |r| r.u32("data_parallel_rank"))? } else { None };
    r.skip(fields.saturating_sub(3))?;
    if r.remaining() > 0 {
        return Err(DecodeError::Trailing { offset: r.offset() });
    }
    Ok(EventBatch { ts, events, data_parallel_rank, encoding: r.seen })
}

/// Names of the values after the tag in the array form.
type Positions = [&'static str];

const STORED: &Positions = &[
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
];
const REMOVED: &Positions = &["block_hashes", "medium", "group_idx"];

fn event(r: &mut Reader<'_>) -> Result<KvEvent, DecodeError> {
    let offset = r.offset();
    match r.peek()? {
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
            let len = r.array("event")?;
            if len == 0 {
                return Err(DecodeError::Missing { offset, event: "event", field: "tag" });
            }
            let tag = r.str("tag")?;
            r.seen.saw_array();
            if tag == "BlockStored" {
                r.seen.saw_stored_values(len - 1);
            }
            body(r, offset, tag, Form::Array { values: len - 1 })
        }
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
            let entries = r.map("event")?;
            let start = r.offset();
            let tag = map_tag(r, entries)?.ok_or(DecodeError::Missing {
                offset,
                event: "event",
                field: "type",
            })?;
            r.rewind(start);
            r.seen.saw_map();
            body(r, offset, tag, Form::Map { entries })
        }
        found => Err(unexpected(offset, "event", found)),
    }
}

/// The value of `type`, which encoders put first but maps do not promise.
fn map_tag<'a>(r: &mut Reader<'a>, entries: usize) -> Result<Option<&'a str>, DecodeError> {
    for _ in 0..entries {
        if r.str("field name")? == "type" {
            return r.str("type").map(Some);
        }
        r.skip(1)?;
    }
    Ok(None)
}

/// What follows the tag.
#[derive(Clone, Copy)]
enum Form {
    Array { values: usize },
    Map { entries: usize },
}

impl Form {
    /// Calls `read` with the name of each value, which must consume it and say whether it did.
    fn each(
        self,
        r: &mut Reader<'_>,
        positions: &Positions,
        mut read: impl FnMut(&mut Reader<'_>, &str) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        match self {
            Self::Array { values } => {
                for name in positions.iter().take(values) {
                    if !read(r, name)? {
                        r.skip(1)?;
                    }
                }
                r.skip(values.saturating_sub(positions.len()))
            }
            Self::Map { entries } => {
                for _ in 0..entries {
                    let name = r.str("field name")?;
                    if !read(r, name)? {
                        r.skip(1)?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn body(r: &mut Reader<'_>, offset: usize, tag: &str, form: Form) -> Result<KvEvent, DecodeError> {
    match tag {
        "BlockStored" => stored(r, offset, form).map(KvEvent::Stored),
        "BlockRemoved" => removed(r, offset, form).map(KvEvent::Removed),
        tag => {
            form.each(r, &[], |_, _| Ok(false))?;
            Ok(match tag {
                "AllBlocksCleared" => KvEvent::AllBlocksCleared,
                tag => KvEvent::Unknown(tag.to_owned()),
            })
        }
    }
}

fn stored(r: &mut Reader<'_>, offset: usize, form: Form) -> Result<BlockStored, DecodeError> {
    let mut e = BlockStored::default();
    let (mut hashes, mut tokens, mut block_size) = (None, None, None);
    form.each(r, STORED, |r, name| {
        match name {
            "block_hashes" => hashes = Some(list(r, "block_hashes", key)?),
            "parent_block_hash" => e.parent_block_hash = optional(r, key)?,
            "token_ids" => tokens = Some(list(r, "token_ids", token)?),
            "block_size" => block_size = Some(r.u32("block_size")?),
            "lora_id" => e.lora_id = optional(r, lora_id)?,
            "medium" => {
                r.seen.saw_field(Field::Medium);
                e.medium = optional(r, |r| string(r, "medium"))?;
            }
            "lora_name" => {
                r.seen.saw_field(Field::LoraName);
                e.lora_name = optional(r, |r| string(r, "lora_name"))?;
            }
            "extra_keys" => {
                r.seen.saw_field(Field::ExtraKeys);
                let keys = optional(r, |r| list(r, "extra_keys", extra_keys))?;
                e.extra_keys = keys.unwrap_or_default();
            }
            "group_idx" => {
                r.seen.saw_field(Field::Group);
                e.group_idx = optional(r, |r| r.u32("group_idx"))?;
            }
            "kv_cache_spec_kind" => {
                r.seen.saw_field(Field::SpecKind);
                e.kv_cache_spec_kind = optional(r, |r| string(r, "kv_cache_spec_kind"))?;
            }
            "kv_cache_spec_sliding_window" => {
                r.seen.saw_field(Field::SlidingWindow);
                e.sliding_window = optional(r, |r| r.u32("kv_cache_spec_sliding_window"))?;
            }
            "cache_salt" => {
                r.seen.saw_field(Field::CacheSalt);
                e.cache_salt = optional(r, |r| string(r, "cache_salt"))?;
            }
            other => {
                // Passed over, but they tell releases apart.
                match other {
                    "locality" => r.seen.saw_field(Field::Locality),
                    "ownership" => r.seen.saw_field(Field::Ownership),
                    "session_id" => r.seen.saw_field(Field::SessionId),
                    "lookahead_token_ids" => r.seen.saw_field(Field::Lookahead),
                    _ => {}
                }
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let missing = |field| DecodeError::Missing { offset, event: "BlockStored", field };
    e.block_hashes = hashes.ok_or(missing("block_hashes"))?;
    e.token_ids = tokens.ok_or(missing("token_ids"))?;
    e.block_size = block_size.ok_or(missing("block_size"))?;
    Ok(e)
}

fn removed(r: &mut Reader<'_>, offset: usize, form: Form) -> Result<BlockRemoved, DecodeError> {
    let mut e = BlockRemoved::default();
    let mut hashes = None;
    form.each(r, REMOVED, |r, name| {
        match name {
            "block_hashes" => hashes = Some(list(r, "block_hashes", key)?),
            "medium" => e.medium = optional(r, |r| string(r, "medium"))?,
            "group_idx" => e.group_idx = optional(r, |r| r.u32("group_idx"))?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let missing = DecodeError::Missing { offset, event: "BlockRemoved", field: "block_hashes" };
    e.block_hashes = hashes.ok_or(missing)?;
    Ok(e)
}

fn optional<'a, T>(
    r: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    if r.nil()? { Ok(None) } else { read(r).map(Some) }
}

fn list<'a, T>(
    r: &mut Reader<'a>,
    field: &'static str,
    read: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let len = r.array(field)?;
    let mut items = Vec::with_capacity(len);
    for _ in 0..len {
        items.push(read(r)?);
    }
    Ok(items)
}

fn string(r: &mut Reader<'_>, field: &'static str) -> Result<String, DecodeError> {
    r.str(field).map(str::to_owned)
}

fn key(r: &mut Reader<'_>) -> Result<EngineKey, DecodeError> {
    if matches!(r.peek()?, Marker::Bin8 | Marker::Bin16 | Marker::Bin32) {
        let bytes = r.bin("block hash")?;
        let tail = bytes.get(bytes.len().saturating_sub(8)..).unwrap_or_default();
        r.seen.saw_hash_bytes();
        return Ok(EngineKey(tail.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))));
    }
    Ok(EngineKey(match r.int("block hash")? {
        Int::Unsigned(n) => {
            r.seen.saw_hash_unsigned(n);
            n
        }
        Int::Negative(n) => {
            r.seen.saw_hash_negative();
            n as u64
        }
    }))
}

/// A token id, or the pair of ids that SGLang announces under EAGLE, of which the first is it.
fn token(r: &mut Reader<'_>) -> Result<u32, DecodeError> {
    if let Some(id) = r.plain_u32() {
        return Ok(id);
    }
    let offset = r.offset();
    if matches!(r.peek()?, Marker::FixArray(_) | Marker::Array16 | Marker::Array32) {
        let len = r.array("token_ids")?;
        if len == 0 {
            return Err(unexpected(offset, "token_ids", Marker::FixArray(0)));
        }
        let first = r.u32("token_ids")?;
        r.skip(len - 1)?;
        return Ok(first);
    }
    r.u32("token_ids")
}

fn lora_id(r: &mut Reader<'_>) -> Result<i64, DecodeError> {
    let offset = r.offset();
    match r.int("lora_id")? {
        Int::Unsigned(n) => {
            i64::try_from(n).map_err(|_| DecodeError::OutOfRange { offset, field: "lora_id" })
        }
        Int::Negative(n) => Ok(n),
    }
}

/// The keys of one block: nil, or a list of strings (LoRA name, salt), `[identifier, offset]`
/// pairs (multimodal content), bytes (prompt embeddings), and whatever a later release adds.
fn extra_keys(r: &mut Reader<'_>) -> Result<ExtraKeys, DecodeError> {
    let mut keys = ExtraKeys::default();
    if r.nil()? {
        return Ok(keys);
    }
    for _ in 0..r.array("extra_keys")? {
        match r.peek()? {
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                keys.strings.push(string(r, "extra_keys")?);
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                r.skip(1)?;
                keys.embeds = true;
            }
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
                r.skip(1)?;
                keys.multimodal = true;
            }
            _ => r.skip(1)?,
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests;
