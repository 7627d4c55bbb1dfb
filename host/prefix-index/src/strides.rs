//! Strides by bucket: both the hash table and the unit that is pushed.

use std::collections::HashMap;

use prefix::{StrideKey, bucket_of};

use crate::node::NodeId;

/// One stride and a node that ends it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StrideEntry {
    pub(crate) key: StrideKey,
    /// Tokens wholly before the stride's end, as the first node to end it counts them.
    pub(crate) tokens: u32,
    node: NodeId,
}

#[derive(Debug)]
pub(crate) struct StrideTable {
    buckets: Vec<Vec<StrideEntry>>,
    /// Further nodes of the few strides that several chains of one text end.
    more: HashMap<StrideKey, Vec<NodeId>>,
    len: usize,
}

impl StrideTable {
    pub(crate) fn new(bucket_count: u32) -> Self {
        Self {
            buckets: (0..bucket_count).map(|_| Vec::new()).collect(),
            more: HashMap::new(),
            len: 0,
        }
    }

    pub(crate) fn bucket_count(&self) -> u32 {
        self.buckets.len() as u32
    }

    /// Strides of a bucket, oldest first.
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

    /// All nodes that end the stride.
    pub(crate) fn nodes(&self, entry: &StrideEntry) -> impl Iterator<Item = NodeId> + '_ {
        let more = self.more.get(&entry.key).map_or(&[][..], Vec::as_slice);
        std::iter::once(entry.node).chain(more.iter().copied())
    }

    pub(crate) fn insert(&mut self, key: StrideKey, tokens: u32, node: NodeId) {
        let bucket = self.bucket_of(key) as usize;
        let entries = &mut self.buckets[bucket];
        if entries.iter().any(|entry| entry.key == key) {
            self.more.entry(key).or_default().push(node);
            return;
        }
        if entries.len() == entries.capacity() {
            // Doubling would leave a third of the table's memory unused on average.
            entries.reserve_exact(2 + entries.len() / 4);
        }
        entries.push(StrideEntry { key, tokens, node });
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, key: StrideKey, node: NodeId) {
        let bucket = self.bucket_of(key) as usize;
        let entries = &mut self.buckets[bucket];
        let Some(at) = entries.iter().position(|entry| entry.key == key) else { return };
        let mut more = self.more.remove(&key).unwrap_or_default();
        if entries[at].node != node {
            more.retain(|other| *other != node);
        } else if let Some(next) = more.pop() {
            entries[at].node = next;
        } else {
            // Not swap_remove: order of arrival is what sheds the oldest of a full bucket.
            entries.remove(at);
            self.len -= 1;
        }
        if !more.is_empty() {
            self.more.insert(key, more);
        }
    }
}
