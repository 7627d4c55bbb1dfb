//! What a plugin is: a scorer, a filter of endpoints, or a picker.

use crate::{Candidate, PickHistory, RequestFeatures};

/// Gives every candidate a score in 0..=1, 1 best. Pure: the same arguments, the same scores.
///
/// The same implementation is linked into the router module, packaged as a module of its own, and
/// run natively. A module of its own knows no [`PickHistory`]: it is empty there.
pub trait Scorer {
    /// One score per candidate, in their order. Values outside 0..=1 are clamped. `None`, a value
    /// that is not finite, and a list that ends early are *absent* scores: such a candidate counts
    /// with the median of the others, and a scorer without any score is left out.
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Vec<Option<f32>>;

    /// Whether its parameters are within their ranges. A configuration that fails is refused before
    /// a request sees it.
    fn check(&self) -> Result<(), OutOfRange> {
        Ok(())
    }

    /// What it reads by name.
    fn needs(&self) -> Needs {
        Needs::default()
    }
}

/// Keeps some of the candidates. Pure: the same arguments, the same candidates.
pub trait EndpointFilter {
    /// Whether each candidate stays, in their order; those beyond the list's end do.
    fn keep(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
        chance: Chance,
    ) -> Vec<bool>;

    /// As [`Scorer::check`].
    fn check(&self) -> Result<(), OutOfRange> {
        Ok(())
    }

    /// What it reads by name.
    fn needs(&self) -> Needs {
        Needs::default()
    }
}

/// Puts the candidates into the order in which they are tried.
pub trait Picker {
    /// Orders candidates by their totals, which are aligned with them.
    fn pick(
        &self,
        totals: &[f32],
        candidates: &[Candidate],
        history: &PickHistory,
        chance: Chance,
    ) -> Picked;
}

/// An order of candidates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picked {
    /// Indices of the candidates, best first.
    pub order: Vec<usize>,
    /// Whether the first was chosen by a tie-break.
    pub was_tie: bool,
}

/// Where chance comes from. The same numbers, the same outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chance {
    /// Equal for prompts of an equal prefix, so that two VMs that break the tie of one break it
    /// equally.
    pub tie: u64,
    /// Of this request alone: whatever is drawn by it is spread over requests.
    pub draw: u64,
}

impl Chance {
    /// The `i`th number by [`Chance::tie`].
    pub fn tie(self, i: usize) -> u64 {
        mix(self.tie, i)
    }

    /// The `i`th number by [`Chance::draw`], evenly in 0..1.
    pub fn draw(self, i: usize) -> f64 {
        // 53 bits, as many as an f64 holds exactly.
        (mix(self.draw, i) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// SplitMix64's finalizer (Steele, Lea, Flood 2014) over seed and index.
fn mix(seed: u64, i: usize) -> u64 {
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What a plugin reads by name. Nothing else is copied from requests and endpoints.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Needs {
    /// Request headers, in lower case.
    pub headers: Vec<String>,
    /// Labels of endpoints.
    pub labels: Vec<String>,
    /// Numeric attributes of endpoints.
    pub attributes: Vec<String>,
    /// Whether it reads objective, fairness id and latency objectives.
    pub request_control: bool,
    /// Whether it reads how fast endpoints are.
    pub rates: bool,
    /// How a request's session is found.
    pub session: Option<SessionSource>,
}

/// How a request says which session it belongs to.
#[derive(Clone, PartialEq, Debug)]
pub enum SessionSource {
    /// A header holds the endpoint itself, as the answer before told the client.
    EncodedEndpoint {
        /// The header, in lower case.
        header: String,
    },
    /// A header holds an identifier that is bound to the endpoint that served it.
    SessionId {
        /// The headers, in lower case; the first that is there counts.
        headers: Vec<String>,
        /// How long a binding survives unused.
        ttl_seconds: f32,
    },
}

impl Needs {
    /// Adds what another one reads. False if they find sessions in different ways: a request has one.
    pub fn add(&mut self, other: Self) -> bool {
        let mut all = [
            (&mut self.headers, other.headers),
            (&mut self.labels, other.labels),
            (&mut self.attributes, other.attributes),
        ];
        for (own, more) in &mut all {
            own.append(more);
            own.sort_unstable();
            own.dedup();
        }
        self.request_control |= other.request_control;
        self.rates |= other.rates;
        match (&self.session, other.session) {
            (Some(own), Some(other)) => *own == other,
            (None, other) => {
                self.session = other;
                true
            }
            (Some(_), None) => true,
        }
    }
}

/// A parameter of the right type with a value that is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key} is {value}, accepted is {accepted}")]
pub struct OutOfRange {
    /// The parameter.
    pub key: &'static str,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub accepted: String,
}

impl OutOfRange {
    /// Checks that `value` lies in `accepted`, both ends included. NaN lies nowhere.
    pub fn unless_within<T: PartialOrd + std::fmt::Display>(
        key: &'static str,
        value: T,
        accepted: std::ops::RangeInclusive<T>,
    ) -> Result<(), Self> {
        if accepted.contains(&value) {
            return Ok(());
        }
        let accepted = format!("{} to {}", accepted.start(), accepted.end());
        Err(Self { key, value: value.to_string(), accepted })
    }
}

/// Median of the known values.
pub fn median(known: &[Option<f32>]) -> Option<f32> {
    let mut sorted: Vec<f32> = known.iter().copied().flatten().collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied()?;
    let lower = sorted.len().checked_sub(1).and_then(|last| sorted.get(last / 2)).copied()?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_names_key_value_and_what_is_accepted() {
        let within = |value| OutOfRange::unless_within("share", value, 0.0..=1.0);
        assert_eq!((within(0.0), within(1.0)), (Ok(()), Ok(())));
        assert_eq!(within(1.5).unwrap_err().to_string(), "share is 1.5, accepted is 0 to 1");
        assert!(within(f32::NAN).is_err());
    }

    #[test]
    fn numbers_are_splitmix64s() {
        // The first outputs of the reference implementation for seed 1234567 (Vigna, splitmix64.c).
        let numbers: Vec<u64> = (0..3).map(|i| mix(1_234_567, i)).collect();
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn needs_are_named_once_and_sessions_are_found_in_one_way() {
        let labels = |names: &[&str]| Needs {
            labels: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Needs::default()
        };
        let mut needs = labels(&["b"]);
        assert!(needs.add(labels(&["a", "b"])));
        assert_eq!(needs, labels(&["a", "b"]));
        let session = |header: &str| Needs {
            session: Some(SessionSource::EncodedEndpoint { header: header.to_owned() }),
            ..Needs::default()
        };
        assert!(needs.add(session("x")) && needs.add(session("x")) && needs.add(labels(&[])));
        assert!(!needs.add(session("y")));
    }
}
