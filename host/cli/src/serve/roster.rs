//! The endpoints of a scope by slot. They come and go: a slot is used again when no gateway has anything
//! any more that says the old endpoint by its number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kv_events::Counters;

use crate::config::{Endpoint, EngineKind};

/// Most endpoints of a scope at a time: so many load records fit a value of the feed.
pub(crate) const MAX_ENDPOINTS: usize = 2_048;
/// Most slots: beyond those in use, some rest until the gateways have acked that they are free.
pub(crate) const MAX_SLOTS: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the gateways' tables.
    Listed,
    /// Not any more; tasks may still bring something of it.
    Leaving,
    /// Empty since the retirement of this number.
    Resting(u64),
}

struct Member {
    endpoint: Arc<Endpoint>,
    reader: Arc<Counters>,
    state: State,
}

impl Member {
    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint: Arc::new(endpoint), reader: Arc::default(), state: State::Listed }
    }
}

/// Endpoints by slot. Its lock is taken last: inside a scope's, never around it.
pub(crate) struct Roster {
    members: RwLock<Vec<Member>>,
    /// Per gateway: the retirement up to which it has acked all.
    acked: Vec<AtomicU64>,
}

impl Roster {
    /// These endpoints, in slots from 0, for this many gateways.
    pub(crate) fn new(endpoints: Vec<Endpoint>, gateways: usize) -> Self {
        Self {
            members: RwLock::new(endpoints.into_iter().map(Member::new).collect()),
            acked: (0..gateways).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The endpoint in the slot, also while it is leaving or when it has left.
    pub(crate) fn endpoint(&self, slot: u16) -> Arc<Endpoint> {
        Arc::clone(&self.read()[usize::from(slot)].endpoint)
    }

    pub(crate) fn kind(&self, slot: u16) -> EngineKind {
        self.read()[usize::from(slot)].endpoint.engine
    }

    /// What the reader of its events counts.
    pub(crate) fn reader(&self, slot: u16) -> Arc<Counters> {
        Arc::clone(&self.read()[usize::from(slot)].reader)
    }

    /// Those that gateways know of, ascending by slot.
    pub(crate) fn listed(&self) -> Vec<(u16, Arc<Endpoint>)> {
        let members = self.read();
        let listed = (0u16..).zip(members.iter()).filter(|(_, m)| m.state == State::Listed);
        listed.map(|(slot, member)| (slot, Arc::clone(&member.endpoint))).collect()
    }

    /// The only listed slot whose endpoint is so; `None` also when there are several.
    pub(crate) fn only(&self, is: impl Fn(&Endpoint) -> bool) -> Option<u16> {
        let members = self.read();
        let mut found = (0u16..)
            .zip(members.iter())
            .filter(|(_, member)| member.state == State::Listed && is(&member.endpoint));
        let (slot, _) = found.next()?;
        found.next().is_none().then_some(slot)
    }

    /// A slot for one more: the one that has rested longest, if no gateway has anything of it, else a new
    /// one. `None` when there is no room.
    pub(crate) fn add(&self, endpoint: Endpoint) -> Option<(u16, Place)> {
        let everywhere = self.acked.iter().map(|acked| acked.load(Ordering::Acquire)).min();
        let mut members = self.write();
        if members.iter().filter(|member| member.state == State::Listed).count() >= MAX_ENDPOINTS {
            return None;
        }
        let free = |member: &Member| match member.state {
            State::Resting(number) => Some(number).filter(|n| everywhere.is_none_or(|e| *n <= e)),
            State::Listed | State::Leaving => None,
        };
        let rested = (0u16..).zip(members.iter()).filter_map(|(slot, m)| Some((free(m)?, slot)));
        if let Some((_, slot)) = rested.min() {
            members[usize::from(slot)] = Member::new(endpoint);
            return Some((slot, Place::Again));
        }
        if members.len() >= MAX_SLOTS {
            return None;
        }
        members.push(Member::new(endpoint));
        Some(((members.len() - 1) as u16, Place::New))
    }

    /// The same endpoint with other labels.
    pub(crate) fn replace(&self, slot: u16, endpoint: Endpoint) {
        self.write()[usize::from(slot)].endpoint = Arc::new(endpoint);
    }

    /// Gateways are to forget it.
    pub(crate) fn unlist(&self, slot: u16) {
        self.write()[usize::from(slot)].state = State::Leaving;
    }

    /// Nothing of it is left here, since this retirement.
    pub(crate) fn rest(&self, slot: u16, retirement: u64) {
        self.write()[usize::from(slot)].state = State::Resting(retirement);
    }

    /// The gateway has nothing any more of what had retired by then.
    pub(crate) fn acked(&self, gateway: usize, retirement: u64) {
        if let Some(acked) = self.acked.get(gateway) {
            acked.fetch_max(retirement, Ordering::Release);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Member>> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a slot was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    New,
    Again,
}
