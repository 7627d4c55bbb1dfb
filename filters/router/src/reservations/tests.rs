//! Rows of several VMs in one shared memory, against a list of the requests that are open.

use super::*;
use crate::Vm;
use hostcalls::memory::MemoryHost;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

fn endpoint(number: u64) -> EndpointHash {
    EndpointHash::of(&format!("10.0.0.{number}:8000"))
}

/// What a gateway's VM that has sent nothing sees.
fn seen(host: &MemoryHost) -> Vec<(EndpointHash, u32, u64)> {
    let now = host.now_ns.get();
    let cells = Reservations::default().in_flight(host, None, now, (0, 0));
    cells.iter().map(|cell| (cell.endpoint, cell.requests, cell.tokens)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// VM, destinations with their tokens, by number of the endpoint.
    Pick(usize, Vec<(u64, u64)>),
    /// Open request, and the endpoint that computes so many tokens of it first.
    Prefill(prop::sample::Index, u64, u64),
    /// Open request whose answer begins.
    Prefilled(prop::sample::Index),
    /// Open request, endpoint that answers it, which need not be a destination.
    Answer(prop::sample::Index, u64),
    /// Open request. How it ends makes no difference.
    End(prop::sample::Index),
    /// The VM dies, and with it what it knows; its place is taken by a new one.
    Die(usize),
    /// Nothing comes for so long, but for ticks.
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let targets = proptest::collection::btree_map(0u64..5, 0u64..10_000, 1..4);
    let step = prop_oneof![
        4 => (0usize..3, targets).prop_map(|(vm, targets)| Step::Pick(vm, targets.into_iter().collect())),
        2 => (any::<prop::sample::Index>(), 0u64..6, 0u64..10_000)
            .prop_map(|(open, at, tokens)| Step::Prefill(open, at, tokens)),
        1 => any::<prop::sample::Index>().prop_map(Step::Prefilled),
        2 => (any::<prop::sample::Index>(), 0u64..6).prop_map(|(open, to)| Step::Answer(open, to)),
        3 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => (0usize..3).prop_map(Step::Die),
        2 => (1u64..9).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A request as the twin knows it.
struct Open {
    vm: usize,
    reservation: Reservation,
    at: u64,
    tokens: u64,
    targets: Vec<(u64, u64)>,
    prefill: Option<(u64, u64)>,
}

impl Open {
    /// Where it counts, and for how many tokens.
    fn parts(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        std::iter::once((self.at, self.tokens)).chain(self.prefill)
    }
}

fn sums(open: &[Open]) -> Vec<(EndpointHash, u32, u64)> {
    let mut sums: BTreeMap<EndpointHash, (u32, u64)> = BTreeMap::new();
    for (at, tokens) in open.iter().flat_map(Open::parts) {
        let sum = sums.entry(endpoint(at)).or_default();
        sum.0 += 1;
        sum.1 += tokens;
    }
    sums.into_iter().map(|(endpoint, (requests, tokens))| (endpoint, requests, tokens)).collect()
}

/// All VMs beat for so many seconds.
fn wait(host: &MemoryHost, vms: &mut [Vm], seconds: u64) {
    for _ in 0..seconds {
        host.now_ns.set(host.now_ns.get() + SECOND);
        let now = host.now_ns.get();
        vms.iter_mut().for_each(|vm| vm.tick(host, 0, now));
    }
}

proptest! {
    #[test]
    fn every_vm_sees_the_requests_that_are_open_and_nothing_when_all_have_ended(steps in steps()) {
        let host = MemoryHost::default();
        host.now_ns.set(100 * SECOND);
        let mut vms: Vec<Vm> = (0..3).map(|_| Vm::default()).collect();
        let mut open: Vec<Open> = Vec::new();
        for step in steps {
            let now = host.now_ns.get();
            match step {
                Step::Pick(vm, targets) => {
                    let hashed = targets.iter().map(|(at, tokens)| (endpoint(*at), *tokens));
                    let reservation = vms[vm].reservations.reserve(hashed.collect()).unwrap();
                    vms[vm].publish(&host, 0, now);
                    let (at, tokens) = targets[0];
                    open.push(Open { vm, reservation, at, tokens, targets, prefill: None });
                }
                Step::Prefill(which, at, tokens) if !open.is_empty() => {
                    let request = which.get_mut(&mut open);
                    let vm = &mut vms[request.vm];
                    vm.reservations.prefill(&mut request.reservation, endpoint(at), tokens);
                    request.prefill = Some((at, tokens));
                    vm.publish(&host, 0, now);
                }
                Step::Prefilled(which) if !open.is_empty() => {
                    let request = which.get_mut(&mut open);
                    let vm = &mut vms[request.vm];
                    let was_there = vm.reservations.prefilled(&mut request.reservation);
                    prop_assert_eq!(was_there, request.prefill.take().is_some());
                    vm.publish(&host, 0, now);
                }
                Step::Answer(which, to) if !open.is_empty() => {
                    let request = which.get_mut(&mut open);
                    let vm = &mut vms[request.vm];
                    let is_moved = vm.reservations.move_to(&mut request.reservation, endpoint(to));
                    prop_assert_eq!(is_moved, request.at != to);
                    let listed = request.targets.iter().find(|(at, _)| *at == to);
                    if is_moved {
                        request.tokens = listed.map_or(request.tokens, |(_, tokens)| *tokens);
                    }
                    request.at = to;
                    vm.publish(&host, 0, now);
                }
                Step::End(which) if !open.is_empty() => {
                    let request = open.swap_remove(which.index(open.len()));
                    vms[request.vm].reservations.release(request.reservation);
                    vms[request.vm].publish(&host, 0, now);
                }
                Step::Die(vm) => {
                    vms[vm] = Vm::default();
                    open.retain(|request| request.vm != vm);
                    // What it had is seen until its beat is too old.
                    wait(&host, &mut vms, 3);
                }
                Step::Wait(seconds) => wait(&host, &mut vms, seconds),
                _ => {}
            }
            prop_assert_eq!(seen(&host), sums(&open));
            for vm in &vms {
                let own = vm.row.identity().map(|(_, slot)| slot);
                let cells = vm.reservations.in_flight(&host, own, host.now_ns.get(), (0, 0));
                let parts = open.iter().flat_map(Open::parts).count() as u64;
                prop_assert_eq!(cells.iter().map(|cell| u64::from(cell.requests)).sum::<u64>(), parts);
            }
        }
        for request in open.drain(..) {
            vms[request.vm].reservations.release(request.reservation);
            vms[request.vm].publish(&host, 0, host.now_ns.get());
        }
        prop_assert_eq!(seen(&host), []);
    }
}

fn reserve(host: &MemoryHost, vm: &mut Vm, tokens: u64) -> Reservation {
    let reservation = vm.reservations.reserve(vec![(endpoint(1), tokens)]).unwrap();
    vm.publish(host, 0, host.now_ns.get());
    reservation
}

#[test]
fn a_dead_vms_requests_drop_out_three_seconds_after_its_last_beat() {
    let host = MemoryHost::default();
    host.now_ns.set(100 * SECOND);
    let mut vm = Vm::default();
    let _lost = reserve(&host, &mut vm, 10);
    host.now_ns.set(103 * SECOND - 1);
    assert_eq!(seen(&host), [(endpoint(1), 1, 10)]);
    host.now_ns.set(103 * SECOND);
    assert_eq!(seen(&host), []);
}

#[test]
fn a_vm_without_requests_claims_nothing_and_ticks_keep_one_alive() {
    let host = MemoryHost::default();
    host.now_ns.set(100 * SECOND);
    let (mut idle, mut busy) = (Vm::default(), Vm::default());
    idle.tick(&host, 0, host.now_ns.get());
    assert!(host.data.borrow().is_empty(), "a canary ticks too");
    let _open = reserve(&host, &mut busy, 10);
    wait(&host, std::slice::from_mut(&mut busy), 60);
    assert_eq!(seen(&host), [(endpoint(1), 1, 10)]);
}

#[test]
fn a_write_that_failed_is_made_good_by_the_next() {
    let host = MemoryHost::default();
    host.now_ns.set(100 * SECOND);
    let mut vm = Vm::default();
    let first = reserve(&host, &mut vm, 10);
    host.refused.borrow_mut().push("set_shared");
    let second = reserve(&host, &mut vm, 20);
    vm.reservations.release(first);
    vm.publish(&host, 0, host.now_ns.get());
    assert_eq!(host.counters.borrow()["wasm_epp_mishaps_reservations_not_published_total"], 2);
    host.refused.borrow_mut().clear();
    vm.tick(&host, 0, host.now_ns.get());
    assert_eq!(seen(&host), [(endpoint(1), 1, 20)]);
    vm.reservations.release(second);
    vm.publish(&host, 0, host.now_ns.get());
    assert_eq!(seen(&host), []);
}

#[test]
fn a_vm_that_was_silent_too_long_takes_another_slot_than_its_successors() {
    let host = MemoryHost::default();
    host.now_ns.set(100 * SECOND);
    let (mut silent, mut successor) = (Vm::default(), Vm::default());
    let _open = reserve(&host, &mut silent, 10);
    host.now_ns.set(107 * SECOND);
    let _other = reserve(&host, &mut successor, 5);
    assert_eq!(successor.row.identity().map(|(_, slot)| slot), Some(0));
    silent.tick(&host, 0, host.now_ns.get());
    assert_eq!(silent.row.identity().map(|(_, slot)| slot), Some(1));
    assert_eq!(seen(&host), [(endpoint(1), 2, 15)]);
}

#[test]
fn a_slot_lost_between_two_beats_is_given_up() {
    let host = MemoryHost::default();
    host.now_ns.set(100 * SECOND);
    let mut vm = Vm::default();
    let _open = reserve(&host, &mut vm, 10);
    // Another VM's row stands there, although this one's is fresh.
    let now = host.now_ns.get();
    let foreign = MatrixRow { vm: 77, beat_ns: now, cells: vec![] };
    host.set_shared(Key::Matrix(0).encode().as_ref(), &foreign.encode(), Expect::Anything).unwrap();
    vm.publish(&host, 0, now);
    assert_eq!(vm.row.identity().map(|(_, slot)| slot), Some(1));
    assert_eq!(seen(&host), [(endpoint(1), 1, 10)]);
}

#[test]
fn other_gateways_count_while_the_daemon_writes_and_of_its_epoch_alone() {
    let host = MemoryHost::default();
    let cell = Cell { endpoint: endpoint(1), requests: 4, tokens: 9 };
    for (epoch, cells) in [(6u64, vec![cell]), (7, vec![])] {
        let key = Key::OtherGateways(Key::parity(epoch)).encode();
        let value = OtherGateways { epoch, cells }.encode();
        host.set_shared(key.as_ref(), &value, Expect::Anything).unwrap();
    }
    let mut own = Reservations::default();
    let _open = own.reserve(vec![(endpoint(1), 1)]);
    let requests = |epoch, now_ns| own.in_flight(&host, None, now_ns, (epoch, SECOND))[0].requests;
    assert_eq!(requests(6, 4 * SECOND - 1), 5);
    assert_eq!(requests(6, 4 * SECOND), 1, "the daemon is silent");
    assert_eq!(requests(7, SECOND), 1);
    assert_eq!(requests(8, SECOND), 1, "of another epoch");
}
