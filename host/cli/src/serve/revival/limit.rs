//! How often one VM may be revived.

use std::time::Duration;

use tokio::time::Instant;

/// Revivals are counted over this time.
pub(crate) const WINDOW: Duration = Duration::from_secs(600);
/// Most of them within it. What dies more often than that is not helped by another revival.
pub(crate) const MOST: usize = 5;

/// Revivals of one VM of one gateway.
#[derive(Default)]
pub(crate) struct Limit {
    /// Within the window, oldest first.
    times: Vec<Instant>,
}

/// Whether a VM may be revived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Permit {
    Now,
    /// Not before that.
    Later(Instant),
    /// Given up until then.
    GivenUp(Instant),
}

impl Limit {
    /// The first at once, then after 2, 4, 8 and 16 s, then none while five are within the window.
    pub(crate) fn ask(&mut self, now: Instant) -> Permit {
        self.times.retain(|at| now.duration_since(*at) < WINDOW);
        let (Some(first), Some(last)) = (self.times.first(), self.times.last()) else {
            return Permit::Now;
        };
        if self.times.len() >= MOST {
            return Permit::GivenUp(*first + WINDOW);
        }
        let next = *last + Duration::from_secs(1 << self.times.len());
        if next <= now { Permit::Now } else { Permit::Later(next) }
    }

    /// One was tried.
    pub(crate) fn revived(&mut self, now: Instant) {
        self.times.push(now);
    }

    /// The files are others now: nothing speaks against them.
    pub(crate) fn forget(&mut self) {
        self.times.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_that_dies_at_once_is_revived_five_times_and_again_ten_minutes_later() {
        let start = Instant::now();
        let mut limit = Limit::default();
        let mut revived = Vec::new();
        for tenth in 0..=6_000 {
            let now = start + Duration::from_millis(100 * tenth);
            if limit.ask(now) == Permit::Now {
                limit.revived(now);
                revived.push(tenth as f64 / 10.0);
            }
        }
        // After 2, 4, 8 and 16 s; then the first must have left the window.
        assert_eq!(revived, [0.0, 2.0, 6.0, 14.0, 30.0, 600.0]);
        let now = start + Duration::from_millis(600_100);
        assert_eq!(limit.ask(now), Permit::GivenUp(start + Duration::from_secs(602)));
        limit.forget();
        assert_eq!(limit.ask(now), Permit::Now);
    }

    proptest! {
        #[test]
        fn never_more_than_five_in_ten_minutes_and_never_two_within_two_seconds(
            asks in proptest::collection::vec(0u64..200_000, 1..300),
        ) {
            let mut now = Instant::now();
            let mut limit = Limit::default();
            let mut revived: Vec<Instant> = Vec::new();
            for wait in asks {
                now += Duration::from_millis(wait);
                let permit = limit.ask(now);
                if permit == Permit::Now {
                    limit.revived(now);
                    revived.push(now);
                } else {
                    let (Permit::Later(until) | Permit::GivenUp(until)) = permit else { continue };
                    prop_assert!(until > now && until <= now + WINDOW);
                }
            }
            for (i, at) in revived.iter().enumerate() {
                let within = revived[i..].iter().filter(|other| **other - *at < WINDOW).count();
                prop_assert!(within <= MOST, "{within} within the window");
            }
            prop_assert!(revived.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(2)));
            prop_assert!(!revived.is_empty());
        }
    }
}
