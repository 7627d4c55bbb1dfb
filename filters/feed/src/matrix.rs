//! The load matrix: what each router VM has in flight, and where it sent prefixes lately.
//!
//! Endpoints go by a hash of their address, not by slot: slots belong to a writer's epoch, and a
//! request may outlive it, or be served by an endpoint that the filter never listed.

use crate::WireError;
use crate::values::{open, start};
use crate::wire::{Reader, Writer};

/// Cells of a row, or of the other gateways, at most; 16 KiB of them.
pub const MAX_CELLS: usize = 800;
/// Trails a VM keeps, of at most [`MAX_TRAIL`] keys each: 9 KiB at worst, 4 KiB for prompts of 8k
/// tokens.
pub const MAX_TRAILS: usize = 64;
/// Keys of a trail: depths 1, 2, 3, 4, 6, 8, 12 and so on, up to 98,304 strides (6 MiB of text).
pub const MAX_TRAIL: usize = 33;

/// An endpoint by its address, as the proxy spells it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct EndpointHash(pub u64);

impl EndpointHash {
    /// FNV-1a 64 of the address.
    pub fn of(address: &str) -> Self {
        Self(address.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        }))
    }
}

/// Requests in flight to one endpoint, and the prompt tokens among them that it did not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    /// The endpoint.
    pub endpoint: EndpointHash,
    /// Requests picked and not yet ended.
    pub requests: u32,
    /// Their uncached prompt tokens, by estimate.
    pub tokens: u64,
}

/// Adds cells of one list to another; both are sorted by endpoint.
pub fn add_cells(sums: &mut Vec<Cell>, cells: &[Cell]) {
    for cell in cells {
        match sums.binary_search_by_key(&cell.endpoint, |sum| sum.endpoint) {
            Ok(at) => {
                if let Some(sum) = sums.get_mut(at) {
                    sum.requests = sum.requests.saturating_add(cell.requests);
                    sum.tokens = sum.tokens.saturating_add(cell.tokens);
                }
            }
            Err(at) => sums.insert(at, *cell),
        }
    }
}

/// The sum for one endpoint of a sorted list.
pub fn find_cell(cells: &[Cell], endpoint: EndpointHash) -> Cell {
    let found = cells.binary_search_by_key(&endpoint, |cell| cell.endpoint).ok();
    found.and_then(|at| cells.get(at)).copied().unwrap_or(Cell { endpoint, ..Cell::default() })
}

pub(crate) fn write_cells(writer: &mut Writer, cells: &[Cell]) {
    let cells = cells.get(..MAX_CELLS).unwrap_or(cells);
    writer.u16(cells.len() as u16);
    for cell in cells {
        writer.u64(cell.endpoint.0).u32(cell.requests).u64(cell.tokens);
    }
}

/// Cells must ascend by endpoint: sums rely on it.
pub(crate) fn read_cells(reader: &mut Reader<'_>) -> Result<Vec<Cell>, WireError> {
    let count = usize::from(reader.u16()?);
    if count > MAX_CELLS {
        return Err(WireError::Range("cell count"));
    }
    let mut cells: Vec<Cell> = Vec::with_capacity(count.min(reader.remaining() / 20));
    for _ in 0..count {
        let endpoint = EndpointHash(reader.u64()?);
        if cells.last().is_some_and(|last| last.endpoint >= endpoint) {
            return Err(WireError::Range("cell order"));
        }
        cells.push(Cell { endpoint, requests: reader.u32()?, tokens: reader.u64()? });
    }
    Ok(cells)
}

/// The row of one router VM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MatrixRow {
    /// The VM, as in its [`crate::WorkerRow`]; 0 when it has ended.
    pub vm: u64,
    /// Gateway's monotonic clock at the last write; an old one is a dead VM's.
    pub beat_ns: u64,
    /// Endpoints with something in flight, ascending.
    pub cells: Vec<Cell>,
}

impl MatrixRow {
    /// The shared value. At most [`MAX_CELLS`] cells are written.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'I', 20 + 20 * self.cells.len());
        writer.u64(self.vm).u64(self.beat_ns);
        write_cells(&mut writer, &self.cells);
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'I')?;
        let (vm, beat_ns) = (reader.u64()?, reader.u64()?);
        let cells = read_cells(&mut reader)?;
        reader.finish()?;
        Ok(Self { vm, beat_ns, cells })
    }
}

/// Sums over the other gateways, written by the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OtherGateways {
    /// Writer's epoch.
    pub epoch: u64,
    /// Endpoints with something in flight there, ascending.
    pub cells: Vec<Cell>,
}

impl OtherGateways {
    /// The shared value. At most [`MAX_CELLS`] cells are written.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = start(b'O', self.epoch);
        write_cells(&mut writer, &self.cells);
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (epoch, mut reader) = open(b'O', bytes)?;
        let cells = read_cells(&mut reader)?;
        reader.finish()?;
        Ok(Self { epoch, cells })
    }
}

/// Where a request with this prefix was sent, before any event could tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trail {
    /// The endpoint picked.
    pub endpoint: EndpointHash,
    /// When the state it was decided by was read.
    pub read_ns: u64,
    /// When others could see it: who read before that decided without it.
    pub published_ns: u64,
    /// Upper halves of the stride keys at the depths of [`trail_depths`].
    pub keys: Vec<u32>,
}

/// Depths, in strides, at which a prompt of `strides` leaves keys: 1, 2, 3, 4, 6, 8, 12, ... A later
/// prompt that shares the first n strides meets the deepest of them up to n, at least two thirds.
pub fn trail_depths(strides: u32) -> impl Iterator<Item = u32> {
    let depth = |i: u32| match i {
        0 => 1,
        i if i % 2 == 1 => 2u32 << (i / 2),
        i => 3u32 << (i / 2 - 1),
    };
    (0..MAX_TRAIL as u32).map(depth).take_while(move |depth| *depth <= strides)
}

/// What is read of a trail that matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundTrail {
    /// The endpoint picked.
    pub endpoint: EndpointHash,
    /// See [`Trail::read_ns`].
    pub read_ns: u64,
    /// See [`Trail::published_ns`].
    pub published_ns: u64,
    /// Leading keys that are the same, at least one.
    pub common: usize,
}

impl Trail {
    /// The trail as it stands in a [`join_trails`] value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(25 + 4 * self.keys.len()));
        writer.u64(self.endpoint.0).u64(self.read_ns).u64(self.published_ns);
        write_keys(&mut writer, &self.keys);
        writer.0
    }
}

/// The shared value of one VM's encoded trails, oldest first; at most [`MAX_TRAILS`] are taken.
pub fn join_trails<'a>(trails: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<u8> {
    let count = trails.len().min(MAX_TRAILS);
    let mut writer = Writer::with_preamble(b'W', 2 + 110 * count);
    writer.u16(count as u16);
    for trail in trails.take(count) {
        writer.raw(trail);
    }
    writer.0
}

/// Calls `found` for each trail of a [`join_trails`] value that begins as `keys` do.
pub fn find_trails(
    value: &[u8],
    keys: &[u32],
    mut found: impl FnMut(FoundTrail),
) -> Result<(), WireError> {
    let mut reader = Reader::new(value);
    reader.preamble(b'W')?;
    let count = usize::from(reader.u16()?);
    if count > MAX_TRAILS {
        return Err(WireError::Range("trail count"));
    }
    for _ in 0..count {
        let (endpoint, read_ns, published_ns) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let length = usize::from(reader.u8()?);
        if length > MAX_TRAIL {
            return Err(WireError::Range("trail length"));
        }
        let theirs = reader.take(4 * length)?.chunks_exact(4);
        let common = theirs.zip(keys).take_while(|(a, b)| **a == b.to_le_bytes()).count();
        if common > 0 {
            found(FoundTrail { endpoint: EndpointHash(endpoint), read_ns, published_ns, common });
        }
    }
    reader.finish()
}

pub(crate) fn write_keys(writer: &mut Writer, keys: &[u32]) {
    let keys = keys.get(..MAX_TRAIL).unwrap_or(keys);
    writer.u8(keys.len() as u8);
    for key in keys {
        writer.u32(*key);
    }
}

pub(crate) fn read_keys(reader: &mut Reader<'_>) -> Result<Vec<u32>, WireError> {
    let count = usize::from(reader.u8()?);
    if count > MAX_TRAIL {
        return Err(WireError::Range("trail length"));
    }
    (0..count).map(|_| reader.u32()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depths_grow_by_a_third_to_a_half() {
        assert_eq!(trail_depths(13).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 12]);
        assert_eq!(trail_depths(0).count(), 0);
        let all: Vec<u32> = trail_depths(u32::MAX).collect();
        assert_eq!((all.len(), all.last()), (MAX_TRAIL, Some(&98_304)));
        for pair in all.windows(2).skip(1) {
            assert!(pair[1] * 2 <= pair[0] * 3, "{pair:?}");
        }
    }

    fn cells() -> impl Strategy<Value = Vec<Cell>> {
        proptest::collection::btree_map(0u64..20, (any::<u32>(), any::<u64>()), 0..12).prop_map(
            |map| {
                let cell = |(endpoint, (requests, tokens))| Cell {
                    endpoint: EndpointHash(endpoint),
                    requests,
                    tokens,
                };
                map.into_iter().map(cell).collect()
            },
        )
    }

    proptest! {
        #[test]
        fn rows_round_trip_and_sum(vm: u64, beat_ns: u64, one in cells(), other in cells()) {
            let row = MatrixRow { vm, beat_ns, cells: one.clone() };
            prop_assert_eq!(MatrixRow::decode(&row.encode()), Ok(row));
            let others = OtherGateways { epoch: vm, cells: one.clone() };
            prop_assert_eq!(OtherGateways::decode(&others.encode()), Ok(others));
            let mut sums = one.clone();
            add_cells(&mut sums, &other);
            for endpoint in (0..20).map(EndpointHash) {
                let of = |cells: &[Cell]| {
                    cells.iter().find(|cell| cell.endpoint == endpoint).copied().unwrap_or_default()
                };
                let sum = find_cell(&sums, endpoint);
                let requests = of(&one).requests.saturating_add(of(&other).requests);
                let tokens = of(&one).tokens.saturating_add(of(&other).tokens);
                prop_assert_eq!((sum.requests, sum.tokens), (requests, tokens));
            }
        }

        #[test]
        fn any_bytes_never_panic(kind in prop::sample::select(b"QSO".to_vec()), bytes: Vec<u8>) {
            let mut framed = vec![kind, 1];
            framed.extend(bytes);
            let _ = MatrixRow::decode(&framed);
            let _ = find_trails(&framed, &[0, 0], |_| {});
            let _ = OtherGateways::decode(&framed);
        }
    }

    #[test]
    fn trails_that_begin_alike_are_found() {
        let trail = |endpoint, keys: &[u32]| {
            let endpoint = EndpointHash(endpoint);
            Trail { endpoint, read_ns: 5, published_ns: 6, keys: keys.to_vec() }.encode()
        };
        let all = [trail(1, &[7, 8]), trail(2, &[7, 9, 10]), trail(3, &[8, 8]), trail(4, &[])];
        let value = join_trails(all.iter().map(Vec::as_slice));
        let mut found = Vec::new();
        find_trails(&value, &[7, 9], |trail| found.push((trail.endpoint.0, trail.common))).unwrap();
        assert_eq!(found, [(1, 1), (2, 2)]);
        let cut = &value[..value.len() - 1];
        assert!(find_trails(cut, &[7], |_| {}).is_err());
    }

    #[test]
    fn cells_out_of_order_are_refused() {
        let cell = |endpoint| Cell { endpoint: EndpointHash(endpoint), requests: 1, tokens: 1 };
        let row = MatrixRow { cells: vec![cell(2), cell(1)], ..MatrixRow::default() };
        assert_eq!(MatrixRow::decode(&row.encode()), Err(WireError::Range("cell order")));
    }
}
