//! The protocol without I/O: which batch follows, and what an answer means.

use feed::{Ack, AckStatus, BatchBuilder, BatchHeader, Head};

/// How much a batch may still take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Everything that changed is in the batch.
    Drained,
    /// The batch is full and more is waiting, some of it since the snapshot began.
    More,
    /// The batch is full and more is waiting, but everything that the snapshot began with has been in a
    /// batch. Where changes outrun the gateway that is when the snapshot is whole: it holds a value of
    /// everything, and is as late as at any other time.
    Newer,
}

/// State to push to one gateway.
pub trait StateSource: Send + 'static {
    /// Everything counts as changed from here on.
    fn begin_snapshot(&mut self);
    /// Moves changed values into the batch, up to `max_bytes` and `max_entries` in all.
    fn fill(
        &mut self,
        epoch: u64,
        batch: &mut BatchBuilder,
        max_bytes: usize,
        max_entries: u32,
    ) -> Fill;
    /// The last fill was applied.
    fn applied(&mut self);
    /// An ack came, of whatever status.
    fn acked(&mut self, ack: &Ack) {
        let _ = ack;
    }
    /// The last fill may not have been applied: its values count as changed again.
    fn unknown(&mut self);
}

/// Where this writer is with one gateway process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Session {
    pub(crate) instance: u64,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    /// The snapshot has been applied whole.
    pub(crate) is_complete: bool,
}

/// What to do after an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Applied.
    Go,
    /// This process is not the one we knew, or its head was lost: start over with a snapshot.
    StartOver,
    /// A batch of ours went missing or arrived twice: go on from the held head.
    Resend,
    /// Another writer with a higher epoch holds this gateway.
    Superseded,
    /// The gateway does not read our batches, or could not store them.
    Refused,
}

impl Session {
    /// Takes over from the held head. The epoch is above the held one and the clock in ms, and of
    /// the other parity than the one readers use, so that they can go on with it meanwhile.
    pub(crate) fn claim(head: &Head, now_unix_ms: u64) -> Self {
        let mut epoch = now_unix_ms.max(head.epoch.saturating_add(1));
        if head.active_epoch().is_some_and(|active| (active ^ epoch) & 1 == 0) {
            epoch = epoch.saturating_add(1);
        }
        Self { instance: head.instance, epoch, sequence: 0, is_complete: false }
    }

    pub(crate) fn next_header(&self, completes: bool) -> BatchHeader {
        BatchHeader {
            instance: self.instance,
            epoch: self.epoch,
            sequence: self.sequence + 1,
            completes,
        }
    }

    pub(crate) fn observe(&mut self, ack: &Ack, completes: bool) -> Next {
        let head = &ack.head;
        match ack.status {
            AckStatus::Applied => {
                self.sequence = head.sequence;
                self.is_complete |= completes;
                Next::Go
            }
            AckStatus::Refused | AckStatus::Failed => Next::Refused,
            AckStatus::Conflict if head.instance != self.instance => Next::StartOver,
            AckStatus::Conflict if head.epoch > self.epoch => Next::Superseded,
            // Two that claim in the same millisecond have the same epoch: whose first batch is not the first
            // of the epoch claims another. So does one whose first answer was lost, at the price of a snapshot.
            AckStatus::Conflict if head.epoch == self.epoch && self.sequence == 0 => {
                Next::StartOver
            }
            AckStatus::Conflict if head.epoch == self.epoch => {
                self.sequence = head.sequence;
                self.is_complete = head.is_complete;
                Next::Resend
            }
            // The head went back: someone wrote over it.
            AckStatus::Conflict => Next::StartOver,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use feed::Counters;

    fn ack(status: AckStatus, head: Head) -> Ack {
        Ack {
            status,
            head,
            now_ns: 0,
            counters: Counters::default(),
            rows: vec![],
            reason: String::new(),
            in_flight: vec![],
        }
    }

    #[test]
    fn an_epoch_is_above_clock_and_held_and_apart_from_what_is_read() {
        let head = |epoch, is_complete, previous_epoch| Head {
            instance: 1,
            epoch,
            is_complete,
            previous_epoch,
            ..Head::default()
        };
        let claim = |head: Head| Session::claim(&head, 1000).epoch;
        assert_eq!(claim(head(0, false, 0)), 1000);
        assert_eq!(claim(head(998, true, 0)), 1001);
        assert_eq!(claim(head(999, true, 0)), 1000);
        assert_eq!(claim(head(2000, true, 0)), 2001);
        // 2001 is half done, readers use 2000: the next must be odd and above 2001.
        assert_eq!(claim(head(2001, false, 2000)), 2003);
    }

    #[test]
    fn answers_mean() {
        let session = Session { instance: 7, epoch: 10, sequence: 4, is_complete: true };
        let check = |status, head: (u64, u64, u64), next, sequence| {
            let mut session = session;
            let (instance, epoch, held) = head;
            let head =
                Head { instance, epoch, sequence: held, is_complete: true, ..Head::default() };
            assert_eq!(session.observe(&ack(status, head), false), next);
            assert_eq!(session.sequence, sequence);
        };
        check(AckStatus::Applied, (7, 10, 5), Next::Go, 5);
        // The answer to batch 5 was lost, it had been applied.
        check(AckStatus::Conflict, (7, 10, 5), Next::Resend, 5);
        // Nothing of ours was acked in this epoch, so it may be another's.
        let mut claimed = Session { sequence: 0, is_complete: false, ..session };
        let head = Head { instance: 7, epoch: 10, sequence: 1, ..Head::default() };
        assert_eq!(claimed.observe(&ack(AckStatus::Conflict, head), false), Next::StartOver);
        check(AckStatus::Conflict, (8, 10, 5), Next::StartOver, 4);
        check(AckStatus::Conflict, (7, 11, 1), Next::Superseded, 4);
        check(AckStatus::Conflict, (7, 9, 9), Next::StartOver, 4);
        check(AckStatus::Refused, (7, 10, 4), Next::Refused, 4);
        check(AckStatus::Failed, (0, 0, 0), Next::Refused, 4);
    }
}
