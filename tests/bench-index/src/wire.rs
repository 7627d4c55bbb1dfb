//! Ours from the bytes that an engine publishes: decoding before detokenising and listing.

use anyhow::{Result, bail};
use kv_events::{EngineKey, KvEvent, decode};
use prefix_index::EngineHash;
use serde_json::Value;

use crate::events;
use crate::oracle::Depths;
use crate::ours::{Held, Ours, Taken};
use crate::subject::{Subject, Verdict};
use crate::trace::{Batch, Event};

pub(crate) struct Wire<'a>(pub(crate) Ours<'a>);

impl<'a> Subject for Wire<'a> {
    type Index = Held;
    type Batch = (u16, Vec<u8>);
    type Prompt = <Ours<'a> as Subject>::Prompt;
    type Query = <Ours<'a> as Subject>::Query;
    type Answer = <Ours<'a> as Subject>::Answer;

    fn empty(&self) -> Result<Held> {
        self.0.empty()
    }

    fn batch(&self, batch: &Batch) -> Result<Self::Batch> {
        let event = |event| match event {
            &Event::Stored { parent, ref hashes, ref token_ids } => {
                events::Event::Stored { parent, hashes, tokens: token_ids }
            }
            Event::Removed { hashes } => events::Event::Removed { hashes },
        };
        let all: Vec<events::Event> = batch.events.iter().map(event).collect();
        Ok((batch.slot, events::batch(1.0, &all)?))
    }

    fn apply(&self, held: &mut Held, batches: &mut Vec<Self::Batch>) -> Result<()> {
        let names = |keys: Vec<EngineKey>| keys.into_iter().map(|key| EngineHash(key.0)).collect();
        for (slot, payload) in batches {
            let mut events = Vec::new();
            for event in decode(payload)?.events {
                events.push(match event {
                    KvEvent::Stored(stored) => Taken::Stored {
                        parent: stored.parent_block_hash.map(|key| EngineHash(key.0)),
                        hashes: names(stored.block_hashes),
                        token_ids: stored.token_ids,
                    },
                    KvEvent::Removed(removed) => Taken::Removed(names(removed.block_hashes)),
                    other => bail!("an event that was not written: {other:?}"),
                });
            }
            self.0.take(held, *slot, &events);
        }
        self.0.check(held)
    }

    fn settle(&self, held: &mut Held) {
        self.0.settle(held);
    }

    fn prompt(&self, tokens: &[u32]) -> Self::Prompt {
        self.0.prompt(tokens)
    }

    fn hash(&self, prompt: &Self::Prompt) -> Self::Query {
        self.0.hash(prompt)
    }

    fn lookup(&self, held: &Held, query: &Self::Query) -> Self::Answer {
        self.0.lookup(held, query)
    }

    fn judge(&self, tokens: &[u32], answer: &Self::Answer, truth: &Depths) -> Verdict {
        self.0.judge(tokens, answer, truth)
    }

    fn more(&self, held: &Held, queries: &[Self::Query]) -> Value {
        self.0.more(held, queries)
    }
}
