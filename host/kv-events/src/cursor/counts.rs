//! What a cursor counts.

use super::{Cursor, Replay};

/// What a [`Cursor`] has seen that its actions do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CursorCounts {
    /// Holes in the sequence, found by a live message or by a replay that starts behind one; closed
    /// later or not.
    pub gaps: u64,
    /// Runs of the publisher found to have ended.
    pub restarts: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Replays that brought a batch that was not known.
    pub replays_with_news: u64,
    /// Replays cut short, not answered, or with a hole in the answer.
    pub replays_failed: u64,
    /// Batches that replays brought and that were not known.
    pub replayed_batches: u64,
    /// Whether the last replay that came to an end was answered to its end.
    pub is_replay_answered: Option<bool>,
}

impl Cursor {
    pub(super) fn count_replay(&mut self, replay: &Replay, is_answered: bool) {
        self.counts.replays_failed += u64::from(!is_answered);
        self.counts.is_replay_answered = Some(is_answered);
        self.count_news(replay);
    }

    pub(super) fn count_news(&mut self, replay: &Replay) {
        self.counts.replays_with_news += u64::from(replay.delivered > 0);
        self.counts.replayed_batches += u64::from(replay.delivered);
    }

    /// A hole that a replay did not close is met again, and is still one.
    pub(super) fn note_gap(&mut self, position: u64) {
        if self.noted_gap.replace(position) != Some(position) {
            self.counts.gaps += 1;
        }
    }
}
