//! Events as engines encode them: the fields of a release, in its form.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use serde_json::{Map, Value, json};
use testbed::root;

use super::text::Text;
use super::twin::Space;

/// A chain of blocks as one engine names them.
#[derive(Clone)]
pub(crate) struct Chain<'t> {
    pub(crate) text: &'t Text,
    pub(crate) space: Space,
    pub(crate) block: usize,
    /// Tells engines apart: no two hash alike.
    pub(crate) engine: u64,
}

impl<'t> Chain<'t> {
    pub(crate) fn new(text: &'t Text, block: usize) -> Self {
        Self { text, space: Space::default(), block, engine: 0 }
    }

    pub(crate) fn of(self, engine: usize) -> Self {
        Self { engine: engine as u64, ..self }
    }

    pub(crate) fn lora(mut self, name: &str) -> Self {
        self.space.lora = Some(name.to_owned());
        self
    }

    pub(crate) fn salt(mut self, salt: &str) -> Self {
        self.space.salt = Some(salt.to_owned());
        self
    }

    /// Full blocks.
    pub(crate) fn len(&self) -> usize {
        self.text.ids.len() / self.block
    }

    /// Hash of the prefix that ends after so many tokens; the same in every group.
    pub(crate) fn hash_at(&self, tokens: usize) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.engine, &self.space.lora, &self.space.salt, &self.text.ids[..tokens])
            .hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn hash(&self, block: usize) -> u64 {
        self.hash_at((block + 1) * self.block)
    }

    /// Fields of a BlockStored.
    pub(crate) fn stored(&self, blocks: Range<usize>) -> Event {
        let Space { lora, salt } = &self.space;
        let keys = blocks.clone().map(|block| {
            let salt = salt.iter().filter(|_| block == 0);
            let keys: Vec<Value> = lora.iter().chain(salt).map(|key| json!(key)).collect();
            if keys.is_empty() { Value::Null } else { Value::Array(keys) }
        });
        let keys: Vec<Value> = keys.collect();
        let is_plain = keys.iter().all(Value::is_null);
        Event::new("BlockStored")
            .with("block_hashes", json!(blocks.clone().map(|b| self.hash(b)).collect::<Vec<_>>()))
            .with(
                "parent_block_hash",
                blocks.start.checked_sub(1).map_or(Value::Null, |b| json!(self.hash(b))),
            )
            .with(
                "token_ids",
                json!(self.text.ids[blocks.start * self.block..blocks.end * self.block]),
            )
            .with("block_size", json!(self.block))
            .with("medium", json!("GPU"))
            .with("lora_name", json!(lora))
            .with("extra_keys", if is_plain { Value::Null } else { Value::Array(keys) })
            .with("group_idx", json!(0))
            .with("kv_cache_spec_kind", json!("full_attention"))
    }

    pub(crate) fn removed(&self, blocks: impl IntoIterator<Item = usize>) -> Event {
        let hashes: Vec<u64> = blocks.into_iter().map(|block| self.hash(block)).collect();
        Event::new("BlockRemoved")
            .with("block_hashes", json!(hashes))
            .with("medium", json!("GPU"))
            .with("group_idx", json!(0))
    }

    /// A store that names blocks by hash alone, as offloading connectors send.
    pub(crate) fn announced(&self, blocks: Range<usize>, medium: &str) -> Event {
        let hashes: Vec<u64> = blocks.map(|block| self.hash(block)).collect();
        Event::new("BlockStored")
            .with("block_hashes", json!(hashes))
            .with("parent_block_hash", Value::Null)
            .with("token_ids", json!([]))
            .with("block_size", json!(0))
            .with("medium", json!(medium))
    }
}

pub(crate) fn cleared() -> Event {
    Event::new("AllBlocksCleared")
}

/// An event by the names of its fields.
#[derive(Clone)]
pub(crate) struct Event {
    pub(crate) tag: String,
    pub(crate) fields: Map<String, Value>,
}

impl Event {
    pub(crate) fn new(tag: &str) -> Self {
        Self { tag: tag.to_owned(), fields: Map::new() }
    }

    pub(crate) fn with(mut self, name: &str, value: Value) -> Self {
        self.fields.insert(name.to_owned(), value);
        self
    }

    pub(crate) fn medium(self, medium: &str) -> Self {
        self.with("medium", json!(medium))
    }
}

/// How block hashes are written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Hashes {
    Unsigned,
    Signed,
    /// A SHA-256 digest, whose last eight bytes are the number.
    Bytes,
}

/// The encoding of one release.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    pub(crate) version: String,
    stored: Vec<String>,
    removed: Vec<String>,
    is_map: bool,
    has_rank: bool,
    /// One payload, encoded with the release's own definitions.
    pub(crate) payload: String,
    pub(crate) hashes: Hashes,
}

impl Release {
    /// All releases of a golden file.
    pub(crate) fn all(file: &str, hashes: Hashes) -> Vec<Self> {
        let path = root().join("tests/golden/kv-events").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let names =
            |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
        let of = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            Self {
                version: line["version"].as_str().unwrap().to_owned(),
                stored: names(&line["BlockStored"]),
                removed: names(&line["BlockRemoved"]),
                is_map: line["decoded"][1][0].is_object(),
                has_rank: line["decoded"].as_array().unwrap().len() > 2,
                payload: line["payload_hex"].as_str().unwrap().to_owned(),
                hashes,
            }
        };
        text.lines().map(of).collect()
    }

    /// vLLM's newest.
    pub(crate) fn latest() -> Self {
        Self::all("kv-events-by-version.jsonl", Hashes::Unsigned).pop().unwrap()
    }

    pub(crate) fn hashes(self, hashes: Hashes) -> Self {
        Self { hashes, ..self }
    }

    pub(crate) fn is_map(&self) -> bool {
        self.is_map
    }

    /// The release's fields of BlockStored.
    pub(crate) fn knows(&self, field: &str) -> bool {
        self.stored.iter().any(|name| name == field)
    }

    fn hash(&self, value: &Value) -> Value {
        let Some(hash) = value.as_u64() else { return value.clone() };
        match self.hashes {
            Hashes::Unsigned => json!(hash),
            Hashes::Signed => json!(hash as i64),
            Hashes::Bytes => json!({"bin": format!("{}{hash:016x}", "5a".repeat(24))}),
        }
    }

    /// The event as the release writes it; fields that it does not have are left out.
    pub(crate) fn event(&self, event: &Event) -> Value {
        let names = match event.tag.as_str() {
            "BlockStored" => &self.stored,
            "BlockRemoved" => &self.removed,
            _ => &Vec::new(),
        };
        let value = |name: &str| match (name, event.fields.get(name).unwrap_or(&Value::Null)) {
            ("block_hashes", Value::Array(hashes)) => {
                Value::Array(hashes.iter().map(|hash| self.hash(hash)).collect())
            }
            ("parent_block_hash", hash) => self.hash(hash),
            (_, value) => value.clone(),
        };
        if self.is_map {
            // Required fields are written even when they are nil (engine-side definitions).
            let required = ["parent_block_hash", "lora_id", "medium", "lora_name"];
            let is_written = |name: &&String, value: &Value| {
                !value.is_null()
                    || (event.tag == "BlockStored" && required.contains(&name.as_str()))
            };
            let fields = names.iter().map(|name| (name, value(name)));
            let fields = fields.filter(|(name, value)| is_written(name, value));
            let mut map: Map<String, Value> =
                fields.map(|(name, value)| (name.clone(), value)).collect();
            map.insert("type".to_owned(), json!(event.tag));
            return Value::Object(map);
        }
        let values = names.iter().map(|name| value(name));
        Value::Array(std::iter::once(json!(event.tag)).chain(values).collect())
    }

    pub(crate) fn batch(&self, events: &[Event], ts: f64, rank: u32) -> Value {
        let events: Vec<Value> = events.iter().map(|event| self.event(event)).collect();
        match self.has_rank {
            true => json!([ts, events, rank]),
            false => json!([ts, events]),
        }
    }
}
