//! Approximate prefix state: of endpoints that announce nothing, the gateway's workers remember what
//! they sent them.
//!
//! An entry (prefix, endpoint) has a stamp, the endpoint's clock when the prefix *and all that it
//! begins with* were last sent there, or later: the stamps of a prompt never grow with its depth, so
//! that matching may bisect. The clock counts strides of new prefixes, and what has more than the
//! endpoint's capacity after it is forgotten, the ends of prompts before their beginnings as engines
//! do. What is sent again is stamped anew only when an eighth of the capacity came in between: a
//! chat that goes on writes its new strides and nothing else.

mod sent;
mod trace;

use std::collections::BTreeMap;

use feed::{
    EndpointHash, Key, MAX_SENT_BUCKET_BYTES, MAX_SENT_ENDPOINTS, SENT_BUCKETS, SentBucket,
    SentClock, SentClocks, SentEndpoint, find_sent, sent_depths,
};
use hostcalls::{Expect, Host, Status};
use prefix::{Holder, Stride, StrideKey, bucket_of, fingerprint_of, match_prefix};

pub(crate) use sent::Sent;
pub(crate) use trace::SentTrace;

/// Tries to change a value against other workers.
const TRIES: u32 = 8;
/// Share of the capacity that may come after a stamp before it is renewed.
const RENEW_SHARE: u64 = 8;

/// An endpoint without events, as the request's state lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Silent {
    /// Its address.
    pub(crate) endpoint: EndpointHash,
    /// Its slot, its capacity in strides and the start of its process.
    pub(crate) is: SentEndpoint,
}

/// The keys of a prompt at the depths that are remembered, of at most `max_strides`.
pub(crate) fn sent_keys(keys: &[StrideKey], max_strides: u32) -> Vec<u64> {
    let strides = u32::try_from(keys.len()).unwrap_or(u32::MAX).min(max_strides);
    sent_depths(strides).filter_map(|depth| Some(keys.get(depth as usize - 1)?.0)).collect()
}

/// Strides of the prompt that each endpoint was sent and should still hold, by slot; slots without
/// any are absent. At most `max_lookups` values are read beside the clocks.
pub(crate) fn look_up(
    host: &impl Host,
    scope: u16,
    keys: &[u64],
    silent: &[Silent],
    max_lookups: u32,
) -> BTreeMap<u16, u32> {
    if keys.is_empty() || silent.is_empty() {
        return BTreeMap::new();
    }
    let clocks = host.shared(Key::SentClocks(scope).encode().as_ref()).ok().flatten();
    let Some(clocks) = clocks.and_then(|(value, _)| SentClocks::decode(&value).ok()) else {
        return BTreeMap::new();
    };
    // By number: slot, and the clock as it is to be read now.
    let mut known: BTreeMap<u16, (u16, SentClock)> = BTreeMap::new();
    for endpoint in silent {
        if let Some((number, clock)) = clocks.find(endpoint.endpoint)
            && !is_another_process(clock.started_s, endpoint.is.started_s)
        {
            let clock = SentClock { capacity: endpoint.is.capacity, ..clock };
            known.insert(number, (endpoint.is.slot, clock));
        }
    }
    if known.is_empty() {
        return BTreeMap::new();
    }
    let lookup = |key: StrideKey| {
        let (value, _) = host.shared(bucket(scope, key).encode().as_ref()).ok().flatten()?;
        let found = find_sent(&value, fingerprint_of(key)).ok()?;
        let mut holders: Vec<Holder> = found
            .into_iter()
            .filter_map(|(number, stamp)| {
                let (slot, clock) = known.get(&number)?;
                clock.holds(stamp).then_some(Holder { slot: *slot, offloaded: false })
            })
            .collect();
        holders.sort_unstable();
        Some(Stride { holders, ..Stride::default() })
    };
    let keys: Vec<StrideKey> = keys.iter().copied().map(StrideKey).collect();
    let depths: Vec<u32> = sent_depths(u32::MAX).take(keys.len()).collect();
    let strides = |number: u32| depths.get(number.checked_sub(1)? as usize).copied();
    match_prefix(&keys, max_lookups, lookup)
        .into_iter()
        .filter_map(|(slot, found)| Some((slot, strides(found.gpu.0)?)))
        .collect()
}

fn bucket(scope: u16, key: StrideKey) -> Key {
    Key::Sent(scope, bucket_of(key, SENT_BUCKETS))
}

/// Unknown is not another.
fn is_another_process(before: u32, now: u32) -> bool {
    before != 0 && now != 0 && before != now
}

/// What was remembered of one request, until it is known that it was served there.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    number: u16,
    /// Prefixes that were new to the endpoint, with their stamps.
    entries: Vec<(u64, u64)>,
}

/// What could not be remembered; the request is none the worse for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// More endpoints than are remembered.
    Endpoints,
    /// The host refused, or other workers were faster each time.
    Write,
}

impl Lost {
    /// Name of the mishap.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Endpoints => "sent_endpoints_full",
            Self::Write => "sent_not_recorded",
        }
    }
}

/// Remembers that a prompt goes to `target`, which was believed to hold `held_strides` of it. The
/// endpoints `in_use` keep their numbers when there are too many.
pub(crate) fn record(
    host: &impl Host,
    scope: u16,
    keys: &[u64],
    in_use: &[EndpointHash],
    (target, held_strides): (&Silent, u32),
) -> Result<Remembered, Lost> {
    let prompt = Prompt { scope, keys, depths: sent_depths(u32::MAX).take(keys.len()).collect() };
    let held = prompt.depths.iter().take_while(|depth| **depth <= held_strides).count();
    let mut tries = TRIES;
    // A round reads the clocks and what stands at the deepest match, and moves the clock if there
    // is anything to write.
    let (clocks, number, from, stamps) = loop {
        tries = tries.checked_sub(1).ok_or(Lost::Write)?;
        let (mut clocks, expect) = read_clocks(host, scope)?;
        let number = number_of(&mut clocks, in_use, target).ok_or(Lost::Endpoints)?;
        let Some(clock) = clocks.clocks.get_mut(usize::from(number)) else {
            return Err(Lost::Endpoints);
        };
        clock.capacity = target.is.capacity;
        if is_another_process(clock.started_s, target.is.started_s) {
            clock.forget();
        }
        if target.is.started_s != 0 {
            clock.started_s = target.is.started_s;
        }
        let held_by = held.checked_sub(1).and_then(|at| prompt.stamp(host, at, number));
        let age =
            held_by.filter(|stamp| clock.holds(*stamp)).map(|stamp| (stamp, clock.age(stamp)));
        let (from, stamps) = match age {
            Some((_, age)) if age <= u64::from(clock.capacity) / RENEW_SHARE => {
                if held == prompt.keys.len() {
                    return Ok(Remembered::default());
                }
                clock.clock += prompt.strides(held, prompt.keys.len());
                (held, prompt.stamps(clock.clock, held, held_by))
            }
            Some((_, age)) => {
                // Sent again, it passes those younger than it: as many strides as its age has of the
                // capacity, in the mean.
                let passed = prompt.strides(0, held) * age / u64::from(clock.capacity).max(1);
                clock.clock += passed + prompt.strides(held, prompt.keys.len());
                (0, prompt.stamps(clock.clock, 0, None))
            }
            None => {
                clock.clock += prompt.strides(0, prompt.keys.len());
                (0, prompt.stamps(clock.clock, 0, None))
            }
        };
        let key = Key::SentClocks(scope).encode();
        match host.set_shared(key.as_ref(), &clocks.encode(), expect) {
            Ok(()) => break (clocks, number, from, stamps),
            Err(Status::CasMismatch) => {}
            Err(_) => return Err(Lost::Write),
        }
    };
    let mut remembered = Remembered { number, entries: Vec::new() };
    for (at, (key, stamp)) in prompt.keys.iter().skip(from).zip(stamps).enumerate() {
        change(host, scope, *key, &clocks, |holders| put(holders, number, stamp))?;
        if from + at >= held {
            remembered.entries.push((*key, stamp));
        }
    }
    Ok(remembered)
}

/// The request was served elsewhere: what was new to that endpoint is so still. What another request
/// has stamped anew since then stays.
pub(crate) fn withdraw(host: &impl Host, scope: u16, remembered: &Remembered) -> Result<(), Lost> {
    if remembered.entries.is_empty() {
        return Ok(());
    }
    let (clocks, _) = read_clocks(host, scope)?;
    for (key, stamp) in &remembered.entries {
        change(host, scope, *key, &clocks, |holders| {
            let before = holders.len();
            holders.retain(|holder| *holder != (remembered.number, *stamp));
            before != holders.len()
        })?;
    }
    Ok(())
}

/// Depths of a prompt and its keys there.
struct Prompt<'p> {
    scope: u16,
    keys: &'p [u64],
    depths: Vec<u32>,
}

impl Prompt<'_> {
    /// Depth of the `count`th key in strides; 0 before the first.
    fn depth(&self, count: usize) -> u64 {
        let depth = count.checked_sub(1).and_then(|at| self.depths.get(at));
        depth.map_or(0, |depth| u64::from(*depth))
    }

    fn strides(&self, from: usize, to: usize) -> u64 {
        self.depth(to).saturating_sub(self.depth(from))
    }

    /// Stamps of the keys after the first `from`, when `clock` has counted them: the deepest is the
    /// first to go, and none is younger than the one before.
    fn stamps(&self, clock: u64, from: usize, before: Option<u64>) -> Vec<u64> {
        let stamp = |to: usize| {
            let stamp = clock.saturating_sub(self.strides(from, to));
            before.map_or(stamp, |before| stamp.min(before))
        };
        (from + 1..=self.keys.len()).map(stamp).collect()
    }

    fn stamp(&self, host: &impl Host, at: usize, number: u16) -> Option<u64> {
        let key = StrideKey(*self.keys.get(at)?);
        let (value, _) = host.shared(bucket(self.scope, key).encode().as_ref()).ok().flatten()?;
        let found = find_sent(&value, fingerprint_of(key)).ok()?;
        found.iter().find(|holder| holder.0 == number).map(|holder| holder.1)
    }
}

fn read_clocks(host: &impl Host, scope: u16) -> Result<(SentClocks, Expect), Lost> {
    match host.shared(Key::SentClocks(scope).encode().as_ref()) {
        Ok(None) => Ok((SentClocks::default(), Expect::Absent)),
        // Another build's are begun anew.
        Ok(Some((value, cas))) => {
            Ok((SentClocks::decode(&value).unwrap_or_default(), Expect::Unchanged(cas)))
        }
        Err(_) => Err(Lost::Write),
    }
}

/// The endpoint's number, given it now if it has none. When all are given, an endpoint that is no
/// longer there gives up its own, and with it all that it was sent.
fn number_of(clocks: &mut SentClocks, in_use: &[EndpointHash], target: &Silent) -> Option<u16> {
    if let Some((number, _)) = clocks.find(target.endpoint) {
        return Some(number);
    }
    let new = SentClock { endpoint: target.endpoint, ..SentClock::default() };
    let at = if clocks.clocks.len() < MAX_SENT_ENDPOINTS {
        clocks.clocks.push(new);
        clocks.clocks.len() - 1
    } else {
        // The endpoints of this request are in use; of the others the one that was sent least.
        let is_used = |clock: &SentClock| in_use.contains(&clock.endpoint);
        let free = clocks.clocks.iter().enumerate().filter(|(_, clock)| !is_used(clock));
        let (at, _) = free.min_by_key(|(_, clock)| clock.clock)?;
        let clock = clocks.clocks.get_mut(at)?;
        clock.forget();
        (clock.endpoint, clock.started_s) = (target.endpoint, 0);
        at
    };
    u16::try_from(at).ok()
}

/// True when it changed something.
fn put(holders: &mut Vec<(u16, u64)>, number: u16, stamp: u64) -> bool {
    match holders.iter_mut().find(|holder| holder.0 == number) {
        Some(holder) if holder.1 >= stamp => false,
        Some(holder) => {
            holder.1 = stamp;
            true
        }
        None => {
            holders.push((number, stamp));
            true
        }
    }
}

/// Changes the entry of one prefix, and drops from its bucket what is forgotten.
fn change(
    host: &impl Host,
    scope: u16,
    key: u64,
    clocks: &SentClocks,
    apply: impl Fn(&mut Vec<(u16, u64)>) -> bool,
) -> Result<(), Lost> {
    let key = StrideKey(key);
    let (name, fingerprint) = (bucket(scope, key).encode(), fingerprint_of(key));
    for _ in 0..TRIES {
        let (mut held, expect) = match host.shared(name.as_ref()) {
            Ok(None) => (SentBucket::default(), Expect::Absent),
            Ok(Some((value, cas))) => {
                (SentBucket::decode(&value).unwrap_or_default(), Expect::Unchanged(cas))
            }
            Err(_) => return Err(Lost::Write),
        };
        let at = held.entries.iter().position(|entry| entry.0 == fingerprint);
        let at = at.unwrap_or_else(|| {
            held.entries.push((fingerprint, Vec::new()));
            held.entries.len() - 1
        });
        if !held.entries.get_mut(at).is_some_and(|entry| apply(&mut entry.1)) {
            return Ok(());
        }
        tidy(&mut held, clocks);
        match host.set_shared(name.as_ref(), &held.encode(), expect) {
            Ok(()) => return Ok(()),
            Err(Status::CasMismatch) => {}
            Err(_) => return Err(Lost::Write),
        }
    }
    Err(Lost::Write)
}

/// Drops what is forgotten, and the oldest where there is still too much.
fn tidy(bucket: &mut SentBucket, clocks: &SentClocks) {
    let clock = |number: u16| clocks.clocks.get(usize::from(number));
    // An endpoint that got its number after these clocks were read is as young as can be.
    let is_held = |(number, stamp): &(u16, u64)| clock(*number).is_none_or(|c| c.holds(*stamp));
    for (_, holders) in &mut bucket.entries {
        holders.retain(is_held);
    }
    bucket.entries.retain(|(_, holders)| !holders.is_empty());
    while bucket.bytes() > MAX_SENT_BUCKET_BYTES {
        let age = |(number, stamp): &(u16, u64)| clock(*number).map_or(0, |c| c.age(*stamp));
        let all = bucket.entries.iter().flat_map(|(_, holders)| holders);
        let Some(oldest) = all.map(age).max() else { return };
        for (_, holders) in &mut bucket.entries {
            holders.retain(|holder| age(holder) < oldest);
        }
        bucket.entries.retain(|(_, holders)| !holders.is_empty());
    }
}

#[cfg(test)]
mod tests;
