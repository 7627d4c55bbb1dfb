//! Nodes of the content tree and who holds them.

use prefix::{KeyChain, StrideKey};

/// Block hash as the engine reports it. Opaque; used only to resolve parents and removals.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct EngineHash(pub u64);

pub(crate) type NodeId = u32;
/// "No node": end of a list, or the parent of a root.
pub(crate) const NIL: NodeId = u32::MAX;

/// One endpoint's copies of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) slot: u16,
    /// Copies on the GPU; vLLM stores duplicates of one hash and removes them one by one.
    pub(crate) gpu: u16,
    /// Copies in other tiers.
    pub(crate) offloaded: u16,
    /// All ancestors and this node are on the GPU.
    pub(crate) reaches_gpu: bool,
    /// All ancestors and this node are each in some tier.
    pub(crate) reaches_any: bool,
    /// The endpoint's name for this node.
    pub(crate) hash: EngineHash,
}

/// One block of one chain of text.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) parent: NodeId,
    pub(crate) first_child: NodeId,
    pub(crate) next_sibling: NodeId,
    /// Tells siblings apart: hash of token ids and of what else the engine hashes.
    pub(crate) content: u64,
    /// Key state after this block's text; `None` where the text is not known (media, embeddings,
    /// an id without bytes) and for all descendants.
    pub(crate) chain: Option<KeyChain>,
    /// Tokens from the root to this block's end.
    pub(crate) tokens: u32,
    /// Keys of the strides it ends, with the tokens wholly before each stride's end.
    pub(crate) strides: Box<[(StrideKey, u32)]>,
    pub(crate) held: Vec<Held>,
}

impl Node {
    pub(crate) fn held_by(&self, slot: u16) -> Option<&Held> {
        self.held.iter().find(|held| held.slot == slot)
    }

    pub(crate) fn held_by_mut(&mut self, slot: u16) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.slot == slot)
    }
}

/// Nodes with reuse of freed places.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
}

impl Arena {
    pub(crate) fn insert(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                (self.nodes.len() - 1) as NodeId
            }
        }
    }

    pub(crate) fn remove(&mut self, id: NodeId) -> Option<Node> {
        let node = self.nodes.get_mut(id as usize)?.take();
        if node.is_some() {
            self.free.push(id);
        }
        node
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize)?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}
