//! One publisher that listens.

use std::sync::Arc;
use std::time::Duration;

use kv_events::{Position, Resume, SourceConfig, SourceUpdate, Timing, decode, follow_with};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::support::{Publisher, Source, python, session};

#[tokio::test]
async fn a_late_start_gets_the_whole_history_in_either_framing() {
    for framing in ["plain", "topic"] {
        let Some(mut publisher) = Publisher::start(&["--framing", framing]).await else { return };
        publisher.tell("send 20").await;
        let mut source = Source::follow(publisher.source());
        source.expect("connecting resyncing").await;
        source.batches(0, 19).await;
        source.expect("live").await;
        publisher.tell("send 5").await;
        source.batches(20, 24).await;
    }
}

#[tokio::test]
async fn the_batches_are_those_of_the_session() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 10").await;
    let (sender, mut updates) = mpsc::channel(16);
    let source = publisher.source();
    tokio::spawn(follow_with(source, Timing::default(), Arc::default(), sender));
    let text = std::fs::read_to_string(session()).expect("a session");
    let mut recorded = text
        .lines()
        .filter_map(|line| {
            let line: Value = serde_json::from_str(line).expect("json");
            let hex = line.get("event")?.get(2)?.as_str()?.to_owned();
            let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex");
            decode(&(0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>()).ok()
        })
        .take(10)
        .peekable();
    while recorded.peek().is_some() {
        if let SourceUpdate::Batch { batch, .. } = updates.recv().await.expect("a source") {
            assert_eq!(Some(batch), recorded.next());
        }
    }
}

#[tokio::test]
async fn a_publisher_without_batches_is_live() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing live").await;
    publisher.tell("send 3").await;
    source.batches(0, 2).await;
}

#[tokio::test]
async fn a_replay_that_comes_in_pieces_is_put_together() {
    let Some(mut publisher) = Publisher::start(&["--pieces", "6"]).await else { return };
    publisher.tell("send 20").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing").await;
    source.batches(0, 19).await;
    source.expect("live").await;
    let counts = source.counters.counts();
    assert_eq!((counts.replayed_batches, counts.is_replay_answered), (20, Some(true)));
    // A piece is a replay that was cut short.
    assert!(counts.replays_failed >= 3 && counts.replays > counts.replays_failed, "{counts:?}");
    assert_eq!((counts.gaps, counts.restarts), (0, 0));
}

#[tokio::test]
async fn a_dropped_message_is_replayed() {
    let args = ["--drop", "12", "13", "--delay", "0.05"];
    let Some(mut publisher) = Publisher::start(&args).await else { return };
    publisher.tell("send 10").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing").await;
    source.batches(0, 9).await;
    publisher.tell("send 10").await;
    source.batches(10, 19).await;
    // By the next message or by a probe in silence, whichever comes first.
    let counts = source.counters.counts();
    assert!(counts.gaps <= 1 && counts.replays >= 2, "{counts:?}");
}

#[tokio::test]
async fn a_dropped_last_message_is_found_in_silence() {
    let Some(mut publisher) = Publisher::start(&["--drop", "3"]).await else { return };
    publisher.tell("send 3").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing").await;
    source.batches(0, 2).await;
    source.expect("live").await;
    publisher.tell("send 1").await;
    source.batches(3, 3).await;
}

/// Reads batches `0..=last`, and says where another process would go on.
async fn position_after(source: &mut Source, last: u64) -> Resume {
    loop {
        if let SourceUpdate::Batch { sequence, fingerprint, .. } = source.next_update().await
            && sequence == last
        {
            return Resume { position: Position { sequence, fingerprint }, partial: false };
        }
    }
}

#[tokio::test]
async fn a_source_is_taken_up_where_another_process_left_it() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 5").await;
    let mut first = Source::follow(publisher.source());
    let resume = Some(position_after(&mut first, 4).await);
    drop(first);
    publisher.tell("send 3").await;
    let mut second = Source::follow(SourceConfig { resume, ..publisher.source() });
    second.expect("connecting resyncing").await;
    second.batches(5, 7).await;
    second.expect("live").await;
}

#[tokio::test]
async fn without_replay_a_source_is_taken_up_with_the_next_batch_or_not_at_all() {
    let Some(mut publisher) = Publisher::start(&["--no-replay"]).await else { return };
    let mut first = Source::follow(publisher.source());
    first.expect("connecting partial").await;
    publisher.send_until_heard(&mut first).await;
    let next = publisher.tell("send 5").await["next"].as_u64().expect("a number");
    let resume = Some(position_after(&mut first, next - 1).await);
    drop(first);
    let mut second = Source::follow(SourceConfig { resume, ..publisher.source() });
    second.expect("connecting resyncing").await;
    // What is published before the subscription takes effect is missing.
    match publisher.send_until_heard(&mut second).await.as_str() {
        "gap" => assert!(second.until("partial").await.iter().all(|word| word != "live")),
        batch => {
            assert_eq!(batch, next.to_string());
            second.until("live").await;
        }
    }
}

#[tokio::test]
async fn a_source_that_restarted_before_it_was_taken_up_is_void() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 5").await;
    let mut first = Source::follow(publisher.source());
    let resume = Some(position_after(&mut first, 4).await);
    drop(first);
    publisher.tell("restart").await;
    publisher.tell("send 9").await;
    let mut second = Source::follow(SourceConfig { resume, ..publisher.source() });
    second.expect("connecting resyncing restart").await;
    second.batches(0, 8).await;
    second.expect("live").await;
}

#[tokio::test]
async fn a_restart_voids_what_was_known() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 10").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing").await;
    source.batches(0, 9).await;
    source.expect("live").await;
    publisher.tell("restart").await;
    publisher.tell("send 3").await;
    let before = source.until("restart").await;
    assert!(before.contains(&"lost".to_owned()), "{before:?}");
    source.batches(0, 2).await;
}

#[tokio::test]
async fn a_restart_is_found_even_if_nothing_was_published_since() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 10").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing").await;
    source.batches(0, 9).await;
    publisher.tell("restart").await;
    source.until("restart").await;
    source.until("live").await;
    publisher.tell("send 1").await;
    source.batches(0, 0).await;
}

#[tokio::test]
async fn without_a_replay_endpoint_the_history_is_partial() {
    let Some(mut publisher) = Publisher::start(&["--no-replay", "--drop", "22"]).await else {
        return;
    };
    publisher.tell("send 20").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting partial").await;
    // Nothing tells when the subscription takes effect, so publish until something arrives.
    let first = loop {
        publisher.tell("send 1").await;
        let next = tokio::time::timeout(Duration::from_millis(100), source.next());
        if let Ok(word) = next.await {
            break word.parse::<u64>().expect("a batch");
        }
    };
    assert!(first >= 20);
    publisher.tell("send 5").await;
    let word = source.next().await;
    assert!(word == "gap" || word.parse() == Ok(first + 1), "{word}");
}

#[tokio::test]
async fn a_replay_endpoint_that_is_down_leaves_the_history_partial() {
    let Some(mut publisher) = Publisher::start(&["--no-replay"]).await else { return };
    publisher.tell("send 20").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let replay = format!("tcp://{}", listener.local_addr().expect("a port"));
    drop(listener);
    let source = SourceConfig { replay: Some(replay), ..publisher.source() };
    let mut source = Source::follow(source);
    source.expect("connecting resyncing partial").await;
    let first = publisher.send_until_heard(&mut source).await.parse::<u64>();
    assert!(first.is_ok_and(|first| first >= 20));
}

#[tokio::test]
async fn an_engine_that_is_not_there_yet_is_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("a port").port().to_string();
    drop(listener);
    let config = SourceConfig {
        endpoint: format!("tcp://127.0.0.1:{port}"),
        replay: None,
        topic: String::new(),
        resume: None,
    };
    if python().is_none() {
        return;
    }
    let mut source = Source::follow(config);
    source.expect("connecting lost connecting").await;
    let args = ["--no-replay", "--pub-port", &port];
    let Some(_publisher) = Publisher::start(&args).await else { return };
    source.until("partial").await;
}

#[tokio::test]
async fn following_ends_with_its_receiver() {
    let config = SourceConfig {
        endpoint: "tcp://127.0.0.1:1".to_owned(),
        replay: None,
        topic: String::new(),
        resume: None,
    };
    let (sender, updates) = mpsc::channel(16);
    let task = tokio::spawn(follow_with(config, Timing::default(), Arc::default(), sender));
    drop(updates);
    tokio::time::timeout(Duration::from_secs(60), task).await.expect("it ends").expect("no panic");
}
