//! The stream property that intake publishes and scorers and picker read.

use routing::{Candidate, InFlight, PrefixMatch, RequestFeatures};

use crate::WireError;
use crate::extras::{self, Names};
use crate::matrix::{read_keys, write_keys};
use crate::values::{load_of_words, load_words, source_code, source_of_code};
use crate::wire::{Reader, Writer};

/// Name of the property; `set_property` with this one path element stores it.
pub const FEATURES_PROPERTY: &str = "wasm_epp.features";
/// Largest value; beyond it only the most promising candidates are published.
pub const MAX_FEATURES_BYTES: usize = 16 << 10;

/// A request's features and its candidates.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Features {
    /// Scope of the (pool, model) pair.
    pub scope: u16,
    /// Epoch whose slots the candidates carry.
    pub epoch: u64,
    /// The request.
    pub request: RequestFeatures,
    /// Endpoints that may serve it.
    pub candidates: Vec<Candidate>,
    /// Whether candidates were left out for size.
    pub is_cut: bool,
    /// Whether the request may be served by no other endpoint than its candidates.
    pub is_restricted: bool,
    /// Whether the decision is to be told and to have no effect.
    pub is_probe: bool,
}

/// Slot, length of the address, flags, source and thirteen numbers.
const MIN_CANDIDATE_BYTES: usize = 2 + 2 + 2 + 13 * 4;

/// How much a candidate promises, most first: what is compared where not all can be published.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Promise(bool, std::cmp::Reverse<u32>, u32, u32);

impl Promise {
    fn of(candidate: &Candidate) -> Self {
        let waiting = candidate.load.waiting.unwrap_or(0);
        let held = candidate.matched.any_strides.max(candidate.matched.speculative_strides);
        let in_flight = candidate.in_flight.requests;
        Self(!candidate.load.is_ready, std::cmp::Reverse(held), waiting, in_flight)
    }
}

/// Bits of the flags' byte.
const CUT: u8 = 1;
const RESTRICTED: u8 = 2;
const PROBE: u8 = 4;
const MORE_OF_REQUEST: u8 = 8;
const MORE_OF_CANDIDATES: u8 = 16;

impl Features {
    /// The property's value. Too many candidates: those with the deepest match stay, then the least
    /// loaded ready ones.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_kept().0
    }

    /// The property's value, and these features as who reads it sees them.
    pub fn publish(mut self) -> (Vec<u8>, Self) {
        let (bytes, kept) = self.encode_kept();
        if let Some(kept) = kept {
            let mut all: Vec<Option<Candidate>> = self.candidates.into_iter().map(Some).collect();
            let kept = kept.into_iter().filter_map(|i| all.get_mut(i)?.take());
            (self.candidates, self.is_cut) = (kept.collect(), true);
        }
        (bytes, self)
    }

    /// The value, and which candidates are in it if not all are.
    fn encode_kept(&self) -> (Vec<u8>, Option<Vec<usize>>) {
        let count = self.candidates.len();
        // What a candidate takes at least: a cut that is sure to come is not preceded by the whole.
        if count * MIN_CANDIDATE_BYTES <= MAX_FEATURES_BYTES {
            let whole = self.encode_all(&self.candidates.iter().collect::<Vec<_>>(), self.is_cut);
            if whole.len() <= MAX_FEATURES_BYTES {
                return (whole, None);
            }
        }
        let whole_bytes = self.encoded_bytes();
        let mut best: Vec<(Promise, usize)> =
            self.candidates.iter().enumerate().map(|(i, c)| (Promise::of(c), i)).collect();
        let per_candidate = whole_bytes.div_ceil(count.max(1));
        let mut keep = (MAX_FEATURES_BYTES / per_candidate.max(1)).min(count);
        // In order are only those that may stay.
        if keep > 0 && keep < count {
            best.select_nth_unstable(keep - 1);
        }
        best.truncate(keep);
        best.sort_unstable();
        loop {
            best.truncate(keep);
            let kept = best.iter().filter_map(|(_, i)| self.candidates.get(*i));
            let cut = self.encode_all(&kept.collect::<Vec<_>>(), true);
            if cut.len() <= MAX_FEATURES_BYTES || keep == 0 {
                return (cut, Some(best.into_iter().map(|(_, i)| i).collect()));
            }
            keep -= keep.div_ceil(8);
        }
    }

    /// Length of the value with all candidates.
    fn encoded_bytes(&self) -> usize {
        let none = self.encode_all(&[], self.is_cut).len();
        let has_more = self.candidates.iter().any(extras::has_candidate);
        if has_more {
            // Names are said once for all of them, which only writing them tells.
            return self.encode_all(&self.candidates.iter().collect::<Vec<_>>(), self.is_cut).len();
        }
        let text = |c: &Candidate| c.address.len().min(usize::from(u16::MAX));
        none + self.candidates.iter().map(|c| MIN_CANDIDATE_BYTES + text(c)).sum::<usize>()
    }

    fn encode_all(&self, candidates: &[&Candidate], is_cut: bool) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'F', 64 + 80 * candidates.len());
        let request = &self.request;
        let has_more = candidates.iter().any(|candidate| extras::has_candidate(candidate));
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let flags = flag(is_cut, CUT)
            | flag(self.is_restricted, RESTRICTED)
            | flag(self.is_probe, PROBE)
            | flag(extras::has_request(request), MORE_OF_REQUEST)
            | flag(has_more, MORE_OF_CANDIDATES);
        writer.u64(self.epoch).u16(self.scope).u8(flags);
        writer.text(&request.model).text(request.adapter.as_deref().unwrap_or_default());
        writer.u32(request.prompt_bytes).u32(request.strides).u32(request.prompt_tokens);
        writer.text(request.unmatched_reason.as_deref().unwrap_or_default());
        write_keys(&mut writer, &request.trail);
        if extras::has_request(request) {
            extras::write_request(&mut writer, request);
        }
        let names = has_more.then(|| Names::of(candidates));
        if let Some(names) = &names {
            names.write(&mut writer);
        }
        writer.u16(candidates.len() as u16);
        for candidate in candidates {
            writer.u16(candidate.slot).text(&candidate.address);
            let (flags, [waiting, running, usage]) = load_words(&candidate.load);
            let m = &candidate.matched;
            let in_flight = &candidate.in_flight;
            let words = [
                waiting,
                running,
                usage,
                candidate.block_size_tokens,
                m.gpu_strides,
                m.gpu_tokens,
                m.any_strides,
                m.any_tokens,
                m.gpu_blocks,
                m.speculative_strides,
                in_flight.requests,
                in_flight.tokens as u32,
                (in_flight.tokens >> 32) as u32,
            ];
            writer.words([flags, source_code(candidate.source)], words);
            if let Some(names) = &names {
                extras::write_candidate(&mut writer, names, candidate);
            }
        }
        writer.0
    }

    /// Reads the property's value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'F')?;
        let epoch = reader.u64()?;
        let scope = reader.u16()?;
        let flags = reader.u8()?;
        let model = reader.text("model")?.to_owned();
        let adapter = Some(reader.text("adapter")?).filter(|name| !name.is_empty());
        let adapter = adapter.map(str::to_owned);
        let (prompt_bytes, strides, prompt_tokens) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let reason = reader.text("unmatched reason")?;
        let unmatched_reason = (!reason.is_empty()).then(|| reason.to_owned());
        let trail = read_keys(&mut reader)?;
        let mut request = RequestFeatures {
            model,
            adapter,
            prompt_bytes,
            strides,
            prompt_tokens,
            unmatched_reason,
            trail,
            ..RequestFeatures::default()
        };
        if flags & MORE_OF_REQUEST != 0 {
            extras::read_request(&mut reader, &mut request)?;
        }
        let has_more = flags & MORE_OF_CANDIDATES != 0;
        let names = if has_more { Some(Names::read(&mut reader)?) } else { None };
        let count = usize::from(reader.u16()?);
        // A lying count cannot reserve more than the value.
        let mut candidates =
            Vec::with_capacity(count.min(reader.remaining() / MIN_CANDIDATE_BYTES));
        for _ in 0..count {
            let slot = reader.u16()?;
            let address = reader.text("address")?.into();
            let ([flags, source], words) = reader.words::<13>()?;
            let [waiting, running, usage, block_size_tokens, words @ ..] = words;
            let [gpu_strides, gpu_tokens, any_strides, any_tokens, words @ ..] = words;
            let [gpu_blocks, speculative_strides, requests, low, high] = words;
            let matched = PrefixMatch {
                gpu_strides,
                gpu_tokens,
                any_strides,
                any_tokens,
                gpu_blocks,
                speculative_strides,
            };
            let tokens = u64::from(high) << 32 | u64::from(low);
            let in_flight = InFlight { requests, tokens };
            let mut candidate = Candidate {
                slot,
                address,
                load: load_of_words(flags, [waiting, running, usage]),
                source: source_of_code(source)?,
                block_size_tokens,
                matched,
                in_flight,
                // Its reliability is the picker's to know: it is no feature of the request.
                ..Candidate::default()
            };
            if let Some(names) = &names {
                extras::read_candidate(&mut reader, names, &mut candidate)?;
            }
            candidates.push(candidate);
        }
        reader.finish()?;
        let [is_cut, is_restricted, is_probe] =
            [CUT, RESTRICTED, PROBE].map(|flag| flags & flag != 0);
        Ok(Self { scope, epoch, request, candidates, is_cut, is_restricted, is_probe })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use routing::{AdapterState, Load, Rates};

    fn features(count: u16) -> Features {
        let candidate = |slot: u16| Candidate {
            slot,
            address: format!("10.0.{}.{}:8000", slot / 256, slot % 256).into(),
            load: Load { is_ready: true, waiting: Some(u32::from(slot) % 7), ..Load::default() },
            matched: PrefixMatch {
                any_strides: u32::from(slot == 900) * 9,
                speculative_strides: 4,
                ..PrefixMatch::default()
            },
            in_flight: InFlight { requests: 2, tokens: u64::MAX },
            ..Candidate::default()
        };
        Features {
            scope: 3,
            epoch: 8,
            request: RequestFeatures {
                model: "m".into(),
                adapter: Some("sql".into()),
                strides: 9,
                unmatched_reason: Some("r".into()),
                trail: vec![1, 2, 3],
                ..RequestFeatures::default()
            },
            candidates: (0..count).map(candidate).collect(),
            is_cut: false,
            is_restricted: false,
            is_probe: false,
        }
    }

    #[test]
    fn round_trip() {
        let mut features = features(5);
        assert_eq!(Features::decode(&features.encode()), Ok(features.clone()));
        (features.is_restricted, features.is_probe) = (true, true);
        assert_eq!(Features::decode(&features.encode()), Ok(features));
    }

    /// All that a plugin may read.
    fn with_extras(count: u16) -> Features {
        let mut features = features(count);
        features.request.headers =
            vec![("x-zone".into(), "ü".into()), ("x-empty".into(), "".into())];
        features.request.priority = Some(-7);
        features.request.fairness_id = Some("tenant".into());
        features.request.slo_ttft_ms = Some(250.5);
        features.request.slo_tpot_ms = Some(0.0);
        for (i, candidate) in features.candidates.iter_mut().enumerate() {
            let states = [
                AdapterState::Unknown,
                AdapterState::Active,
                AdapterState::Room,
                AdapterState::Waiting,
                AdapterState::Full,
            ];
            candidate.adapter = states[i % 5];
            candidate.has_session = i == 1;
            let speed = |is_known: bool| is_known.then_some(i as f32 + 0.5);
            candidate.rates =
                Rates { prefill_tokens_per_s: speed(i % 2 == 0), tpot_ms: speed(i % 3 == 0) };
            let label = |name: &str| (name.to_owned(), format!("{name} of {i}"));
            candidate.labels = ["zone", "rack"].into_iter().take(i % 3).map(label).collect();
            candidate.attributes = vec![("cost".into(), i as f32), ("zone".into(), -0.5)];
            candidate.attributes.truncate(i % 4);
        }
        features
    }

    #[test]
    fn what_only_some_plugins_read_round_trips() {
        let all = with_extras(30);
        assert_eq!(Features::decode(&all.encode()), Ok(all.clone()));
        let mut request_only = all.clone();
        request_only.candidates = features(2).candidates;
        assert_eq!(Features::decode(&request_only.encode()), Ok(request_only.clone()));
        let mut candidates_only = all;
        candidates_only.request = features(2).request;
        assert_eq!(Features::decode(&candidates_only.encode()), Ok(candidates_only));
    }

    #[test]
    fn what_no_plugin_reads_takes_no_bytes() {
        let plain = features(20).encode().len();
        let mut sticky = features(20);
        sticky.candidates[3].has_session = true;
        // A byte of each candidate, and that there are no names.
        assert_eq!(sticky.encode().len(), plain + 20 + 1);
        let mut important = features(20);
        important.request.priority = Some(1);
        assert_eq!(important.encode().len(), plain + 1 + 4);
    }

    /// As who publishes and who reads a value must agree on what is in it.
    #[test]
    fn what_is_published_is_what_is_read() {
        for count in [0, 5, 200, 300, 1000] {
            for features in [features(count), with_extras(count)] {
                let expected = features.encode();
                let (bytes, published) = features.publish();
                assert_eq!(bytes, expected, "{count}");
                assert_eq!(Features::decode(&bytes), Ok(published), "{count}");
            }
        }
    }

    #[test]
    fn long_labels_are_cut_with_their_candidates() {
        let mut features = features(200);
        features.request.headers = vec![("x-long".into(), "v".repeat(4_000))];
        for candidate in &mut features.candidates {
            candidate.labels = vec![("k".repeat(300), "v".repeat(63)); 4];
        }
        let bytes = features.encode();
        assert!(bytes.len() <= MAX_FEATURES_BYTES && bytes.len() > MAX_FEATURES_BYTES / 2);
        let cut = Features::decode(&bytes).unwrap();
        assert!(cut.is_cut && cut.candidates.len() > 20);
        assert_eq!(cut.request.headers, features.request.headers);
        assert_eq!(cut.candidates[0].labels, features.candidates[0].labels);
    }

    #[test]
    fn too_many_candidates_are_cut_to_the_most_promising() {
        let bytes = features(1000).encode();
        assert!(bytes.len() <= MAX_FEATURES_BYTES && bytes.len() > MAX_FEATURES_BYTES / 2);
        let cut = Features::decode(&bytes).unwrap();
        assert!(cut.is_cut && !cut.is_restricted && !cut.is_probe);
        assert_eq!(cut.candidates[0].slot, 900);
        assert_eq!(cut.candidates[1].load.waiting, Some(0));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = vec![b'F', 1];
            framed.extend(&bytes);
            let _ = Features::decode(&framed);
            // Into the part that only some read.
            let mut extended = with_extras(1).encode();
            extended.truncate(64);
            extended.extend(bytes);
            let _ = Features::decode(&extended);
        }
    }
}
