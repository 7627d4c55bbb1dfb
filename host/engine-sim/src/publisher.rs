//! Batches of events on the wire: PUB `[topic, seq, payload]`, and a ROUTER that resends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::events::{KvEvent, encode_batch};
use crate::{ReplayFraming, SimConfig};

/// Sequence number of the message that ends a replay (vLLM's END_SEQ, -1 as eight bytes).
const END_SEQ: [u8; 8] = [0xff; 8];
/// How long one replayed message may wait for its reader before the replay is given up.
const REPLAY_SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// The last `buffer_steps` batches.
type Buffer = Arc<Mutex<VecDeque<(u64, Bytes)>>>;

/// The sockets, bound, and their tasks.
pub(crate) struct Publisher {
    pub(crate) events_endpoint: Option<String>,
    pub(crate) replay_endpoint: Option<String>,
    /// Batches to publish; closing it ends the publishing task.
    pub(crate) batches: mpsc::UnboundedSender<Vec<KvEvent>>,
    pub(crate) publishing: JoinHandle<()>,
    pub(crate) replaying: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Binds what the configuration asks for, but for the events if those are to connect.
    pub(crate) async fn start(config: &SimConfig, kv_events_connect: bool) -> Result<Publisher> {
        let buffer = Buffer::default();
        let mut publish = None;
        let mut events_endpoint = None;
        if let Some(endpoint) = &config.kv_events {
            let mut socket = PubSocket::new();
            if kv_events_connect {
                events_endpoint = Some(endpoint.clone());
            } else {
                let bound = socket.bind(endpoint).await;
                let bound = bound.with_context(|| format!("binding events endpoint {endpoint}"))?;
                events_endpoint = Some(bound.to_string());
            }
            publish = Some(socket);
        }
        let mut replaying = None;
        let mut replay_endpoint = None;
        if let Some(endpoint) = &config.replay {
            let mut socket = RouterSocket::new();
            let bound = socket.bind(endpoint).await;
            let bound = bound.with_context(|| format!("binding replay endpoint {endpoint}"))?;
            replay_endpoint = Some(bound.to_string());
            let framing = match config.replay_framing {
                ReplayFraming::WithTopic => Some(Bytes::from(config.topic.clone())),
                ReplayFraming::WithoutTopic => None,
            };
            replaying = Some(tokio::spawn(replay(socket, buffer.clone(), framing)));
        }
        let (batches, received) = mpsc::unbounded_channel();
        let connect_to = config.kv_events.clone().filter(|_| kv_events_connect);
        let publishing =
            tokio::spawn(publish_all(publish, connect_to, received, buffer, config.clone()));
        Ok(Publisher { events_endpoint, replay_endpoint, batches, publishing, replaying })
    }
}

async fn publish_all(
    mut socket: Option<PubSocket>,
    connect_to: Option<String>,
    mut batches: mpsc::UnboundedReceiver<Vec<KvEvent>>,
    buffer: Buffer,
    config: SimConfig,
) {
    let mut numbered = Numbered { buffer, seq: 0, config: &config };
    if let (Some(socket), Some(endpoint)) = (&mut socket, &connect_to) {
        let connect = connect(socket, endpoint);
        tokio::pin!(connect);
        loop {
            tokio::select! {
                () = &mut connect => break,
                // As with any publisher, what happens while nobody is connected goes unheard.
                batch = batches.recv() => match batch {
                    Some(events) => drop(numbered.next(&events)),
                    None => return,
                },
            }
        }
    }
    while let Some(events) = batches.recv().await {
        let Some(frames) = numbered.next(&events) else { continue };
        if let Some(socket) = &mut socket
            && let Err(error) = socket.send(message(frames)).await
        {
            tracing::warn!(%error, "publishing a batch");
        }
    }
    if let Some(mut socket) = socket {
        socket.unbind_all().await;
    }
}

/// Connects, however long the other end takes to be there. The socket reconnects by itself.
async fn connect(socket: &mut PubSocket, endpoint: &str) {
    while let Err(error) = socket.connect(endpoint).await {
        tracing::debug!(%error, endpoint, "nobody to publish to");
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

/// Gives batches their numbers and keeps them for replay.
struct Numbered<'a> {
    buffer: Buffer,
    seq: u64,
    config: &'a SimConfig,
}

impl Numbered<'_> {
    /// The frames of the next batch.
    fn next(&mut self, events: &[KvEvent]) -> Option<[Bytes; 3]> {
        let payload = match encode_batch(self.config.event_encoding, unix_seconds(), events) {
            Ok(payload) => Bytes::from(payload),
            Err(error) => {
                tracing::error!(%error, "encoding a batch of events");
                return None;
            }
        };
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.push_back((self.seq, payload.clone()));
        while buffer.len() > self.config.buffer_steps {
            buffer.pop_front();
        }
        let seq = Bytes::copy_from_slice(&self.seq.to_be_bytes());
        self.seq += 1;
        Some([Bytes::from(self.config.topic.clone()), seq, payload])
    }
}

/// Serves `["", start_seq]` requests, one after the other.
async fn replay(mut socket: RouterSocket, buffer: Buffer, topic: Option<Bytes>) {
    loop {
        let request = match socket.recv().await {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%error, "the replay socket ended");
                return;
            }
        };
        let (Some(peer), Some(start)) = (request.get(0).cloned(), start_seq(&request)) else {
            tracing::warn!(frames = request.len(), "ignoring a malformed replay request");
            continue;
        };
        let batches: Vec<(u64, Bytes)> = {
            let buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            buffer.iter().filter(|(seq, _)| *seq >= start).cloned().collect()
        };
        let replies = batches.into_iter().map(|(seq, payload)| {
            (topic.clone(), Bytes::copy_from_slice(&seq.to_be_bytes()), payload)
        });
        // The end marker has an empty topic.
        let end_topic = topic.as_ref().map(|_| Bytes::new());
        let end = (end_topic, Bytes::from_static(&END_SEQ), Bytes::new());
        for (topic, seq, payload) in replies.chain([end]) {
            let head = [peer.clone(), Bytes::new()];
            let frames = head.into_iter().chain(topic).chain([seq, payload]);
            match tokio::time::timeout(REPLAY_SEND_TIMEOUT, socket.send(message(frames))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the reader of a replay left");
                    break;
                }
                Err(_) => {
                    tracing::warn!("the reader of a replay does not read");
                    break;
                }
            }
        }
    }
}

/// `[identity, "", start_seq]`.
fn start_seq(request: &ZmqMessage) -> Option<u64> {
    (request.len() == 3 && request.get(1)?.is_empty()).then_some(())?;
    Some(u64::from_be_bytes(request.get(2)?.as_ref().try_into().ok()?))
}

fn message(frames: impl IntoIterator<Item = Bytes>) -> ZmqMessage {
    let mut frames = frames.into_iter();
    let mut message = ZmqMessage::from(frames.next().unwrap_or_default());
    frames.for_each(|frame| message.push_back(frame));
    message
}

/// Now, as Prometheus and vLLM write it.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
