//! Peers that speak ZMTP 3.0: the `zeromq` crate, at both ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_events::{
    Directory, EventListener, ListenConfig, Resume, SourceConfig, SourceUpdate, Timing, Topic,
    follow,
};
use tokio::sync::mpsc;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

fn message(sequence: u64) -> ZmqMessage {
    let mut message = ZmqMessage::from(Bytes::from_static(b"kv@a@m"));
    message.push_back(Bytes::copy_from_slice(&sequence.to_be_bytes()));
    // `[1.5, [["AllBlocksCleared"]]]`
    message
        .push_back(Bytes::from_static(b"\x92\xcb\x3f\xf8\0\0\0\0\0\0\x91\x91\xb0AllBlocksCleared"));
    message
}

/// Publishes until a batch is received, which is when the subscription has taken effect.
async fn publish_until<T>(
    socket: &mut PubSocket,
    updates: &mut mpsc::Receiver<T>,
    is_batch: impl Fn(T) -> bool,
) {
    for sequence in 0..6000 {
        socket.send(message(sequence)).await.expect("sent");
        let wait = Duration::from_millis(10);
        while let Ok(update) = tokio::time::timeout(wait, updates.recv()).await {
            if is_batch(update.expect("a source")) {
                return;
            }
        }
    }
    panic!("no batch");
}

#[tokio::test]
async fn a_publisher_of_zmtp_3_0_is_followed() {
    for endpoint in ["tcp://127.0.0.1:0", "ipc"] {
        let folder = tempfile::tempdir().expect("a folder");
        let ipc = format!("ipc://{}/events", folder.path().display());
        let mut socket = PubSocket::new();
        let bound = socket.bind(if endpoint == "ipc" { &ipc } else { endpoint }).await;
        let endpoint = bound.expect("bound").to_string();
        let (sender, mut updates) = mpsc::channel(16);
        let config = SourceConfig { endpoint, replay: None, topic: "kv@".to_owned(), resume: None };
        tokio::spawn(follow(config, sender));
        publish_until(&mut socket, &mut updates, |update| {
            matches!(update, SourceUpdate::Batch { .. })
        })
        .await;
    }
}

/// Nothing is known of any publisher.
struct Nothing;

impl Directory for Nothing {
    fn replay(&self, _: &Topic) -> Option<String> {
        None
    }

    fn resume(&self, _: &Topic) -> Option<Resume> {
        None
    }
}

#[tokio::test]
async fn a_publisher_of_zmtp_3_0_may_connect() {
    let config = ListenConfig::new("tcp://127.0.0.1:0");
    let listener = EventListener::bind(config).await.expect("a port");
    let mut socket = PubSocket::new();
    let endpoint = listener.endpoint().to_owned();
    let (sender, mut updates) = mpsc::channel(16);
    tokio::spawn(listener.run(Timing::default(), Arc::default(), Arc::new(Nothing), sender));
    socket.connect(&endpoint).await.expect("connected");
    publish_until(&mut socket, &mut updates, |update| {
        assert_eq!(update.topic.to_string(), "kv@a@m");
        matches!(update.update, SourceUpdate::Batch { .. })
    })
    .await;
}
