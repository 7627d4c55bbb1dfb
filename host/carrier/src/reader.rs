//! The state machine of one stream's reader, without I/O: entries go in, updates come out.
//!
//! It trusts nothing but the ids and what the first entry of a term says. What does not follow from
//! the entry before is a hole: everything is void, and the stream is read again from the first entry
//! that it still has. If that leads to the same hole, what is behind it is read without the rest.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use kv_events::{Position, RawUpdate, ResetReason, Resume, SourceState};
use tokio::time::Instant;

use crate::record::{Record, State};

/// Id of an entry, in the order of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// The follower's term; from 1.
    pub term: u64,
    /// Number within the term; the first is 0.
    pub number: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.number)
    }
}

impl FromStr for EntryId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (term, number) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { term: term.parse()?, number: number.parse()? })
    }
}

/// What to do after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give the next one.
    On,
    /// Drop what was read, and read from [`Reader::after`].
    Again,
}

/// What to do after entries given backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// Give earlier ones, if there are any; else call [`Reader::not_found`].
    Earlier,
    /// Read from [`Reader::after`].
    Done,
}

/// Reader of one engine's stream.
#[derive(Debug)]
pub struct Reader {
    /// The last entry; `None` before the first.
    at: Option<EntryId>,
    /// Where to read while there is no last entry: from the beginning, or behind what is not understood.
    from: EntryId,
    /// The entry at which the last hole was found.
    hole_at: Option<EntryId>,
    /// The last batch that was passed on, or that another process has applied.
    position: Option<Position>,
    /// Taken up from another process; its place in the stream is not found yet.
    is_sought: bool,
    /// What the follower says of its source.
    followed: State,
    /// What the follower says of the start of the history.
    is_partial: bool,
    /// The start of the history is not in the stream any more.
    is_truncated: bool,
    /// All that the stream has was read.
    is_at_end: bool,
    is_connected: bool,
    has_follower: bool,
    told: Option<SourceState>,
    updates: VecDeque<RawUpdate>,
    holes: u64,
}

impl Reader {
    /// Reads from the first entry, or from where another process has stopped.
    pub fn new(resume: Option<Resume>) -> Self {
        let mut reader = Self {
            at: None,
            from: EntryId::default(),
            hole_at: None,
            position: resume.map(|resume| resume.position),
            is_sought: resume.is_some(),
            followed: State::Connecting,
            is_partial: false,
            // Until it is void: the follower may have had what the other process had not.
            is_truncated: resume.is_some_and(|resume| resume.partial),
            is_at_end: false,
            is_connected: false,
            has_follower: true,
            told: None,
            updates: VecDeque::new(),
            holes: 0,
        };
        reader.tell();
        reader
    }

    /// The next update.
    pub fn next_update(&mut self) -> Option<RawUpdate> {
        self.updates.pop_front()
    }

    /// The entry after which to read.
    pub fn after(&self) -> EntryId {
        self.at.unwrap_or(self.from)
    }

    /// Whether its place has to be sought first, by [`earlier`](Self::earlier).
    pub fn is_sought(&self) -> bool {
        self.is_sought
    }

    /// Holes so far.
    pub fn holes(&self) -> u64 {
        self.holes
    }

    /// Whether there is a connection to the carrier. What happens without one is not lost.
    pub fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.is_at_end &= is_connected;
        self.tell();
    }

    /// Whether somebody follows the engine.
    pub fn set_follower(&mut self, has_follower: bool) {
        self.has_follower = has_follower;
        self.tell();
    }

    /// The stream has no more entries now.
    pub fn at_end(&mut self) {
        self.is_at_end = true;
        self.tell();
    }

    /// The entry before the one given last, from the stream's last one backwards, while
    /// [`is_sought`](Self::is_sought).
    pub fn earlier(&mut self, id: EntryId, record: &Record) -> Seek {
        let Some(sought) = self.position else { return self.not_found() };
        match record {
            Record::Batch { sequence, .. } if *sequence > sought.sequence => return Seek::Earlier,
            Record::State { .. } => return Seek::Earlier,
            Record::Term { continues: Some(last), .. } if *last != sought => return Seek::Earlier,
            Record::Term { continues: Some(_), .. } => self.followed = State::Connecting,
            Record::Batch { state, .. } if record.position() == Some(sought) => {
                self.followed = *state;
            }
            // Void since then, or of another run, or of a stream that has lost it.
            _ => return self.not_found(),
        }
        self.at = Some(id);
        self.is_sought = false;
        Seek::Done
    }

    /// Its place is not in the stream: what was applied is void.
    pub fn not_found(&mut self) -> Seek {
        self.is_sought = false;
        self.hole();
        Seek::Done
    }

    /// The next entry; `None` if it is not understood.
    pub fn entry(&mut self, id: EntryId, record: Option<Record>, received_at: Instant) -> Step {
        // A term begins with its first entry, so another one is not understood either.
        let is_first_of_term = |record: &Record| match record {
            Record::Term { .. } => id.number == 0,
            _ => true,
        };
        let Some(record) = record.filter(is_first_of_term) else {
            self.hole();
            self.from = id;
            return Step::On;
        };
        let follows = match (self.at, &record) {
            (None, _) => true,
            (Some(at), Record::Term { continues, .. }) => {
                // The follower may know of more, or of less if the server has lost entries.
                id.term > at.term && (continues.is_none() || *continues == self.position)
            }
            (Some(at), _) => id.term == at.term && Some(id.number) == at.number.checked_add(1),
        };
        let follows = follows
            && match (self.position, &record) {
                (Some(last), Record::Batch { sequence, .. }) => {
                    Some(*sequence) == last.sequence.checked_add(1)
                }
                _ => true,
            };
        if !follows {
            let again = self.hole();
            if self.hole_at.replace(id) != Some(id) {
                return again;
            }
        }
        let is_first = self.at.replace(id).is_none();
        match record {
            Record::Term { continues, is_partial } => {
                match continues {
                    None => self.void(ResetReason::Gap),
                    Some(_) => self.is_truncated |= is_first,
                }
                (self.followed, self.is_partial) = (State::Connecting, is_partial);
            }
            Record::Reset(reason) => {
                self.void(reason);
            }
            Record::State { state, is_partial } => {
                self.is_truncated |= is_first;
                self.followed = state;
                if state == State::Live {
                    self.is_partial = is_partial;
                }
            }
            Record::Batch { sequence, state, is_partial, .. } => {
                self.is_truncated |= is_first;
                self.is_truncated &= sequence != 0;
                (self.followed, self.is_partial) = (state, is_partial);
                if let Some(message) = record.message(received_at) {
                    self.position = Some(message.position());
                    let (state, is_partial) = (self.state(), self.is_partial || self.is_truncated);
                    self.updates.push_back(RawUpdate::Batch { message, state, is_partial });
                }
            }
        }
        self.tell();
        Step::On
    }

    /// What was passed on is void, and so is the place in the stream.
    fn hole(&mut self) -> Step {
        self.holes += 1;
        self.void(ResetReason::Gap);
        (self.at, self.from) = (None, EntryId::default());
        self.is_at_end = false;
        self.followed = State::Connecting;
        self.tell();
        Step::Again
    }

    fn void(&mut self, reason: ResetReason) {
        if self.position.take().is_some() {
            self.updates.push_back(RawUpdate::Reset { reason });
        }
        (self.is_partial, self.is_truncated) = (false, false);
    }

    fn state(&self) -> SourceState {
        match self.followed {
            _ if !self.is_connected || !self.has_follower => SourceState::Lost,
            State::Lost => SourceState::Lost,
            State::Live if self.is_at_end && !self.is_sought => {
                SourceState::Live { partial: self.is_partial || self.is_truncated }
            }
            State::Connecting | State::Resyncing | State::Live => SourceState::Resyncing,
        }
    }

    fn tell(&mut self) {
        let state = match self.told {
            None if !self.is_connected => SourceState::Connecting,
            Some(SourceState::Connecting) if !self.is_connected => return,
            _ => self.state(),
        };
        if self.told.replace(state) != Some(state) {
            self.updates.push_back(RawUpdate::State(state));
        }
    }
}

#[cfg(test)]
mod tests;
