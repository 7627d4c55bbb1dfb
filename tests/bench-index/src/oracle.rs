//! What every index must answer: sets of held blocks, walked block by block.

use std::collections::{HashMap, HashSet};

use crate::trace::{BLOCK, Event, Trace};

/// Leading blocks held, per endpoint that holds any.
pub(crate) type Depths = Vec<(u16, u32)>;

/// Per endpoint the texts (as token ids from the root) are not stored: a block is its parent's
/// number and its own tokens, interned for all.
pub(crate) struct Oracle {
    numbers: HashMap<(usize, Vec<u32>), usize>,
    held: Vec<HashSet<usize>>,
}

impl Oracle {
    pub(crate) fn new(trace: &Trace, endpoints: usize) -> Self {
        let mut numbers: HashMap<(usize, Vec<u32>), usize> = HashMap::new();
        let mut held: Vec<HashSet<usize>> = vec![HashSet::new(); endpoints];
        let mut named: Vec<HashMap<u64, usize>> = vec![HashMap::new(); endpoints];
        for batch in &trace.batches {
            let slot = usize::from(batch.slot);
            for event in &batch.events {
                match event {
                    Event::Stored { parent, hashes, token_ids } => {
                        let mut at = parent.map_or(0, |name| named[slot][&name]);
                        for (name, tokens) in hashes.iter().zip(token_ids.chunks(BLOCK)) {
                            let next = numbers.len() + 1;
                            at = *numbers.entry((at, tokens.to_vec())).or_insert(next);
                            held[slot].insert(at);
                            named[slot].insert(*name, at);
                        }
                    }
                    Event::Removed { hashes } => {
                        for name in hashes {
                            // The name stays, as a parent that is named again would be an error.
                            held[slot].remove(&named[slot][name]);
                        }
                    }
                }
            }
        }
        Self { numbers, held }
    }

    pub(crate) fn depths(&self, prompt: &[u32]) -> Depths {
        let mut chain = Vec::new();
        let mut at = 0;
        for tokens in prompt.chunks_exact(BLOCK) {
            let Some(next) = self.numbers.get(&(at, tokens.to_vec())) else { break };
            at = *next;
            chain.push(at);
        }
        let depth = |held: &HashSet<usize>| chain.iter().take_while(|at| held.contains(at)).count();
        let all = self.held.iter().map(|held| depth(held) as u32);
        (0u16..).zip(all).filter(|(_, depth)| *depth > 0).collect()
    }

    /// (block, endpoint) pairs.
    pub(crate) fn pairs(&self) -> usize {
        self.held.iter().map(HashSet::len).sum()
    }

    /// Blocks that anyone holds.
    pub(crate) fn distinct(&self) -> usize {
        self.held.iter().flatten().collect::<HashSet<_>>().len()
    }
}
