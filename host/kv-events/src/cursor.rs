//! The state machine of one publisher, without I/O: messages and timeouts go in, actions come
//! out.
//!
//! What it has to cope with: a batch that was dropped (a gap in the numbers), the history before
//! the subscription, an engine that restarted (numbers start over, and nothing else says so),
//! and a replay that is cut short, arrives late or never.
//!
//! A replay is asked from the last delivered batch, not from the one after it. The batch that is
//! already known is the proof that the publisher is still the same run; an answer without it, or
//! with another payload in its place, is a restart, however far the new run has come.

use std::collections::VecDeque;

mod counts;
mod recent;
mod types;

pub use counts::CursorCounts;
pub(crate) use recent::fingerprint;
use recent::{Recent, Seen};
pub use types::{Action, Message, Position, ResetReason, Resume, SourceState};

/// Attempts at a replay that bring nothing before it is given up.
const REPLAY_ATTEMPTS: u32 = 2;

/// Replays in silence that bring news before the subscription is taken for dead.
const BLIND_PROBES: u32 = 2;

/// Live messages kept while a replay runs. Beyond, they are dropped and replayed in turn.
const PENDING_MESSAGES: usize = 4096;
/// Their payloads, in bytes.
const PENDING_BYTES: usize = 64 << 20;

/// State of one publisher. Feed it, then take the actions.
#[derive(Debug)]
pub struct Cursor {
    can_replay: bool,
    state: SourceState,
    /// Next expected sequence number; unknown before the first batch or an answered replay.
    position: Option<u64>,
    /// Batches delivered since the last reset.
    recent: Recent,
    partial: bool,
    replay: Option<Replay>,
    /// Live messages in order of arrival, while a replay runs.
    pending: VecDeque<Message>,
    pending_bytes: usize,
    /// A live message found no room in `pending`.
    overflowed: bool,
    /// Position at which a replay has already failed to close a hole.
    tried: Option<u64>,
    /// A replay of this run has brought a batch, so an empty answer is evidence.
    replay_proven: bool,
    /// Connected again, and not yet sure that it is the same run.
    unverified: bool,
    /// Taken up from another process, and nothing has shown yet that it is the same run without a
    /// hole. Not live until then.
    unproven: bool,
    failures: u32,
    blind_probes: u32,
    counts: CursorCounts,
    /// Position of the last hole that was counted.
    noted_gap: Option<u64>,
    actions: VecDeque<Action>,
}

/// A replay in progress.
#[derive(Debug)]
struct Replay {
    /// Asked for in silence, while nothing is known to be missing.
    probe: bool,
    from: u64,
    /// Answers that fit, the already known one included.
    accepted: u32,
    /// Answers that were new.
    delivered: u32,
    /// An answer left a hole: the engine's queue was full.
    skipped: bool,
}

impl Cursor {
    /// A publisher that is not connected. `can_replay`: it has a replay endpoint.
    pub fn new(can_replay: bool) -> Self {
        Self {
            can_replay,
            state: SourceState::Connecting,
            position: None,
            recent: Recent::default(),
            partial: false,
            replay: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            overflowed: false,
            tried: None,
            replay_proven: false,
            unverified: false,
            unproven: false,
            failures: 0,
            blind_probes: 0,
            counts: CursorCounts::default(),
            noted_gap: None,
            actions: VecDeque::new(),
        }
    }

    /// A publisher whose batches up to a position are applied already. That it is still the same
    /// run is shown by a replay that begins with that batch, or, without replay, by the batch that
    /// follows it; anything else voids what was applied.
    pub fn resume(can_replay: bool, from: Resume) -> Self {
        let mut cursor = Self::new(can_replay);
        let Position { sequence, fingerprint } = from.position;
        cursor.recent.push_fingerprint(sequence, fingerprint);
        cursor.position = Some(sequence.saturating_add(1));
        cursor.partial = from.partial;
        cursor.unproven = true;
        cursor
    }

    /// The publisher has a replay endpoint, or none any more. For between two connections.
    pub fn set_replay(&mut self, can_replay: bool) {
        self.can_replay = can_replay;
    }

    /// The publisher is not followed any more: what was delivered is void.
    pub fn retire(&mut self) {
        self.forget(ResetReason::Gap);
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What was counted since this was last called.
    pub fn take_counts(&mut self) -> CursorCounts {
        std::mem::take(&mut self.counts)
    }

    /// Current state.
    pub fn state(&self) -> SourceState {
        self.state
    }

    /// The start of the history was not available.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// A connection is being made.
    pub fn connecting(&mut self) {
        self.set_state(SourceState::Connecting);
    }

    /// The subscription was sent.
    pub fn connected(&mut self) {
        self.unverified = self.position.is_some();
        self.failures = 0;
        self.tried = None;
        if self.can_replay {
            self.set_state(SourceState::Resyncing);
            self.request(false);
        } else {
            self.settle(false);
        }
    }

    /// The connection is gone, or could not be made.
    pub fn disconnected(&mut self) {
        self.drop_replay();
        self.clear_pending();
        self.set_state(SourceState::Lost);
    }

    /// A message of the subscription.
    pub fn live(&mut self, message: Message) {
        self.blind_probes = 0;
        let Some(replay) = &mut self.replay else {
            self.failures = 0;
            let was_unproven = self.unproven;
            self.accept(message);
            if was_unproven && !self.unproven && self.replay.is_none() {
                self.set_state(SourceState::Live { partial: self.partial });
            }
            return;
        };
        if !replay.probe {
            return self.defer(message);
        }
        match self.position {
            Some(position) if message.sequence > position => {
                replay.probe = false;
                self.note_gap(position);
                self.set_state(SourceState::Resyncing);
                self.defer(message);
            }
            // Nothing is known to be missing, so a probe need not hold messages up.
            _ => self.accept(message),
        }
    }

    /// Nothing was received for a while.
    pub fn silent(&mut self) {
        if self.can_replay && self.replay.is_none() && self.is_live() {
            self.request(true);
        }
    }

    /// A message of the replay in progress.
    pub fn replayed(&mut self, message: Message) {
        let Some(replay) = &mut self.replay else { return };
        let sequence = message.sequence;
        if sequence < replay.from {
            return;
        }
        self.replay_proven = true;
        let first = replay.accepted == 0;
        match self.position {
            Some(position) if sequence < position => {
                match self.recent.check(sequence, &message.payload) {
                    seen @ (Seen::Same | Seen::Forgotten) => {
                        replay.accepted += 1;
                        self.unverified = false;
                        self.unproven &= seen != Seen::Same;
                    }
                    Seen::Different => self.restart(None),
                }
            }
            Some(position) if sequence > position && !first => replay.skipped = true,
            // An answer that does not start with what was asked for: the engine has no more.
            Some(position) if first && (sequence > position || position > 0) => {
                replay.accepted = 1;
                replay.delivered = 1;
                self.note_gap(position);
                self.jump(message);
            }
            Some(_) => {
                replay.accepted += 1;
                replay.delivered += 1;
                self.deliver(message);
            }
            None => {
                replay.accepted += 1;
                replay.delivered += 1;
                self.jump(message);
            }
        }
    }

    /// The replay in progress reached its end marker.
    pub fn replay_ended(&mut self) {
        let Some(replay) = self.replay.take() else { return };
        self.count_replay(&replay, !replay.skipped);
        if replay.skipped {
            return self.retry(&replay);
        }
        self.failures = 0;
        if replay.accepted == 0 {
            match self.position {
                None => self.position = Some(0),
                // The engine does not know its own last batch. With a buffer that keeps nothing
                // this means nothing, so it takes a reason to believe it.
                Some(1..) if self.replay_proven || self.unverified => return self.restart(None),
                Some(_) => {}
            }
        }
        self.unverified = false;
        if replay.probe && replay.delivered > 0 {
            self.blind_probes += 1;
            if self.blind_probes >= BLIND_PROBES {
                self.blind_probes = 0;
                self.actions.push_back(Action::Reconnect);
                return;
            }
        }
        self.settle(replay.accepted > 0);
    }

    /// The replay in progress was cut short, or never answered.
    pub fn replay_failed(&mut self) {
        if let Some(replay) = self.replay.take() {
            self.count_replay(&replay, false);
            self.retry(&replay);
        }
    }

    /// Leaves a replay in progress to itself.
    fn drop_replay(&mut self) {
        if let Some(replay) = self.replay.take() {
            self.count_news(&replay);
        }
    }

    fn retry(&mut self, replay: &Replay) {
        if replay.delivered > 0 {
            self.failures = 0;
            return self.request(replay.probe);
        }
        self.failures += 1;
        if self.failures < REPLAY_ATTEMPTS && !replay.probe {
            return self.request(false);
        }
        if replay.probe {
            // Half-open connections look like this: the peer is gone and nobody says so.
            if self.failures >= REPLAY_ATTEMPTS && self.replay_proven {
                self.failures = 0;
                self.actions.push_back(Action::Reconnect);
            }
            return;
        }
        self.failures = 0;
        if std::mem::take(&mut self.unverified) {
            // Connected again, and nobody says to what: what is known may be another run's.
            self.forget(ResetReason::Gap);
        }
        self.tried = self.position;
        self.settle(false);
    }

    /// Takes up the messages that waited for the replay, which has `covered` what they follow on.
    fn settle(&mut self, covered: bool) {
        while let Some(message) = self.pending.pop_front() {
            self.pending_bytes = self.pending_bytes.saturating_sub(message.payload.len());
            // Should it contradict the replay, then one of the two is of a run that is gone, and
            // taking sides here could go on forever: the next message or probe tells.
            if covered && self.position.is_some_and(|position| message.sequence < position) {
                continue;
            }
            self.accept(message);
            if self.replay.is_some() {
                return;
            }
        }
        if std::mem::take(&mut self.overflowed) {
            return self.request(false);
        }
        if self.unproven {
            return self.set_state(SourceState::Resyncing);
        }
        let partial = self.partial || self.position.is_none();
        self.set_state(SourceState::Live { partial });
    }

    /// A live message in its turn.
    fn accept(&mut self, message: Message) {
        match self.position {
            None => self.jump(message),
            Some(position) if message.sequence == position => {
                self.unproven = false;
                self.deliver(message);
            }
            Some(position) if message.sequence < position => {
                if self.recent.check(message.sequence, &message.payload) != Seen::Same {
                    self.restart(Some(message));
                }
            }
            Some(position) => self.gap(position, message),
        }
    }

    fn gap(&mut self, position: u64, message: Message) {
        self.note_gap(position);
        if self.can_replay && self.tried != Some(position) {
            self.tried = Some(position);
            self.pending_bytes += message.payload.len();
            self.pending.push_front(message);
            self.failures = 0;
            self.set_state(SourceState::Resyncing);
            self.request(false);
        } else {
            self.jump(message);
        }
    }

    /// A new run of the engine, known by `message` or by a replay.
    fn restart(&mut self, message: Option<Message>) {
        self.counts.restarts += 1;
        self.forget(ResetReason::Restart);
        self.replay_proven = false;
        self.unverified = false;
        self.failures = 0;
        self.drop_replay();
        // The replay asked for below has everything that is dropped here.
        self.clear_pending();
        if !self.can_replay {
            if let Some(message) = message {
                self.jump(message);
            }
            return;
        }
        self.set_state(SourceState::Resyncing);
        self.request(false);
        if let Some(message) = message {
            self.defer(message);
        }
    }

    fn forget(&mut self, reason: ResetReason) {
        if !self.recent.is_empty() {
            self.actions.push_back(Action::Reset(reason));
        }
        self.recent.clear();
        self.position = None;
        self.partial = false;
        self.unproven = false;
        self.tried = None;
        self.noted_gap = None;
    }

    /// Continues from `message`, whatever is missing before it.
    fn jump(&mut self, message: Message) {
        self.forget(ResetReason::Gap);
        self.partial = message.sequence > 0;
        self.deliver(message);
        if self.is_live() {
            self.set_state(SourceState::Live { partial: self.partial });
        }
    }

    fn deliver(&mut self, message: Message) {
        self.recent.push(message.sequence, &message.payload);
        self.position = Some(message.sequence.saturating_add(1));
        self.actions.push_back(Action::Deliver(message));
    }

    fn request(&mut self, probe: bool) {
        let from = self.position.unwrap_or(0).saturating_sub(1);
        self.replay = Some(Replay { probe, from, accepted: 0, delivered: 0, skipped: false });
        self.counts.replays += 1;
        self.actions.push_back(Action::Replay { from });
    }

    fn defer(&mut self, message: Message) {
        let bytes = self.pending_bytes.saturating_add(message.payload.len());
        if self.pending.len() < PENDING_MESSAGES && bytes <= PENDING_BYTES {
            self.pending_bytes = bytes;
            self.pending.push_back(message);
        } else {
            self.overflowed = true;
        }
    }

    fn clear_pending(&mut self) {
        self.pending.clear();
        self.pending_bytes = 0;
        self.overflowed = false;
    }

    fn is_live(&self) -> bool {
        matches!(self.state, SourceState::Live { .. })
    }

    fn set_state(&mut self, state: SourceState) {
        if self.state != state {
            self.state = state;
            self.actions.push_back(Action::State(state));
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
