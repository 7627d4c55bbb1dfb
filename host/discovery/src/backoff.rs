//! How long to wait before asking again.

use std::time::Duration;

/// Waits that double up to a limit, each anywhere between its half and its whole, so that those who lost
/// the same server do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Backoff {
    /// From `first` to `limit`.
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, failures: 0 }
    }

    /// It worked: the next failure waits as the first did.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let mut bytes = [0; 4];
        // Without randomness everybody waits the whole time, which is no harm.
        let share = match getrandom::fill(&mut bytes) {
            Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
            Err(_) => 1.0,
        };
        self.wait(share)
    }

    fn wait(&mut self, share: f64) -> Duration {
        let doubled = self.first.saturating_mul(1_u32 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.limit).mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_limit_and_start_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let mut wait = |share| backoff.wait(share).as_millis();
        assert_eq!([wait(1.0), wait(1.0), wait(1.0), wait(1.0)], [200, 400, 800, 1000]);
        assert_eq!([wait(0.0), wait(0.5)], [500, 750]);
        for _ in 0..100 {
            wait(1.0);
        }
        backoff.reset();
        assert_eq!(backoff.wait(0.0).as_millis(), 100);
        let mut drawn = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        let waits: Vec<_> = (0..32).map(|_| drawn.next_wait()).collect();
        assert!(waits.iter().all(|w| (500..=1000).contains(&w.as_millis())), "{waits:?}");
        assert!(waits.iter().any(|w| *w != waits[0]), "every wait the same");
    }
}
