//! Writing.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};
use prefix::Seed;

use crate::{CHUNK_BYTES, LAST, MAGIC, SALT_BYTES, VERSION, associated, key, nonce, seed_id};

/// The bytes before the first of so many sections.
pub fn begin(sections: u32) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &sections.to_le_bytes()].concat()
}

/// The bytes of one section, in pieces.
pub struct Sealed {
    content: Vec<u8>,
    at: usize,
    chunk: u64,
    cipher: ChaCha20Poly1305,
    associated: Vec<u8>,
    /// Comes first.
    header: Option<Vec<u8>>,
    is_done: bool,
}

impl Sealed {
    /// Section `number` of the snapshot that began with `start`. Names are cut at 65,535 bytes.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new(
        start: &[u8],
        number: u32,
        (pool, model): (&str, &str),
        seed: &Seed,
        content: Vec<u8>,
    ) -> Result<Self, getrandom::Error> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt)?;
        let mut header = Vec::new();
        for name in [pool, model] {
            let name = &name.as_bytes()[..name.len().min(usize::from(u16::MAX))];
            header.extend_from_slice(&(name.len() as u16).to_le_bytes());
            header.extend_from_slice(name);
        }
        header.extend_from_slice(&seed_id(seed));
        header.extend_from_slice(&salt);
        Ok(Self {
            content,
            at: 0,
            chunk: 0,
            cipher: ChaCha20Poly1305::new(&key(seed, &salt)),
            associated: associated(start, number, &header),
            header: Some(header),
            is_done: false,
        })
    }

    /// Seals a chunk in place; `None` only for more than the cipher takes, which a chunk never is.
    fn seal(&self, bytes: &mut [u8], is_last: bool) -> Option<Tag> {
        let nonce = nonce(self.chunk, is_last);
        self.cipher.encrypt_inout_detached(&nonce, &self.associated, bytes.into()).ok()
    }
}

impl Iterator for Sealed {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(header) = self.header.take() {
            return Some(header);
        }
        if self.is_done {
            return None;
        }
        let end = (self.at + CHUNK_BYTES).min(self.content.len());
        self.is_done = end == self.content.len();
        let length = (end - self.at) as u32 | if self.is_done { LAST } else { 0 };
        let mut piece = Vec::with_capacity(4 + CHUNK_BYTES + 16);
        piece.extend_from_slice(&length.to_le_bytes());
        piece.extend_from_slice(&self.content[self.at..end]);
        let tag = self.seal(&mut piece[4..], self.is_done)?;
        piece.extend_from_slice(&tag);
        self.at = end;
        self.chunk += 1;
        Some(piece)
    }
}
