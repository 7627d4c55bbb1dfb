//! What gateways have in flight, so that each is told of the others'.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use feed::{Cell, MAX_CELLS, add_cells};
use tokio::sync::Notify;
use tokio::time::Instant;

/// A gateway that has not acked for this long is gone, with what it had in flight.
const GONE: Duration = Duration::from_secs(3);
/// How often a gateway is asked where there are several: acks are the only way to hear of it, and
/// the others are to know within 100 ms.
pub(crate) const POLL: Duration = Duration::from_millis(40);

/// When a gateway acked, and what it said.
type Reported = (Instant, Vec<Cell>);

/// Sums by gateway, from their acks.
pub(crate) struct InFlight {
    reported: Mutex<Vec<Option<Reported>>>,
    wakers: Vec<Arc<Notify>>,
}

impl InFlight {
    /// Of as many gateways as there are wakers.
    pub(crate) fn new(wakers: &[Arc<Notify>]) -> Self {
        Self { reported: Mutex::new(vec![None; wakers.len()]), wakers: wakers.to_vec() }
    }

    /// Whether there is anybody to tell.
    pub(crate) fn is_shared(&self) -> bool {
        self.wakers.len() > 1
    }

    /// Takes what an ack of `gateway` says, and wakes the other gateways' pushers if it is news.
    pub(crate) fn report(&self, gateway: usize, cells: &[Cell], now: Instant) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = reported.get_mut(gateway) else { return };
        let before = held.replace((now, cells.to_vec()));
        if before.is_none_or(|(_, before)| before != cells) {
            let others = self.wakers.iter().enumerate().filter(|(number, _)| *number != gateway);
            others.for_each(|(_, waker)| waker.notify_one());
        }
    }

    /// Sums of all gateways but this one.
    pub(crate) fn others(&self, gateway: usize, now: Instant) -> Vec<Cell> {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums = Vec::new();
        for (number, held) in reported.iter().enumerate() {
            if let Some((at, cells)) = held
                && number != gateway
                && now.duration_since(*at) < GONE
            {
                add_cells(&mut sums, cells);
            }
        }
        if sums.len() > MAX_CELLS {
            // The busiest are told.
            sums.sort_unstable_by_key(|cell| std::cmp::Reverse(cell.requests));
            sums.truncate(MAX_CELLS);
            sums.sort_unstable_by_key(|cell| cell.endpoint);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use feed::EndpointHash;

    fn cell(endpoint: u64, requests: u32) -> Cell {
        Cell { endpoint: EndpointHash(endpoint), requests, tokens: u64::from(requests) * 100 }
    }

    #[test]
    fn each_is_told_of_the_others_that_live() {
        let wakers: Vec<Arc<Notify>> = (0..3).map(|_| Arc::default()).collect();
        let all = InFlight::new(&wakers);
        let start = Instant::now();
        let now = start + Duration::from_secs(2);
        all.report(0, &[cell(1, 2)], start);
        all.report(1, &[cell(1, 1), cell(7, 5)], now);
        assert_eq!(all.others(0, now), [cell(1, 1), cell(7, 5)]);
        assert_eq!(all.others(1, now), [cell(1, 2)]);
        assert_eq!(all.others(2, now), [cell(1, 3), cell(7, 5)]);
        let later = start + Duration::from_secs(3);
        assert_eq!(all.others(2, later), [cell(1, 1), cell(7, 5)], "0 is gone");
    }

    #[tokio::test]
    async fn only_news_wakes_and_only_the_others() {
        let wakers: Vec<Arc<Notify>> = (0..2).map(|_| Arc::default()).collect();
        let all = InFlight::new(&wakers);
        let is_woken = async |number: usize| {
            tokio::select! {
                biased;
                () = wakers[number].notified() => true,
                () = std::future::ready(()) => false,
            }
        };
        all.report(0, &[cell(1, 2)], Instant::now());
        assert!(is_woken(1).await && !is_woken(0).await);
        all.report(0, &[cell(1, 2)], Instant::now());
        assert!(!is_woken(1).await);
        all.report(0, &[], Instant::now());
        assert!(is_woken(1).await);
    }
}
