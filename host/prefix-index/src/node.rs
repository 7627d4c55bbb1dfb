//! Nodes of the content tree and who holds them, packed: at ten million blocks every byte is ten
//! megabytes.

use prefix::{KeyChain, STRIDE_BYTES, StrideKey};
use smallvec::SmallVec;

/// Block hash as the engine reports it. Opaque; used only to resolve parents and removals.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct EngineHash(pub u64);

pub(crate) type NodeId = u32;
/// "No node": end of a list, or the parent of a root.
pub(crate) const NIL: NodeId = u32::MAX;

/// One endpoint's copies of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// The endpoint's name for this node.
    pub(crate) hash: EngineHash,
    pub(crate) slot: u16,
    /// Copies on the GPU; vLLM stores duplicates of one hash and removes them one by one.
    pub(crate) gpu: u16,
    /// Copies in other tiers; for [`Presence::Set`](crate::Presence::Set) a bit per tier.
    pub(crate) offloaded: u16,
    pub(crate) reach: Reach,
}

impl Held {
    pub(crate) fn is_held(&self) -> bool {
        self.gpu > 0 || self.offloaded > 0
    }
}

/// What an endpoint reaches of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// It or an ancestor is not held.
    No,
    /// All ancestors and this node are each in some tier.
    Any,
    /// All ancestors and this node are on the GPU.
    Gpu,
}

/// One block of one chain of text.
#[derive(Debug)]
pub(crate) struct Node {
    /// Tells siblings apart: hash of token ids and of what else the engine hashes.
    pub(crate) content: u64,
    /// Key of the last full stride at or before this block's end.
    last_key: StrideKey,
    /// Keys of the strides it ends.
    pub(crate) strides: SmallVec<[StrideKey; 1]>,
    pub(crate) held: SmallVec<[Held; 1]>,
    pub(crate) parent: NodeId,
    pub(crate) first_child: NodeId,
    pub(crate) next_sibling: NodeId,
    pub(crate) prev_sibling: NodeId,
    /// Tokens from the root to this block's end.
    pub(crate) tokens: u32,
    /// Where the bytes after the last full stride are, in the class of their length.
    tail: u32,
    tail_len: u8,
    /// False where the text is not known (media, embeddings, an id without bytes), and below.
    is_text: bool,
    /// Its tokens are not those its text would be tokenized to, so a prompt of that text misses it.
    pub(crate) is_foreign: bool,
    /// Waits in the list of lost nodes.
    pub(crate) is_retained: bool,
    /// Its children are in the table of children, because a walk would take long.
    pub(crate) has_many_children: bool,
}

impl Node {
    pub(crate) fn held_by(&self, slot: u16) -> Option<&Held> {
        self.held.iter().find(|held| held.slot == slot)
    }

    pub(crate) fn held_by_mut(&mut self, slot: u16) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.slot == slot)
    }

    pub(crate) fn reach(&self, slot: u16) -> Reach {
        self.held_by(slot).map_or(Reach::No, |held| held.reach)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held.iter().any(Held::is_held)
    }
}

/// What a new node is made of.
pub(crate) struct NewNode {
    pub(crate) parent: NodeId,
    pub(crate) next_sibling: NodeId,
    pub(crate) content: u64,
    pub(crate) chain: Option<KeyChain>,
    pub(crate) tokens: u32,
    pub(crate) strides: SmallVec<[StrideKey; 1]>,
}

/// Nodes with reuse of freed places, and their tails.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    tails: Tails,
}

impl Arena {
    pub(crate) fn insert(&mut self, new: NewNode) -> NodeId {
        let (last_key, tail) = match &new.chain {
            Some(chain) => (chain.last_key(), chain.pending()),
            None => (StrideKey(0), &[][..]),
        };
        let node = Node {
            content: new.content,
            last_key,
            strides: new.strides,
            held: SmallVec::new(),
            parent: new.parent,
            first_child: NIL,
            next_sibling: new.next_sibling,
            prev_sibling: NIL,
            tokens: new.tokens,
            tail: self.tails.insert(tail),
            tail_len: tail.len() as u8,
            is_text: new.chain.is_some(),
            is_foreign: false,
            is_retained: false,
            has_many_children: false,
        };
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
        let node = self.nodes.get_mut(id as usize)?.take()?;
        self.tails.remove(node.tail, node.tail_len);
        self.free.push(id);
        Some(node)
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize)?.as_mut()
    }

    /// Key state after a node's text; `None` where the text is not known.
    pub(crate) fn chain(&self, id: NodeId) -> Option<KeyChain> {
        let node = self.get(id).filter(|node| node.is_text)?;
        Some(KeyChain::resume(node.last_key, self.tails.get(node.tail, node.tail_len)))
    }

    /// One more than the highest number of a node.
    pub(crate) fn end(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

const CLASS_BYTES: usize = 16;

/// Up to 63 bytes each, in classes of 16, 32, 48 and 64 bytes.
#[derive(Debug, Default)]
struct Tails {
    classes: [Class; STRIDE_BYTES / CLASS_BYTES],
}

#[derive(Debug, Default)]
struct Class {
    bytes: Vec<u8>,
    free: Vec<u32>,
}

impl Tails {
    fn class_of(len: u8) -> Option<(usize, usize)> {
        let class = usize::from(len).div_ceil(CLASS_BYTES).checked_sub(1)?;
        Some((class, (class + 1) * CLASS_BYTES))
    }

    fn insert(&mut self, tail: &[u8]) -> u32 {
        let Some((class, width)) = Self::class_of(tail.len() as u8) else { return 0 };
        let Class { bytes, free } = &mut self.classes[class];
        let at = free.pop().unwrap_or_else(|| {
            bytes.resize(bytes.len() + width, 0);
            (bytes.len() / width - 1) as u32
        });
        let start = at as usize * width;
        bytes[start..start + tail.len()].copy_from_slice(tail);
        at
    }

    fn get(&self, at: u32, len: u8) -> &[u8] {
        match Self::class_of(len) {
            Some((class, width)) => {
                let start = at as usize * width;
                &self.classes[class].bytes[start..start + usize::from(len)]
            }
            None => &[],
        }
    }

    fn remove(&mut self, at: u32, len: u8) {
        if let Some((class, _)) = Self::class_of(len) {
            self.classes[class].free.push(at);
        }
    }
}
