//! One replay request and its answers.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::cursor::Message;
use crate::message::{END_OF_REPLAY, batch};
use crate::source::Timing;
use crate::zmtp::{Connection, Role, ZmtpError};

/// Answers read ahead of the one being applied. With the limit of a message this bounds what a
/// replay holds; ordinary batches are a few kilobytes.
const READ_AHEAD: usize = 8;

pub(crate) enum ReplayEvent {
    Message(Message),
    /// The end marker.
    End,
    /// No connection, or no answer in time.
    Failed,
}

/// A replay in progress, on a connection of its own: answers to an earlier request cannot be
/// mistaken for this one's. Dropping it closes the connection.
pub(crate) struct Replay {
    events: mpsc::Receiver<ReplayEvent>,
    task: JoinHandle<()>,
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Replay {
    pub(crate) fn start(endpoint: &str, from: u64, timing: Timing) -> Self {
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
    pub(crate) async fn next(&mut self) -> ReplayEvent {
        self.events.recv().await.unwrap_or(ReplayEvent::Failed)
    }
}

async fn ask(
    endpoint: &str,
    from: u64,
    timing: Timing,
    events: &mpsc::Sender<ReplayEvent>,
) -> Result<ReplayEvent, ZmtpError> {
    let mut socket = connect(endpoint, timing).await?;
    // The delimiter makes a DEALER look like the REQ that the ROUTER was written for.
    socket.send(&[b"", &from.to_be_bytes()]);
    while let Ok(frames) = timeout(timing.replay_silence, socket.recv()).await {
        match batch(&frames?, Instant::now()) {
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

/// Pause before a refused connection is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// An engine that starts binds its replay socket after the other one, so that a refusal is not
/// the last word.
async fn connect(endpoint: &str, timing: Timing) -> Result<Connection, ZmtpError> {
    let until = Instant::now() + timing.connect;
    loop {
        match Connection::connect(endpoint, Role::Dealer, timing.connect, timing.silence).await {
            Err(ZmtpError::Io(_)) if Instant::now() + RETRY < until => sleep(RETRY).await,
            result => return result,
        }
    }
}
