//! How blocks end: the left context of what follows them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use canonical::CONTEXT_TOKENS;
use prefix_index::EngineHash;

/// An endpoint's block.
type Block = (u16, EngineHash);

/// The last tokens of the blocks stored last. Written for every block and read for few, so nothing is
/// allocated per block: the one that came first gives its place to the newest.
pub(super) struct Ends {
    max: usize,
    places: Vec<End>,
    /// The place that is given up next, once there are `max`.
    oldest: usize,
    by_block: HashMap<Block, u32, BuildHasherDefault<Spread>>,
}

struct End {
    block: Block,
    /// Another place may have a block of this name now.
    is_forgotten: bool,
    len: u8,
    tokens: [u32; CONTEXT_TOKENS],
}

impl Ends {
    /// For at most `max` blocks, at least one.
    pub(super) fn new(max: usize) -> Self {
        Self { max, places: Vec::new(), oldest: 0, by_block: HashMap::default() }
    }

    /// At most [`CONTEXT_TOKENS`] of the block's last tokens; `None` of a block that is not among those
    /// remembered.
    pub(super) fn get(&self, slot: u16, hash: EngineHash) -> Option<&[u32]> {
        let end = &self.places[*self.by_block.get(&(slot, hash))? as usize];
        Some(&end.tokens[..usize::from(end.len)])
    }

    /// The slot becomes another endpoint's: its blocks are found no more, and give up their places in their time.
    pub(super) fn forget(&mut self, slot: u16) {
        let places = &mut self.places;
        self.by_block.retain(|(of, _), at| {
            if *of == slot {
                places[*at as usize].is_forgotten = true;
            }
            *of != slot
        });
    }

    /// A block stored again has its new tokens, and its age from before.
    pub(super) fn remember(&mut self, slot: u16, hash: EngineHash, block: &[u32]) {
        let last = &block[block.len().saturating_sub(CONTEXT_TOKENS)..];
        let mut end = End {
            block: (slot, hash),
            is_forgotten: false,
            len: last.len() as u8,
            tokens: [0; CONTEXT_TOKENS],
        };
        end.tokens[..last.len()].copy_from_slice(last);
        if let Some(at) = self.by_block.get(&end.block) {
            self.places[*at as usize] = end;
            return;
        }
        let at = match self.places.len() < self.max {
            true => self.places.len(),
            false => self.oldest,
        };
        self.by_block.insert(end.block, at as u32);
        match self.places.get_mut(at) {
            Some(place) => {
                let gone = std::mem::replace(place, end);
                if !gone.is_forgotten {
                    self.by_block.remove(&gone.block);
                }
                self.oldest = (at + 1) % self.max;
            }
            None => self.places.push(end),
        }
    }
}

/// Engine hashes are hashes already; the factor (Knuth 6.4) spreads those of an engine that counts.
#[derive(Default)]
struct Spread(u64);

impl Spread {
    fn mix(&mut self, number: u64) {
        let product =
            u128::from(self.0.rotate_left(32) ^ number) * u128::from(0x9E37_79B9_7F4A_7C15_u64);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn write_u16(&mut self, number: u16) {
        self.mix(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Against a list that is searched from its end.
    #[test]
    fn the_newest_blocks_are_remembered_with_their_last_tokens() {
        let mut ends = Ends::new(5);
        let mut list: VecDeque<(Block, Vec<u32>)> = VecDeque::new();
        let mut state = 7u64;
        for step in 0..2000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (slot, hash) = ((state >> 60) as u16 % 2, EngineHash(state >> 33 & 7));
            let block: Vec<u32> = (0..(state >> 40) as u32 % 40).map(|i| step + i).collect();
            if step % 97 == 0 {
                ends.forget(slot);
                list.iter_mut().filter(|((of, _), _)| *of == slot).for_each(|(block, _)| {
                    // Keeps its place, under a name that nobody asks for.
                    *block = (u16::MAX, block.1);
                });
            }
            ends.remember(slot, hash, &block);
            let end = block[block.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
            match list.iter_mut().find(|(block, _)| *block == (slot, hash)) {
                Some((_, known)) => *known = end,
                None => list.push_back(((slot, hash), end)),
            }
            if list.len() > 5 {
                list.pop_front();
            }
            for slot in 0..2 {
                for hash in (0..8).map(EngineHash) {
                    let known = list.iter().find(|(block, _)| *block == (slot, hash));
                    let expected = known.map(|(_, end)| end.as_slice());
                    assert_eq!(ends.get(slot, hash), expected, "step {step}");
                }
            }
        }
    }
}
