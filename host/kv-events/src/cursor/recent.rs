//! Which payloads were delivered lately.

use std::collections::VecDeque;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// How many delivered batches are remembered: what vLLM keeps for replay by default
/// (`buffer_steps`). Fewer, and an old duplicate passes for a restart.
pub(super) const REMEMBERED: usize = 10_000;

/// Fingerprints of the last delivered batches, which have consecutive sequence numbers.
///
/// The protocol has no identity of a publisher's run, so this is what tells a batch seen twice
/// from the batch of the same number of a restarted engine: the payload starts with a time.
/// vLLM and SGLang replay the very bytes they published.
#[derive(Debug, Default)]
pub(super) struct Recent {
    fingerprints: VecDeque<u64>,
    /// Sequence number after the last one.
    end: u64,
}

/// What is known about a sequence number below the next expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Same,
    Different,
    Forgotten,
}

impl Recent {
    pub(super) fn is_empty(&self) -> bool {
        self.fingerprints.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.fingerprints.clear();
    }

    pub(super) fn push(&mut self, sequence: u64, payload: &[u8]) {
        self.push_fingerprint(sequence, fingerprint(payload));
    }

    pub(super) fn push_fingerprint(&mut self, sequence: u64, fingerprint: u64) {
        if self.fingerprints.len() == REMEMBERED {
            self.fingerprints.pop_front();
        }
        self.fingerprints.push_back(fingerprint);
        self.end = sequence.saturating_add(1);
    }

    pub(super) fn check(&self, sequence: u64, payload: &[u8]) -> Seen {
        let found = self
            .end
            .checked_sub(sequence)
            .and_then(|back| usize::try_from(back).ok())
            .and_then(|back| self.fingerprints.len().checked_sub(back))
            .and_then(|index| self.fingerprints.get(index));
        match found {
            Some(known) if *known == fingerprint(payload) => Seen::Same,
            Some(_) => Seen::Different,
            None => Seen::Forgotten,
        }
    }
}

/// The same in every process and build.
pub(crate) fn fingerprint(payload: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(payload);
    hasher.finish()
}
