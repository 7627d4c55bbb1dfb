//! Strides by bucket: both the hash table and the unit that is pushed.

use std::collections::HashMap;
use std::ops::Range;

use prefix::{StrideKey, bucket_of};

use crate::node::NodeId;

/// One stride and a node that ends it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StrideEntry {
    pub(crate) key: StrideKey,
    /// Tokens wholly before the stride's end, as the first node to end it counts them.
    pub(crate) tokens: u32,
    /// The first node to end it that still does.
    pub(crate) node: NodeId,
}

/// Buckets that share one list. A list per bucket would be reallocated every few strides and keep a
/// sixth of its memory in headers; of longer ones more has to move to make room, from memory that is in
/// no cache (`scripts/bench index`).
const SEGMENT_BUCKETS: usize = 2;

/// The strides of neighbouring buckets, bucket after bucket.
#[derive(Debug, Default)]
struct Segment {
    entries: Vec<StrideEntry>,
    /// Where each bucket ends.
    ends: [u32; SEGMENT_BUCKETS],
}

impl Segment {
    fn range(&self, bucket: usize) -> Range<usize> {
        let start = bucket.checked_sub(1).map_or(0, |before| self.ends[before]);
        start as usize..self.ends[bucket] as usize
    }

    fn push(&mut self, bucket: usize, entry: StrideEntry) {
        if self.entries.len() == self.entries.capacity() {
            // Doubling would leave a third of the table's memory unused on average.
            self.entries.reserve_exact(4 + self.entries.len() / 8);
        }
        self.entries.insert(self.ends[bucket] as usize, entry);
        self.ends[bucket..].iter_mut().for_each(|end| *end += 1);
    }

    /// Keeps the others' order: that of arrival is what sheds the oldest of a full bucket.
    fn remove(&mut self, bucket: usize, at: usize) {
        self.entries.remove(self.range(bucket).start + at);
        self.ends[bucket..].iter_mut().for_each(|end| *end -= 1);
        if self.entries.capacity() > 16 + 2 * self.entries.len() {
            self.entries.shrink_to(4 + self.entries.len());
        }
    }
}

#[derive(Debug)]
pub(crate) struct StrideTable {
    segments: Vec<Segment>,
    bucket_count: u32,
    /// Further nodes of the few strides that several chains of one text end.
    more: HashMap<StrideKey, Vec<NodeId>>,
    len: usize,
}

impl StrideTable {
    pub(crate) fn new(bucket_count: u32) -> Self {
        Self {
            segments: (0..(bucket_count as usize).div_ceil(SEGMENT_BUCKETS))
                .map(|_| Segment::default())
                .collect(),
            bucket_count,
            more: HashMap::new(),
            len: 0,
        }
    }

    pub(crate) fn bucket_count(&self) -> u32 {
        self.bucket_count
    }

    /// Strides of a bucket, oldest first.
    pub(crate) fn bucket(&self, bucket: u32) -> &[StrideEntry] {
        let (segment, bucket) = place(bucket);
        let segment = &self.segments[segment];
        &segment.entries[segment.range(bucket)]
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
        let (segment, bucket) = place(self.bucket_of(key));
        let segment = &mut self.segments[segment];
        if segment.entries[segment.range(bucket)].iter().any(|entry| entry.key == key) {
            self.more.entry(key).or_default().push(node);
            return;
        }
        segment.push(bucket, StrideEntry { key, tokens, node });
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, key: StrideKey, node: NodeId) {
        let (segment, bucket) = place(self.bucket_of(key));
        let segment = &mut self.segments[segment];
        let range = segment.range(bucket);
        let entries = &mut segment.entries[range];
        let Some(at) = entries.iter().position(|entry| entry.key == key) else { return };
        let mut more = match self.more.is_empty() {
            true => Vec::new(),
            false => self.more.remove(&key).unwrap_or_default(),
        };
        if entries[at].node != node {
            more.retain(|other| *other != node);
        } else if let Some(next) = more.pop() {
            entries[at].node = next;
        } else {
            segment.remove(bucket, at);
            self.len -= 1;
        }
        if !more.is_empty() {
            self.more.insert(key, more);
        }
    }
}

/// Segment of a bucket, and its number there.
fn place(bucket: u32) -> (usize, usize) {
    (bucket as usize / SEGMENT_BUCKETS, bucket as usize % SEGMENT_BUCKETS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list per bucket, with two nodes for some strides.
        #[test]
        fn buckets_agree_with_lists(
            ops in proptest::collection::vec((any::<bool>(), 0u64..90, 0u32..2), 0..600),
        ) {
            let mut table = StrideTable::new(2);
            let mut lists: [Vec<(u64, Vec<u32>)>; 2] = Default::default();
            for (is_store, key, node) in ops {
                let list = &mut lists[(key % 2) as usize];
                let at = list.iter().position(|(other, _)| *other == key);
                let is_there = at.is_some_and(|at| list[at].1.contains(&node));
                match (is_store, at) {
                    (true, _) if is_there => {}
                    (true, None) => list.push((key, vec![node])),
                    (true, Some(at)) => list[at].1.push(node),
                    (false, Some(at)) => {
                        list[at].1.retain(|other| *other != node);
                        if list[at].1.is_empty() {
                            list.remove(at);
                        }
                    }
                    (false, None) => {}
                }
                match is_store {
                    true if is_there => {}
                    true => table.insert(StrideKey(key), 7, node),
                    false => table.remove(StrideKey(key), node),
                }
                for (number, list) in (0u32..).zip(&lists) {
                    let entries = table.bucket(number);
                    prop_assert!(entries.iter().map(|entry| entry.key.0).eq(list.iter().map(|(key, _)| *key)));
                    for (entry, (_, nodes)) in entries.iter().zip(list) {
                        let mut found: Vec<u32> = table.nodes(entry).collect();
                        found.sort_unstable();
                        let mut nodes = nodes.clone();
                        nodes.sort_unstable();
                        prop_assert_eq!(found, nodes);
                    }
                }
                prop_assert_eq!(table.len(), lists[0].len() + lists[1].len());
            }
        }
    }
}
