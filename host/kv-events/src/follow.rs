//! The sockets of one publisher. The only module that knows ZMQ.
//!
//! What the `zeromq` crate (0.7) does not do, and who does it here: its own reconnection backs off
//! to 30 s and is not configurable, so a subscription that ends is dropped and rebuilt; it has no
//! keepalive or heartbeat, so silence is answered by a replay request; a refused connection is
//! retried inside `connect` until the timeout, so the timeout is short.

use std::time::Duration;

use bytes::Bytes;
use futures_channel::mpsc::Receiver as Monitor;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use zeromq::{Socket, SocketEvent, SocketOptions, SocketRecv, SubSocket, ZmqError};

use crate::cursor::{Action, Cursor, Message, ResetReason, SourceState};
use crate::decode::{DecodeError, decode};
use crate::event::EventBatch;

mod replay;

use replay::{Replay, ReplayEvent};

/// One publisher: an engine, or one data-parallel rank of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceConfig {
    /// `tcp://ip:port` of the PUB socket.
    pub endpoint: String,
    /// `tcp://ip:port` of the replay (ROUTER) socket, if the engine has one.
    pub replay: Option<String>,
    /// Prefix of the topics to subscribe to; empty for all.
    pub topic: String,
}

/// What happened at a source.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceUpdate {
    /// A batch, in sequence order, without holes since the last [`Reset`](Self::Reset).
    Batch {
        /// Number of the batch within the engine's run.
        sequence: u64,
        /// The events.
        batch: EventBatch,
        /// When the message was received, replayed ones included.
        received_at: Instant,
    },
    /// Everything known of this source is void. What follows starts over.
    Reset {
        /// Why.
        reason: ResetReason,
    },
    /// The source changed its state.
    State(SourceState),
    /// The batch in this place of the sequence could not be decoded; its events are lost.
    Undecodable {
        /// Number of the batch.
        sequence: u64,
        /// What is wrong with it.
        error: DecodeError,
    },
}

/// Timeouts of [`follow_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For a connection to be made. A refused one is retried within.
    pub connect: Duration,
    /// Between two answers of a replay. vLLM serves replays between two batches, which takes up
    /// to 100 ms.
    pub replay_silence: Duration,
    /// Without a live message before the source is asked whether it is still the same. Right
    /// after (re)connecting a tenth of it, because batches published before the subscription
    /// took effect are missing without a sign.
    pub silence: Duration,
    /// Longest pause between two attempts to connect.
    pub max_backoff: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            replay_silence: Duration::from_secs(2),
            silence: Duration::from_secs(5),
            max_backoff: Duration::from_secs(5),
        }
    }
}

/// First pause between two attempts to connect.
const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// Follows a publisher until the receiver of `updates` is dropped.
///
/// Waits when `updates` is full, which lets the messages queue up at the engine; what the engine
/// then drops is replayed.
pub async fn follow(config: SourceConfig, updates: mpsc::Sender<SourceUpdate>) {
    follow_with(config, Timing::default(), updates).await;
}

/// [`follow`] with other timeouts.
pub async fn follow_with(
    config: SourceConfig,
    timing: Timing,
    updates: mpsc::Sender<SourceUpdate>,
) {
    let closed = updates.clone();
    tokio::select! {
        Err(Closed) = run(&config, timing, &updates) => {}
        () = closed.closed() => {}
    }
}

/// Nobody listens any more.
struct Closed;

enum Never {}

async fn run(
    config: &SourceConfig,
    timing: Timing,
    updates: &mpsc::Sender<SourceUpdate>,
) -> Result<Never, Closed> {
    let mut cursor = Cursor::new(config.replay.is_some());
    let mut backoff = MIN_BACKOFF;
    send(updates, SourceUpdate::State(SourceState::Connecting)).await?;
    loop {
        cursor.connecting();
        pass_on(&mut cursor, updates).await?;
        match subscribe(config, timing).await {
            Ok(subscription) => {
                backoff = MIN_BACKOFF;
                session(config, timing, subscription, &mut cursor, updates).await?;
            }
            Err(error) => {
                tracing::debug!(endpoint = config.endpoint, %error, "cannot subscribe");
            }
        }
        cursor.disconnected();
        pass_on(&mut cursor, updates).await?;
        sleep(backoff).await;
        backoff = (backoff * 2).min(timing.max_backoff);
    }
}

/// A connected subscription.
struct Subscription {
    socket: SubSocket,
    monitor: Monitor<SocketEvent>,
}

impl Subscription {
    /// The next message; `None` when the connection is gone.
    async fn next(&mut self) -> Option<Result<zeromq::ZmqMessage, ZmqError>> {
        tokio::select! {
            received = self.socket.recv() => Some(received),
            () = disconnected(&mut self.monitor) => None,
        }
    }
}

/// `recv` never tells: it waits for the crate to reconnect.
async fn disconnected(monitor: &mut Monitor<SocketEvent>) {
    // A closed monitor is a dropped socket.
    while let Ok(event) = monitor.recv().await {
        if matches!(event, SocketEvent::Disconnected(_)) {
            return;
        }
    }
}

async fn subscribe(config: &SourceConfig, timing: Timing) -> Result<Subscription, ZmqError> {
    let mut options = SocketOptions::default();
    options.connect_timeout(timing.connect);
    let mut socket = SubSocket::with_options(options);
    let monitor = socket.monitor();
    socket.subscribe(&config.topic).await?;
    socket.connect(&config.endpoint).await?;
    Ok(Subscription { socket, monitor })
}

/// One connection, from the subscription to its end.
async fn session(
    config: &SourceConfig,
    timing: Timing,
    mut subscription: Subscription,
    cursor: &mut Cursor,
    updates: &mpsc::Sender<SourceUpdate>,
) -> Result<(), Closed> {
    let mut replay: Option<Replay> = None;
    let mut probe_at = Instant::now() + timing.silence / 10;
    cursor.connected();
    loop {
        while let Some(action) = cursor.next_action() {
            match action {
                Action::Replay { from } => {
                    let endpoint = config.replay.as_deref().unwrap_or_default();
                    replay = Some(Replay::start(endpoint, from, timing));
                }
                Action::Reconnect => {
                    tracing::debug!(endpoint = config.endpoint, "subscription is dead");
                    return Ok(());
                }
                action => deliver(updates, action).await?,
            }
        }
        tokio::select! {
            received = subscription.next() => match received {
                Some(Ok(frames)) => {
                    probe_at = Instant::now() + timing.silence;
                    match message(&frames) {
                        Some(message) => cursor.live(message),
                        None => tracing::debug!(endpoint = config.endpoint, "not a batch"),
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(endpoint = config.endpoint, %error, "subscription failed");
                    return Ok(());
                }
                None => return Ok(()),
            },
            event = next(&mut replay) => {
                // Silence counts from the end of a replay.
                probe_at = probe_at.max(Instant::now() + timing.silence / 10);
                match event {
                    ReplayEvent::Message(message) => cursor.replayed(message),
                    ReplayEvent::End => {
                        replay = None;
                        cursor.replay_ended();
                    }
                    ReplayEvent::Failed => {
                        replay = None;
                        cursor.replay_failed();
                    }
                }
            }
            () = sleep_until(probe_at) => {
                probe_at = Instant::now() + timing.silence;
                cursor.silent();
            }
        }
    }
}

async fn next(replay: &mut Option<Replay>) -> ReplayEvent {
    match replay {
        Some(replay) => replay.next().await,
        None => std::future::pending().await,
    }
}

/// Passes on what needs no connection.
async fn pass_on(cursor: &mut Cursor, updates: &mpsc::Sender<SourceUpdate>) -> Result<(), Closed> {
    while let Some(action) = cursor.next_action() {
        deliver(updates, action).await?;
    }
    Ok(())
}

async fn deliver(updates: &mpsc::Sender<SourceUpdate>, action: Action) -> Result<(), Closed> {
    let update = match action {
        Action::Deliver(Message { sequence, payload, received_at }) => match decode(&payload) {
            Ok(batch) => SourceUpdate::Batch { sequence, batch, received_at },
            Err(error) => SourceUpdate::Undecodable { sequence, error },
        },
        Action::Reset(reason) => SourceUpdate::Reset { reason },
        Action::State(state) => SourceUpdate::State(state),
        Action::Replay { .. } | Action::Reconnect => return Ok(()),
    };
    send(updates, update).await
}

async fn send(updates: &mpsc::Sender<SourceUpdate>, update: SourceUpdate) -> Result<(), Closed> {
    updates.send(update).await.map_err(|_| Closed)
}

/// Sequence number that marks the end of a replay.
const END_OF_REPLAY: u64 = u64::MAX;

/// The last two frames are the sequence number and the payload, live and replayed; what is
/// before them (topic, delimiter) differs between releases.
fn message(frames: &zeromq::ZmqMessage) -> Option<Message> {
    let message = sequence_and_payload(frames)?;
    (message.sequence != END_OF_REPLAY).then_some(message)
}

fn sequence_and_payload(frames: &zeromq::ZmqMessage) -> Option<Message> {
    let last = frames.len().checked_sub(1)?;
    let sequence: &Bytes = frames.get(last.checked_sub(1)?)?;
    let sequence = u64::from_be_bytes(sequence.as_ref().try_into().ok()?);
    let payload = frames.get(last)?.clone();
    Some(Message { sequence, payload, received_at: Instant::now() })
}
