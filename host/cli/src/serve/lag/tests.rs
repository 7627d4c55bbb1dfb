use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Changed buckets as the index keeps them: in order of first change.
#[derive(Default)]
struct Dirty {
    queue: VecDeque<u32>,
    taken: u64,
}

impl Dirty {
    fn mark(&mut self, bucket: u32) {
        if !self.queue.contains(&bucket) {
            self.queue.push_back(bucket);
        }
    }

    fn positions(&self) -> (u64, u64) {
        (self.taken, self.taken + self.queue.len() as u64)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Batches of events that change these buckets of the two indexes.
    Apply(Vec<(bool, u32)>),
    /// A push of up to so many buckets is filled.
    Fill(usize),
    Acked,
    Lost,
    Snapshot,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec((any::<bool>(), 0u32..12), 0..5).prop_map(Step::Apply),
        5 => (0usize..8).prop_map(Step::Fill),
        5 => Just(Step::Acked),
        1 => Just(Step::Lost),
        1 => Just(Step::Snapshot),
    ]
}

/// One gateway, and what it really holds: per bucket, the number of the last batch whose change the
/// acked value has.
struct World {
    applied: Applied,
    carried: Carried,
    lag: Mutex<GatewayLag>,
    indexes: [Dirty; 2],
    version: u64,
    /// Buckets that each batch changed.
    changes: BTreeMap<u64, BTreeSet<(usize, u32)>>,
    held: BTreeMap<(usize, u32), u64>,
    in_flight: Option<Vec<((usize, u32), u64)>>,
    /// Batches that the gateway was told of whole.
    exempt: u64,
}

impl World {
    fn new() -> Self {
        Self {
            applied: Applied::new(1),
            carried: Carried::default(),
            lag: Mutex::default(),
            indexes: Default::default(),
            version: 0,
            changes: BTreeMap::new(),
            held: BTreeMap::new(),
            in_flight: None,
            exempt: 0,
        }
    }

    fn positions(&self) -> [(u64, u64); 2] {
        [self.indexes[0].positions(), self.indexes[1].positions()]
    }

    fn done(&self) -> u64 {
        self.applied.ring().done[0]
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Apply(buckets) => {
                self.version += 1;
                let buckets: BTreeSet<_> =
                    buckets.iter().map(|(index, b)| (usize::from(*index), *b)).collect();
                buckets.iter().for_each(|(index, bucket)| self.indexes[*index].mark(*bucket));
                self.changes.insert(self.version, buckets);
                self.applied.push(1.0, Instant::now());
            }
            Step::Fill(room) if self.in_flight.is_none() => {
                self.carried.begin(&self.applied, self.positions().into_iter());
                let mut values = Vec::new();
                for (at, index) in self.indexes.iter_mut().enumerate() {
                    while values.len() < *room
                        && let Some(bucket) = index.queue.pop_front()
                    {
                        index.taken += 1;
                        values.push(((at, bucket), self.version));
                    }
                }
                self.carried.end(self.positions().into_iter());
                self.in_flight = Some(values);
            }
            Step::Acked => {
                if let Some(values) = self.in_flight.take() {
                    self.held.extend(values);
                    self.carried.acked(&self.applied, 0, &self.lag);
                }
            }
            Step::Lost => {
                for ((at, bucket), _) in self.in_flight.take().unwrap_or_default() {
                    self.indexes[at].mark(bucket);
                }
                self.carried.lost();
            }
            Step::Snapshot => {
                self.in_flight = None;
                for (at, bucket) in self.changes.values().flatten() {
                    self.indexes[*at].mark(*bucket);
                }
                self.carried.snapshot(&self.applied, 0, &self.lag);
                self.exempt = self.version;
            }
            Step::Fill(_) => {}
        }
    }

    /// Every change of the batch, or a later one of the same bucket, is in the gateway.
    fn is_held(&self, version: u64) -> bool {
        self.changes[&version].iter().all(|bucket| self.held.get(bucket) >= Some(&version))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_lag_ends_when_nothing_of_its_batch_is_missing_and_not_before(
        steps in prop::collection::vec(any_step(), 0..150)
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            for version in world.exempt + 1..=world.done() {
                prop_assert!(world.is_held(version), "{version} is counted too early: {step:?}");
            }
        }
        // A push with room for all ends all lags.
        world.step(&Step::Acked);
        world.step(&Step::Fill(usize::MAX));
        world.step(&Step::Acked);
        prop_assert_eq!(world.done(), world.version);
        let lag = world.lag.lock().unwrap();
        prop_assert_eq!(lag.received.count() + lag.skipped.snapshot, world.version);
        prop_assert_eq!(lag.skipped.before_start, lag.received.count(), "1970 is before the start");
    }
}

#[test]
fn a_full_push_ends_the_lags_of_what_it_finished() {
    let mut world = World::new();
    world.step(&Step::Apply(vec![(false, 1), (false, 2)]));
    world.step(&Step::Fill(1));
    world.step(&Step::Apply(vec![(false, 3)]));
    world.step(&Step::Acked);
    assert_eq!(world.done(), 0, "half of the first batch is missing");
    world.step(&Step::Fill(1));
    world.step(&Step::Acked);
    assert_eq!(world.done(), 1, "the second one waits, although the gateway is not drained");
}

#[test]
fn what_is_not_remembered_is_counted_for_each_gateway() {
    let applied = Applied::new(2);
    let (mut quick, mut slow) = (Carried::default(), Carried::default());
    let lags: [Mutex<GatewayLag>; 2] = Default::default();
    let now = Instant::now();
    let push = |count: usize| (0..count).for_each(|_| assert!(applied.push(0.0, now).is_none()));
    let none = || std::iter::once((0, 0));
    push(10);
    quick.begin(&applied, none());
    quick.end(none());
    quick.acked(&applied, 0, &lags[0]);
    push(MAX_STAMPS);
    for (number, carried) in [&mut quick, &mut slow].into_iter().enumerate() {
        carried.begin(&applied, none());
        carried.end(none());
        carried.acked(&applied, number, &lags[number]);
    }
    let of = |number: usize| {
        let lag = lags[number].lock().unwrap();
        (lag.received.count(), lag.skipped.overflow, lag.skipped.no_timestamp)
    };
    let most = MAX_STAMPS as u64;
    assert_eq!(of(0), (10 + most, 0, 10 + most));
    assert_eq!(of(1), (most, 10, most));
    assert!(applied.ring().stamps.is_empty(), "what all have acked is forgotten");
}

#[test]
fn marks_are_bounded_and_the_last_one_holds() {
    let applied = Applied::new(1);
    let mut carried = Carried::default();
    for end in 1..=2 * MAX_MARKS as u64 {
        applied.push(0.0, Instant::now());
        carried.begin(&applied, std::iter::once((0, end)));
    }
    assert_eq!(carried.marks.len(), MAX_MARKS);
    let last = 2 * MAX_MARKS as u64;
    carried.end(std::iter::once((last - 1, last)));
    assert_eq!(carried.in_flight, Some(MAX_MARKS as u64 - 1));
    carried.end(std::iter::once((last, last)));
    assert_eq!(carried.in_flight, Some(last));
}

#[test]
fn timestamps_are_sorted_by_what_they_can_tell() {
    let applied = Applied::new(1);
    let now = Instant::now();
    for unknown in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(applied.push(unknown, now), None);
    }
    assert_eq!(applied.push(applied.started_unix_s - 1.0, now), None);
    let ahead = applied.started_unix_s + 3600.0;
    assert_eq!(applied.push(ahead, now), Some(ahead));
    let lag_s = receive_lag_s((ahead, now));
    assert!((-3600.1..-3000.0).contains(&lag_s), "{lag_s}");
    let mut lag = GatewayLag::default();
    let unix_s = applied.started_unix_s + 10.0;
    let stamps: Vec<Stamp> = applied.ring().stamps.iter().copied().collect();
    stamps.iter().for_each(|stamp| lag.observe(stamp, now + Duration::from_secs(4), unix_s));
    assert_eq!((lag.skipped.no_timestamp, lag.skipped.before_start, lag.clamped), (4, 1, 1));
    assert_eq!((lag.published.count(), lag.published.sum_s), (1, 0.0));
    assert_eq!((lag.received.count(), lag.received.sum_s), (6, 24.0));
    let late = Stamp { published: Published::At(unix_s - 0.25), received_at: now };
    lag.observe(&late, now, unix_s);
    assert_eq!((lag.published.count(), lag.clamped), (2, 1));
    assert!((lag.published.sum_s - 0.25).abs() < 1e-6);
}

#[test]
fn a_value_is_in_the_first_bucket_that_ends_at_or_above_it() {
    let mut lags = Lags::default();
    for ms in [0, 1, 5, 6, 60_000, 60_001] {
        lags.add(Duration::from_millis(ms));
    }
    let expected: Vec<(f64, u64)> =
        vec![(0.0005, 1), (0.001, 1), (0.005, 1), (0.01, 1), (60.0, 1), (f64::INFINITY, 1)];
    let bounds = BOUNDS_S.iter().copied().chain([f64::INFINITY]);
    let filled: Vec<(f64, u64)> =
        bounds.zip(lags.buckets).filter(|(_, count)| *count > 0).collect();
    assert_eq!(filled, expected);
}

#[test]
fn quantiles_are_of_the_newest() {
    let mut lags = Lags::default();
    assert_eq!(lags.recent_ms(0.5), None);
    (0..RECENT).for_each(|_| lags.add(Duration::from_secs(50)));
    // Backwards, so that order matters.
    (1..=RECENT as u64).rev().for_each(|ms| lags.add(Duration::from_millis(ms)));
    let of = |quantile| lags.recent_ms(quantile).map(f64::round);
    assert_eq!((of(0.5), of(0.99), of(1.0)), (Some(512.0), Some(1014.0), Some(1024.0)));
    assert_eq!(lags.count(), 2 * RECENT as u64);
}
