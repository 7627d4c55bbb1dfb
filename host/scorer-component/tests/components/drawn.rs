//! Situations drawn at random, with every field of every type in use.

use routing::{
    AdapterState, Candidate, InFlight, Load, PickHistory, PrefixMatch, Rates, Reliability,
    RequestFeatures, SourceState,
};

/// Numbers that are the same for the same name (SplitMix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(name: &str) -> Self {
        Self(
            name.bytes()
                .fold(7, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
        )
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn count(&mut self, end: u32) -> u32 {
        // Now and then the largest there is.
        if self.below(40) == 0 { u32::MAX } else { self.below(u64::from(end)) as u32 }
    }

    fn ratio(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 24) as f32
    }

    fn maybe<T>(&mut self, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(3) > 0).then(|| draw(self))
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    fn pairs(&mut self, names: &[&str], values: &[&str]) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for name in names {
            if self.below(3) > 0 {
                pairs.push(((*name).to_owned(), self.one_of(values).to_owned()));
            }
        }
        pairs
    }

    /// A request, endpoints, and when they were picked.
    pub(crate) fn situation(&mut self) -> (RequestFeatures, Vec<Candidate>, PickHistory) {
        let strides = self.below(400) as u32;
        let request = RequestFeatures {
            model: self.one_of(&["", "tiny", "größer/Q-32B"]).to_owned(),
            adapter: self.maybe(|rng| rng.one_of(&["sql", "légal"]).to_owned()),
            prompt_bytes: self.count(1 << 20),
            strides,
            prompt_tokens: self.count(100_000),
            unmatched_reason: self.maybe(|_| "no_template".to_owned()),
            trail: (0..self.below(34)).map(|_| self.next() as u32).collect(),
            headers: self.pairs(&["x-tier", "x-peer", "x-session-token"], &["", "gold", "n1"]),
            priority: self.maybe(|rng| rng.next() as i32),
            fairness_id: self.maybe(|_| "tenant".to_owned()),
            slo_ttft_ms: self.maybe(|rng| 2_000.0 * rng.ratio()),
            slo_tpot_ms: self.maybe(|rng| 100.0 * rng.ratio()),
            peer_labels: self.pairs(&LABELS, &VALUES),
        };
        let candidates: Vec<Candidate> =
            (0..self.below(9)).map(|_| self.candidate(strides)).collect();
        let mut picks = |count: u64| (0..count).map(|_| self.below(9)).collect::<Vec<u64>>();
        // Histories may end before the candidates do.
        let count = candidates.len() as u64;
        let history = PickHistory { any: picks(count), cold: picks(count / 2) };
        (request, candidates, history)
    }

    fn candidate(&mut self, strides: u32) -> Candidate {
        let gpu_strides = self.below(u64::from(strides) + 1) as u32;
        let attributes = ["power", "power_watts", "cost"];
        Candidate {
            slot: self.next() as u16,
            address: self.one_of(&["10.0.0.1:8000", "[fd00::1]:8000"]).into(),
            load: Load {
                is_ready: self.below(5) > 0,
                waiting: self.maybe(|rng| rng.count(30)),
                running: self.maybe(|rng| rng.count(60)),
                kv_usage_ratio: self.maybe(Self::ratio),
            },
            source: self.one_of(&[
                SourceState::None,
                SourceState::Live,
                SourceState::Resyncing,
                SourceState::Degraded,
                SourceState::Lost,
                SourceState::Approximate,
            ]),
            block_size_tokens: self.one_of(&[0, 16, 64]),
            matched: PrefixMatch {
                gpu_strides,
                gpu_tokens: gpu_strides * 16,
                any_strides: gpu_strides + self.below(9) as u32,
                any_tokens: self.count(9_000),
                gpu_blocks: self.count(900),
                speculative_strides: self.below(u64::from(strides) + 1) as u32,
            },
            reliability: self.one_of(&[Reliability::FULL, Reliability::HALF, Reliability::QUARTER]),
            in_flight: InFlight { requests: self.count(40), tokens: self.below(1 << 40) },
            adapter: self.one_of(&[
                AdapterState::Unknown,
                AdapterState::Active,
                AdapterState::Room,
                AdapterState::Waiting,
                AdapterState::Full,
            ]),
            has_session: self.below(4) == 0,
            rates: Rates {
                prefill_tokens_per_s: self.maybe(|rng| 20_000.0 * rng.ratio()),
                tpot_ms: self.maybe(|rng| 90.0 * rng.ratio()),
            },
            labels: self.pairs(&LABELS, &VALUES),
            attributes: attributes
                .iter()
                .filter_map(|name| self.maybe(|rng| ((*name).to_owned(), 900.0 * rng.ratio())))
                .collect(),
        }
    }
}

const LABELS: [&str; 6] = [
    "tier",
    "kubernetes.io/hostname",
    "topology.kubernetes.io/rack",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "llm-d.ai/context-length-range",
];
const VALUES: [&str; 5] = ["gold", "", "n1", "0-4000", "2000-90000"];
