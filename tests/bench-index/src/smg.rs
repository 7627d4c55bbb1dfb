//! SMG's chain index (crate `kv-index`), as its gateway drives it: a map per lane, one lane per
//! endpoint.

use anyhow::{Result, anyhow};
use kv_index::{
    ChainBlockMap, ChainIndex, ContentHash, OverlapScores, SequenceHash, StoredBlock,
    compute_content_hash, compute_request_content_hashes,
};

use crate::oracle::Depths;
use crate::subject::{Subject, Verdict};
use crate::trace::{BLOCK, Batch, Event};

pub(crate) struct Smg;

pub(crate) struct Chains {
    index: ChainIndex,
    /// Number of the endpoint and what it holds, by slot.
    lanes: Vec<(u32, ChainBlockMap)>,
}

pub(crate) enum Taken {
    Stored(Option<SequenceHash>, Vec<StoredBlock>),
    Removed(Vec<SequenceHash>),
}

impl Subject for Smg {
    type Index = Chains;
    type Batch = (u16, Vec<Taken>);
    type Prompt = Vec<u32>;
    type Query = Vec<ContentHash>;
    type Answer = OverlapScores;

    fn empty(&self) -> Result<Chains> {
        let index = ChainIndex::with_max_workers(crate::ENDPOINTS);
        let lane = |slot: usize| {
            let worker = index.intern_worker(&format!("http://10.0.0.{slot}:8000"));
            worker.map(|worker| (worker, ChainBlockMap::new())).map_err(|error| anyhow!(error))
        };
        let lanes = (0..crate::ENDPOINTS).map(lane).collect::<Result<_>>()?;
        Ok(Chains { index, lanes })
    }

    fn batch(&self, batch: &Batch) -> Result<Self::Batch> {
        let event = |event: &Event| match event {
            Event::Stored { parent, hashes, token_ids } => {
                let block = |(hash, tokens): (&u64, &[u32])| StoredBlock {
                    seq_hash: SequenceHash(*hash),
                    content_hash: compute_content_hash(tokens),
                };
                let blocks = hashes.iter().zip(token_ids.chunks(BLOCK)).map(block).collect();
                Taken::Stored(parent.map(SequenceHash), blocks)
            }
            Event::Removed { hashes } => {
                Taken::Removed(hashes.iter().map(|hash| SequenceHash(*hash)).collect())
            }
        };
        Ok((batch.slot, batch.events.iter().map(event).collect()))
    }

    fn apply(&self, chains: &mut Chains, batches: &mut Vec<Self::Batch>) -> Result<()> {
        for (slot, events) in batches {
            let (worker, map) = &mut chains.lanes[usize::from(*slot)];
            for event in events {
                match event {
                    Taken::Stored(parent, blocks) => chains
                        .index
                        .apply_stored(*worker, blocks, *parent, map)
                        .map_err(|error| anyhow!(error))?,
                    Taken::Removed(hashes) => chains.index.apply_removed(*worker, hashes, map),
                }
            }
        }
        Ok(())
    }

    fn prompt(&self, tokens: &[u32]) -> Vec<u32> {
        tokens.to_vec()
    }

    fn hash(&self, prompt: &Vec<u32>) -> Vec<ContentHash> {
        compute_request_content_hashes(prompt, BLOCK)
    }

    fn lookup(&self, chains: &Chains, query: &Vec<ContentHash>) -> OverlapScores {
        chains.index.find_matches(query, false)
    }

    fn judge(&self, _tokens: &[u32], answer: &OverlapScores, truth: &Depths) -> Verdict {
        // Endpoints were numbered in the order of their slots.
        let mut told: Vec<(u16, u32)> =
            answer.scores.iter().map(|(worker, blocks)| (*worker as u16, *blocks)).collect();
        told.sort_unstable();
        Verdict::of(&told, truth)
    }
}
