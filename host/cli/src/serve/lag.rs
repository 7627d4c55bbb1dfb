//! How long events take to each gateway: from the engine's own timestamp of a batch, and from its
//! receipt, to the ack of the push after which nothing of it is missing there.
//!
//! Buckets are pushed whole and coalesced, so no push belongs to one batch of events. A scope
//! numbers the batches it applies; a fill notes the number of the last one and how many changed
//! buckets the gateway would have to take for all of them ([`prefix_index::Index::dirty_positions`]);
//! once they are taken, that push's ack ends the lag of every batch up to the number.
//!
//! The timestamp is the engine's wall clock and is compared with the daemon's: a difference of the
//! two clocks is in the lag. Where it makes the lag negative, it counts as 0, and is counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Batches of a scope whose acks are waited for; 32 bytes each. The oldest give way, and are counted
/// for each gateway that had not acked them.
const MAX_STAMPS: usize = 16_384;
/// Fills of one gateway that wait until their buckets are taken. Beyond, the newest one moves on, which
/// makes lags longer than they were, by the time between two fills.
const MAX_MARKS: usize = 256;
/// Lags that quantiles are taken from: the newest.
const RECENT: usize = 1024;

/// Upper ends of the histogram's buckets in seconds. The budget (p50 5 ms, p99 20 ms) is among them.
pub(crate) const BOUNDS_S: [f64; 17] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
    60.0,
];

/// Why there is no lag from the engine's timestamp.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Published {
    /// Seconds since the Unix epoch, by the engine's clock.
    At(f64),
    /// The engine does not say.
    Unknown,
    /// Before this daemon started: a replayed history, which no gateway has been waiting for.
    BeforeStart,
}

#[derive(Clone, Copy, Debug)]
struct Stamp {
    published: Published,
    received_at: Instant,
}

/// The applied batches of a scope.
pub(crate) struct Applied {
    started_unix_s: f64,
    ring: Mutex<Ring>,
}

struct Ring {
    /// Number of the last applied batch; the first one is 1.
    version: u64,
    /// The last of them, newest at the end.
    stamps: VecDeque<Stamp>,
    /// Per gateway: the number up to which all are acked.
    done: Vec<u64>,
}

/// What a gateway has acked.
#[derive(Default)]
struct Acked {
    stamps: Vec<Stamp>,
    /// Batches that are not among them, for want of room.
    forgotten: u64,
}

impl Applied {
    /// For this many gateways.
    pub(crate) fn new(gateways: usize) -> Self {
        let ring = Ring { version: 0, stamps: VecDeque::new(), done: vec![0; gateways] };
        Self { started_unix_s: unix_seconds(), ring: Mutex::new(ring) }
    }

    /// A batch was applied. To be called with the scope locked, so that a fill has its buckets.
    ///
    /// Returns the timestamp if lags can be taken from it.
    pub(crate) fn push(&self, ts: f64, received_at: Instant) -> Option<f64> {
        let published = match ts {
            ts if !ts.is_finite() || ts <= 0.0 => Published::Unknown,
            ts if ts < self.started_unix_s => Published::BeforeStart,
            ts => Published::At(ts),
        };
        let mut ring = self.ring();
        ring.version += 1;
        if ring.stamps.len() >= MAX_STAMPS {
            ring.stamps.pop_front();
        }
        ring.stamps.push_back(Stamp { published, received_at });
        matches!(published, Published::At(_)).then_some(ts)
    }

    fn version(&self) -> u64 {
        self.ring().version
    }

    /// Gateway number `gateway` has acked everything up to `version`.
    fn ack(&self, gateway: usize, version: u64) -> Acked {
        let mut ring = self.ring();
        let Some(done) = ring.done.get(gateway).copied() else { return Acked::default() };
        if version <= done {
            return Acked::default();
        }
        ring.done[gateway] = version;
        // Number of the batch before the first one that is remembered.
        let base = ring.version - ring.stamps.len() as u64;
        let (from, to) = (done.max(base) - base, version.max(base) - base);
        let acked = Acked {
            stamps: ring.stamps.range(from as usize..to as usize).copied().collect(),
            forgotten: version.min(base).saturating_sub(done),
        };
        let all_done = ring.done.iter().copied().min().unwrap_or(ring.version);
        for _ in base..all_done {
            ring.stamps.pop_front();
        }
        acked
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a gateway's fills have carried of one scope.
#[derive(Default)]
pub(crate) struct Carried {
    marks: VecDeque<Mark>,
    /// Everything up to this number is in pushes up to the one in flight.
    in_flight: Option<u64>,
}

struct Mark {
    version: u64,
    /// Per index: buckets to be taken until what is applied now has been.
    ends: Vec<u64>,
}

impl Carried {
    /// A fill begins. `positions` are the scope's [`prefix_index::Index::dirty_positions`], by index.
    pub(crate) fn begin(&mut self, applied: &Applied, positions: impl Iterator<Item = (u64, u64)>) {
        let version = applied.version();
        if self.marks.back().is_some_and(|mark| mark.version == version) {
            return;
        }
        if self.marks.len() >= MAX_MARKS {
            self.marks.pop_back();
        }
        self.marks.push_back(Mark { version, ends: positions.map(|(_, end)| end).collect() });
    }

    /// The fill has what it will have.
    pub(crate) fn end(&mut self, positions: impl Iterator<Item = (u64, u64)>) {
        let taken: Vec<u64> = positions.map(|(taken, _)| taken).collect();
        let is_taken = |mark: &Mark| mark.ends.iter().zip(&taken).all(|(end, taken)| end <= taken);
        while let Some(mark) = self.marks.pop_front_if(|mark| is_taken(mark)) {
            self.in_flight = Some(mark.version);
        }
    }

    /// The push is lost, and its buckets change places.
    pub(crate) fn lost(&mut self) {
        *self = Self::default();
    }

    /// The push is acked.
    pub(crate) fn acked(&mut self, applied: &Applied, gateway: usize, lag: &Mutex<GatewayLag>) {
        let Some(version) = self.in_flight.take() else { return };
        let acked = applied.ack(gateway, version);
        let (now, unix_s) = (Instant::now(), unix_seconds());
        let mut lag = lag.lock().unwrap_or_else(PoisonError::into_inner);
        lag.skipped.overflow += acked.forgotten;
        for stamp in &acked.stamps {
            lag.observe(stamp, now, unix_s);
        }
    }

    /// The gateway gets everything anew: what was applied so far is not waited for one by one.
    pub(crate) fn snapshot(&mut self, applied: &Applied, gateway: usize, lag: &Mutex<GatewayLag>) {
        *self = Self::default();
        let acked = applied.ack(gateway, applied.version());
        let mut lag = lag.lock().unwrap_or_else(PoisonError::into_inner);
        lag.skipped.snapshot += acked.forgotten + acked.stamps.len() as u64;
    }
}

/// The lags of one gateway, over all scopes.
#[derive(Default)]
pub(crate) struct GatewayLag {
    /// From the engine's timestamp to the ack.
    pub(crate) published: Lags,
    /// From the receipt by the daemon to the ack.
    pub(crate) received: Lags,
    /// Of the former, those that were negative and count as 0.
    pub(crate) clamped: u64,
    pub(crate) skipped: Skipped,
}

/// Batches without a lag by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skipped {
    /// More waited than are remembered.
    pub(crate) overflow: u64,
    /// The gateway got a snapshot.
    pub(crate) snapshot: u64,
    /// From the engine's timestamp only: there is none.
    pub(crate) no_timestamp: u64,
    /// From the engine's timestamp only: it is before the daemon's start.
    pub(crate) before_start: u64,
}

impl GatewayLag {
    fn observe(&mut self, stamp: &Stamp, now: Instant, unix_s: f64) {
        self.received.add(now.saturating_duration_since(stamp.received_at));
        match stamp.published {
            Published::At(ts) => {
                self.clamped += u64::from(unix_s < ts);
                // Cannot fail: timestamps before the daemon's start are not here.
                let lag = Duration::try_from_secs_f64((unix_s - ts).max(0.0));
                self.published.add(lag.unwrap_or_default());
            }
            Published::Unknown => self.skipped.no_timestamp += 1,
            Published::BeforeStart => self.skipped.before_start += 1,
        }
    }
}

/// A histogram, and the newest values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lags {
    /// By [`BOUNDS_S`], each bucket by itself; the last one is what is above.
    pub(crate) buckets: [u64; BOUNDS_S.len() + 1],
    pub(crate) sum_s: f64,
    recent: VecDeque<f32>,
}

impl Lags {
    fn add(&mut self, lag: Duration) {
        let seconds = lag.as_secs_f64();
        self.buckets[BOUNDS_S.partition_point(|bound| *bound < seconds)] += 1;
        self.sum_s += seconds;
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(seconds as f32);
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Of the last thousand batches, in milliseconds; `None` while there is none.
    pub(crate) fn recent_ms(&self, quantile: f64) -> Option<f64> {
        let mut values: Vec<f32> = self.recent.iter().copied().collect();
        values.sort_by(f32::total_cmp);
        let rank = (quantile * values.len() as f64).ceil() as usize;
        values.get(rank.saturating_sub(1)).map(|seconds| f64::from(*seconds) * 1e3)
    }
}

/// Shared by a gateway's feed and the pages.
pub(crate) type SharedLag = Arc<Mutex<GatewayLag>>;

/// From a batch's timestamp to its receipt, by two clocks: negative when the engine's is ahead. Worked
/// out when it is asked for, so that applying a batch reads no clock for it.
pub(crate) fn receive_lag_s((ts, received_at): (f64, Instant)) -> f64 {
    unix_seconds() - received_at.elapsed().as_secs_f64() - ts
}

fn unix_seconds() -> f64 {
    // A clock before 1970 makes every timestamp one of the future, which is counted.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
