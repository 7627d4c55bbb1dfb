//! Against a naive twin: per endpoint a list of prefixes, the least recently sent last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hostcalls::memory::MemoryHost;
use proptest::prelude::*;

use super::*;

const SCOPE: u16 = 3;

fn silent(number: u16, capacity: u32) -> Silent {
    let endpoint = EndpointHash::of(&format!("10.0.0.{number}:8000"));
    Silent { endpoint, is: SentEndpoint { slot: number, capacity, started_s: 0 } }
}

/// Keys of a prompt's strides: of each segment `(text, strides)` that follows the ones before.
fn strides(segments: &[(u64, u32)]) -> Vec<StrideKey> {
    let mut key = 0x9E37_79B9_7F4A_7C15u64;
    let mut keys = Vec::new();
    for (text, count) in segments {
        for at in 0..u64::from(*count) {
            // splitmix64's finalizer: any chain of good hashes will do.
            key ^= text.wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ at;
            key = (key ^ (key >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            key = (key ^ (key >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            key ^= key >> 31;
            keys.push(StrideKey(key));
        }
    }
    keys
}

fn held(host: &MemoryHost, keys: &[u64], all: &[Silent]) -> BTreeMap<u16, u32> {
    look_up(host, SCOPE, keys, all, 63)
}

/// Sends as the filters do: looks up, then remembers.
fn send(host: &MemoryHost, keys: &[u64], all: &[Silent], to: usize) -> Remembered {
    let depth = held(host, keys, all).get(&all[to].is.slot).copied().unwrap_or(0);
    let in_use: Vec<EndpointHash> = all.iter().map(|silent| silent.endpoint).collect();
    record(host, SCOPE, keys, &in_use, (&all[to], depth)).unwrap()
}

/// An engine's cache by its definition: prefixes, the most recent first; the beginnings of a prompt
/// are more recent than its end.
#[derive(Default)]
struct Twin {
    /// Key and strides since the one before.
    list: Vec<(u64, u32)>,
}

impl Twin {
    fn send(&mut self, keys: &[u64], capacity: u32) {
        let mut before = 0;
        let mut own = Vec::new();
        for (key, depth) in keys.iter().zip(sent_depths(u32::MAX)) {
            own.push((*key, depth - before));
            before = depth;
        }
        self.list.retain(|entry| !own.contains(entry));
        own.append(&mut self.list);
        self.list = own;
        let mut room = capacity;
        self.list.retain(|(_, weight)| {
            let fits = room >= *weight;
            room = if fits { room - weight } else { 0 };
            fits
        });
    }

    fn held(&self, keys: &[u64]) -> u32 {
        let keys = keys.iter().zip(sent_depths(u32::MAX));
        let held = keys.take_while(|(key, _)| self.list.iter().any(|(held, _)| held == *key));
        held.last().map_or(0, |(_, depth)| depth)
    }
}

proptest! {
    /// While nothing is forgotten, every endpoint has what was sent to it, and no more.
    #[test]
    fn what_was_sent_is_found_at_each_endpoint(
        requests in proptest::collection::vec(
            (0usize..4, proptest::collection::vec((0u64..3, 1u32..150), 1..5)), 1..25,
        ),
    ) {
        let host = MemoryHost::default();
        let all: Vec<Silent> = (0..4).map(|number| silent(number, 1 << 30)).collect();
        let mut twins: Vec<Twin> = (0..4).map(|_| Twin::default()).collect();
        for (to, segments) in requests {
            let keys = sent_keys(&strides(&segments), u32::MAX);
            let found = held(&host, &keys, &all);
            for (twin, silent) in twins.iter().zip(&all) {
                let found = found.get(&silent.is.slot).copied().unwrap_or(0);
                prop_assert_eq!(found, twin.held(&keys), "slot {}", silent.is.slot);
            }
            send(&host, &keys, &all, to);
            twins[to].send(&keys, 1 << 30);
        }
    }

    /// Prompts that nobody sent before: exactly the last ones that fit are held.
    #[test]
    fn new_prompts_push_out_the_oldest(
        lengths in proptest::collection::vec(4u32..200, 1..40), capacity in 100u32..2000,
    ) {
        let host = MemoryHost::default();
        let all = [silent(0, capacity)];
        let mut twin = Twin::default();
        let mut sent = Vec::new();
        for (text, length) in (0..).zip(lengths) {
            let keys = sent_keys(&strides(&[(text, length)]), u32::MAX);
            send(&host, &keys, &all, 0);
            twin.send(&keys, capacity);
            sent.push(keys);
            for keys in &sent {
                let found = held(&host, keys, &all).get(&0).copied().unwrap_or(0);
                // The twin's last entry may not fit as a whole and goes; here too.
                prop_assert_eq!(found, twin.held(keys));
            }
        }
    }
}

/// Chats behind shared system prompts, some hot, some cold, at an endpoint that holds a quarter of
/// them: what the approximation holds differs from an exact list's by little.
#[test]
fn repeated_prompts_are_forgotten_much_as_an_exact_list_forgets_them() {
    let host = MemoryHost::default();
    let capacity = 4_000;
    let all = [silent(0, capacity)];
    let mut twin = Twin::default();
    let mut state = 7u64;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut turns = [1u64; 100];
    let (mut differ, mut ours, mut exact, mut asked) = (0u64, 0u64, 0u64, 0u64);
    for round in 0..3_000 {
        // Half of the requests are of a tenth of the chats.
        let chat = if random(2) == 0 { random(10) } else { random(100) };
        turns[chat as usize] = turns[chat as usize] % 8 + 1;
        let mut segments = vec![(chat % 3, 60)];
        segments.extend((0..turns[chat as usize]).map(|turn| (1000 * chat + turn + 10, 25)));
        let keys = sent_keys(&strides(&segments), u32::MAX);
        if round >= 500 {
            let found = u64::from(held(&host, &keys, &all).get(&0).copied().unwrap_or(0));
            let right = u64::from(twin.held(&keys));
            differ += found.abs_diff(right);
            (ours, exact) = (ours + found, exact + right);
            asked += u64::from(60 + 25 * turns[chat as usize] as u32);
        }
        send(&host, &keys, &all, 0);
        twin.send(&keys, capacity);
    }
    println!("held {ours}, by an exact list {exact}, of {asked} strides; differ in {differ}");
    assert!(
        exact * 10 > asked && exact * 10 < 9 * asked,
        "the capacity matters: {exact} of {asked}"
    );
    assert!(differ * 10 < asked, "{differ} of {asked}");
    // What stands in the buckets is bounded by the capacity too, but for what is not tidied yet.
    let clocks = read_clocks(&host, SCOPE).unwrap().0;
    let data = host.data.borrow();
    let buckets = data.iter().filter(|(key, _)| key[0] == b'X');
    let live: usize = buckets
        .map(|(_, (value, _))| {
            let bucket = SentBucket::decode(value).unwrap();
            let holders = bucket.entries.iter().flat_map(|(_, holders)| holders);
            holders.filter(|(_, stamp)| clocks.clocks[0].holds(*stamp)).count()
        })
        .sum();
    assert!(live as u32 * 4 < capacity * 3 / 2, "{live} entries of four strides or more");
}

/// Another worker writes between any read and write of ours: both are remembered.
#[test]
fn two_workers_write_at_once_and_lose_nothing() {
    let all = Arc::new([silent(0, 1 << 30), silent(1, 1 << 30)]);
    // Both begin alike, so that they meet in buckets and not only at the clocks.
    let keys = |text: u64| sent_keys(&strides(&[(1, 40), (text, 30)]), u32::MAX);
    let writes = {
        let host = MemoryHost::default();
        send(&host, &keys(7), &all[..], 0);
        host.sets.get()
    };
    assert_eq!(writes, 1 + 17);
    for interrupted in 0..writes {
        for to in [0, 1] {
            let host = MemoryHost::default();
            let other = {
                let all = Arc::clone(&all);
                let theirs = keys(8);
                move |host: &MemoryHost| drop(send(host, &theirs, &all[..], to))
            };
            interrupt_at(&host, interrupted, Box::new(other));
            send(&host, &keys(7), &all[..], 0);
            assert!(host.interruption.borrow().is_none(), "it ran");
            let found = |text| held(&host, &keys(text), &all[..]);
            let (mine, theirs) = (found(7), found(8));
            assert_eq!(mine.get(&0), Some(&68), "write {interrupted}, to {to}");
            assert_eq!(theirs.get(&(to as u16)), Some(&68), "write {interrupted}, to {to}");
            // Each prefix by itself: matching asks for a few of them only.
            let clocks = read_clocks(&host, SCOPE).unwrap().0;
            for (keys, endpoint) in [(keys(7), &all[0]), (keys(8), &all[to])] {
                let number = clocks.find(endpoint.endpoint).unwrap().0;
                for key in keys.into_iter().map(StrideKey) {
                    let name = bucket(SCOPE, key).encode();
                    let (value, _) = host.shared(name.as_ref()).unwrap().unwrap();
                    let holders = find_sent(&value, fingerprint_of(key)).unwrap();
                    let is_held = holders.iter().any(|holder| holder.0 == number);
                    assert!(is_held, "write {interrupted}, to {to}: {key:?} of {number}");
                }
            }
            let total: u64 =
                read_clocks(&host, SCOPE).unwrap().0.clocks.iter().map(|clock| clock.clock).sum();
            assert_eq!(total, 2 * 68 - if to == 0 { seen_by_other(interrupted) } else { 0 });
        }
    }

    /// Strides of the common beginning that the other worker found written, in fours.
    fn seen_by_other(interrupted: u32) -> u64 {
        // The clocks are written first, then a prefix each.
        u64::from(interrupted.saturating_sub(1).min(10)) * 4
    }
}

fn interrupt_at(host: &MemoryHost, write: u32, other: hostcalls::memory::Interruption) {
    let step: hostcalls::memory::Interruption = match write {
        0 => other,
        _ => Box::new(move |host| interrupt_at(host, write - 1, other)),
    };
    *host.interruption.borrow_mut() = Some(step);
}

#[test]
fn a_chat_that_goes_on_writes_its_new_strides_alone() {
    let host = MemoryHost::default();
    let all = [silent(0, 100_000), silent(1, 100_000)];
    let mut chat = vec![(1, 128)];
    let costs = |host: &MemoryHost| (host.gets.replace(0), host.sets.replace(0));
    send(&host, &sent_keys(&strides(&chat), u32::MAX), &all, 0);
    // The clocks twice and once, 32 prefixes once each.
    assert_eq!(costs(&host), (2 + 32, 1 + 32));
    chat.push((2, 16));
    send(&host, &sent_keys(&strides(&chat), u32::MAX), &all, 0);
    let (gets, sets) = costs(&host);
    assert_eq!(sets, 1 + 2, "136 and 144");
    assert!(gets < 15, "{gets}");
    send(&host, &sent_keys(&strides(&chat), u32::MAX), &all, 0);
    let (gets, sets) = costs(&host);
    assert!((gets, sets) < (6, 1), "nothing new: {gets}, {sets}");
}

#[test]
fn a_chat_outlives_its_first_stamps_while_it_goes_on() {
    let host = MemoryHost::default();
    let all = [silent(0, 1_000)];
    let chat = sent_keys(&strides(&[(1, 100)]), u32::MAX);
    for round in 0..100 {
        let found = held(&host, &chat, &all).get(&0).copied();
        assert_eq!(found, (round > 0).then_some(100), "round {round}");
        send(&host, &chat, &all, 0);
        send(&host, &sent_keys(&strides(&[(100 + round, 80)]), u32::MAX), &all, 0);
    }
    for round in 0..20 {
        send(&host, &sent_keys(&strides(&[(500 + round, 80)]), u32::MAX), &all, 0);
    }
    assert_eq!(held(&host, &chat, &all).get(&0), None);
}

#[test]
fn another_process_at_the_address_has_nothing() {
    let host = MemoryHost::default();
    let keys = sent_keys(&strides(&[(1, 64)]), u32::MAX);
    let at = |started_s| {
        let mut one = silent(0, 1_000);
        one.is.started_s = started_s;
        [one]
    };
    send(&host, &keys, &at(100), 0);
    assert_eq!(held(&host, &keys, &at(100)).get(&0), Some(&64));
    assert_eq!(held(&host, &keys, &at(0)).get(&0), Some(&64), "not known to be another");
    assert_eq!(held(&host, &keys, &at(200)).get(&0), None);
    // Something else is sent to the new process: the old one's prompts stay forgotten.
    let other = sent_keys(&strides(&[(2, 64)]), u32::MAX);
    send(&host, &other, &at(200), 0);
    assert_eq!(held(&host, &keys, &at(200)).get(&0), None);
    assert_eq!(held(&host, &other, &at(200)).get(&0), Some(&64));
}

#[test]
fn what_was_served_elsewhere_is_taken_back_and_nothing_else() {
    let host = MemoryHost::default();
    let all = [silent(0, 1_000), silent(1, 1_000)];
    let first = sent_keys(&strides(&[(1, 32)]), u32::MAX);
    let longer = sent_keys(&strides(&[(1, 32), (2, 32)]), u32::MAX);
    send(&host, &first, &all, 0);
    let remembered = send(&host, &longer, &all, 0);
    withdraw(&host, SCOPE, &remembered).unwrap();
    assert_eq!(held(&host, &longer, &all).get(&0), Some(&32));
}

#[test]
fn an_endpoint_that_is_gone_gives_up_its_number() {
    let host = MemoryHost::default();
    let keys = sent_keys(&strides(&[(1, 64)]), u32::MAX);
    let most = MAX_SENT_ENDPOINTS as u16;
    for number in 0..most {
        send(&host, &keys, &[silent(number, 1_000)], 0);
    }
    // Those that are in use keep theirs, though they were sent no more than others.
    let all = [silent(0, 1_000), silent(most, 1_000)];
    assert_eq!(held(&host, &keys, &all), BTreeMap::new(), "not even 450 fit into a bucket");
    let other = sent_keys(&strides(&[(2, 64)]), u32::MAX);
    send(&host, &other, &all, 0);
    send(&host, &other, &all, 1);
    let found: BTreeSet<(u16, u32)> = held(&host, &other, &all).into_iter().collect();
    assert_eq!(found, BTreeSet::from([(0, 64), (most, 64)]));
    let clocks = read_clocks(&host, SCOPE).unwrap().0.clocks;
    assert_eq!(clocks.len(), MAX_SENT_ENDPOINTS);
    assert!(clocks.iter().any(|clock| clock.endpoint == all[1].endpoint));
    assert!(clocks.iter().any(|clock| clock.endpoint == all[0].endpoint));
    // And what the number's first owner was sent is not the second's.
    assert_eq!(held(&host, &keys, &all).get(&most), None);
}

#[test]
fn lookups_are_bounded_and_no_bucket_outgrows_its_limit() {
    let host = MemoryHost::default();
    let all: Vec<Silent> = (0..100).map(|number| silent(number, 1 << 20)).collect();
    let prompt = |depth: u32| sent_keys(&strides(&[(1, depth)]), u32::MAX);
    for (to, _) in all.iter().enumerate() {
        send(&host, &prompt(40 * (to as u32 + 1)), &all, to);
    }
    host.gets.set(0);
    let found = held(&host, &prompt(4_000), &all);
    assert_eq!(host.gets.get(), 64);
    assert_eq!(found.get(&99), Some(&3_968), "the deepest is decided first");
    assert!(found.iter().all(|(slot, depth)| *depth <= 40 * (u32::from(*slot) + 1)));
    for (key, (value, _)) in host.data.borrow().iter() {
        assert!(key[0] == b'Y' || value.len() <= MAX_SENT_BUCKET_BYTES, "{}", value.len());
    }
}

#[test]
fn a_host_that_refuses_is_named_and_costs_no_request() {
    let host = MemoryHost::default();
    let all = [silent(0, 1_000)];
    let keys = sent_keys(&strides(&[(1, 64)]), u32::MAX);
    host.refused.borrow_mut().push("set_shared");
    assert_eq!(record(&host, SCOPE, &keys, &[], (&all[0], 0)).unwrap_err(), Lost::Write);
    host.refused.borrow_mut()[0] = "shared";
    assert_eq!(held(&host, &keys, &all), BTreeMap::new());
}
