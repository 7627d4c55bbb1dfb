//! What is said of a source, and how long anything may take.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::cursor::{CursorCounts, ResetReason, SourceState};
use crate::decode::DecodeError;
use crate::event::EventBatch;

/// What happened at a source.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceUpdate {
    /// A batch, in sequence order, without holes since the last [`Reset`](Self::Reset).
    Batch {
        /// Number of the batch within the engine's run.
        sequence: u64,
        /// Tells the batch from one of the same number of another run: with `sequence` it is the
        /// [`Position`](crate::Position) after the batch. Zero where a source cannot be taken up.
        fingerprint: u64,
        /// The events.
        batch: EventBatch,
        /// When the message was received, replayed ones included.
        received_at: Instant,
    },
    /// Everything known of this source is void. What follows starts over.
    Reset {
        /// Why.
        reason: ResetReason,
    },
    /// The source changed its state.
    State(SourceState),
    /// The batch in this place of the sequence could not be decoded; its events are lost.
    Undecodable {
        /// Number of the batch.
        sequence: u64,
        /// As in [`Batch`](Self::Batch).
        fingerprint: u64,
        /// What is wrong with it.
        error: DecodeError,
    },
}

/// Timeouts of [`follow_with`](crate::follow_with) and [`listen`](crate::listen()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For a connection to be made, handshake included.
    pub connect: Duration,
    /// Between two answers of a replay. vLLM serves replays between two batches, which takes up
    /// to 100 ms.
    pub replay_silence: Duration,
    /// Without a live message before the source is asked whether it is still the same, and
    /// without any byte before the connection is asked for a sign of life; without one for as
    /// long again it is given up. Right after (re)connecting the source is asked after a tenth of
    /// it, because batches published before the subscription took effect are missing without a
    /// sign.
    pub silence: Duration,
    /// Longest pause between two attempts to connect.
    pub max_backoff: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            replay_silence: Duration::from_secs(2),
            silence: Duration::from_secs(5),
            max_backoff: Duration::from_secs(5),
        }
    }
}

/// What happened without a [`SourceUpdate`] to say so. One for any number of sources.
#[derive(Debug, Default)]
pub struct Counters {
    connections_failed: AtomicU64,
    frames_too_large: AtomicU64,
    not_batches: AtomicU64,
    unknown_topics: AtomicU64,
    sources_refused: AtomicU64,
    sources_evicted: AtomicU64,
    connections_refused: AtomicU64,
    superseded: AtomicU64,
    gaps: AtomicU64,
    restarts: AtomicU64,
    replays: AtomicU64,
    replays_with_news: AtomicU64,
    replays_failed: AtomicU64,
    replayed_batches: AtomicU64,
    last_replay: AtomicU8,
}

/// How the last replay that came to an end did so, as the value of an atomic.
const ANSWERED: u8 = 1;
const FAILED: u8 = 2;

/// The values of [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were not made, broke, or were given up.
    pub connections_failed: u64,
    /// Of these, those whose peer announced more than can be waited for.
    pub frames_too_large: u64,
    /// Messages that are not a sequence number and a payload.
    pub not_batches: u64,
    /// Messages to a listener under a topic that is not `kv@POD@MODEL`.
    pub unknown_topics: u64,
    /// Messages to a listener of a source for which there is no room.
    pub sources_refused: u64,
    /// Sources of a listener that were dropped, long disconnected, to make room.
    pub sources_evicted: u64,
    /// Connections to a listener beyond its limit.
    pub connections_refused: u64,
    /// Messages to a listener over a connection in whose place a newer one has come.
    pub superseded: u64,
    /// Holes seen in the sequence of batches, closed by a replay or not.
    pub gaps: u64,
    /// Runs of the engine found to have ended.
    pub restarts: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Of these, those that brought batches that were not known.
    pub replays_with_news: u64,
    /// Of these, those that were cut short or not answered.
    pub replays_failed: u64,
    /// Batches that replays brought and that were not known.
    pub replayed_batches: u64,
    /// Whether the last replay that came to an end was answered; `None` before the first.
    pub is_replay_answered: Option<bool>,
}

/// One of the [`Counters`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    ConnectionFailed,
    FrameTooLarge,
    NotABatch,
    UnknownTopic,
    SourceRefused,
    SourceEvicted,
    ConnectionRefused,
    Superseded,
}

impl Counters {
    /// The values now.
    pub fn counts(&self) -> Counts {
        let get = |which| self.counter(which).load(Ordering::Relaxed);
        Counts {
            connections_failed: get(Count::ConnectionFailed),
            frames_too_large: get(Count::FrameTooLarge),
            not_batches: get(Count::NotABatch),
            unknown_topics: get(Count::UnknownTopic),
            sources_refused: get(Count::SourceRefused),
            sources_evicted: get(Count::SourceEvicted),
            connections_refused: get(Count::ConnectionRefused),
            superseded: get(Count::Superseded),
            gaps: self.gaps.load(Ordering::Relaxed),
            restarts: self.restarts.load(Ordering::Relaxed),
            replays: self.replays.load(Ordering::Relaxed),
            replays_with_news: self.replays_with_news.load(Ordering::Relaxed),
            replays_failed: self.replays_failed.load(Ordering::Relaxed),
            replayed_batches: self.replayed_batches.load(Ordering::Relaxed),
            is_replay_answered: match self.last_replay.load(Ordering::Relaxed) {
                0 => None,
                last => Some(last == ANSWERED),
            },
        }
    }

    pub(crate) fn add(&self, which: Count) {
        self.counter(which).fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what a cursor counted.
    pub(crate) fn add_cursor(&self, counts: &CursorCounts) {
        if *counts == CursorCounts::default() {
            return;
        }
        for (counter, count) in [
            (&self.gaps, counts.gaps),
            (&self.restarts, counts.restarts),
            (&self.replays, counts.replays),
            (&self.replays_with_news, counts.replays_with_news),
            (&self.replays_failed, counts.replays_failed),
            (&self.replayed_batches, counts.replayed_batches),
        ] {
            counter.fetch_add(count, Ordering::Relaxed);
        }
        if let Some(is_answered) = counts.is_replay_answered {
            let last = if is_answered { ANSWERED } else { FAILED };
            self.last_replay.store(last, Ordering::Relaxed);
        }
    }

    fn counter(&self, which: Count) -> &AtomicU64 {
        match which {
            Count::ConnectionFailed => &self.connections_failed,
            Count::FrameTooLarge => &self.frames_too_large,
            Count::NotABatch => &self.not_batches,
            Count::UnknownTopic => &self.unknown_topics,
            Count::SourceRefused => &self.sources_refused,
            Count::SourceEvicted => &self.sources_evicted,
            Count::ConnectionRefused => &self.connections_refused,
            Count::Superseded => &self.superseded,
        }
    }
}
