//! Shared queues: a token per (`vm_id`, name); whoever registered last is told of new entries.

use crate::abi::Status;
use std::collections::{BTreeMap, VecDeque};

/// Who is told of a queue's new entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Consumer {
    pub(crate) vm: u64,
    pub(crate) root: u32,
}

struct Queue {
    entries: VecDeque<Vec<u8>>,
    consumer: Consumer,
}

pub(crate) struct Queues {
    tokens: BTreeMap<(String, Vec<u8>), u32>,
    queues: BTreeMap<u32, Queue>,
    last_token: u32,
    bytes: usize,
    limit_bytes: usize,
}

/// Bytes an entry costs the host besides its own, so that empty ones are not free.
const ENTRY_BYTES: usize = 32;

impl Queues {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            tokens: BTreeMap::new(),
            queues: BTreeMap::new(),
            last_token: 0,
            bytes: 0,
            limit_bytes,
        }
    }

    pub(crate) fn register(
        &mut self,
        vm_id: &str,
        name: &[u8],
        consumer: Consumer,
    ) -> Result<u32, Status> {
        let key = (vm_id.to_owned(), name.to_vec());
        if let Some(token) = self.tokens.get(&key) {
            if let Some(queue) = self.queues.get_mut(token) {
                queue.consumer = consumer;
            }
            return Ok(*token);
        }
        self.charge(name.len())?;
        let token = self.last_token.checked_add(1).ok_or(Status::InternalFailure)?;
        self.last_token = token;
        self.tokens.insert(key, token);
        self.queues.insert(token, Queue { entries: VecDeque::new(), consumer });
        Ok(token)
    }

    pub(crate) fn resolve(&self, vm_id: &str, name: &[u8]) -> Option<u32> {
        self.tokens.get(&(vm_id.to_owned(), name.to_vec())).copied()
    }

    pub(crate) fn enqueue(&mut self, token: u32, entry: &[u8]) -> Result<Consumer, Status> {
        let consumer = self.queues.get(&token).ok_or(Status::NotFound)?.consumer;
        self.charge(entry.len())?;
        if let Some(queue) = self.queues.get_mut(&token) {
            queue.entries.push_back(entry.to_vec());
        }
        Ok(consumer)
    }

    pub(crate) fn dequeue(&mut self, token: u32) -> Result<Vec<u8>, Status> {
        let queue = self.queues.get_mut(&token).ok_or(Status::NotFound)?;
        let entry = queue.entries.pop_front().ok_or(Status::Empty)?;
        self.bytes -= entry.len() + ENTRY_BYTES;
        Ok(entry)
    }

    pub(crate) fn len(&self, token: u32) -> Option<usize> {
        self.queues.get(&token).map(|queue| queue.entries.len())
    }

    pub(crate) fn erase(&mut self, vm_id: &str) {
        let doomed: Vec<_> =
            self.tokens.keys().filter(|(owner, _)| owner == vm_id).cloned().collect();
        for key in doomed {
            let queue = self.tokens.remove(&key).and_then(|token| self.queues.remove(&token));
            let entries = queue.into_iter().flat_map(|queue| queue.entries);
            self.bytes -= entries.map(|entry| entry.len() + ENTRY_BYTES).sum::<usize>();
            self.bytes -= key.1.len() + ENTRY_BYTES;
        }
    }

    fn charge(&mut self, len: usize) -> Result<(), Status> {
        let bytes = self.bytes + len + ENTRY_BYTES;
        if bytes > self.limit_bytes {
            return Err(Status::InternalFailure);
        }
        self.bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_registrant_is_told_and_entries_stay() {
        let mut queues = Queues::new(1000);
        let (first, second) = (Consumer { vm: 1, root: 1 }, Consumer { vm: 2, root: 1 });
        let token = queues.register("v", b"q", first).unwrap();
        assert_eq!(queues.enqueue(token, b"a"), Ok(first));
        assert_eq!(queues.register("v", b"q", second), Ok(token));
        assert_eq!(queues.enqueue(token, b"b"), Ok(second));
        assert_eq!(queues.resolve("v", b"q"), Some(token));
        assert_eq!(queues.resolve("w", b"q"), None);
        assert_eq!(queues.dequeue(token).unwrap(), b"a");
        assert_eq!(queues.dequeue(token).unwrap(), b"b");
        assert_eq!(queues.dequeue(token), Err(Status::Empty));
        assert_eq!(queues.dequeue(token + 1), Err(Status::NotFound));
        assert_eq!(queues.enqueue(0, b""), Err(Status::NotFound));
    }

    #[test]
    fn bytes_are_bounded_and_come_back() {
        let mut queues = Queues::new(100);
        let consumer = Consumer { vm: 1, root: 1 };
        let token = queues.register("v", b"q", consumer).unwrap();
        assert!(queues.enqueue(token, b"x").is_ok());
        assert_eq!(queues.enqueue(token, b"yyyyyy"), Err(Status::InternalFailure));
        queues.dequeue(token).unwrap();
        assert!(queues.enqueue(token, b"yyyyyy").is_ok());
        queues.erase("v");
        assert_eq!((queues.bytes, queues.resolve("v", b"q")), (0, None));
    }
}
