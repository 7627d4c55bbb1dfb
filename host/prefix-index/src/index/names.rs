//! Engine hash to node, per endpoint.
//!
//! The whole hash is read from the node; here are 32 bits of it, so that a look at a node is for
//! the one that is sought, and making room asks no node. Places are in order of these bits
//! (linear probing, each as near to its home as those before it allow), so room grows by a quarter
//! and a table is at least two thirds full.

use crate::node::{Arena, EngineHash, NIL, NodeId};

/// One endpoint's names.
#[derive(Default)]
pub(crate) struct Names {
    /// Homes are the first `homes` of these.
    places: Vec<Place>,
    homes: usize,
    len: usize,
}

#[derive(Clone, Copy)]
struct Place {
    tag: u32,
    /// [`NIL`] where the place is free.
    id: NodeId,
}

const FREE: Place = Place { tag: 0, id: NIL };

/// Engine hashes are hashes already, but an engine is not trusted to spread them: Fibonacci hashing
/// (Knuth 6.4), of which the high bits are the best.
fn tag_of(hash: EngineHash) -> u32 {
    (hash.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

fn name_of(nodes: &Arena, slot: u16, id: NodeId) -> Option<EngineHash> {
    Some(nodes.get(id)?.held_by(slot)?.hash)
}

impl Names {
    pub(crate) fn find(&self, nodes: &Arena, slot: u16, hash: EngineHash) -> Option<NodeId> {
        self.position(nodes, slot, hash).map(|at| self.places[at].id)
    }

    /// The node need not have its name yet; no other may have it.
    pub(crate) fn insert(&mut self, hash: EngineHash, id: NodeId) {
        if (self.len + 1) * 8 > self.homes * 7 {
            self.grow();
        }
        let mut carried = Place { tag: tag_of(hash), id };
        let mut at = self.home(carried.tag);
        loop {
            let Some(place) = self.places.get_mut(at) else {
                self.places.push(carried);
                break;
            };
            if place.id == NIL {
                *place = carried;
                break;
            }
            if place.tag > carried.tag {
                std::mem::swap(place, &mut carried);
            }
            at += 1;
        }
        self.len += 1;
    }

    /// The node must have its name still.
    pub(crate) fn remove(&mut self, nodes: &Arena, slot: u16, hash: EngineHash) {
        let Some(mut at) = self.position(nodes, slot, hash) else { return };
        // What follows moves up, as far as it is not at home.
        while let Some(next) = self.places.get(at + 1).copied()
            && next.id != NIL
            && self.home(next.tag) <= at
        {
            self.places[at] = next;
            at += 1;
        }
        self.places[at] = FREE;
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.places.iter().map(|place| place.id).filter(|id| *id != NIL)
    }

    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.homes as u64) >> 32) as usize
    }

    fn position(&self, nodes: &Arena, slot: u16, hash: EngineHash) -> Option<usize> {
        let tag = tag_of(hash);
        let mut at = self.home(tag);
        loop {
            let place = self.places.get(at).filter(|place| place.id != NIL && place.tag <= tag)?;
            if place.tag == tag && name_of(nodes, slot, place.id) == Some(hash) {
                return Some(at);
            }
            at += 1;
        }
    }

    fn grow(&mut self) {
        self.homes += 8 + self.homes / 4;
        let mut places = Vec::with_capacity(self.homes + 8);
        for place in self.places.iter().filter(|place| place.id != NIL) {
            // They are in order, so each comes after the last.
            places.resize(places.len().max(self.home(place.tag)), FREE);
            places.push(*place);
        }
        places.resize(places.len().max(self.homes), FREE);
        self.places = places;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use smallvec::SmallVec;

    use super::*;
    use crate::node::{Held, NewNode, Reach};

    fn named(nodes: &mut Arena, hash: EngineHash) -> NodeId {
        let id = nodes.insert(NewNode {
            parent: NIL,
            next_sibling: NIL,
            content: 0,
            chain: None,
            tokens: 0,
            strides: SmallVec::new(),
        });
        let held = Held { hash, slot: 3, gpu: 1, offloaded: 0, reach: Reach::No };
        nodes.get_mut(id).unwrap().held.push(held);
        id
    }

    proptest! {
        /// Hashes that crowd: by few distinct tags, and tags at both ends.
        #[test]
        fn names_agree_with_a_map(
            ops in proptest::collection::vec((0u32..4, 0u64..40, prop::bool::weighted(0.6)), 0..400),
        ) {
            // The inverse of the factor modulo 2^64: hash of a chosen tag.
            let hash_of = |tag: u32, low: u64| {
                let spread = [7, 8, 0, u32::MAX][tag as usize];
                EngineHash(((u64::from(spread) << 32) | low).wrapping_mul(0xF1DE_83E1_9937_733D))
            };
            let (mut nodes, mut names, mut map) =
                (Arena::default(), Names::default(), HashMap::new());
            for (tag, low, is_store) in ops {
                let hash = hash_of(tag, low);
                prop_assert_eq!(tag_of(hash), [7, 8, 0, u32::MAX][tag as usize]);
                match map.get(&hash) {
                    None if is_store => {
                        let id = named(&mut nodes, hash);
                        names.insert(hash, id);
                        map.insert(hash, id);
                    }
                    Some(_) if !is_store => {
                        names.remove(&nodes, 3, hash);
                        map.remove(&hash);
                    }
                    _ => {}
                }
                for tag in 0..4 {
                    for low in 0..40 {
                        let hash = hash_of(tag, low);
                        prop_assert_eq!(names.find(&nodes, 3, hash), map.get(&hash).copied());
                    }
                }
                let mut all: Vec<NodeId> = names.iter().collect();
                let mut expected: Vec<NodeId> = map.values().copied().collect();
                all.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(all, expected);
            }
        }
    }
}
