//! Which buckets changed since a watcher last looked.

/// A set of bucket numbers in order of first change.
#[derive(Debug, Default)]
pub(crate) struct DirtySet {
    is_dirty: Vec<u64>,
    queue: std::collections::VecDeque<u32>,
    taken: u64,
}

impl DirtySet {
    pub(crate) fn new(bucket_count: u32) -> Self {
        let words = (bucket_count as usize).div_ceil(64);
        Self { is_dirty: vec![0; words], queue: std::collections::VecDeque::new(), taken: 0 }
    }

    pub(crate) fn mark(&mut self, bucket: u32) {
        let (word, bit) = ((bucket / 64) as usize, 1u64 << (bucket % 64));
        if self.is_dirty[word] & bit == 0 {
            self.is_dirty[word] |= bit;
            self.queue.push_back(bucket);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<u32> {
        let bucket = self.queue.pop_front()?;
        self.is_dirty[(bucket / 64) as usize] &= !(1 << (bucket % 64));
        self.taken += 1;
        Some(bucket)
    }

    /// Buckets taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }
}
