//! Following one publisher that listens: connect, read, connect again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::cursor::{Cursor, Message, Resume, SourceState};
use crate::message;
use crate::raw::RawUpdate;
use crate::session::{Closed, Live, Updates, pass_on, session};
use crate::source::{Count, Counters, SourceUpdate, Timing};
use crate::zmtp::{Connection, Role, ZmtpError};

/// One publisher: an engine, or one data-parallel rank of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// `tcp://HOST:PORT` or `ipc://PATH` of the PUB socket.
    pub endpoint: String,
    /// The same of the replay (ROUTER) socket, if the engine has one.
    pub replay: Option<String>,
    /// Prefix of the topics to subscribe to; empty for all.
    pub topic: String,
    /// Where to take it up; `None` to start from its history.
    pub resume: Option<Resume>,
}

/// First pause between two attempts to connect.
const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// Follows a publisher until the receiver of `updates` is dropped.
///
/// Waits when `updates` is full, which lets the messages queue up at the engine; what the engine
/// then drops is replayed.
pub async fn follow(config: SourceConfig, updates: mpsc::Sender<SourceUpdate>) {
    follow_with(config, Timing::default(), Arc::default(), updates).await;
}

/// [`follow`] with other timeouts, counting what goes wrong.
pub async fn follow_with(
    config: SourceConfig,
    timing: Timing,
    counters: Arc<Counters>,
    updates: mpsc::Sender<SourceUpdate>,
) {
    tokio::select! {
        Err(Closed) = run(&config, timing, &counters, &updates) => {}
        () = updates.closed() => {}
    }
}

/// [`follow_with`] for batches as the engine wrote them.
pub async fn follow_raw(
    config: SourceConfig,
    timing: Timing,
    counters: Arc<Counters>,
    updates: mpsc::Sender<RawUpdate>,
) {
    tokio::select! {
        Err(Closed) = run(&config, timing, &counters, &updates) => {}
        () = updates.closed() => {}
    }
}

enum Never {}

async fn run(
    config: &SourceConfig,
    timing: Timing,
    counters: &Counters,
    updates: &(impl Updates + Sync),
) -> Result<Never, Closed> {
    let mut cursor = match config.resume {
        Some(resume) => Cursor::resume(config.replay.is_some(), resume),
        None => Cursor::new(config.replay.is_some()),
    };
    let mut backoff = MIN_BACKOFF;
    updates.send(RawUpdate::State(SourceState::Connecting)).await?;
    loop {
        cursor.connecting();
        pass_on(&mut cursor, counters, updates).await?;
        match subscribe(config, timing).await {
            Ok(connection) => {
                let mut live = Subscription { connection, config, counters };
                let replay = config.replay.as_deref();
                let counted = (&mut cursor, counters);
                let (end, heard) = session(&mut live, replay, timing, counted, updates).await?;
                tracing::debug!(endpoint = config.endpoint, ?end, "subscription ended");
                // A peer that only ever shakes hands is asked less and less often.
                if heard {
                    backoff = MIN_BACKOFF;
                }
            }
            Err(error) => failed(counters, &config.endpoint, &error),
        }
        cursor.disconnected();
        pass_on(&mut cursor, counters, updates).await?;
        sleep(backoff).await;
        backoff = (backoff * 2).min(timing.max_backoff);
    }
}

async fn subscribe(config: &SourceConfig, timing: Timing) -> Result<Connection, ZmtpError> {
    let mut connection =
        Connection::connect(&config.endpoint, Role::Sub, timing.connect, timing.silence).await?;
    connection.subscribe(&config.topic);
    Ok(connection)
}

struct Subscription<'a> {
    connection: Connection,
    config: &'a SourceConfig,
    counters: &'a Counters,
}

impl Live for Subscription<'_> {
    async fn next(&mut self) -> Option<Message> {
        loop {
            match self.connection.recv().await {
                Ok(frames) => match message::live(&frames, Instant::now()) {
                    Some(message) => return Some(message),
                    None => self.counters.add(Count::NotABatch),
                },
                Err(error) => {
                    failed(self.counters, &self.config.endpoint, &error);
                    return None;
                }
            }
        }
    }
}

/// Counts and logs the end of a connection.
pub(crate) fn failed(counters: &Counters, endpoint: &str, error: &ZmtpError) {
    counters.add(Count::ConnectionFailed);
    if error.is_oversized() {
        counters.add(Count::FrameTooLarge);
        tracing::warn!(endpoint, %error, "publisher is left");
    } else {
        tracing::debug!(endpoint, %error, "no connection to a publisher");
    }
}
