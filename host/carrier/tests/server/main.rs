//! On a real server, with a publisher on libzmq that plays what a real engine published.

mod support;

use kv_events::{Position, ResetReason, Resume, SourceState};
use support::{Daemon, Engine, Follower, Heard, Server, heard_of, numbers, wait};
use tokio::sync::mpsc;

const LIVE: SourceState = SourceState::Live { partial: false };
const PARTIAL: SourceState = SourceState::Live { partial: true };
/// More than any test writes.
const ALL: u64 = 100_000;
const QUEUE: usize = 100_000;

macro_rules! or_skip {
    ($found:expr) => {
        match $found {
            Some(found) => found,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn every_daemon_hears_what_it_would_hear_of_the_engine_itself() {
    let server = or_skip!(Server::start().await);
    let mut engine = or_skip!(Engine::start(&[]).await);
    let config = server.config(ALL);
    let mut daemons = [0, 1].map(|_| Daemon::start(&config, &engine.source, None, QUEUE));
    let follower = Follower::start(&config, &engine.source);
    follower.holds().await;
    engine.tell("send 140").await;
    let (sender, mut direct) = mpsc::channel(QUEUE);
    let (source, timing) = (engine.source.clone(), support::timing());
    tokio::spawn(kv_events::follow_with(source, timing, Default::default(), sender));
    let mut expected = Vec::new();
    while expected.len() < 140 {
        let update = support::in_time("batch", direct.recv()).await.expect("a source");
        expected.extend(heard_of(update));
    }
    assert_eq!(numbers(&expected), (0..140).collect::<Vec<_>>());
    for daemon in &mut daemons {
        assert_eq!(daemon.until(139).await, expected);
        daemon.until_state(LIVE).await;
    }
    // One that comes late.
    let mut late = Daemon::start(&config, &engine.source, None, QUEUE);
    assert_eq!(late.until(139).await, expected);
    late.until_state(LIVE).await;
    // One that goes on from where another was.
    let Heard::Batch(sequence, fingerprint, _) = expected[99] else { panic!("no batch") };
    let at = |fingerprint| {
        let position = Position { sequence, fingerprint };
        Some(Resume { position, partial: false })
    };
    let mut resumed = Daemon::start(&config, &engine.source, at(fingerprint), QUEUE);
    assert_eq!(resumed.until(139).await, expected[100..]);
    // One that was at a batch of another run.
    let mut other = Daemon::start(&config, &engine.source, at(fingerprint ^ 1), QUEUE);
    let heard = other.until(139).await;
    assert_eq!(heard[0], Heard::Reset(ResetReason::Gap));
    assert_eq!(heard[1..], expected);
    assert_eq!(other.counters.values().holes, 1);

    engine.tell("restart").await;
    engine.tell("send 5").await;
    for daemon in daemons.iter_mut().chain([&mut late, &mut resumed]) {
        let heard = daemon.until(4).await;
        assert_eq!(heard[0], Heard::Reset(ResetReason::Restart));
        assert_eq!(numbers(&heard[1..]), [0, 1, 2, 3, 4]);
        assert_eq!(daemon.counters.values().holes, 0);
    }
    assert_eq!(follower.counters.values().terms, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_follower_takes_over_without_a_hole_or_a_double() {
    let server = or_skip!(Server::start().await);
    let mut engine = or_skip!(Engine::start(&[]).await);
    let config = server.config(ALL);
    let mut daemon = Daemon::start(&config, &engine.source, None, QUEUE);
    let first = Follower::start(&config, &engine.source);
    first.holds().await;
    engine.tell("send 20").await;
    assert_eq!(numbers(&daemon.until(19).await), (0..20).collect::<Vec<_>>());
    daemon.until_state(LIVE).await;
    let second = Follower::start(&config, &engine.source);
    first.kill().await;
    // Nobody follows, and the daemon knows.
    engine.tell("send 10").await;
    second.holds().await;
    engine.tell("send 10").await;
    assert_eq!(numbers(&daemon.until(39).await), (20..40).collect::<Vec<_>>());
    daemon.until_state(LIVE).await;
    second.kill().await;
    daemon.until_state(SourceState::Lost).await;
    assert!(!daemon.counters.values().has_follower);
    engine.tell("send 10").await;
    let third = Follower::start(&config, &engine.source);
    assert_eq!(numbers(&daemon.until(49).await), (40..50).collect::<Vec<_>>());
    daemon.until_state(LIVE).await;
    assert_eq!((third.counters.values().terms, daemon.counters.values().holes), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_replaced_cannot_write() {
    let server = or_skip!(Server::start().await);
    let mut engine = or_skip!(Engine::start(&[]).await);
    let config = server.config(ALL);
    let mut daemon = Daemon::start(&config, &engine.source, None, QUEUE);
    let follower = Follower::start(&config, &engine.source);
    follower.holds().await;
    engine.tell("send 20").await;
    assert_eq!(numbers(&daemon.until(19).await), (0..20).collect::<Vec<_>>());
    // Another one begins a term, whatever the lease says, and knows of nothing.
    let name = carrier::EngineName {
        endpoint: engine.source.endpoint.clone(),
        topic: engine.source.topic.clone(),
    };
    let begins = "KVC\u{1}\u{1}\0\0\0";
    let id = "99999999999999-0";
    let reply = server.ask(&["XADD", &config.stream(&name), id, "r", begins]).await;
    assert!(reply.is_some_and(|reply| reply.contains(id)));
    engine.tell("send 1").await;
    // Refused, it begins a term of its own after that one.
    let heard = daemon.until(20).await;
    assert_eq!(heard[0], Heard::Reset(ResetReason::Gap));
    assert_eq!(numbers(&heard[1..]), (0..21).collect::<Vec<_>>());
    assert_eq!(follower.counters.values().terms, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_goes_on_from_its_file() {
    let mut server = or_skip!(Server::start().await);
    // Without replay: what happens meanwhile must be kept by the follower.
    let mut engine = or_skip!(Engine::start(&["--no-replay"]).await);
    let config = server.config(ALL);
    let mut daemon = Daemon::start(&config, &engine.source, None, QUEUE);
    let follower = Follower::start(&config, &engine.source);
    follower.holds().await;
    // Nothing tells when a subscription takes effect.
    let mut sent = 0;
    wait_for_batches(&mut engine, &follower, &mut sent).await;
    engine.tell("send 20").await;
    sent += 20;
    let first = numbers(&daemon.until(sent - 1).await);
    server.kill().await;
    daemon.until_state(SourceState::Lost).await;
    engine.tell("send 30").await;
    server.start_again().await;
    engine.tell("send 10").await;
    let heard = numbers(&daemon.until(sent + 39).await);
    assert_eq!(heard, (sent..sent + 40).collect::<Vec<_>>());
    assert_eq!(first.last(), Some(&(sent - 1)));
    let (published, consumed) = (follower.counters.values(), daemon.counters.values());
    assert_eq!((published.terms, consumed.holes), (1, 0));
    assert!(published.failures > 0 && consumed.failures > 0);
    // A daemon that starts now is given all of it.
    let mut late = Daemon::start(&config, &engine.source, None, QUEUE);
    let all = numbers(&late.until(sent + 39).await);
    assert_eq!(all, (first[0]..sent + 40).collect::<Vec<_>>());
}

async fn wait_for_batches(engine: &mut Engine, follower: &Follower, sent: &mut u64) {
    // Two state records and the term come before the first batch.
    let states = follower.counters.values().records;
    let heard = async {
        while follower.counters.values().records < states.max(3) + 1 {
            engine.tell("send 1").await;
            *sent += 1;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    support::in_time("batch", heard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_slower_than_the_retention_starts_over_from_what_is_left() {
    let server = or_skip!(Server::start().await);
    let mut engine = or_skip!(Engine::start(&[]).await);
    let config = server.config(50);
    let mut slow = Daemon::start(&config, &engine.source, None, 1);
    let follower = Follower::start(&config, &engine.source);
    follower.holds().await;
    engine.tell("send 20").await;
    let mut heard = slow.until(9).await;
    assert_eq!(numbers(&heard), (0..10).collect::<Vec<_>>());
    engine.tell("send 600").await;
    wait("written", || follower.counters.values().records >= 620).await;
    // Sooner or later it meets the hole; what it then has ends with the newest and has no hole.
    heard = slow.until(619).await;
    let reset = heard.iter().rposition(|heard| matches!(heard, Heard::Reset(ResetReason::Gap)));
    let after = numbers(&heard[reset.expect("a reset") + 1..]);
    assert_eq!(after, (after[0]..620).collect::<Vec<_>>());
    assert!(after[0] > 500, "{after:?}");
    slow.until_state(PARTIAL).await;
    assert!(slow.counters.values().holes >= 1);
    // So has one that starts now, which has nothing to lose.
    let mut late = Daemon::start(&config, &engine.source, None, QUEUE);
    assert_eq!(numbers(&late.until(619).await), (after[0]..620).collect::<Vec<_>>());
    late.until_state(PARTIAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_somebody_removes_are_missed_only_by_who_has_not_read_them() {
    let server = or_skip!(Server::start().await);
    let mut engine = or_skip!(Engine::start(&[]).await);
    let config = server.config(ALL);
    let name = carrier::EngineName {
        endpoint: engine.source.endpoint.clone(),
        topic: engine.source.topic.clone(),
    };
    let mut daemon = Daemon::start(&config, &engine.source, None, QUEUE);
    let follower = Follower::start(&config, &engine.source);
    follower.holds().await;
    engine.tell("send 20").await;
    let heard = daemon.until(19).await;
    assert_eq!(numbers(&heard), (0..20).collect::<Vec<_>>());
    daemon.until_state(LIVE).await;
    let Heard::Batch(sequence, fingerprint, _) = heard[9] else { panic!("no batch") };
    let mut sent = 20;
    for command in [&["XTRIM", &config.stream(&name), "MAXLEN", "0"][..], &["FLUSHALL"]] {
        assert!(server.ask(command).await.is_some_and(|reply| !reply.starts_with('-')));
        engine.tell("send 10").await;
        sent += 10;
        assert_eq!(numbers(&daemon.until(sent - 1).await), (sent - 10..sent).collect::<Vec<_>>());
        daemon.until_state(LIVE).await;
        // One that was before what is gone starts over, and knows that it misses something.
        let resume = Resume { position: Position { sequence, fingerprint }, partial: false };
        let mut behind = Daemon::start(&config, &engine.source, Some(resume), QUEUE);
        let heard = behind.until(sent - 1).await;
        assert_eq!(heard[0], Heard::Reset(ResetReason::Gap));
        assert_eq!(numbers(&heard[1..]), (sent - 10..sent).collect::<Vec<_>>());
        behind.until_state(PARTIAL).await;
        assert_eq!(behind.counters.values().holes, 1);
    }
    assert_eq!((follower.counters.values().terms, daemon.counters.values().holes), (1, 0));
}
