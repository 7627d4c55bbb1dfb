//! Acks as a gateway of two workers sends them, second by second.

use super::*;
use feed::ScorerRow;

const S: u64 = 1_000_000_000;
const MINE: u64 = 77;

fn row(vm: u64, beat_s: u64, config: u64, absent: u32, revision: u32) -> WorkerRow {
    let scorers = vec![ScorerRow { scorer: MINE, revision, absent }];
    WorkerRow { vm, beat_ns: beat_s * S, config, scorers, ..WorkerRow::default() }
}

/// A judge whose clock and gateway's clock both count from 100 s.
struct Gateway {
    judge: Judge,
    start: Instant,
}

impl Gateway {
    fn new() -> Self {
        Self { judge: Judge::default(), start: Instant::now() }
    }

    fn at(&self, s: u64) -> Instant {
        self.start + Duration::from_secs(s - 100)
    }

    fn ack(&mut self, s: u64, rows: &[WorkerRow]) -> Vec<Dead> {
        let at = self.at(s);
        self.judge.judge(Seen { instance: 1, now_ns: s * S, rows }, at)
    }

    fn revive(&mut self, s: u64, vm: Vm, rows: &[WorkerRow]) {
        let at = self.at(s);
        self.judge.revived(vm, Seen { instance: 1, now_ns: s * S, rows }, at);
    }
}

fn router(workers: usize, is_ignored: bool) -> Dead {
    Dead { vm: Vm::Router, workers, has_scored: true, is_ignored }
}

fn scorer(workers: usize, has_scored: bool) -> Dead {
    Dead { vm: Vm::Scorer(MINE), workers, has_scored, is_ignored: false }
}

#[test]
fn a_row_that_stands_still_while_the_gateways_clock_goes_on_is_a_dead_vms() {
    let mut gateway = Gateway::new();
    let rows = |living, dead| [row(1, living, 5, 0, 9), row(2, dead, 5, 0, 9)];
    assert_eq!(gateway.ack(101, &rows(101, 100)), []);
    assert_eq!(gateway.ack(105, &rows(105, 100)), [], "a starved VM may be late");
    assert_eq!(gateway.ack(106, &rows(106, 100)), [router(1, false)]);
    assert_eq!(gateway.ack(106, &rows(99, 100)), [router(2, false)]);
    // An ack that is late itself says nothing.
    assert_eq!(gateway.ack(106, &rows(106, 106)), []);
}

#[test]
fn a_vm_is_revived_once_however_long_its_row_stays() {
    let mut gateway = Gateway::new();
    // The one that lives is configured anew, which the row says.
    let rows = |s, config| [row(1, s, config, 0, 9), row(2, 100, 5, 0, 9)];
    assert_eq!(gateway.ack(106, &rows(106, 5)), [router(1, false)]);
    gateway.revive(106, Vm::Router, &rows(106, 5));
    assert_eq!(gateway.ack(107, &rows(107, 5)), []);
    for s in 108..400 {
        assert_eq!(gateway.ack(s, &rows(s, 6)), [], "{s}");
    }
    // The next VM of that worker takes the row, and dies too.
    let taken = |s, beat| [row(1, s, 6, 0, 9), row(3, beat, 6, 0, 9)];
    assert_eq!(gateway.ack(400, &taken(400, 400)), []);
    assert_eq!(gateway.ack(406, &taken(406, 400)), [router(1, false)]);
}

#[test]
fn a_row_of_a_configuration_that_no_living_vm_has_is_history() {
    // Somebody else wrote the files, and the worker's next VM took another row.
    let mut gateway = Gateway::new();
    let dead = row(2, 100, 5, 0, 9);
    assert_eq!(gateway.ack(106, &[row(1, 106, 5, 0, 9), dead.clone()]), [router(1, false)]);
    let both = |first, second| [row(1, 107, first, 0, 9), dead.clone(), row(3, 107, second, 0, 9)];
    assert_eq!(gateway.ack(107, &both(5, 6)), [router(1, false)], "one has not taken them yet");
    assert_eq!(gateway.ack(107, &both(6, 6)), []);
    // Of the configuration that they have, a silent row is a dead VM's again.
    let next = [row(1, 113, 6, 0, 9), dead.clone(), row(3, 107, 6, 0, 9)];
    assert_eq!(gateway.ack(113, &next), [router(1, false)]);
}

#[test]
fn a_gateway_that_takes_no_notice_is_told_apart_from_one_without_requests() {
    let mut gateway = Gateway::new();
    let rows = |s| [row(1, s, 5, 0, 9), row(2, 100, 5, 0, 9)];
    assert_eq!(gateway.ack(106, &rows(106)), [router(1, false)]);
    gateway.revive(106, Vm::Router, &rows(106));
    assert_eq!(gateway.ack(116, &rows(116)), [], "it may still load");
    assert_eq!(gateway.ack(117, &rows(117)), [router(1, true)]);
    gateway.revive(117, Vm::Router, &rows(117));
    assert_eq!(gateway.ack(118, &rows(118)), []);

    // All are dead: nobody can tell before a request comes.
    let mut gateway = Gateway::new();
    let dead = [row(1, 100, 5, 0, 9), row(2, 100, 5, 0, 9)];
    assert_eq!(gateway.ack(106, &dead), [router(2, false)]);
    gateway.revive(106, Vm::Router, &dead);
    assert_eq!(gateway.ack(300, &dead), []);
    // One worker has a VM again; it has the new configuration.
    assert_eq!(gateway.ack(301, &[row(3, 301, 6, 0, 9), row(2, 100, 5, 0, 9)]), []);
}

#[test]
fn another_process_has_other_vms() {
    let mut gateway = Gateway::new();
    let dead = [row(1, 100, 5, 0, 9)];
    gateway.revive(104, Vm::Router, &dead);
    assert_eq!(gateway.ack(120, &dead), [router(1, false)], "that revival was another process's");
    gateway.revive(120, Vm::Router, &dead);
    assert_eq!(gateway.ack(121, &dead), []);
    let at = gateway.at(122);
    let other = Seen { instance: 2, now_ns: 122 * S, rows: &dead };
    assert_eq!(gateway.judge.judge(other, at), [router(1, false)]);
    assert_eq!(gateway.judge.judge(Seen { rows: &[], ..other }, at), []);
}

#[test]
fn a_scorer_is_dead_where_it_was_silent_three_times_in_a_row() {
    let mut gateway = Gateway::new();
    let rows = |s, one, two| [row(1, s, 5, one, 9), row(2, s, 5, two, 9)];
    assert_eq!(gateway.ack(100, &rows(100, 2, 0)), []);
    assert_eq!(gateway.ack(101, &rows(101, 3, 0)), [scorer(1, true)]);
    assert_eq!(gateway.ack(101, &rows(101, 3, 4)), [scorer(2, true)]);
    gateway.revive(101, Vm::Scorer(MINE), &rows(101, 3, 4));
    // What comes before the new one serves is not its fault.
    assert_eq!(gateway.ack(102, &rows(102, 900, 4)), []);
    // Without requests nothing is known.
    assert_eq!(gateway.ack(150, &rows(150, 900, 4)), []);
    assert_eq!(gateway.ack(151, &rows(151, 902, 0)), [], "one scores, one was silent twice");
    assert_eq!(gateway.ack(152, &rows(152, 903, 2)), [scorer(1, true)], "that one is still dead");
    assert_eq!(gateway.ack(153, &rows(153, 0, 3)), [scorer(1, true)], "now it is the other");
}

#[test]
fn a_scorer_that_nobody_ever_heard_is_said_to_be_so() {
    let mut gateway = Gateway::new();
    let rows = |s| [row(1, s, 5, 8, 0), row(2, s, 5, 0, 0)];
    assert_eq!(gateway.ack(100, &rows(100)), [scorer(1, false)]);
    let elsewhere = [row(1, 101, 5, 9, 0), row(2, 101, 5, 0, 4)];
    assert_eq!(gateway.ack(101, &elsewhere), [scorer(1, true)], "the other worker did");
    // What a dead router VM last said of it is old.
    let dead = [row(1, 101, 5, 9, 0), row(2, 110, 5, 0, 4)];
    assert_eq!(gateway.ack(110, &dead), [router(1, false)]);
}
