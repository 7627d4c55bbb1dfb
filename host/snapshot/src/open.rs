//! Reading: nothing is believed before its tag was checked, nor reserved beyond one chunk.

use std::io::{ErrorKind, Read};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};
use prefix::Seed;

use crate::{
    CHUNK_BYTES, LAST, MAGIC, SALT_BYTES, SEED_ID_BYTES, START_BYTES, TAG_BYTES, VERSION,
    associated, key, nonce, seed_id,
};

/// Largest content of a section: some fifty million blocks.
pub const MAX_SECTION_BYTES: u64 = 4 << 30;

/// Why a snapshot cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It does not begin as one.
    #[error("is no snapshot")]
    NotASnapshot,
    /// It is of another version of the format.
    #[error("version {found} is not understood, only {VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// It ends before its end.
    #[error("is too short")]
    TooShort,
    /// A length or name that cannot be.
    #[error("is damaged")]
    Damaged,
    /// It could not be read.
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
}

/// Why one section is not used, while those after it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    /// There is no such pool and model.
    #[error("is of no configured pool and model")]
    Unknown,
    /// It was sealed by daemons of another seed.
    #[error("is sealed with another seed")]
    OtherSeed,
    /// A tag does not fit: something was changed, or put elsewhere.
    #[error("is damaged")]
    Damaged,
    /// More than [`MAX_SECTION_BYTES`].
    #[error("exceeds {MAX_SECTION_BYTES} bytes")]
    TooLarge,
}

/// A section that was read to its end.
#[derive(Debug)]
pub struct Opened {
    /// Name of the pool.
    pub pool: String,
    /// Name of the model.
    pub model: String,
    /// The authentic content.
    pub content: Result<Vec<u8>, SectionError>,
}

/// Reads the sections of a snapshot.
#[derive(Debug)]
pub struct Snapshots<R> {
    from: R,
    start: [u8; START_BYTES],
    next: u32,
    count: u32,
}

impl<R: Read> Snapshots<R> {
    /// Reads the start.
    ///
    /// # Errors
    /// When it is not one of this version.
    pub fn open(mut from: R) -> Result<Self, SnapshotError> {
        let mut start = [0; START_BYTES];
        let mut have = 0;
        while have < START_BYTES {
            match from.read(&mut start[have..]) {
                Ok(0) => break,
                Ok(more) => have += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(SnapshotError::Read(error)),
            }
        }
        let known = have.min(MAGIC.len());
        if start[..known] != MAGIC[..known] {
            return Err(SnapshotError::NotASnapshot);
        }
        if have < START_BYTES {
            return Err(SnapshotError::TooShort);
        }
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| start[at + i]));
        match (number(8), number(12)) {
            // There is no daemon without a pool.
            (VERSION, 0) => Err(SnapshotError::Damaged),
            (VERSION, count) => Ok(Self { from, start, next: 0, count }),
            (found, _) => Err(SnapshotError::Version { found }),
        }
    }

    /// The next section, `None` after the last one. `seed_of` gives the seed of a pool that has the
    /// model.
    ///
    /// # Errors
    /// When what follows cannot be read; nothing can be read after it then.
    pub fn next_section(
        &mut self,
        seed_of: impl Fn(&str, &str) -> Option<Seed>,
    ) -> Result<Option<Opened>, SnapshotError> {
        if self.next == self.count {
            return Ok(None);
        }
        let mut header = Vec::new();
        let pool = self.name(&mut header)?;
        let model = self.name(&mut header)?;
        let (id, salt) = (self.array::<SEED_ID_BYTES>()?, self.array::<SALT_BYTES>()?);
        header.extend_from_slice(&id);
        header.extend_from_slice(&salt);
        let cipher = match seed_of(&pool, &model) {
            None => Err(SectionError::Unknown),
            Some(seed) if seed_id(&seed) != id => Err(SectionError::OtherSeed),
            Some(seed) => Ok(ChaCha20Poly1305::new(&key(&seed, &salt))),
        };
        let associated = associated(&self.start, self.next, &header);
        let content = self.chunks(cipher, &associated)?;
        self.next += 1;
        Ok(Some(Opened { pool, model, content }))
    }

    /// Reads all chunks of a section, also of one that is not used.
    fn chunks(
        &mut self,
        cipher: Result<ChaCha20Poly1305, SectionError>,
        associated: &[u8],
    ) -> Result<Result<Vec<u8>, SectionError>, SnapshotError> {
        let mut content = cipher.as_ref().map(|_| Vec::new()).map_err(Clone::clone);
        let mut chunk = vec![0; CHUNK_BYTES];
        for number in 0.. {
            let length = u32::from_le_bytes(self.array()?);
            let is_last = length & LAST != 0;
            let length = (length & !LAST) as usize;
            // Only the last chunk is not full, which keeps endless empty ones out.
            if length > CHUNK_BYTES || !is_last && length < CHUNK_BYTES {
                return Err(SnapshotError::Damaged);
            }
            let bytes = &mut chunk[..length];
            self.exact(bytes)?;
            let tag = Tag::from(self.array::<TAG_BYTES>()?);
            if let (Ok(cipher), Ok(so_far)) = (&cipher, &mut content) {
                let nonce = nonce(number, is_last);
                let opened =
                    cipher.decrypt_inout_detached(&nonce, associated, (&mut *bytes).into(), &tag);
                if opened.is_err() {
                    content = Err(SectionError::Damaged);
                } else if (so_far.len() + length) as u64 > MAX_SECTION_BYTES {
                    content = Err(SectionError::TooLarge);
                } else {
                    so_far.extend_from_slice(bytes);
                }
            }
            if is_last {
                break;
            }
        }
        Ok(content)
    }

    fn name(&mut self, header: &mut Vec<u8>) -> Result<String, SnapshotError> {
        let length = self.array::<2>()?;
        let mut name = vec![0; usize::from(u16::from_le_bytes(length))];
        self.exact(&mut name)?;
        header.extend_from_slice(&length);
        header.extend_from_slice(&name);
        String::from_utf8(name).map_err(|_| SnapshotError::Damaged)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut array = [0; N];
        self.exact(&mut array)?;
        Ok(array)
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => SnapshotError::TooShort,
            _ => SnapshotError::Read(error),
        })
    }
}
