//! What a section holds: which tokens its text was made of, its engines, and an index per key space.
//!
//! | bytes | are |
//! |---|---|
//! | 32 | digest of the model's token table |
//! | 2 | number of engines |
//! | | engines: 2 + n of address, 1 of kind, 1 of flags, 4 of block size, and what the flags announce |
//! | 1 | number of indexes |
//! | | indexes: 8 of length, then as exported by `prefix-index` |
//!
//! Flags: 1 the history is partial; 2 a process start follows (8, a double of Unix seconds);
//! 4 a position follows (8 of sequence number, 8 of fingerprint).

/// Why an authentic content is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// It ends too early.
    #[error("content ends within {0}")]
    Ended(&'static str),
    /// It says what no daemon says.
    #[error("{0} cannot be")]
    Malformed(&'static str),
}

/// The last batch of events that is in the indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its number within the engine's run.
    pub sequence: u64,
    /// Fingerprint of its payload.
    pub fingerprint: u64,
}

/// One engine; its slot in the indexes is its place in the list.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// `ip:port`.
    pub address: String,
    /// Number of the kind of engine, which says what its events mean.
    pub kind: u8,
    /// Something before the position is missing.
    pub is_partial: bool,
    /// Tokens per block; 0 while unknown.
    pub block_size_tokens: u32,
    /// Its cache was cleared since its stream began.
    pub is_cleared: bool,
    /// Why what is known of it may be wrong, as the daemon numbers the reasons.
    pub doubts: u8,
    /// Data-parallel rank of its batches.
    pub rank: Option<u32>,
    /// KV cache group of full attention that is indexed.
    pub full_group: Option<u32>,
    /// Windowed KV cache groups.
    pub windowed_groups: Vec<u32>,
    /// When its process started, in Unix seconds.
    pub process_start: Option<f64>,
    /// Its own time of the first batch that counts, in Unix seconds.
    pub first_batch_at: Option<f64>,
    /// `None` when nothing of its events is in the indexes, or nothing that could be gone on with.
    pub position: Option<Position>,
}

/// A section's content.
#[derive(Clone, Debug, PartialEq)]
pub struct Content<'a> {
    /// Digest of the model's token table: with another one, the same text has other tokens.
    pub tokens: [u8; 32],
    /// In order of slots.
    pub engines: Vec<Engine>,
    /// One per key space, as exported.
    pub indexes: Vec<&'a [u8]>,
}

const IS_PARTIAL: u8 = 1;
const HAS_START: u8 = 2;
const HAS_POSITION: u8 = 4;
const IS_CLEARED: u8 = 8;
const HAS_FIRST_BATCH: u8 = 16;
const HAS_RANK: u8 = 32;
const HAS_FULL_GROUP: u8 = 64;
const ALL_FLAGS: u8 = 127;

/// A content of so many indexes, each to be added by [`push_index`]. At most 65,535 engines.
pub fn begin_content(tokens: &[u8; 32], engines: &[Engine], indexes: u8) -> Vec<u8> {
    let mut out = tokens.to_vec();
    let engines = &engines[..engines.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(engines.len() as u16).to_le_bytes());
    for engine in engines {
        let address = engine.address.as_bytes();
        let address = &address[..address.len().min(usize::from(u16::MAX))];
        out.extend_from_slice(&(address.len() as u16).to_le_bytes());
        out.extend_from_slice(address);
        out.push(engine.kind);
        out.push(
            u8::from(engine.is_partial) * IS_PARTIAL
                + u8::from(engine.process_start.is_some()) * HAS_START
                + u8::from(engine.position.is_some()) * HAS_POSITION
                + u8::from(engine.is_cleared) * IS_CLEARED
                + u8::from(engine.first_batch_at.is_some()) * HAS_FIRST_BATCH
                + u8::from(engine.rank.is_some()) * HAS_RANK
                + u8::from(engine.full_group.is_some()) * HAS_FULL_GROUP,
        );
        out.push(engine.doubts);
        out.extend_from_slice(&engine.block_size_tokens.to_le_bytes());
        if let Some(start) = engine.process_start {
            out.extend_from_slice(&start.to_bits().to_le_bytes());
        }
        if let Some(position) = engine.position {
            out.extend_from_slice(&position.sequence.to_le_bytes());
            out.extend_from_slice(&position.fingerprint.to_le_bytes());
        }
        if let Some(at) = engine.first_batch_at {
            out.extend_from_slice(&at.to_bits().to_le_bytes());
        }
        for number in engine.rank.iter().chain(&engine.full_group) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let groups = &engine.windowed_groups;
        let groups = &groups[..groups.len().min(usize::from(u8::MAX))];
        out.push(groups.len() as u8);
        groups.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    }
    out.push(indexes);
    out
}

/// Adds an index, which `export` appends.
pub fn push_index(content: &mut Vec<u8>, export: impl FnOnce(&mut Vec<u8>)) {
    let at = content.len();
    content.extend_from_slice(&[0; 8]);
    export(content);
    let length = (content.len() - at - 8) as u64;
    content[at..at + 8].copy_from_slice(&length.to_le_bytes());
}

impl<'a> Content<'a> {
    /// Reads what [`begin_content`] and [`push_index`] wrote.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ContentError> {
        let mut from = Reader(bytes);
        let tokens = from.array("digest of tokens")?;
        let mut engines = Vec::new();
        for _ in 0..u16::from_le_bytes(from.array("number of engines")?) {
            let length = usize::from(u16::from_le_bytes(from.array("address")?));
            let address = std::str::from_utf8(from.take(length, "address")?);
            let address = address.map_err(|_| ContentError::Malformed("address"))?.to_owned();
            let [kind, flags, doubts] = from.array("engine")?;
            if flags & !ALL_FLAGS != 0 {
                return Err(ContentError::Malformed("flags of an engine"));
            }
            let block_size_tokens = u32::from_le_bytes(from.array("block size")?);
            let process_start = from.time(flags & HAS_START != 0, "process start")?;
            let position = match flags & HAS_POSITION {
                0 => None,
                _ => Some(Position {
                    sequence: from.number("position")?,
                    fingerprint: from.number("position")?,
                }),
            };
            let first_batch_at = from.time(flags & HAS_FIRST_BATCH != 0, "first batch")?;
            let rank = from.option(flags & HAS_RANK != 0, "rank")?;
            let full_group = from.option(flags & HAS_FULL_GROUP != 0, "group")?;
            let [groups] = from.array("groups")?;
            let groups = (0..groups).map(|_| from.array("groups").map(u32::from_le_bytes));
            let windowed_groups = groups.collect::<Result<_, _>>()?;
            engines.push(Engine {
                address,
                kind,
                is_partial: flags & IS_PARTIAL != 0,
                is_cleared: flags & IS_CLEARED != 0,
                doubts,
                rank,
                full_group,
                windowed_groups,
                first_batch_at,
                block_size_tokens,
                process_start,
                position,
            });
        }
        let [indexes] = from.array("number of indexes")?;
        let indexes = (0..indexes).map(|_| {
            let length = usize::try_from(from.number("length of an index")?);
            from.take(length.map_err(|_| ContentError::Ended("an index"))?, "an index")
        });
        let indexes = indexes.collect::<Result<_, _>>()?;
        match from.0 {
            [] => Ok(Self { tokens, engines, indexes }),
            _ => Err(ContentError::Malformed("more after the end")),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], ContentError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(ContentError::Ended(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ContentError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn option(&mut self, is: bool, what: &'static str) -> Result<Option<u32>, ContentError> {
        is.then(|| self.array(what).map(u32::from_le_bytes)).transpose()
    }

    fn time(&mut self, is: bool, what: &'static str) -> Result<Option<f64>, ContentError> {
        let time = is.then(|| self.number(what).map(f64::from_bits)).transpose()?;
        match time.is_some_and(|time| !time.is_finite()) {
            true => Err(ContentError::Malformed(what)),
            false => Ok(time),
        }
    }

    fn number(&mut self, what: &'static str) -> Result<u64, ContentError> {
        self.array(what).map(u64::from_le_bytes)
    }
}
