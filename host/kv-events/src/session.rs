//! One connection's worth of a source: live messages and replays into a cursor, its actions out.

use std::future::Future;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::cursor::{Action, Cursor, Message};
use crate::raw::RawUpdate;
use crate::replay::{Replay, ReplayEvent};
use crate::source::{Counters, SourceUpdate, Timing};

/// Where live messages come from.
pub(crate) trait Live {
    /// The next message; `None` when the connection is gone. Can be dropped and called again.
    fn next(&mut self) -> impl Future<Output = Option<Message>> + Send;
}

/// Nobody listens to the updates any more.
#[derive(Debug)]
pub(crate) struct Closed;

/// What the updates of a source are sent to.
pub(crate) trait Updates {
    /// Waits for room.
    fn send(&self, update: RawUpdate) -> impl Future<Output = Result<(), Closed>> + Send;
}

impl Updates for mpsc::Sender<SourceUpdate> {
    async fn send(&self, update: RawUpdate) -> Result<(), Closed> {
        mpsc::Sender::send(self, update.decode()).await.map_err(|_| Closed)
    }
}

impl Updates for mpsc::Sender<RawUpdate> {
    async fn send(&self, update: RawUpdate) -> Result<(), Closed> {
        mpsc::Sender::send(self, update).await.map_err(|_| Closed)
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The connection is gone.
    Lost,
    /// The connection is dead although nothing says so.
    Dead,
}

/// From the subscription to the end of the connection. Says as well whether a message came. What
/// the cursor counts goes to the counters beside it.
pub(crate) async fn session(
    live: &mut (impl Live + Send),
    replay_endpoint: Option<&str>,
    timing: Timing,
    (cursor, counters): (&mut Cursor, &Counters),
    updates: &(impl Updates + Sync),
) -> Result<(End, bool), Closed> {
    let mut replay: Option<Replay> = None;
    let mut heard = false;
    let mut probe_at = Instant::now() + timing.silence / 10;
    cursor.connected();
    loop {
        counters.add_cursor(&cursor.take_counts());
        while let Some(action) = cursor.next_action() {
            match action {
                Action::Replay { from } => {
                    let endpoint = replay_endpoint.unwrap_or_default();
                    replay = Some(Replay::start(endpoint, from, timing));
                }
                Action::Reconnect => return Ok((End::Dead, heard)),
                action => deliver(cursor, updates, action).await?,
            }
        }
        tokio::select! {
            message = live.next() => match message {
                Some(message) => {
                    heard = true;
                    probe_at = Instant::now() + timing.silence;
                    cursor.live(message);
                }
                None => return Ok((End::Lost, heard)),
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
pub(crate) async fn pass_on(
    cursor: &mut Cursor,
    counters: &Counters,
    updates: &(impl Updates + Sync),
) -> Result<(), Closed> {
    counters.add_cursor(&cursor.take_counts());
    while let Some(action) = cursor.next_action() {
        deliver(cursor, updates, action).await?;
    }
    Ok(())
}

async fn deliver(
    cursor: &Cursor,
    updates: &(impl Updates + Sync),
    action: Action,
) -> Result<(), Closed> {
    let update = match action {
        Action::Deliver(message) => {
            RawUpdate::Batch { message, state: cursor.state(), is_partial: cursor.is_partial() }
        }
        Action::Reset(reason) => RawUpdate::Reset { reason },
        Action::State(state) => RawUpdate::State(state),
        Action::Replay { .. } | Action::Reconnect => return Ok(()),
    };
    updates.send(update).await
}
