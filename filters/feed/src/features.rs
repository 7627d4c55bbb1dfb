//! The stream property that intake publishes and scorers and picker read.

use routing::{Candidate, InFlight, PrefixMatch, RequestFeatures};

use crate::WireError;
use crate::extras::{self, Names};
use crate::matrix::{read_keys, write_keys};
use crate::values::{read_load, write_load};
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
        let whole = self.encode_all(&self.candidates.iter().collect::<Vec<_>>(), self.is_cut);
        if whole.len() <= MAX_FEATURES_BYTES {
            return whole;
        }
        let mut best: Vec<&Candidate> = self.candidates.iter().collect();
        best.sort_by_key(|c| {
            let waiting = c.load.waiting.unwrap_or(0);
            let held = c.matched.any_strides.max(c.matched.speculative_strides);
            (!c.load.is_ready, std::cmp::Reverse(held), waiting, c.in_flight.requests)
        });
        let per_candidate = whole.len().div_ceil(self.candidates.len().max(1));
        let mut keep = MAX_FEATURES_BYTES / per_candidate.max(1);
        loop {
            let cut = self.encode_all(best.get(..keep).unwrap_or(&best), true);
            if cut.len() <= MAX_FEATURES_BYTES || keep == 0 {
                return cut;
            }
            keep -= keep.div_ceil(8);
        }
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
            write_load(&mut writer, &candidate.load, candidate.source, candidate.block_size_tokens);
            let m = &candidate.matched;
            writer.u32(m.gpu_strides).u32(m.gpu_tokens).u32(m.any_strides).u32(m.any_tokens);
            writer.u32(m.gpu_blocks).u32(m.speculative_strides);
            writer.u32(candidate.in_flight.requests).u64(candidate.in_flight.tokens);
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
        let mut candidates = Vec::new();
        for _ in 0..reader.u16()? {
            let slot = reader.u16()?;
            let address = reader.text("address")?.to_owned();
            let (load, source, block_size_tokens) = read_load(&mut reader)?;
            let matched = PrefixMatch {
                gpu_strides: reader.u32()?,
                gpu_tokens: reader.u32()?,
                any_strides: reader.u32()?,
                any_tokens: reader.u32()?,
                gpu_blocks: reader.u32()?,
                speculative_strides: reader.u32()?,
            };
            let in_flight = InFlight { requests: reader.u32()?, tokens: reader.u64()? };
            let mut candidate = Candidate {
                slot,
                address,
                load,
                source,
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
            address: format!("10.0.{}.{}:8000", slot / 256, slot % 256),
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
