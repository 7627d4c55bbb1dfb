//! Two VMs that tell each other where prefixes went.

use super::*;
use hostcalls::memory::MemoryHost;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

fn host() -> MemoryHost {
    let host = MemoryHost::default();
    host.now_ns.set(100 * SECOND);
    host
}

/// Keys of a prompt that shares its first `shared` strides with others of `family`.
fn prompt(family: u64, shared: u64, strides: u64, own: u64) -> Vec<StrideKey> {
    let key = |at: u64| match at < shared {
        true => StrideKey((family << 48) + (at << 32)),
        false => StrideKey((own << 52) + (family << 48) + (at << 32)),
    };
    (0..strides).map(key).collect()
}

fn candidates(held: &[u32]) -> Vec<Candidate> {
    let candidate = |(at, held): (usize, &u32)| {
        let mut candidate =
            Candidate { address: format!("10.0.0.{at}:8000").into(), ..Candidate::default() };
        candidate.matched.gpu_strides = *held;
        candidate
    };
    held.iter().enumerate().map(candidate).collect()
}

fn endpoint(at: usize) -> EndpointHash {
    EndpointHash::of(&format!("10.0.0.{at}:8000"))
}

/// What `vm` in `slot` believes of endpoints that hold so much.
fn believes(
    host: &MemoryHost,
    vm: &Speculation,
    slot: u8,
    keys: &[StrideKey],
    held: &[u32],
) -> Vec<u32> {
    let mut candidates = candidates(held);
    vm.consult(host, Some(slot), &trail_of(keys), &mut candidates, host.now_ns.get());
    candidates.iter().map(|candidate| candidate.matched.speculative_strides).collect()
}

fn record(host: &MemoryHost, vm: &mut Speculation, slot: u8, keys: &[StrideKey], at: usize) {
    assert!(vm.record(host, slot, &trail_of(keys), endpoint(at), 0, host.now_ns.get()));
}

#[test]
fn a_prefix_is_found_by_every_vm_for_two_seconds() {
    let host = host();
    let (mut a, b) = (Speculation::default(), Speculation::default());
    let (first, second) = (prompt(1, 512, 520, 1), prompt(1, 512, 530, 2));
    record(&host, &mut a, 0, &first, 1);
    for (vm, slot) in [(&a, 0), (&b, 1)] {
        assert_eq!(believes(&host, vm, slot, &second, &[0, 0, 0]), [0, 512, 0]);
        assert_eq!(believes(&host, vm, slot, &prompt(2, 512, 520, 1), &[0, 0, 0]), [0, 0, 0]);
        assert_eq!(believes(&host, vm, slot, &second, &[0, 511, 0]), [0, 512, 0]);
        assert_eq!(believes(&host, vm, slot, &second, &[0, 512, 0]), [0, 0, 0], "held already");
    }
    host.now_ns.set(102 * SECOND - 1);
    assert_eq!(believes(&host, &b, 1, &second, &[0, 0, 0]), [0, 512, 0]);
    host.now_ns.set(102 * SECOND);
    assert_eq!(believes(&host, &b, 1, &second, &[0, 0, 0]), [0, 0, 0]);
}

proptest! {
    #[test]
    fn at_least_two_thirds_of_what_is_shared_and_never_more(shared in 0u64..3000, more in 1u64..600) {
        let host = host();
        let mut vm = Speculation::default();
        record(&host, &mut vm, 0, &prompt(1, shared, shared + more, 1), 0);
        let found = believes(&host, &vm, 0, &prompt(1, shared, shared + more, 2), &[0])[0];
        prop_assert!(u64::from(found) <= shared && 3 * u64::from(found) >= 2 * shared, "{} of {}", found, shared);
    }

    #[test]
    fn memory_and_work_are_bounded(families in proptest::collection::vec(0u64..1000, 1..300)) {
        let host = host();
        let mut vm = Speculation::default();
        for (at, family) in families.iter().enumerate() {
            record(&host, &mut vm, 0, &prompt(*family, 100_000, 100_000, at as u64), at % 3);
        }
        let value = host.shared(Key::Trails(0).encode().as_ref()).unwrap().unwrap().0;
        prop_assert!(value.len() <= 4 + MAX_TRAILS * (25 + 4 * 33), "{} bytes", value.len());
        // The latest is always there.
        let last = *families.last().unwrap();
        let found = believes(&host, &Speculation::default(), 1, &prompt(last, 100_000, 100_000, 0), &[0; 3]);
        prop_assert!(found[(families.len() - 1) % 3] == 98_304 || families[..families.len() - 1].contains(&last));
    }
}

#[test]
fn what_says_nothing_new_is_not_written() {
    let host = host();
    let mut vm = Speculation::default();
    let keys = prompt(1, 512, 512, 1);
    let cas =
        |host: &MemoryHost| host.shared(Key::Trails(0).encode().as_ref()).unwrap().map(|v| v.1);
    assert!(vm.record(&host, 0, &trail_of(&keys), endpoint(1), 512, host.now_ns.get()));
    assert_eq!(cas(&host), None, "it holds all of it");
    record(&host, &mut vm, 0, &keys, 1);
    let written = cas(&host);
    record(&host, &mut vm, 0, &keys, 1);
    assert_eq!(cas(&host), written);
    record(&host, &mut vm, 0, &keys, 2);
    assert_ne!(cas(&host), written, "another endpoint");
    host.now_ns.set(101 * SECOND);
    let written = cas(&host);
    record(&host, &mut vm, 0, &keys, 1);
    assert_ne!(cas(&host), written, "its life is prolonged");
}

#[test]
fn a_pick_that_could_not_see_the_first_does_not_scatter_what_follows() {
    let host = host();
    let (mut a, mut b) = (Speculation::default(), Speculation::default());
    let keys = prompt(1, 512, 512, 1);
    let trail = trail_of(&keys);
    let read_by_b = host.now_ns.get();
    record(&host, &mut a, 0, &keys, 1);
    host.now_ns.set(read_by_b + 1_000);
    assert!(b.record(&host, 1, &trail, endpoint(2), 0, read_by_b - 1));
    for (vm, slot) in [(&a, 0), (&b, 1)] {
        assert_eq!(believes(&host, vm, slot, &keys, &[0, 0, 0]), [0, 512, 0]);
    }
    // Sent there although the first could be seen: the first has enough to do.
    host.now_ns.set(read_by_b + 5_000);
    assert!(b.record(&host, 1, &trail, endpoint(0), 0, read_by_b + 2_000));
    assert_eq!(believes(&host, &a, 0, &keys, &[0, 0, 0]), [512, 512, 0]);
}

#[test]
fn a_vm_without_trails_does_not_hide_those_behind_it() {
    let host = host();
    let mut late = Speculation::default();
    host.set_shared(Key::Row(0).encode().as_ref(), b"any", Expect::Anything).unwrap();
    let keys = prompt(1, 8, 8, 1);
    record(&host, &mut late, 1, &keys, 1);
    assert_eq!(believes(&host, &Speculation::default(), 2, &keys, &[0, 0]), [0, 8]);
}
