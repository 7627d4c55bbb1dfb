//! Strides by bucket: both the hash table and the unit that is pushed.

use prefix::{StrideKey, bucket_of};

use crate::node::NodeId;

/// One stride and the nodes that end it: usually one, more when two chains carry one text.
#[derive(Debug)]
pub(crate) struct StrideEntry {
    pub(crate) key: StrideKey,
    pub(crate) tokens: u32,
    pub(crate) nodes: Enders,
}

#[derive(Debug)]
pub(crate) enum Enders {
    One(NodeId),
    Many(Vec<NodeId>),
}

impl Enders {
    pub(crate) fn as_slice(&self) -> &[NodeId] {
        match self {
            Self::One(node) => std::slice::from_ref(node),
            Self::Many(nodes) => nodes,
        }
    }
}

#[derive(Debug)]
pub(crate) struct StrideTable {
    buckets: Vec<Vec<StrideEntry>>,
    len: usize,
}

impl StrideTable {
    pub(crate) fn new(bucket_count: u32) -> Self {
        Self { buckets: (0..bucket_count).map(|_| Vec::new()).collect(), len: 0 }
    }

    pub(crate) fn bucket_count(&self) -> u32 {
        self.buckets.len() as u32
    }

    pub(crate) fn bucket(&self, bucket: u32) -> &[StrideEntry] {
        &self.buckets[bucket as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bucket_of(&self, key: StrideKey) -> u32 {
        bucket_of(key, self.bucket_count())
    }

    pub(crate) fn find(&self, key: StrideKey) -> Option<&StrideEntry> {
        self.bucket(self.bucket_of(key)).iter().find(|entry| entry.key == key)
    }

    pub(crate) fn insert(&mut self, key: StrideKey, tokens: u32, node: NodeId) {
        let bucket = self.bucket_of(key) as usize;
        let entries = &mut self.buckets[bucket];
        match entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => {
                let mut nodes = entry.nodes.as_slice().to_vec();
                nodes.push(node);
                entry.nodes = Enders::Many(nodes);
            }
            None => {
                entries.push(StrideEntry { key, tokens, nodes: Enders::One(node) });
                self.len += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, key: StrideKey, node: NodeId) {
        let bucket = self.bucket_of(key) as usize;
        let entries = &mut self.buckets[bucket];
        let Some(at) = entries.iter().position(|entry| entry.key == key) else { return };
        let mut nodes = entries[at].nodes.as_slice().to_vec();
        nodes.retain(|other| *other != node);
        match nodes.as_slice() {
            [] => {
                // Not swap_remove: order of arrival is what sheds the oldest of a full bucket.
                entries.remove(at);
                self.len -= 1;
            }
            [last] => entries[at].nodes = Enders::One(*last),
            _ => entries[at].nodes = Enders::Many(nodes),
        }
    }
}
