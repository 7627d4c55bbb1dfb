//! Open-loop load: requests go out when they are due, however late the answers are.
//!
//! Latency counts from when a request was due and not from when it could be sent, so a server that
//! stalls is charged for everything that had to wait (no coordinated omission).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::load::{Connection, Shot};

/// Requests under way at which a run is given up: the server has collapsed, and more connections
/// would only exhaust the machine.
const MAX_UNDER_WAY: usize = 1000;
/// An answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is offered: Poisson arrivals, the same for the same seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) rate_per_s: f64,
    pub(crate) requests: usize,
    pub(crate) seed: u64,
}

/// One answered request; times since the start of the run.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) due: Duration,
    /// When the generator got to it: what `due` is early by is the generator's own lateness.
    pub(crate) sent: Duration,
    pub(crate) done: Duration,
    /// Who answered.
    pub(crate) backend: String,
    /// Whether that is the shot's backend; of a shot without one, true.
    pub(crate) is_expected: bool,
    pub(crate) body: Bytes,
}

impl Answered {
    pub(crate) fn latency_ms(&self) -> f64 {
        (self.done - self.due).as_secs_f64() * 1e3
    }
}

/// What became of an offer.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) answered: Vec<Answered>,
    pub(crate) failed: usize,
    /// Requests that were never sent, as too many were under way.
    pub(crate) given_up: usize,
    /// The first failure.
    pub(crate) failure: Option<String>,
}

impl Outcome {
    pub(crate) fn latencies_ms(&self) -> Vec<f64> {
        self.answered.iter().map(Answered::latency_ms).collect()
    }

    /// Time from the last request until the last answer.
    pub(crate) fn drain(&self) -> Duration {
        let last = |of: fn(&Answered) -> Duration| self.answered.iter().map(of).max();
        last(|a| a.done).unwrap_or_default().saturating_sub(last(|a| a.due).unwrap_or_default())
    }
}

/// Numbers in 0..1, by a seed (splitmix64, Steele and others 2014).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// When each request of an offer is due, since the start.
pub(crate) fn arrivals(offer: Offer) -> Vec<Duration> {
    let mut chance = Chance(offer.seed);
    let mut at = 0.0;
    let due = (0..offer.requests).map(|_| {
        at -= (1.0 - chance.next()).ln() / offer.rate_per_s;
        Duration::from_secs_f64(at)
    });
    due.collect()
}

/// Kept connections to one server, opened when all are busy.
struct Lanes {
    address: SocketAddr,
    /// Used in turn, as each is a worker's of the server.
    free: Mutex<VecDeque<Connection>>,
}

impl Lanes {
    fn free(&self) -> std::sync::MutexGuard<'_, VecDeque<Connection>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, shot: &Shot) -> Result<(String, Bytes)> {
        let free = self.free().pop_front();
        let mut connection = match free {
            Some(connection) => connection,
            None => Connection::open(self.address).await?,
        };
        let answer =
            tokio::time::timeout(PATIENCE, connection.exchange(shot.path, shot.body.clone()))
                .await??;
        // One that failed is gone.
        self.free().push_back(connection);
        Ok(answer)
    }
}

/// Offers the shots in turn to the servers in turn, over `connections` kept connections each that are
/// there from the start, so that a gateway's workers have their shares, and as many more as it takes.
///
/// # Errors
///
/// A connection that cannot be opened at the start. A request that fails is counted.
pub(crate) async fn run(
    servers: &[SocketAddr],
    shots: &Arc<Vec<Shot>>,
    connections: usize,
    offer: Offer,
) -> Result<Outcome> {
    let mut lanes = Vec::new();
    for &address in servers {
        let mut free = VecDeque::new();
        for _ in 0..connections {
            free.push_back(Connection::open(address).await?);
        }
        lanes.push(Arc::new(Lanes { address, free: Mutex::new(free) }));
    }
    let (results, mut received) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Handle::current();
    let shots = Arc::clone(shots);
    // A thread of its own: the runtime's timers have a resolution of a millisecond.
    let generator = std::thread::spawn(move || {
        let under_way = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        for (number, due) in arrivals(offer).into_iter().enumerate() {
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            if under_way.load(Ordering::Relaxed) >= MAX_UNDER_WAY {
                return offer.requests - number;
            }
            under_way.fetch_add(1, Ordering::Relaxed);
            let (lanes, shots) = (Arc::clone(&lanes[number % lanes.len()]), Arc::clone(&shots));
            let (results, under_way) = (results.clone(), Arc::clone(&under_way));
            let sent = start.elapsed();
            runtime.spawn(async move {
                let shot = &shots[number % shots.len()];
                let answer = lanes.exchange(shot).await.map(|(backend, body)| Answered {
                    due,
                    sent,
                    done: start.elapsed(),
                    is_expected: shot.backend.as_ref().is_none_or(|expected| *expected == backend),
                    backend,
                    body,
                });
                under_way.fetch_sub(1, Ordering::Relaxed);
                // Nobody reads after an interrupt.
                let _ = results.send(answer);
            });
        }
        0
    });
    let mut outcome = Outcome::default();
    while let Some(answer) = received.recv().await {
        match answer {
            Ok(answered) => outcome.answered.push(answered),
            Err(error) => {
                outcome.failed += 1;
                outcome.failure.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
    outcome.given_up =
        generator.join().map_err(|_| anyhow::anyhow!("the generator's thread panicked"))?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_a_seed() {
        let offer = Offer { rate_per_s: 200.0, requests: 20_000, seed: 7 };
        let due = arrivals(offer);
        assert_eq!(due, arrivals(offer));
        assert_ne!(due, arrivals(Offer { seed: 8, ..offer }));
        assert!(due.is_sorted());
        // 20 000 gaps of a mean of 5 ms: the standard deviation of the sum is 0.7 s.
        let last = due.last().unwrap().as_secs_f64();
        assert!((97.0..103.0).contains(&last), "{last}");
        // Of exponential gaps 1 - 1/e are below the mean.
        let gaps: Vec<Duration> = due.windows(2).map(|two| two[1] - two[0]).collect();
        let below = gaps.iter().filter(|gap| **gap < Duration::from_millis(5)).count();
        assert!((0.62..0.645).contains(&(below as f64 / gaps.len() as f64)), "{below}");
    }

    /// A server that answers one request at a time, the first only when told to.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_stall_is_charged_to_all_that_wait() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stall = Duration::from_millis(400);
        std::thread::spawn(move || {
            let mut streams: Vec<std::net::TcpStream> = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut head = [0; 1024];
                assert!(stream.read(&mut head).unwrap() > 0);
                if number == 0 {
                    std::thread::sleep(stall);
                }
                let answer = "HTTP/1.1 200 OK\r\nx-backend: b\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(answer.as_bytes()).unwrap();
                streams.push(stream);
            }
        });
        let shot = Shot { path: "/", body: Bytes::from_static(b"{}"), backend: Some("b".into()) };
        let offer = Offer { rate_per_s: 200.0, requests: 20, seed: 1 };
        let outcome = run(&[address], &Arc::new(vec![shot]), 0, offer).await.unwrap();
        assert_eq!((outcome.answered.len(), outcome.failed, outcome.given_up), (20, 0, 0));
        assert!(outcome.answered.iter().all(|answered| answered.is_expected));
        // All twenty were due within about 100 ms; none could be answered before the stall ended.
        let due = arrivals(offer);
        for answered in &outcome.answered {
            assert!(due.contains(&answered.due));
            assert!(answered.due + Duration::from_secs_f64(answered.latency_ms() / 1e3) >= stall);
        }
    }
}
