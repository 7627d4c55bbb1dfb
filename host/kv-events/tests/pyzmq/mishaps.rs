//! What goes wrong between an engine and its followers.

use kv_events::{KvEvent, SourceConfig, SourceUpdate};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{Publisher, Source, in_time};

#[tokio::test]
async fn a_gap_beyond_the_replay_buffer_voids_what_was_known() {
    let Some(mut publisher) = Publisher::start(&["--buffer", "3"]).await else { return };
    publisher.tell("send 5").await;
    let mut source = Source::follow(publisher.source());
    // The history starts where the buffer does.
    source.expect("connecting resyncing 2 3 4 partial").await;
    publisher.tell("hold 10").await;
    publisher.tell("send 1").await;
    let before = source.until("gap").await;
    assert!(before.iter().all(|word| word == "resyncing"), "{before:?}");
    // Three are left of before the last one, or of before the one before it.
    let mut after = source.until("15").await;
    after.retain(|word| word != "resyncing" && word != "partial");
    assert!(after.join(" ").ends_with("13 14"), "{after:?}");
    let counts = source.counters.counts();
    assert!(counts.gaps >= 1 && counts.replays >= 2, "{counts:?}");
    assert_eq!((counts.restarts, counts.is_replay_answered.is_some()), (0, true));
}

#[tokio::test]
async fn without_replay_a_connection_behind_the_watermark_is_a_restart() {
    let Some(mut publisher) = Publisher::start(&["--no-replay"]).await else { return };
    publisher.tell("send 20").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting partial").await;
    let first: u64 = publisher.send_until_heard(&mut source).await.parse().expect("a batch");
    assert!(first >= 20);
    publisher.tell("restart").await;
    source.until("lost").await;
    source.until("partial").await;
    let word = publisher.send_until_heard(&mut source).await;
    assert_eq!(word, "restart");
    let next: u64 = source.next().await.parse().expect("a batch");
    assert!(next < first, "{next} after {first}");
    let counts = source.counters.counts();
    assert_eq!((counts.restarts, counts.replays, counts.is_replay_answered), (1, 0, None));
}

/// Forwards connections until told to fall silent; those it has then stay open and get nothing.
struct Proxy {
    port: u16,
    silence: watch::Sender<bool>,
    /// Pieces that came back from the publisher.
    pieces: watch::Receiver<u64>,
}

async fn proxy(to: u64) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let (silence, silent) = watch::channel(false);
    let (count, pieces) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.expect("accepts");
            let (mut silent, count) = (silent.clone(), count.clone());
            silent.mark_unchanged();
            tokio::spawn(async move {
                let far = TcpStream::connect(format!("127.0.0.1:{to}")).await;
                let (mut far_read, mut far_write) = far.expect("a publisher").into_split();
                let (mut near_read, mut near_write) = near.into_split();
                let back = async {
                    let mut piece = vec![0; 1 << 16];
                    loop {
                        let len = far_read.read(&mut piece).await.expect("a publisher");
                        near_write.write_all(&piece[..len]).await.expect("a follower");
                        count.send_modify(|count| *count += 1);
                    }
                };
                tokio::select! {
                    () = back => {}
                    _ = copy(&mut near_read, &mut far_write) => {}
                    _ = silent.changed() => std::future::pending().await,
                }
            });
        }
    });
    Proxy { port, silence, pieces }
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_and_replaced() {
    let Some(mut publisher) = Publisher::start(&["--no-replay"]).await else { return };
    publisher.tell("send 20").await;
    let mut proxy = proxy(publisher.pub_port).await;
    let endpoint = format!("tcp://127.0.0.1:{}", proxy.port);
    let mut source = Source::follow(SourceConfig { endpoint, ..publisher.source() });
    source.expect("connecting partial").await;
    publisher.send_until_heard(&mut source).await;
    // Idle, and not given up, because the heartbeat is answered.
    let before = *proxy.pieces.borrow_and_update();
    let answered = proxy.pieces.wait_for(|pieces| *pieces >= before + 3);
    in_time("heartbeat", answered).await.expect("a proxy");
    while source.has_news() {
        source.next().await.parse::<u64>().expect("a batch");
    }
    assert_eq!(source.counters.counts().connections_failed, 0);
    proxy.silence.send_replace(true);
    source.expect("lost connecting partial").await;
    publisher.send_until_heard(&mut source).await;
    assert_eq!(source.counters.counts().connections_failed, 1);
}

#[tokio::test]
async fn a_clear_is_known_when_the_engine_says_so_and_not_before() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 3").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing 0 1 2 live").await;
    // vLLM clears its cache on request and says so with the next step's batch, which may never
    // come. Asking, as a follower does in silence, brings nothing to light.
    let asked = publisher.tell("look").await["replays"].as_u64().expect("a count");
    let asked_again =
        async { while publisher.tell("look").await["replays"].as_u64() < Some(asked + 2) {} };
    in_time("replay", asked_again).await;
    assert!(!source.has_news());
    let mut payload = Vec::new();
    events(&mut payload, &["AllBlocksCleared"]);
    publisher.publish(&payload).await;
    let SourceUpdate::Batch { sequence: 3, batch, .. } = source.next_update().await else {
        panic!("no batch")
    };
    assert_eq!(batch.events, [KvEvent::AllBlocksCleared]);
}

#[tokio::test]
async fn duplicates_and_reordered_batches_are_delivered_once_and_in_order() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 5").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing 0 1 2 3 4 live").await;
    publisher.tell("send 1").await;
    source.batches(5, 5).await;
    publisher.tell("live 3 5 5 0").await;
    publisher.tell("hold 4").await;
    publisher.tell("live 8 7 9 6 6 9").await;
    publisher.tell("send 1").await;
    source.batches(6, 10).await;
    publisher.tell("send 1").await;
    source.batches(11, 11).await;
}

#[tokio::test]
async fn a_batch_of_garbage_costs_that_batch() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 2").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing 0 1 live").await;
    publisher.publish(b"\xff\x00garbage").await;
    publisher.tell("send 1").await;
    source.until("garbage:2").await;
    source.batches(3, 3).await;
}

#[tokio::test]
async fn messages_that_are_no_batches_are_counted() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 1").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing 0 live").await;
    publisher.tell("send 1").await;
    source.batches(1, 1).await;
    let topic = "6b7640"; // kv@
    // A topic alone, a short number, the end marker of a replay.
    publisher.tell(&format!("raw {topic}")).await;
    publisher.tell(&format!("raw {topic} 01 02")).await;
    publisher.tell(&format!("raw {topic} ffffffffffffffff 00")).await;
    publisher.tell("send 1").await;
    source.batches(2, 2).await;
    assert_eq!(source.counters.counts().not_batches, 3);
}

#[tokio::test]
async fn an_oversized_batch_is_passed_over_live_and_in_a_replay() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    publisher.tell("send 1").await;
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing 0 live").await;
    publisher.tell("send 1").await;
    source.batches(1, 1).await;
    publisher.tell("big 100000000").await;
    publisher.tell("send 2").await;
    source.until("large:2:100000000").await;
    source.batches(3, 4).await;
    assert_eq!(source.counters.counts().connections_failed, 0);
    let mut late = Source::follow(publisher.source());
    late.expect("connecting resyncing 0 1 large:2:100000000 3 4 live").await;
}

#[tokio::test]
async fn ten_thousand_events_in_one_batch_are_one_batch() {
    let Some(mut publisher) = Publisher::start(&[]).await else { return };
    let mut source = Source::follow(publisher.source());
    source.expect("connecting resyncing live").await;
    let mut payload = Vec::new();
    events(&mut payload, &["AllBlocksCleared"; 10_000]);
    publisher.publish(&payload).await;
    loop {
        if let SourceUpdate::Batch { batch, .. } = source.next_update().await {
            assert_eq!(batch.events.len(), 10_000);
            break;
        }
    }
}

/// A payload of events that have a tag and nothing else.
fn events(payload: &mut Vec<u8>, tags: &[&str]) {
    rmp::encode::write_array_len(payload, 2).expect("a vector");
    rmp::encode::write_f64(payload, 1.5).expect("a vector");
    rmp::encode::write_array_len(payload, tags.len() as u32).expect("a vector");
    for tag in tags {
        rmp::encode::write_array_len(payload, 1).expect("a vector");
        rmp::encode::write_str(payload, tag).expect("a vector");
    }
}

#[tokio::test]
async fn a_frame_without_end_is_left_and_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("tcp://{}", listener.local_addr().expect("a port"));
    let mut source =
        Source::follow(SourceConfig { endpoint, replay: None, topic: "".to_owned(), resume: None });
    for _ in 0..3 {
        let (mut peer, _) = listener.accept().await.expect("a follower");
        let mut greeting = [0; 64];
        greeting[0] = 0xff;
        greeting[9..16].copy_from_slice(b"\x7f\x03\x00NULL");
        peer.write_all(&greeting).await.expect("a follower");
        peer.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB").await.expect("a follower");
        // A message frame of 2^62 bytes.
        peer.write_all(b"\x02\x40\0\0\0\0\0\0\0").await.expect("a follower");
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).await.expect("closed by the follower");
    }
    source.expect("connecting partial lost connecting partial lost connecting partial lost").await;
    let counts = source.counters.counts();
    assert_eq!((counts.frames_too_large, counts.connections_failed), (3, 3));
}
