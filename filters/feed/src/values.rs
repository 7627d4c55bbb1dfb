//! Singleton values: endpoint table, load table, model, picks.
//!
//! Each starts with kind, version and the epoch of its writer.

use prefix::{STRIDE_BYTES, Seed};
use routing::{Load, SourceState};

use crate::WireError;
use crate::adapters::{EngineAdapters, read_adapters, write_adapters};
use crate::labels::{read_labels, write_labels};
use crate::wire::{Reader, Writer};

/// Largest singleton value. 64 KB cost 5 µs to read and are read only when they changed.
pub const MAX_SINGLETON_BYTES: usize = 64 << 10;

/// Epoch that wrote `value`, of any kind that carries one.
pub fn value_epoch(value: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(value);
    reader.u16().ok()?;
    reader.u64().ok()
}

pub(crate) fn start(kind: u8, epoch: u64) -> Writer {
    let mut writer = Writer::with_preamble(kind, 256);
    writer.u64(epoch);
    writer
}

pub(crate) fn open<'a>(kind: u8, bytes: &'a [u8]) -> Result<(u64, Reader<'a>), WireError> {
    let mut reader = Reader::new(bytes);
    reader.preamble(kind)?;
    Ok((reader.u64()?, reader))
}

/// Endpoints of a scope: what changes rarely.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Table {
    /// Writer's epoch.
    pub epoch: u64,
    /// Endpoints, ascending by slot.
    pub endpoints: Vec<EndpointEntry>,
}

/// One endpoint.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct EndpointEntry {
    /// Number used in buckets.
    pub slot: u16,
    /// `ip:port` as the proxy spells it.
    pub address: String,
    /// Its labels, at most [`crate::MAX_LABELS`].
    pub labels: Vec<(String, String)>,
    /// Its numeric attributes, at most [`crate::MAX_LABELS`], finite.
    pub attributes: Vec<(String, f32)>,
}

impl Table {
    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = start(b'T', self.epoch);
        writer.u16(self.endpoints.len() as u16);
        for endpoint in &self.endpoints {
            writer.u16(endpoint.slot).text(&endpoint.address);
        }
        write_labels(&mut writer, &self.endpoints);
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (epoch, mut reader) = open(b'T', bytes)?;
        let mut endpoints = Vec::new();
        for _ in 0..reader.u16()? {
            let (slot, address) = (reader.u16()?, reader.text("address")?.to_owned());
            endpoints.push(EndpointEntry { slot, address, ..EndpointEntry::default() });
        }
        read_labels(&mut reader, &mut endpoints)?;
        reader.finish()?;
        Ok(Self { epoch, endpoints })
    }
}

/// Loads of a scope's endpoints: what changes with every scrape.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LoadTable {
    /// Writer's epoch.
    pub epoch: u64,
    /// One record per endpoint, ascending by slot.
    pub records: Vec<LoadRecord>,
}

/// Load, block size and source state of one endpoint.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LoadRecord {
    /// Slot in the table.
    pub slot: u16,
    /// Measured load.
    pub load: Load,
    /// State of the prefix source.
    pub source: SourceState,
    /// Tokens per block; 0 while unknown.
    pub block_size_tokens: u32,
    /// Tokens its KV cache has room for; 0 while unknown.
    pub cache_tokens: u32,
    /// Start of its process in seconds since the Unix epoch; 0 while unknown.
    pub started_s: u32,
    /// Its LoRA adapters; `None` of an engine that does not tell.
    pub adapters: Option<EngineAdapters>,
}

const READY: u8 = 1;
const HAS_WAITING: u8 = 2;
const HAS_RUNNING: u8 = 4;
const HAS_USAGE: u8 = 8;

/// Flags of a load, and its readings.
pub(crate) fn load_words(load: &Load) -> (u8, [u32; 3]) {
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let flags = flag(load.is_ready, READY)
        | flag(load.waiting.is_some(), HAS_WAITING)
        | flag(load.running.is_some(), HAS_RUNNING)
        | flag(load.kv_usage_ratio.is_some(), HAS_USAGE);
    let usage = load.kv_usage_ratio.unwrap_or(0.0).to_bits();
    (flags, [load.waiting.unwrap_or(0), load.running.unwrap_or(0), usage])
}

pub(crate) fn load_of_words(flags: u8, [waiting, running, usage]: [u32; 3]) -> Load {
    let usage = f32::from_bits(usage);
    let has = |bit: u8| flags & bit != 0;
    Load {
        is_ready: has(READY),
        waiting: has(HAS_WAITING).then_some(waiting),
        running: has(HAS_RUNNING).then_some(running),
        kv_usage_ratio: (has(HAS_USAGE) && usage.is_finite()).then_some(usage),
    }
}

pub(crate) fn source_code(source: SourceState) -> u8 {
    match source {
        SourceState::None => 0,
        SourceState::Live => 1,
        SourceState::Resyncing => 2,
        SourceState::Degraded => 3,
        SourceState::Lost => 4,
        SourceState::Approximate => 5,
    }
}

pub(crate) fn source_of_code(code: u8) -> Result<SourceState, WireError> {
    Ok(match code {
        0 => SourceState::None,
        1 => SourceState::Live,
        2 => SourceState::Resyncing,
        3 => SourceState::Degraded,
        4 => SourceState::Lost,
        5 => SourceState::Approximate,
        _ => return Err(WireError::Range("source state")),
    })
}

impl LoadTable {
    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = start(b'L', self.epoch);
        writer.u16(self.records.len() as u16);
        for record in &self.records {
            writer.u16(record.slot);
            let (flags, [waiting, running, usage]) = load_words(&record.load);
            let LoadRecord { block_size_tokens, cache_tokens, started_s, .. } = *record;
            let words = [waiting, running, usage, block_size_tokens, cache_tokens, started_s];
            writer.words([flags, source_code(record.source)], words);
            write_adapters(&mut writer, record.adapters.as_ref());
        }
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (epoch, mut reader) = open(b'L', bytes)?;
        let mut records = Vec::new();
        for _ in 0..reader.u16()? {
            let slot = reader.u16()?;
            let ([flags, source], words) = reader.words()?;
            let [waiting, running, usage, block_size_tokens, cache_tokens, started_s] = words;
            let adapters = read_adapters(&mut reader)?;
            records.push(LoadRecord {
                slot,
                load: load_of_words(flags, [waiting, running, usage]),
                source: source_of_code(source)?,
                block_size_tokens,
                cache_tokens,
                started_s,
                adapters,
            });
        }
        reader.finish()?;
        Ok(Self { epoch, records })
    }
}

/// What a filter must know to turn a request of this model into keys.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelValue {
    /// Writer's epoch.
    pub epoch: u64,
    /// The pool's secret.
    pub seed: Seed,
    /// Buckets of the index, a power of two.
    pub bucket_count: u32,
    /// Bytes of text per token, for estimates of what was not matched.
    pub bytes_per_token: f32,
    /// `prompt::ModelSpec` as JSON.
    pub spec_json: Vec<u8>,
}

impl ModelValue {
    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = start(b'M', self.epoch);
        writer.raw(&self.seed.0).u32(self.bucket_count).u32(self.bytes_per_token.to_bits());
        writer.u32(self.spec_json.len() as u32).raw(&self.spec_json);
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (epoch, mut reader) = open(b'M', bytes)?;
        let seed: [u8; STRIDE_BYTES] =
            reader.take(STRIDE_BYTES)?.try_into().map_err(|_| WireError::Range("seed"))?;
        let bucket_count = reader.u32()?;
        if !bucket_count.is_power_of_two() {
            return Err(WireError::Range("bucket count"));
        }
        let bytes_per_token = f32::from_bits(reader.u32()?);
        if !(bytes_per_token.is_finite() && bytes_per_token > 0.0) {
            return Err(WireError::Range("bytes per token"));
        }
        let len = reader.u32()? as usize;
        let spec_json = reader.take(len)?.to_vec();
        reader.finish()?;
        Ok(Self { epoch, seed: Seed(seed), bucket_count, bytes_per_token, spec_json })
    }
}

/// When each slot of a scope was last picked, shared by all workers of a gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picks {
    /// Epoch whose slots these are; another epoch's are forgotten.
    pub epoch: u64,
    /// Picks so far.
    pub count: u64,
    /// `(slot, last pick, last cold pick)`, ascending by slot; 0 is never.
    pub slots: Vec<(u16, u64, u64)>,
}

/// Slot and two numbers.
const PICK_BYTES: usize = 2 + 8 + 8;

impl Picks {
    /// Records a pick of `slot`.
    pub fn record(&mut self, slot: u16, was_cold: bool) {
        self.count += 1;
        let count = self.count;
        match self.slots.binary_search_by_key(&slot, |entry| entry.0) {
            Ok(at) => {
                if let Some(entry) = self.slots.get_mut(at) {
                    entry.1 = count;
                    if was_cold {
                        entry.2 = count;
                    }
                }
            }
            Err(at) => self.slots.insert(at, (slot, count, if was_cold { count } else { 0 })),
        }
    }

    /// Last picks and last cold picks of `slots`, which are best ascending.
    pub fn of_all(&self, slots: impl Iterator<Item = u16>) -> (Vec<u64>, Vec<u64>) {
        let mut at = 0;
        slots
            .map(|slot| {
                let mut entry = self.slots.get(at).filter(|entry| entry.0 == slot);
                if entry.is_none() {
                    at = self.slots.partition_point(|entry| entry.0 < slot);
                    entry = self.slots.get(at).filter(|entry| entry.0 == slot);
                }
                at += usize::from(entry.is_some());
                entry.map_or((0, 0), |entry| (entry.1, entry.2))
            })
            .unzip()
    }

    /// `(last pick, last cold pick)` of `slot`.
    pub fn of(&self, slot: u16) -> (u64, u64) {
        self.slots
            .binary_search_by_key(&slot, |entry| entry.0)
            .ok()
            .and_then(|at| self.slots.get(at))
            .map_or((0, 0), |entry| (entry.1, entry.2))
    }

    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = start(b'P', self.epoch);
        writer.u64(self.count).u16(self.slots.len() as u16);
        writer.0.reserve(PICK_BYTES * self.slots.len());
        for (slot, any, cold) in &self.slots {
            let word = |number: u64, part: u32| (number >> (32 * part)) as u32;
            let words = [word(*any, 0), word(*any, 1), word(*cold, 0), word(*cold, 1)];
            writer.words(slot.to_le_bytes(), words);
        }
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (epoch, mut reader) = open(b'P', bytes)?;
        let count = reader.u64()?;
        let entries = usize::from(reader.u16()?);
        let mut slots = Vec::with_capacity(entries.min(reader.remaining() / PICK_BYTES));
        for _ in 0..entries {
            let (slot, [any_low, any_high, cold_low, cold_high]) = reader.words()?;
            let number = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
            let (any, cold) = (number(any_low, any_high), number(cold_low, cold_high));
            slots.push((u16::from_le_bytes(slot), any, cold));
        }
        reader.finish()?;
        Ok(Self { epoch, count, slots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn picks_keep_order_and_cold_apart() {
        let mut picks = Picks { epoch: 1, ..Picks::default() };
        for (slot, cold) in [(5, true), (2, false), (5, false)] {
            picks.record(slot, cold);
        }
        assert_eq!((picks.of(5), picks.of(2), picks.of(9)), ((3, 1), (2, 0), (0, 0)));
        assert_eq!(picks.of_all([2, 5, 9].into_iter()), (vec![2, 3, 0], vec![0, 1, 0]));
        assert_eq!(picks.of_all([9, 5, 2, 5].into_iter()), (vec![0, 3, 2, 3], vec![0, 1, 0, 1]));
        assert_eq!(Picks::decode(&picks.encode()), Ok(picks));
    }

    fn any_load() -> impl Strategy<Value = LoadRecord> {
        (
            any::<u16>(),
            any::<bool>(),
            any::<Option<u32>>(),
            any::<Option<u32>>(),
            proptest::option::of(0f32..1.0),
            0u8..6,
            any::<[u32; 3]>(),
            proptest::option::of((any::<bool>(), any::<[u16; 2]>(), any::<[u16; 3]>())),
        )
            .prop_map(
                |(slot, is_ready, waiting, running, kv_usage_ratio, source, numbers, lora)| {
                    let [block_size_tokens, cache_tokens, started_s] = numbers;
                    let adapters = lora.map(|(has_room, running, waiting)| EngineAdapters {
                        has_room,
                        running: running.to_vec(),
                        waiting: waiting.to_vec(),
                    });
                    LoadRecord {
                        slot,
                        load: Load { is_ready, waiting, running, kv_usage_ratio },
                        source: source_of_code(source).unwrap(),
                        block_size_tokens,
                        cache_tokens,
                        started_s,
                        adapters,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn loads_round_trip(epoch: u64, records in proptest::collection::vec(any_load(), 0..20)) {
            let table = LoadTable { epoch, records };
            prop_assert_eq!(LoadTable::decode(&table.encode()), Ok(table));
        }

        #[test]
        fn any_bytes_never_panic(kind in prop::sample::select(b"TLMP".to_vec()), bytes: Vec<u8>) {
            let mut framed = vec![kind, 1];
            framed.extend(bytes);
            let _ = Table::decode(&framed);
            let _ = LoadTable::decode(&framed);
            let _ = ModelValue::decode(&framed);
            let _ = Picks::decode(&framed);
        }
    }

    #[test]
    fn tables_and_models_round_trip() {
        let table = Table {
            epoch: 1,
            endpoints: vec![
                EndpointEntry {
                    slot: 3,
                    address: "[fd00::1]:8000".into(),
                    ..EndpointEntry::default()
                },
                EndpointEntry {
                    slot: 4,
                    address: "10.0.0.1:8000".into(),
                    labels: vec![("zone".into(), "a".into()), ("a".into(), "zone".into())],
                    attributes: vec![("zone".into(), 1.5)],
                },
            ],
        };
        assert_eq!(Table::decode(&table.encode()), Ok(table.clone()));
        let entry = |name: &str| EndpointEntry {
            labels: (0..=crate::MAX_LABELS).map(|i| (format!("{name}{i}"), "v".into())).collect(),
            attributes: vec![("nan".into(), f32::NAN)],
            ..EndpointEntry::default()
        };
        let beyond = Table { epoch: 1, endpoints: vec![entry("a"), entry("b")] };
        let held = Table::decode(&beyond.encode()).unwrap();
        assert_eq!(held.endpoints[1].labels, entry("b").labels[..crate::MAX_LABELS]);
        assert_eq!(held.endpoints[1].attributes, []);
        let model = ModelValue {
            epoch: 1,
            seed: Seed([7; 64]),
            bucket_count: 8,
            bytes_per_token: 4.0,
            spec_json: b"{}".to_vec(),
        };
        assert_eq!(ModelValue::decode(&model.encode()), Ok(model.clone()));
        let bad = ModelValue { bucket_count: 6, ..model };
        assert_eq!(ModelValue::decode(&bad.encode()), Err(WireError::Range("bucket count")));
    }
}
