//! The loop that feeds one gateway.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use feed::{
    AccuracyReport, Ack, AckStatus, BatchBuilder, BatchHeader, Cell, Counters, Head, WorkerRow,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::connection::{ConnectError, Connection, Target};
use crate::session::{Fill, Next, Session, StateSource};

/// Values in a batch. It holds one gateway worker for its application; 500 values take about 0.3 ms.
const ENTRIES: u32 = 500;
/// Values in a batch while more waits than the gateway takes in by smaller ones: each has its turn of
/// the connection, which costs more than applying 500 values does.
const MOST_ENTRIES: u32 = 4 * ENTRIES;
const MAX_BYTES: usize = 1 << 20;
/// A fresh connection this often.
const ROTATE: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
/// Pause after a failure, so that a gateway that is down costs nothing.
const RETRY: Duration = Duration::from_millis(200);
/// A standby takes over when the gateway's last batch is older than this: three heartbeats missed.
const TAKEOVER: Duration = Duration::from_secs(3);

/// How it stands with one gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PushState {
    /// No feed listener answers.
    #[default]
    Disconnected,
    /// A snapshot is on its way.
    Snapshot,
    /// The gateway holds everything and gets what changes.
    Live,
    /// Another daemon feeds it.
    Standby,
    /// It does not read our batches: feeder and daemon are of different formats, or its proxy
    /// refuses what the feeder asks of it.
    Refused,
}

impl PushState {
    /// For status pages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Snapshot => "snapshot",
            Self::Live => "live",
            Self::Standby => "standby",
            Self::Refused => "refused",
        }
    }
}

/// What is known of one gateway.
#[derive(Clone, Debug, Default)]
pub struct GatewayStatus {
    /// How it stands.
    pub state: PushState,
    /// Head of the last ack.
    pub head: Head,
    /// Router VMs of the last ack.
    pub rows: Vec<WorkerRow>,
    /// What the gateway had in flight at the last ack.
    pub reservations: Vec<Cell>,
    /// Gateway's clock at the last ack, to age the rows' beats.
    pub gateway_now_ns: u64,
    /// When the last ack came; `None` before the first.
    pub last_ack: Option<Instant>,
    /// How right the predictions of the epoch we feed were, by the last look; empty where nothing
    /// measures, and of a gateway that another daemon feeds, whose slots are not ours.
    pub accuracy: AccuracyReport,
    /// Counters of the feeder that answered last.
    pub feeder: Counters,
    /// Batches, values and bytes acked.
    pub batches: u64,
    /// Values acked.
    pub entries: u64,
    /// Bytes acked.
    pub bytes: u64,
    /// Snapshots begun.
    pub snapshots: u64,
    /// Posts without an ack, refusals included.
    pub failures: u64,
    /// Why the last post failed; cleared by a good one.
    pub last_error: Option<String>,
    /// A batch is being filled or waits for its ack.
    pub in_flight: bool,
}

/// What a pusher needs.
pub struct PusherConfig {
    /// Name in logs and status.
    pub name: String,
    /// Where its feed listener is.
    pub target: Target,
    /// Told when something changed.
    pub changed: Arc<Notify>,
    /// Longest silence towards the gateway: an empty batch asks for an ack. The heartbeat of every
    /// second goes out all the same.
    pub poll: Duration,
    /// True while this daemon hears none of what it tells gateways: it leaves them to another, as one
    /// that stands by does.
    pub aside: watch::Receiver<bool>,
    /// True when the daemon stops: what is left is pushed once, then the pusher ends.
    pub stop: watch::Receiver<bool>,
}

/// Feeds one gateway until stopped.
pub struct Pusher<S> {
    config: PusherConfig,
    source: S,
    status: Arc<Mutex<GatewayStatus>>,
    session: Option<Session>,
    standby_since: Option<Instant>,
    /// Values in the next batch.
    max_entries: u32,
}

enum Ended {
    Rotate,
    Failed,
    Stopped,
}

impl<S: StateSource> Pusher<S> {
    /// A pusher; [`Self::run`] starts it.
    pub fn new(config: PusherConfig, source: S) -> Self {
        Self {
            config,
            source,
            status: Arc::default(),
            session: None,
            standby_since: None,
            max_entries: ENTRIES,
        }
    }

    /// Its status, shared.
    pub fn status(&self) -> Arc<Mutex<GatewayStatus>> {
        Arc::clone(&self.status)
    }

    /// Runs until stopped.
    pub async fn run(mut self) {
        loop {
            let ended = match Connection::open(&self.config.target, ANSWER).await {
                Ok(mut connection) => self.feed(&mut connection).await,
                Err(err) => {
                    self.failed(&err);
                    Ended::Failed
                }
            };
            match ended {
                Ended::Rotate => {}
                Ended::Stopped => return,
                Ended::Failed => {
                    if *self.config.stop.borrow() {
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        _ = self.config.stop.changed() => {}
                    }
                }
            }
        }
    }

    /// Feeds over one connection until it is time for a fresh one.
    async fn feed(&mut self, connection: &mut Connection) -> Ended {
        let rotate_at = Instant::now() + ROTATE;
        if *self.config.aside.borrow() && self.session.take().is_some() {
            tracing::warn!(gateway = self.config.name, "leaving the gateway to another daemon");
            self.standby_since = Some(Instant::now());
        }
        if self.session.is_none() && !self.hello(connection).await {
            return Ended::Failed;
        }
        if !self.look_at_accuracy(connection).await {
            return Ended::Failed;
        }
        if self.session.is_none() {
            // Standby: look again at the next rotation.
            tokio::select! {
                () = sleep_until(rotate_at) => return Ended::Rotate,
                _ = self.config.stop.changed() => return Ended::Stopped,
            }
        }
        // The first batch goes out even if empty: it is the heartbeat.
        loop {
            let changed = Arc::clone(&self.config.changed);
            let notified = changed.notified();
            match self.push(connection).await {
                // Also where there is no end of it, or a hot restart would not be found.
                Some(Fill::More | Fill::Newer) if Instant::now() >= rotate_at => {
                    return Ended::Rotate;
                }
                Some(Fill::More | Fill::Newer) => continue,
                Some(Fill::Drained) => {}
                None => return Ended::Failed,
            }
            if self.session.is_none() {
                return Ended::Rotate;
            }
            if *self.config.stop.borrow() {
                return Ended::Stopped;
            }
            tokio::select! {
                () = notified => {}
                () = sleep_until(rotate_at) => return Ended::Rotate,
                () = tokio::time::sleep(self.config.poll) => {}
                _ = self.config.stop.changed() => {}
            }
            if Instant::now() >= rotate_at {
                return Ended::Rotate;
            }
        }
    }

    /// Asks for the held head and claims it, unless another daemon feeds this gateway. False when
    /// there was no answer.
    async fn hello(&mut self, connection: &mut Connection) -> bool {
        let ask = BatchBuilder::new(BatchHeader { sequence: 1, ..BatchHeader::default() });
        let ack = match connection.post(ask.finish(), ANSWER).await {
            Ok(ack) => ack,
            Err(err) => {
                self.failed(&err);
                return false;
            }
        };
        self.note(&ack);
        if matches!(ack.status, AckStatus::Refused | AckStatus::Failed) {
            self.refused(&ack.reason);
            return false;
        }
        if *self.config.aside.borrow() {
            self.standby_since.get_or_insert_with(Instant::now);
            self.set_state(PushState::Standby);
            return true;
        }
        if let Some(since) = self.standby_since {
            let age = Duration::from_nanos(ack.now_ns.saturating_sub(ack.head.stamp_ns));
            let is_fed = ack.head.epoch > 0 && age < TAKEOVER;
            if is_fed || since.elapsed() < TAKEOVER {
                self.set_state(PushState::Standby);
                return true;
            }
        }
        self.standby_since = None;
        let session = Session::claim(&ack.head, unix_ms());
        tracing::info!(
            gateway = self.config.name,
            instance = session.instance,
            epoch = session.epoch,
            "sending a snapshot"
        );
        self.session = Some(session);
        self.source.begin_snapshot();
        self.with_status(|status| {
            status.state = PushState::Snapshot;
            status.snapshots += 1;
        });
        true
    }

    /// Asks once per connection, so once a second, how right the predictions were. False when the
    /// connection is of no more use.
    async fn look_at_accuracy(&self, connection: &mut Connection) -> bool {
        let epoch = self.session.as_ref().filter(|session| session.is_complete).map(|s| s.epoch);
        match connection.accuracy(ANSWER).await {
            Ok(mut report) => {
                report.scopes.retain(|(_, accuracy)| Some(accuracy.epoch) == epoch);
                self.with_status(|status| status.accuracy = report);
                true
            }
            // The answer came, so the connection is good; what it says cannot be read.
            Err(ConnectError::Ack(_)) => true,
            Err(err) => {
                self.failed(&err);
                false
            }
        }
    }

    /// Posts one batch. `None` when there is no ack.
    async fn push(&mut self, connection: &mut Connection) -> Option<Fill> {
        self.with_status(|status| status.in_flight = true);
        let fill = self.exchange(connection).await;
        self.with_status(|status| status.in_flight = false);
        fill
    }

    async fn exchange(&mut self, connection: &mut Connection) -> Option<Fill> {
        let Some(session) = &mut self.session else { return Some(Fill::Drained) };
        // A snapshot is complete with the batch that has the last of it; whether this one does is known
        // only after filling, so the header is written last.
        let mut batch = BatchBuilder::new(session.next_header(false));
        let fill = self.source.fill(session.epoch, &mut batch, MAX_BYTES, self.max_entries);
        self.max_entries = match fill {
            Fill::Drained => ENTRIES,
            Fill::More | Fill::Newer => MOST_ENTRIES.min(self.max_entries * 2),
        };
        let completes = fill != Fill::More && !session.is_complete;
        let (entries, bytes) = (u64::from(batch.count()), batch.len_bytes() as u64);
        let body = if completes { batch.finish_completing() } else { batch.finish() };
        let ack = match connection.post(body, ANSWER).await {
            Ok(ack) => ack,
            Err(err) => {
                self.source.unknown();
                self.failed(&err);
                return None;
            }
        };
        let next = session.observe(&ack, completes);
        let is_complete = session.is_complete;
        self.note(&ack);
        match next {
            Next::Go => {
                self.source.applied();
                self.with_status(|status| {
                    status.batches += 1;
                    status.entries += entries;
                    status.bytes += bytes;
                    status.last_error = None;
                });
                if is_complete {
                    self.set_state(PushState::Live);
                }
                Some(fill)
            }
            Next::Resend => {
                self.source.unknown();
                Some(Fill::More)
            }
            Next::StartOver => {
                tracing::info!(
                    gateway = self.config.name,
                    "starting over: another process, or claimed by another daemon"
                );
                self.source.unknown();
                self.session = None;
                Some(Fill::Drained)
            }
            Next::Superseded => {
                tracing::warn!(
                    gateway = self.config.name,
                    epoch = ack.head.epoch,
                    "another daemon feeds this gateway"
                );
                self.source.unknown();
                self.session = None;
                self.standby_since = Some(Instant::now());
                self.set_state(PushState::Standby);
                Some(Fill::Drained)
            }
            Next::Refused => {
                self.source.unknown();
                self.refused(&ack.reason);
                None
            }
        }
    }

    fn note(&mut self, ack: &Ack) {
        self.source.acked(ack);
        self.with_status(|status| {
            status.head = ack.head;
            status.rows.clone_from(&ack.rows);
            status.reservations.clone_from(&ack.in_flight);
            status.gateway_now_ns = ack.now_ns;
            status.last_ack = Some(Instant::now());
            status.feeder = ack.counters;
        });
    }

    fn failed(&self, err: &ConnectError) {
        let mut text = err.to_string();
        let mut source = std::error::Error::source(err);
        while let Some(err) = source {
            text.push_str(&format!(": {err}"));
            source = err.source();
        }
        let state = match err {
            ConnectError::Format { .. } => PushState::Refused,
            _ => PushState::Disconnected,
        };
        self.not_fed(state, text);
    }

    fn refused(&self, reason: &str) {
        self.not_fed(PushState::Refused, format!("the gateway refused a batch: {reason}"));
    }

    fn not_fed(&self, state: PushState, error: String) {
        let is_news = self.with_status(|status| {
            status.state = state;
            status.failures += 1;
            status.last_error.replace(error.clone()) != Some(error.clone())
        });
        if is_news {
            tracing::warn!(gateway = self.config.name, target = %self.config.target, error, "cannot feed the gateway");
        }
    }

    fn set_state(&self, state: PushState) {
        self.with_status(|status| status.state = state);
    }

    fn with_status<T>(&self, change: impl FnOnce(&mut GatewayStatus) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn unix_ms() -> u64 {
    // An epoch only has to grow, and does so by the held head if the clock does not.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests;
