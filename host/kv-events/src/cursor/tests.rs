//! One behaviour at a time, as scripts: `>` feeds the cursor, `=` is what it wants done.

use bytes::Bytes;
use tokio::time::Instant;

use super::*;

/// A message of run `run`.
pub(super) fn message(run: u64, sequence: u64) -> Message {
    let payload = Bytes::from(format!("run {run} batch {sequence}"));
    Message { sequence, payload, cut_from: None, received_at: Instant::now() }
}

/// Feeds one line: `connect`, `lost`, `silent`, `end`, `fail`, `live 1:5` or `re 1:5` (run and
/// sequence number; a range `1:5-7` stands for several).
fn feed(cursor: &mut Cursor, line: &str) {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    match verb {
        "connect" => cursor.connected(),
        "lost" => cursor.disconnected(),
        "silent" => cursor.silent(),
        "end" => cursor.replay_ended(),
        "fail" => cursor.replay_failed(),
        "live" => messages(rest).for_each(|message| cursor.live(message)),
        "re" => messages(rest).for_each(|message| cursor.replayed(message)),
        verb => panic!("unknown verb {verb}"),
    }
}

fn messages(text: &str) -> impl Iterator<Item = Message> {
    let (run, range) = text.split_once(':').expect("run:sequence");
    let run = run.parse().expect("a run");
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u64, u64) = (first.parse().expect("first"), last.parse().expect("last"));
    (first..=last).map(move |sequence| message(run, sequence))
}

fn wanted(cursor: &mut Cursor) -> String {
    let mut words = Vec::new();
    while let Some(action) = cursor.next_action() {
        words.push(match action {
            Action::Deliver(message) => message.sequence.to_string(),
            Action::Reset(ResetReason::Restart) => "reset-restart".to_owned(),
            Action::Reset(ResetReason::Gap) => "reset-gap".to_owned(),
            Action::State(SourceState::Live { partial: false }) => "live".to_owned(),
            Action::State(SourceState::Live { partial: true }) => "partial".to_owned(),
            Action::State(state) => format!("{state:?}").to_lowercase(),
            Action::Replay { from } => format!("replay({from})"),
            Action::Reconnect => "reconnect".to_owned(),
        });
    }
    words.join(" ")
}

fn run(mut cursor: Cursor, script: &str) {
    let mut done = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (input, expected) = line.split_once('=').expect("input = actions");
        feed(&mut cursor, input.trim());
        let got = wanted(&mut cursor);
        assert_eq!(got, expected.trim(), "\nat `{}` after{done}", input.trim());
        done.push_str(&format!("\n  {line}"));
    }
}

fn check(script: &str) {
    run(Cursor::new(true), script);
}

/// What a script, whose actions another test checks, is counted as.
fn counted(cursor: &mut Cursor, script: &str) -> CursorCounts {
    for line in script.lines().map(str::trim) {
        feed(cursor, line);
        wanted(cursor);
    }
    cursor.take_counts()
}

#[test]
fn gaps_restarts_and_replays_are_counted() {
    let mut cursor = Cursor::new(true);
    let first = counted(&mut cursor, "connect\nre 1:0-1\nend\nlive 1:2");
    let answered = CursorCounts {
        replays: 1,
        replays_with_news: 1,
        replayed_batches: 2,
        is_replay_answered: Some(true),
        ..CursorCounts::default()
    };
    assert_eq!(first, answered);
    assert_eq!(cursor.take_counts(), CursorCounts::default(), "taken once");
    // A hole of two, closed by a replay that repeats what is known.
    let closed = counted(&mut cursor, "live 1:5\nre 1:2-5\nend");
    assert_eq!(closed, CursorCounts { gaps: 1, replayed_batches: 3, ..answered });
    // A hole that two replays do not close is one hole.
    let open = counted(&mut cursor, "live 1:9\nfail\nfail\nlive 1:10");
    let failed = CursorCounts {
        gaps: 1,
        replays: 2,
        replays_failed: 2,
        is_replay_answered: Some(false),
        ..CursorCounts::default()
    };
    assert_eq!(open, failed);
    // A hole that a replay finds and cannot close, as the publisher has no more.
    let gone = counted(&mut cursor, "silent\nre 1:14-15\nend");
    assert_eq!(gone, CursorCounts { gaps: 1, replayed_batches: 2, ..answered });
    // A lower number of another run, which a replay then brings.
    let restarted = counted(&mut cursor, "live 2:0\nre 2:0\nend");
    assert_eq!(restarted, CursorCounts { restarts: 1, replayed_batches: 1, ..answered });
    // A probe that finds news, cut off by the end of the connection.
    let cut = counted(&mut cursor, "silent\nre 2:0-1\nlost");
    assert_eq!(cut, CursorCounts { replayed_batches: 1, is_replay_answered: None, ..answered });
    // A hole found by a live message while a probe runs.
    let probed = counted(&mut cursor, "connect\nre 2:1\nend\nsilent\nlive 2:4\nre 2:1-4\nend");
    assert_eq!(probed, CursorCounts { gaps: 1, replays: 2, replayed_batches: 3, ..answered });
}

#[test]
fn without_a_replay_endpoint_each_hole_is_counted_once() {
    let mut cursor = Cursor::new(false);
    let counts = counted(&mut cursor, "connect\nlive 1:0-1\nlive 1:4-5\nlive 1:9\nlive 2:0");
    assert_eq!(counts, CursorCounts { gaps: 2, restarts: 1, ..CursorCounts::default() });
}

#[test]
fn a_publisher_that_has_published_nothing_is_live() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-1 = 0 1",
    );
}

#[test]
fn history_comes_first_and_nothing_comes_twice() {
    check(
        "connect    = resyncing replay(0)
         live 1:2-3 =
         re 1:0-2   = 0 1 2
         end        = 3 live
         live 1:3   =
         live 1:4   = 4",
    );
}

#[test]
fn a_history_whose_start_is_gone_is_partial() {
    check(
        "connect  = resyncing replay(0)
         re 1:5-6 = 5 6
         end      = partial
         live 1:7 = 7",
    );
}

#[test]
fn a_gap_is_closed_by_a_replay_from_the_last_known_batch() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-1 = 0 1
         live 1:4   = resyncing replay(1)
         live 1:5   =
         re 1:1-4   = 2 3 4
         end        = 5 live",
    );
}

#[test]
fn a_gap_that_cannot_be_closed_voids_the_source() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-1 = 0 1
         live 1:9   = resyncing replay(1)
         re 1:8     = reset-gap 8
         re 1:9     = 9
         end        = partial",
    );
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-1 = 0 1
         live 1:9   = resyncing replay(1)
         fail       = replay(1)
         fail       = reset-gap 9 partial
         live 1:10  = 10",
    );
}

#[test]
fn without_a_replay_endpoint_a_gap_voids_the_source() {
    run(
        Cursor::new(false),
        "connect    = partial
         live 1:0-1 = 0 live 1
         live 1:4-5 = reset-gap 4 partial 5
         live 1:5   =
         live 2:0   = reset-restart 0 live
         silent     =",
    );
}

#[test]
fn a_replay_cut_short_is_asked_for_again() {
    check(
        "connect  = resyncing replay(0)
         re 1:0-4 = 0 1 2 3 4
         fail     = replay(4)
         re 1:4-6 = 5 6
         fail     = replay(6)
         re 1:6   =
         end      = live",
    );
}

#[test]
fn a_replay_with_a_hole_is_asked_for_again() {
    check(
        "connect  = resyncing replay(0)
         re 1:0-1 = 0 1
         re 1:3   =
         end      = replay(1)
         re 1:1-3 = 2 3
         end      = live",
    );
    check(
        "connect  = resyncing replay(0)
         re 1:0   = 0
         re 1:2   =
         end      = replay(0)
         re 1:0   =
         re 1:2   =
         end      = replay(0)
         re 1:0   =
         re 1:2   =
         end      = live",
    );
}

#[test]
fn a_lower_number_is_a_restart() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         live 2:1   = reset-restart resyncing replay(0)
         re 2:0-1   = 0 1
         end        = live",
    );
}

#[test]
fn a_message_that_contradicts_the_replay_is_not_fought_over() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         live 2:1   = reset-restart resyncing replay(0)
         re 1:0-3   = 0 1 2 3
         end        = live
         silent     = replay(3)
         end        = reset-restart resyncing replay(0)
         re 2:0-1   = 0 1
         end        = live",
    );
}

#[test]
fn a_connection_that_cannot_be_verified_voids_the_source() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         lost       = lost
         connect    = resyncing replay(3)
         live 2:4   =
         fail       = replay(3)
         fail       = reset-gap 4 partial",
    );
}

#[test]
fn a_restarted_engine_that_has_come_further_is_found_on_reconnection() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         lost       = lost
         connect    = resyncing replay(3)
         live 2:8   =
         re 2:3     = reset-restart replay(0)
         re 2:0-8   = 0 1 2 3 4 5 6 7 8
         end        = live",
    );
}

#[test]
fn a_restarted_engine_that_has_published_nothing_is_found_in_silence() {
    let script = "connect    = resyncing replay(0)
                  end        = live
                  live 1:0-3 = 0 1 2 3
                  silent     = replay(3)
                  re 1:3     =
                  end        =
                  silent     = replay(3)
                  end        = reset-restart resyncing replay(0)
                  end        = live";
    check(script);
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         lost       = lost
         connect    = resyncing replay(3)
         end        = reset-restart replay(0)
         end        = live",
    );
}

#[test]
fn a_replay_buffer_that_keeps_nothing_is_no_restart() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         silent     = replay(3)
         end        =
         live 1:4   = 4",
    );
}

#[test]
fn the_same_run_after_a_lost_connection_goes_on() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         lost       = lost
         connect    = resyncing replay(3)
         re 1:3-5   = 4 5
         end        = live",
    );
}

#[test]
fn a_probe_does_not_hold_messages_up() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         silent     = replay(3)
         live 1:4   = 4
         re 1:3-5   = 5
         live 1:5   =
         end        =
         live 1:6   = 6",
    );
}

#[test]
fn a_gap_seen_during_a_probe_waits_for_its_answer() {
    check(
        "connect    = resyncing replay(0)
         end        = live
         live 1:0-3 = 0 1 2 3
         silent     = replay(3)
         live 1:6   = resyncing
         re 1:3-6   = 4 5 6
         end        = live",
    );
}

#[test]
fn a_subscription_that_brings_nothing_is_rebuilt() {
    check(
        "connect  = resyncing replay(0)
         re 1:0   = 0
         end      = live
         silent   = replay(0)
         re 1:0-1 = 1
         end      =
         silent   = replay(1)
         re 1:1-2 = 2
         end      = reconnect",
    );
}

#[test]
fn probes_that_stay_unanswered_rebuild_the_connection() {
    check(
        "connect    = resyncing replay(0)
         re 1:0     = 0
         end        = live
         silent     = replay(0)
         fail       =
         silent     = replay(0)
         fail       = reconnect",
    );
}

#[test]
fn a_missing_replay_endpoint_leaves_the_source_partial() {
    check(
        "connect    = resyncing replay(0)
         live 1:4   =
         fail       = replay(0)
         fail       = 4 partial
         live 1:5   = 5
         silent     = replay(5)
         fail       =
         silent     = replay(5)
         fail       =",
    );
}

/// A cursor that takes run 1 up after batch 7.
fn resumed(can_replay: bool, partial: bool) -> Cursor {
    let position = Position { sequence: 7, fingerprint: fingerprint(&message(1, 7).payload) };
    Cursor::resume(can_replay, Resume { position, partial })
}

#[test]
fn a_source_is_taken_up_after_the_batch_that_proves_it() {
    run(
        resumed(true, false),
        "connect    = resyncing replay(7)
         live 1:10  =
         re 1:7-9   = 8 9
         end        = 10 live
         live 1:11  = 11",
    );
    run(
        resumed(true, true),
        "connect    = resyncing replay(7)
         re 1:7     =
         end        = partial",
    );
}

#[test]
fn a_source_that_is_another_run_by_now_is_void() {
    run(
        resumed(true, false),
        "connect    = resyncing replay(7)
         re 2:7     = reset-restart replay(0)
         re 2:0-7   = 0 1 2 3 4 5 6 7
         end        = live",
    );
    run(
        resumed(true, false),
        "connect    = resyncing replay(7)
         end        = reset-restart replay(0)
         re 2:0-2   = 0 1 2
         end        = live",
    );
}

#[test]
fn a_source_whose_replay_does_not_reach_back_is_void() {
    run(
        resumed(true, false),
        "connect    = resyncing replay(7)
         re 1:8-9   = reset-gap 8 9
         end        = partial",
    );
    run(
        resumed(true, false),
        "connect    = resyncing replay(7)
         fail       = replay(7)
         fail       = reset-gap partial
         live 1:8   = 8",
    );
}

#[test]
fn without_a_replay_only_the_next_batch_proves_a_source() {
    run(
        resumed(false, false),
        "connect    = resyncing
         live 1:8   = 8 live
         live 1:9   = 9",
    );
    run(
        resumed(false, true),
        "connect    = resyncing
         lost       = lost
         connect    = resyncing
         live 1:8   = 8 partial",
    );
    run(
        resumed(false, false),
        "connect    = resyncing
         live 1:9   = reset-gap 9 partial",
    );
    run(
        resumed(false, false),
        "connect    = resyncing
         live 2:0   = reset-restart 0 live",
    );
    run(
        resumed(false, false),
        "connect    = resyncing
         live 2:7   = reset-restart 7 partial",
    );
}

#[test]
fn messages_that_find_no_room_are_replayed() {
    let mut cursor = Cursor::new(true);
    cursor.connected();
    let last = PENDING_MESSAGES as u64 + 9;
    feed(&mut cursor, &format!("live 1:0-{last}"));
    assert_eq!(cursor.pending.len(), PENDING_MESSAGES);
    cursor.replay_ended();
    assert_eq!(wanted(&mut cursor).split(' ').next_back(), Some("replay(4095)"));
    feed(&mut cursor, &format!("re 1:4095-{last}"));
    cursor.replay_ended();
    assert!(wanted(&mut cursor).ends_with("4104 4105 live"));
}

#[test]
fn only_so_many_bytes_wait() {
    let mut cursor = Cursor::new(true);
    cursor.connected();
    for sequence in 0..5 {
        let payload = Bytes::from(vec![0; PENDING_BYTES / 4]);
        cursor.live(Message { sequence, payload, cut_from: None, received_at: Instant::now() });
    }
    assert_eq!(cursor.pending.len(), 4);
}

#[test]
fn an_old_duplicate_is_told_from_a_restart_by_its_payload() {
    let mut recent = Recent::default();
    for sequence in 5..10 {
        recent.push(sequence, &message(1, sequence).payload);
    }
    let check = |run, sequence| recent.check(sequence, &message(run, sequence).payload);
    assert_eq!([check(1, 5), check(1, 9)], [Seen::Same; 2]);
    assert_eq!([check(2, 5), check(2, 9)], [Seen::Different; 2]);
    assert_eq!([check(1, 4), check(1, 10), check(1, 0)], [Seen::Forgotten; 3]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut recent = Recent::default();
    let last = recent::REMEMBERED as u64;
    for sequence in 0..=last {
        recent.push(sequence, &message(1, sequence).payload);
    }
    assert_eq!(recent.check(0, &message(1, 0).payload), Seen::Forgotten);
    assert_eq!(recent.check(1, &message(1, 1).payload), Seen::Same);
    assert_eq!(recent.check(last, &message(1, last).payload), Seen::Same);
}
