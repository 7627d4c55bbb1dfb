//! The private listener as a stranger meets it.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use testbed::{Stand, StandOptions};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::support::{COMPLETIONS, Protocol, cases, completion, prose, served, teach};
use crate::wire;

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_listener_refuses_what_is_no_batch_of_its_daemon() {
    let stand = Stand::start(StandOptions::default()).await.unwrap();
    cases!(stand;
        only_owner_and_group_may_connect,
        only_posts_to_feed_are_taken,
        garbage_is_refused_and_counted,
        a_batch_for_another_instance_is_told_the_held_head,
        the_daemon_feeds_on,
    );
}

fn socket(stand: &Stand) -> PathBuf {
    stand.folder.path().join("feed.sock")
}

/// Status and body of one exchange.
async fn exchange(stand: &Stand, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let run = async {
        let mut stream = UnixStream::connect(socket(stand)).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: feed\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        // An answer may come, and the connection close, before the body is written.
        let _ = stream.write_all(body).await;
        wire::h1_answer(stream).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), run).await.unwrap().unwrap();
    (answer.status.as_u16(), answer.body.to_vec())
}

async fn batches(stand: &Stand, outcome: &str) -> u64 {
    let name = format!("wasmcustom.wasm_epp_feed_batches_{outcome}_total");
    stand.envoy_stat(&name).await.unwrap()
}

async fn only_owner_and_group_may_connect(stand: Rc<Stand>) {
    let file = std::fs::metadata(socket(&stand)).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o660);
}

async fn only_posts_to_feed_are_taken(stand: Rc<Stand>) {
    let before = batches(&stand, "refused").await;
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(exchange(&stand, method, "/feed", b"").await.0, 405, "{method}");
    }
    for path in ["/", "/feed/", "/feeds", "/feed?x=1", "/v1/completions"] {
        assert_eq!(exchange(&stand, "POST", path, b"x").await.0, 404, "{path}");
    }
    assert_eq!(batches(&stand, "refused").await, before);
}

async fn garbage_is_refused_and_counted(stand: Rc<Stand>) {
    let before = batches(&stand, "refused").await;
    let mut lying = empty_batch(1, 1, 1);
    let count = lying.len() - 4;
    lying[count..].copy_from_slice(&60_000u32.to_le_bytes());
    let mut newer = empty_batch(1, 1, 1);
    newer[4] = 200;
    let long = vec![0xa5; 3 << 20];
    let garbage: [&[u8]; 6] = [b"", b"garbage", b"EPPB", &lying, &newer, &long];
    for body in garbage {
        let (status, ack) = exchange(&stand, "POST", "/feed", body).await;
        assert_eq!(status, 400, "{} bytes", body.len());
        assert_eq!(ack[..4], [b'A', 1, 0x90, 0x01], "an ack that says 400");
    }
    assert_eq!(batches(&stand, "refused").await, before + garbage.len() as u64);
}

/// A batch without entries: magic, version, flags, instance, epoch, sequence, count of entries.
fn empty_batch(instance: u64, epoch: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = b"EPPB\x01\x00".to_vec();
    for number in [instance, epoch, sequence] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes
}

/// An ack: kind, version, status, length of the head, then the head: kind, version, instance, epoch.
async fn a_batch_for_another_instance_is_told_the_held_head(stand: Rc<Stand>) {
    let before = batches(&stand, "conflict").await;
    let (status, ack) = exchange(&stand, "POST", "/feed", &empty_batch(1, u64::MAX, 1)).await;
    assert_eq!(status, 409);
    assert_eq!(ack[..4], [b'A', 1, 0x99, 0x01], "an ack that says 409");
    assert_eq!(ack[6..8], [b'H', 1]);
    let number = |at: usize| u64::from_le_bytes(ack[at..at + 8].try_into().unwrap());
    let gateway = stand.readyz().await.unwrap()["gateways"][0].clone();
    assert_eq!(gateway["instance"], format!("{:016x}", number(8)));
    assert_eq!(gateway["epoch"], number(16));
    assert!(batches(&stand, "conflict").await > before);
}

async fn the_daemon_feeds_on(stand: Rc<Stand>) {
    let body = completion(&prose("after all that", 1500));
    let holder = teach(&stand, &body).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_eq!(served(&stand, &answer, &body), holder);
}
