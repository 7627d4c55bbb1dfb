//! What the gateway itself remembers of where it sent prompts: the approximate prefix state of
//! endpoints that announce nothing.
//!
//! A prompt leaves its key at the depths of [`sent_depths`], each in the bucket of its key. Ages are
//! strides of new prefixes that were sent to the endpoint since: an endpoint forgets what more than
//! its capacity came after, as its cache does.

use crate::WireError;
use crate::matrix::EndpointHash;
use crate::wire::{Reader, Writer};

/// Name of the property that tells the picker what to remember.
pub const SENT_PROPERTY: &str = "wasm_epp.sent";
/// Buckets of a scope. Of 100 endpoints with llm-d's capacity (31,250 blocks), about 50 entries each.
pub const SENT_BUCKETS: u32 = 1 << 16;
/// Largest bucket: a prefix that 450 endpoints hold. The oldest entries are left out beyond it.
pub const MAX_SENT_BUCKET_BYTES: usize = 4 << 10;
/// Endpoints remembered per scope.
pub const MAX_SENT_ENDPOINTS: usize = 800;
/// Depths of a prompt: up to 65,536 strides (4 MiB of text).
pub const MAX_SENT_DEPTHS: usize = 176;

/// Strides between depths, up to the depth of 64: 256 bytes, which llm-d takes for 64 tokens, its
/// smallest block.
const STEP: u32 = 4;
/// Depths between one power of two and the next, from there on: at most a sixteenth is not seen.
const PER_OCTAVE: u32 = 16;

/// Depths at which a prompt of `strides` is remembered: every fourth stride up to 128, every eighth
/// up to 256, and so on.
pub fn sent_depths(strides: u32) -> impl Iterator<Item = u32> {
    let next = |depth: &u32| {
        let step = (1u32 << depth.max(&1).ilog2()) / PER_OCTAVE;
        depth.checked_add(step.max(STEP))
    };
    std::iter::successors(Some(STEP), next)
        .take(MAX_SENT_DEPTHS)
        .take_while(move |depth| *depth <= strides)
}

/// How much was sent to one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SentClock {
    /// The endpoint.
    pub endpoint: EndpointHash,
    /// Strides of prefixes that were new to it, so far.
    pub clock: u64,
    /// Strides it is believed to hold.
    pub capacity: u32,
    /// Start of its process in seconds since the Unix epoch; 0 while unknown.
    pub started_s: u32,
}

impl SentClock {
    /// Whether what has this stamp is still within the capacity.
    pub fn holds(&self, stamp: u64) -> bool {
        self.age(stamp) <= u64::from(self.capacity)
    }

    /// Strides that came after the stamp.
    pub fn age(&self, stamp: u64) -> u64 {
        self.clock.saturating_sub(stamp)
    }

    /// Forgets all that was sent, whatever its capacity is next.
    pub fn forget(&mut self) {
        self.clock += u64::from(u32::MAX) + 1;
    }
}

/// The clocks of a scope's endpoints. An endpoint's place is its number in the buckets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SentClocks {
    /// By number.
    pub clocks: Vec<SentClock>,
}

impl SentClocks {
    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let clocks = self.clocks.get(..MAX_SENT_ENDPOINTS).unwrap_or(&self.clocks);
        let mut writer = Writer::with_preamble(b'Y', 2 + 24 * clocks.len());
        writer.u16(clocks.len() as u16);
        for clock in clocks {
            writer.u64(clock.endpoint.0).u64(clock.clock).u32(clock.capacity).u32(clock.started_s);
        }
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'Y')?;
        let count = usize::from(reader.u16()?);
        if count > MAX_SENT_ENDPOINTS {
            return Err(WireError::Range("clock count"));
        }
        let mut clocks = Vec::with_capacity(count.min(reader.remaining() / 24));
        for _ in 0..count {
            clocks.push(SentClock {
                endpoint: EndpointHash(reader.u64()?),
                clock: reader.u64()? & MAX_STAMP,
                capacity: reader.u32()?,
                started_s: reader.u32()?,
            });
        }
        reader.finish()?;
        Ok(Self { clocks })
    }

    /// Number and clock of an endpoint.
    pub fn find(&self, endpoint: EndpointHash) -> Option<(u16, SentClock)> {
        let at = self.clocks.iter().position(|clock| clock.endpoint == endpoint)?;
        Some((u16::try_from(at).ok()?, *self.clocks.get(at)?))
    }
}

/// Stamps have six bytes.
const MAX_STAMP: u64 = (1 << 48) - 1;

/// Prefixes of one bucket and who was sent them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SentBucket {
    /// Upper half of each prefix's key, and (number, stamp) of its endpoints.
    pub entries: Vec<(u32, Vec<(u16, u64)>)>,
}

impl SentBucket {
    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'X', self.bytes());
        for (fingerprint, holders) in &self.entries {
            writer.u32(*fingerprint).u16(holders.len() as u16);
            for (number, stamp) in holders {
                writer.u16(*number).u32(*stamp as u32).u16((*stamp >> 32) as u16);
            }
        }
        writer.0
    }

    /// Size of the shared value.
    pub fn bytes(&self) -> usize {
        2 + self.entries.iter().map(|(_, holders)| 6 + 8 * holders.len()).sum::<usize>()
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut entries = Vec::new();
        read_entries(bytes, |fingerprint, holders| entries.push((fingerprint, holders.collect())))?;
        Ok(Self { entries })
    }
}

fn read_entries<'a>(
    bytes: &'a [u8],
    mut entry: impl FnMut(u32, Holders<'a>),
) -> Result<(), WireError> {
    let mut reader = Reader::new(bytes);
    reader.preamble(b'X')?;
    while reader.remaining() > 0 {
        let fingerprint = reader.u32()?;
        let count = usize::from(reader.u16()?);
        entry(fingerprint, Holders(reader.take(8 * count)?));
    }
    reader.finish()
}

/// Holders of a [`SentBucket`] value, as they are read.
struct Holders<'a>(&'a [u8]);

impl Iterator for Holders<'_> {
    type Item = (u16, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let (first, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        let all = u64::from_le_bytes(*first);
        Some(((all & 0xFFFF) as u16, all >> 16))
    }
}

/// Who was sent the prefix of this fingerprint, by a [`SentBucket`] value.
pub fn find_sent(bytes: &[u8], fingerprint: u32) -> Result<Vec<(u16, u64)>, WireError> {
    let mut found = Vec::new();
    read_entries(bytes, |entry, holders| {
        if entry == fingerprint {
            found = holders.collect();
        }
    })?;
    Ok(found)
}

/// An endpoint whose prefix state is what it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SentEndpoint {
    /// Its slot, of the features' epoch.
    pub slot: u16,
    /// Strides it is believed to hold.
    pub capacity: u32,
    /// Start of its process in seconds since the Unix epoch; 0 while unknown.
    pub started_s: u32,
}

/// What the picker needs to remember where a prompt went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SentPlan {
    /// Keys of the prompt at the depths of [`sent_depths`].
    pub keys: Vec<u64>,
    /// The endpoints.
    pub endpoints: Vec<SentEndpoint>,
}

impl SentPlan {
    /// The property's value.
    pub fn encode(&self) -> Vec<u8> {
        let keys = self.keys.get(..MAX_SENT_DEPTHS).unwrap_or(&self.keys);
        let mut writer =
            Writer::with_preamble(b'Z', 3 + 8 * keys.len() + 10 * self.endpoints.len());
        writer.u8(keys.len() as u8);
        for key in keys {
            writer.u64(*key);
        }
        writer.u16(self.endpoints.len() as u16);
        for endpoint in &self.endpoints {
            writer.u16(endpoint.slot).u32(endpoint.capacity).u32(endpoint.started_s);
        }
        writer.0
    }

    /// Reads the property's value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'Z')?;
        let count = usize::from(reader.u8()?);
        if count > MAX_SENT_DEPTHS {
            return Err(WireError::Range("depth count"));
        }
        let keys = (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        let mut endpoints = Vec::new();
        for _ in 0..reader.u16()? {
            endpoints.push(SentEndpoint {
                slot: reader.u16()?,
                capacity: reader.u32()?,
                started_s: reader.u32()?,
            });
        }
        reader.finish()?;
        Ok(Self { keys, endpoints })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depths_leave_out_a_sixteenth_at_most() {
        let all: Vec<u32> = sent_depths(u32::MAX).collect();
        assert_eq!((all.len(), all[0], all[31], all[32]), (MAX_SENT_DEPTHS, 4, 128, 136));
        assert_eq!(all.last(), Some(&65_536));
        for pair in all.windows(2) {
            let step = pair[1] - pair[0];
            assert!(step == 4 || step * 16 <= pair[0], "{pair:?}");
        }
        assert_eq!(sent_depths(3).count(), 0);
        assert_eq!(sent_depths(11).collect::<Vec<_>>(), [4, 8]);
    }

    fn holders() -> impl Strategy<Value = Vec<(u16, u64)>> {
        proptest::collection::vec((any::<u16>(), 0..=MAX_STAMP), 0..5)
    }

    proptest! {
        #[test]
        fn values_round_trip(
            entries in proptest::collection::vec((any::<u32>(), holders()), 0..6),
            clocks in proptest::collection::vec((any::<u64>(), 0..=MAX_STAMP, any::<u32>(), any::<u32>()), 0..6),
            keys in proptest::collection::vec(any::<u64>(), 0..MAX_SENT_DEPTHS),
            endpoints in proptest::collection::vec((any::<u16>(), any::<u32>(), any::<u32>()), 0..6),
        ) {
            let bucket = SentBucket { entries };
            let bytes = bucket.encode();
            prop_assert_eq!(bytes.len(), bucket.bytes());
            prop_assert_eq!(SentBucket::decode(&bytes), Ok(bucket.clone()));
            for (fingerprint, _) in &bucket.entries {
                let last = bucket.entries.iter().rfind(|entry| entry.0 == *fingerprint);
                prop_assert_eq!(find_sent(&bytes, *fingerprint).ok(), last.map(|entry| entry.1.clone()));
            }
            let clock = |(endpoint, clock, capacity, started_s)| SentClock {
                endpoint: EndpointHash(endpoint), clock, capacity, started_s,
            };
            let clocks = SentClocks { clocks: clocks.into_iter().map(clock).collect() };
            prop_assert_eq!(SentClocks::decode(&clocks.encode()), Ok(clocks));
            let endpoint = |(slot, capacity, started_s)| SentEndpoint { slot, capacity, started_s };
            let plan = SentPlan { keys, endpoints: endpoints.into_iter().map(endpoint).collect() };
            prop_assert_eq!(SentPlan::decode(&plan.encode()), Ok(plan));
        }

        #[test]
        fn any_bytes_never_panic(kind in prop::sample::select(b"XYZ".to_vec()), bytes: Vec<u8>) {
            let mut framed = vec![kind, 1];
            framed.extend(bytes);
            let _ = SentBucket::decode(&framed);
            let _ = SentClocks::decode(&framed);
            let _ = SentPlan::decode(&framed);
            let _ = find_sent(&framed, 0);
        }
    }
}
