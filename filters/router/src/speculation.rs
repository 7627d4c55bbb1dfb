//! Where prefixes were sent in the last two seconds: until an engine's event tells that it holds
//! one, requests that share it go where the first went.

use std::collections::VecDeque;

use feed::{
    EndpointHash, FoundTrail, Key, MAX_ROWS, MAX_TRAILS, Trail, find_trails, join_trails,
    trail_depths,
};
use hostcalls::{Expect, Host};
use prefix::{StrideKey, fingerprint_of};
use routing::Candidate;

/// Life of a trail. An engine stores a prompt's blocks at the end of its prefill, and its event is
/// in the gateway milliseconds later.
const LIFE_NS: u64 = 2_000_000_000;
/// A trail that says the same as a younger one than this is not written again.
const REFRESH_NS: u64 = 1_000_000_000;

/// The trail of a prompt whose strides have these keys.
pub fn trail_of(keys: &[StrideKey]) -> Vec<u32> {
    let strides = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    trail_depths(strides)
        .filter_map(|depth| keys.get(depth as usize - 1).copied().map(fingerprint_of))
        .collect()
}

/// This VM's trails; the other VMs' are in the shared data.
#[derive(Default)]
pub struct Speculation {
    /// When each was published, and its bytes; oldest first.
    own: VecDeque<(u64, Vec<u8>)>,
}

impl Speculation {
    /// Sets for each candidate how much of the prompt it was just sent, where that reaches beyond
    /// what it holds. `own` is this VM's slot.
    pub fn consult(
        &self,
        host: &impl Host,
        own: Option<u8>,
        trail: &[u32],
        candidates: &mut [Candidate],
        now_ns: u64,
    ) {
        let mut found: Vec<FoundTrail> = Vec::new();
        let mut note = |trail: FoundTrail| {
            if now_ns.saturating_sub(trail.published_ns) < LIFE_NS {
                found.push(trail);
            }
        };
        if trail.is_empty() {
            return;
        }
        let mine = join_trails(self.own.iter().map(|(_, bytes)| bytes.as_slice()));
        // What this build has written it can read.
        let _ = find_trails(&mine, trail, &mut note);
        for slot in (0..MAX_ROWS).filter(|slot| own != Some(*slot)) {
            let Ok(held) = host.shared(Key::Trails(slot).encode().as_ref()) else { break };
            match held {
                // A value that cannot be read is another build's, and tells what it tells.
                Some((value, _)) => drop(find_trails(&value, trail, &mut note)),
                // A VM that has sent nothing new has a row and no trails.
                None if is_claimed(host, slot) => {}
                None => break,
            }
        }
        without_races(&mut found);
        if found.is_empty() {
            candidates.iter_mut().for_each(|candidate| candidate.matched.speculative_strides = 0);
            return;
        }
        for candidate in candidates {
            let endpoint = EndpointHash::of(&candidate.address);
            let of_it = found.iter().filter(|trail| trail.endpoint == endpoint);
            let common = of_it.map(|trail| trail.common).max().unwrap_or(0);
            let depth = common.checked_sub(1).and_then(|at| trail_depths(u32::MAX).nth(at));
            let depth = depth.unwrap_or(0);
            candidate.matched.speculative_strides =
                if depth > candidate.matched.gpu_strides { depth } else { 0 };
        }
    }

    /// Tells the other VMs that a prompt goes to `endpoint`, which held `held_strides` of it. `now_ns`
    /// is when the state that decided was read. False when the host did not take it.
    pub fn record(
        &mut self,
        host: &impl Host,
        slot: u8,
        keys: &[u32],
        endpoint: EndpointHash,
        held_strides: u32,
        now_ns: u64,
    ) -> bool {
        let deepest = keys.len().checked_sub(1).and_then(|at| trail_depths(u32::MAX).nth(at));
        if deepest.is_none_or(|deepest| deepest <= held_strides) {
            return true;
        }
        let published_ns = host.monotonic_ns().max(now_ns);
        self.own.retain(|(at, _)| published_ns.saturating_sub(*at) < LIFE_NS);
        let is_told = self.own.iter().any(|(at, bytes)| {
            let mut is_same = false;
            let one = join_trails(std::iter::once(bytes.as_slice()));
            let note = |found: FoundTrail| {
                is_same = found.endpoint == endpoint && found.common == keys.len();
            };
            published_ns.saturating_sub(*at) < REFRESH_NS
                && find_trails(&one, keys, note).is_ok()
                && is_same
        });
        if is_told {
            return true;
        }
        if self.own.len() >= MAX_TRAILS {
            self.own.pop_front();
        }
        let trail = Trail { endpoint, read_ns: now_ns, published_ns, keys: keys.to_vec() };
        self.own.push_back((published_ns, trail.encode()));
        let value = join_trails(self.own.iter().map(|(_, bytes)| bytes.as_slice()));
        host.set_shared(Key::Trails(slot).encode().as_ref(), &value, Expect::Anything).is_ok()
    }
}

fn is_claimed(host: &impl Host, slot: u8) -> bool {
    matches!(host.shared(Key::Row(slot).encode().as_ref()), Ok(Some(_)))
}

/// Drops picks made elsewhere before the first could be seen: they are no sign that the first
/// endpoint has enough to do, and would scatter what follows over all of them.
fn without_races(found: &mut Vec<FoundTrail>) {
    let deepest = found.iter().map(|trail| trail.common).max();
    let first = found
        .iter()
        .filter(|trail| Some(trail.common) == deepest)
        .min_by_key(|trail| (trail.published_ns, trail.endpoint))
        .copied();
    if let Some(first) = first {
        found.retain(|trail| {
            trail.endpoint == first.endpoint
                || trail.read_ns >= first.published_ns
                || trail.published_ns < first.published_ns
        });
    }
}

#[cfg(test)]
mod tests;
