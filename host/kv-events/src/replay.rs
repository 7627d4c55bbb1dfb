//! One replay request and its answers.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend, ZmqError, ZmqMessage};

use super::{END_OF_REPLAY, Timing, sequence_and_payload};
use crate::cursor::Message;

/// Answers read ahead of the one being applied.
const READ_AHEAD: usize = 64;

pub(super) enum ReplayEvent {
    Message(Message),
    /// The end marker.
    End,
    /// No connection, or no answer in time.
    Failed,
}

/// A replay in progress, on a connection of its own: answers to an earlier request cannot be
/// mistaken for this one's. Dropping it closes the connection.
pub(super) struct Replay {
    events: mpsc::Receiver<ReplayEvent>,
    task: JoinHandle<()>,
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Replay {
    pub(super) fn start(endpoint: &str, from: u64, timing: Timing) -> Self {
        let (sender, events) = mpsc::channel(READ_AHEAD);
        let endpoint = endpoint.to_owned();
        let task = tokio::spawn(async move {
            let event = match ask(&endpoint, from, timing, &sender).await {
                Ok(event) => event,
                Err(error) => {
                    tracing::debug!(endpoint, %error, "replay failed");
                    ReplayEvent::Failed
                }
            };
            // Nobody listens to a replay that was dropped.
            let _ = sender.send(event).await;
        });
        Self { events, task }
    }

    /// Waits for the next event; the last one is `End` or `Failed`.
    pub(super) async fn next(&mut self) -> ReplayEvent {
        self.events.recv().await.unwrap_or(ReplayEvent::Failed)
    }
}

async fn ask(
    endpoint: &str,
    from: u64,
    timing: Timing,
    events: &mpsc::Sender<ReplayEvent>,
) -> Result<ReplayEvent, ZmqError> {
    let mut options = SocketOptions::default();
    options.connect_timeout(timing.connect);
    let mut socket = DealerSocket::with_options(options);
    socket.connect(endpoint).await?;
    // The delimiter makes a DEALER look like the REQ that the ROUTER was written for.
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
    socket.send(request).await?;
    while let Ok(frames) = timeout(timing.replay_silence, socket.recv()).await {
        match sequence_and_payload(&frames?) {
            Some(message) if message.sequence == END_OF_REPLAY => return Ok(ReplayEvent::End),
            Some(message) => {
                if events.send(ReplayEvent::Message(message)).await.is_err() {
                    break;
                }
            }
            None => tracing::debug!(endpoint, "not a replayed batch"),
        }
    }
    Ok(ReplayEvent::Failed)
}
