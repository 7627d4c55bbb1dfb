//! The daemon's index, and the filter's lookup in the values that it pushes.

use anyhow::{Result, ensure};
use feed::{find_stride, value_epoch};
use model::TokenTable;
use prefix::{
    Depths as Matched, KeyChain, Seed, StrideKey, bucket_of, fingerprint_of, match_prefix,
};
use prefix_index::{EngineHash, Index, IndexConfig, KeySpace, StoredBlocks, Tier};
use serde_json::{Value, json};

use crate::oracle::Depths;
use crate::subject::{Subject, Verdict};
use crate::trace::{BLOCK, Batch, Event};

/// As `intake` limits them.
const MAX_LOOKUPS: u32 = 64;
const EPOCH: u64 = 1;
const STRIDE: usize = prefix::STRIDE_BYTES;

pub(crate) struct Ours<'a> {
    pub(crate) key_space: KeySpace,
    pub(crate) table: &'a TokenTable,
    pub(crate) bucket_count: u32,
}

pub(crate) struct Held {
    index: Index,
    watcher: usize,
    /// What a gateway holds: values by bucket, one after the other.
    values: Vec<u8>,
    /// Where each begins, and the last ends.
    starts: Vec<u32>,
}

pub(crate) enum Taken {
    Stored { parent: Option<EngineHash>, hashes: Vec<EngineHash>, token_ids: Vec<u32> },
    Removed(Vec<EngineHash>),
}

impl Ours<'_> {
    fn bytes(&self, tokens: &[u32]) -> Vec<u8> {
        match self.key_space {
            KeySpace::Text => {
                tokens.iter().filter_map(|id| self.table.bytes(*id)).flatten().copied().collect()
            }
            KeySpace::TokenIds => tokens.iter().flat_map(|id| id.to_le_bytes()).collect(),
        }
    }

    fn config(&self) -> IndexConfig {
        IndexConfig {
            model: "m".into(),
            seed: Seed(std::array::from_fn(|i| (i * 151 + 7) as u8)),
            bucket_count: self.bucket_count,
            max_strides: usize::MAX,
            key_space: self.key_space,
        }
    }

    /// Applies one batch, as the daemon would.
    pub(crate) fn take(&self, held: &mut Held, slot: u16, events: &[Taken]) {
        held.index.begin_batch(slot);
        for event in events {
            match event {
                Taken::Stored { parent, hashes, token_ids } => {
                    let blocks = StoredBlocks {
                        hashes,
                        parent: *parent,
                        token_ids,
                        block_size_tokens: BLOCK as u32,
                        tier: Tier::Gpu,
                        lora: None,
                        salt: None,
                        beyond_text: &[],
                    };
                    held.index.store(slot, &blocks, 0, |id| self.table.bytes(id));
                }
                Taken::Removed(hashes) => held.index.remove(slot, hashes, Tier::Gpu),
            }
        }
        // A pusher takes what changed; what it makes of it is not the index's.
        while held.index.next_dirty(held.watcher).is_some() {}
    }

    /// That everything so far was applied as it was meant.
    pub(crate) fn check(&self, held: &Held) -> Result<()> {
        let stats = held.index.stats();
        let lost = stats.orphans + stats.unknown_removals + stats.unknown_tokens;
        ensure!(lost + stats.dropped_strides == 0, "events were not taken as meant: {stats:?}");
        Ok(())
    }

    fn get<'b>(&self, held: &'b Held, key: StrideKey) -> Option<&'b [u8]> {
        let at = bucket_of(key, self.bucket_count) as usize;
        let value =
            held.values.get(*held.starts.get(at)? as usize..*held.starts.get(at + 1)? as usize)?;
        (value_epoch(value)? == EPOCH).then_some(value)
    }
}

impl Subject for Ours<'_> {
    type Index = Held;
    type Batch = (u16, Vec<Taken>);
    type Prompt = (StrideKey, Seed, Vec<u8>);
    type Query = Vec<StrideKey>;
    type Answer = Vec<(u16, Matched)>;

    fn empty(&self) -> Result<Held> {
        let mut index = Index::new(self.config());
        let watcher = index.watch();
        for _ in 0..crate::ENDPOINTS {
            index.add_endpoint();
        }
        Ok(Held { index, watcher, values: Vec::new(), starts: Vec::new() })
    }

    fn batch(&self, batch: &Batch) -> Result<Self::Batch> {
        let names = |hashes: &[u64]| hashes.iter().map(|hash| EngineHash(*hash)).collect();
        let event = |event: &Event| match event {
            Event::Stored { parent, hashes, token_ids } => Taken::Stored {
                parent: parent.map(EngineHash),
                hashes: names(hashes),
                token_ids: token_ids.clone(),
            },
            Event::Removed { hashes } => Taken::Removed(names(hashes)),
        };
        Ok((batch.slot, batch.events.iter().map(event).collect()))
    }

    fn apply(&self, held: &mut Held, batches: &mut Vec<Self::Batch>) -> Result<()> {
        batches.iter().for_each(|(slot, events)| self.take(held, *slot, events));
        self.check(held)
    }

    fn settle(&self, held: &mut Held) {
        held.starts.push(0);
        for bucket in 0..self.bucket_count {
            held.values.extend(held.index.encode_bucket(bucket, EPOCH).0);
            held.starts.push(held.values.len() as u32);
        }
    }

    fn prompt(&self, tokens: &[u32]) -> Self::Prompt {
        let config = self.config();
        let root = Index::new(config.clone()).root_key(None, None);
        (root, config.seed, self.bytes(tokens))
    }

    fn hash(&self, (root, seed, bytes): &Self::Prompt) -> Self::Query {
        KeyChain::keys_of(*root, seed, bytes)
    }

    fn lookup(&self, held: &Held, keys: &Self::Query) -> Self::Answer {
        match_prefix(keys, MAX_LOOKUPS, |key| {
            find_stride(self.get(held, key)?, fingerprint_of(key)).ok().flatten()
        })
    }

    /// A block is listed under the strides that end in it, so what is held up to a stride's middle
    /// is held up to its start.
    fn judge(&self, tokens: &[u32], answer: &Self::Answer, truth: &Depths) -> Verdict {
        let expected = truth.iter().map(|(slot, blocks)| {
            let tokens = &tokens[..*blocks as usize * BLOCK];
            let ends: Vec<usize> = tokens
                .iter()
                .scan(0, |end, token| {
                    *end += self.bytes(&[*token]).len();
                    Some(*end)
                })
                .collect();
            let strides = ends.last().map_or(0, |end| end / STRIDE);
            let whole = ends.iter().filter(|end| **end <= strides * STRIDE).count();
            (*slot, (strides as u32, whole as u32))
        });
        let expected: Vec<_> = expected.filter(|(_, (strides, _))| *strides > 0).collect();
        let told: Vec<_> = answer.iter().map(|(slot, depths)| (*slot, depths.gpu)).collect();
        Verdict::of(&told, &expected)
    }

    fn more(&self, held: &Held, queries: &[Self::Query]) -> Value {
        let stats = held.index.stats();
        let mut gets: Vec<f64> = Vec::new();
        for keys in queries {
            let mut count = 0;
            match_prefix(keys, MAX_LOOKUPS, |key| {
                count += 1;
                find_stride(self.get(held, key)?, fingerprint_of(key)).ok().flatten()
            });
            gets.push(f64::from(count));
        }
        let lens = held.starts.windows(2).map(|ends| ends[1] - ends[0]);
        json!({
            "strides": stats.strides,
            "nodes": stats.nodes,
            "gets": {
                "p50": crate::table::median(&gets),
                "max": crate::table::quantile(&gets, 1.0),
            },
            "largest_value_bytes": lens.max(),
        })
    }
}
