//! Engine hash to node, per endpoint: a table of node numbers, whose keys are read from the nodes.

use hashbrown::HashTable;

use crate::node::{Arena, EngineHash, NodeId};

/// One endpoint's names.
#[derive(Default)]
pub(crate) struct Names(HashTable<NodeId>);

/// Engine hashes are hashes already, but an engine is not trusted to spread them.
fn spread(hash: EngineHash) -> u64 {
    // Fibonacci hashing (Knuth 6.4), high bits folded down for the table's tags.
    let mixed = hash.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}

fn name_of(nodes: &Arena, slot: u16, id: NodeId) -> Option<EngineHash> {
    Some(nodes.get(id)?.held_by(slot)?.hash)
}

impl Names {
    pub(crate) fn find(&self, nodes: &Arena, slot: u16, hash: EngineHash) -> Option<NodeId> {
        self.0.find(spread(hash), |id| name_of(nodes, slot, *id) == Some(hash)).copied()
    }

    /// The node's name must be set already.
    pub(crate) fn insert(&mut self, nodes: &Arena, slot: u16, hash: EngineHash, id: NodeId) {
        let rehash = |id: &NodeId| name_of(nodes, slot, *id).map_or(0, spread);
        self.0.insert_unique(spread(hash), id, rehash);
    }

    /// The node must have its name still.
    pub(crate) fn remove(&mut self, nodes: &Arena, slot: u16, hash: EngineHash) {
        let is_it = |id: &NodeId| name_of(nodes, slot, *id) == Some(hash);
        if let Ok(entry) = self.0.find_entry(spread(hash), is_it) {
            entry.remove();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().copied()
    }
}
