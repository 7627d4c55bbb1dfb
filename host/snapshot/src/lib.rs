//! What a daemon knows, sealed for another process of its pool: the file on its disk and the answer
//! to a peer are the same bytes.
//!
//! Numbers are little-endian. A snapshot is
//!
//! | bytes | are |
//! |---|---|
//! | 8 | `EPPSNAP` and a zero |
//! | 4 | version: 1 |
//! | 4 | number of sections |
//!
//! and its sections, one per (pool, model):
//!
//! | bytes | are |
//! |---|---|
//! | 2 + n | name of the pool |
//! | 2 + n | name of the model |
//! | 8 | which seed: the start of SHA-256("wasm-epp snapshot seed", seed) |
//! | 32 | salt, drawn for this section |
//! | | chunks: 4 bytes of length, of which the highest bit marks the last; ciphertext; 16 of tag |
//!
//! Chunks are sealed with ChaCha20-Poly1305 (RFC 8439) under the key SHA-256("wasm-epp snapshot
//! key", seed, salt), which no other section has. The nonce is the chunk's number (8 bytes), 1 for
//! the last one else 0 (1 byte), and three zeros; the associated data are the snapshot's first 16
//! bytes, the section's number (4 bytes) and all of the section before its chunks. So without the
//! pool's seed nothing but names and sizes can be read, and chunks that are changed, cut off, swapped
//! or of another snapshot are found out before they are used: the tag is the checksum.
//!
//! [`Content`] is what a section holds.

mod content;
mod open;
mod seal;

pub use content::{Content, ContentError, Engine, Position, begin_content, push_index};
pub use open::{MAX_SECTION_BYTES, Opened, SectionError, SnapshotError, Snapshots};
pub use seal::{Sealed, begin};

use chacha20poly1305::{Key, Nonce};
use prefix::Seed;
use sha2::{Digest, Sha256};

/// The first bytes of every snapshot.
const MAGIC: [u8; 8] = *b"EPPSNAP\0";
/// Moves with every change that a reader of this version would misread, here or in [`Content`] or in
/// an exported index.
pub const VERSION: u32 = 1;
/// Before the first section.
const START_BYTES: usize = 16;
/// Plaintext of a chunk at most. What a reader reserves before anything is authentic.
const CHUNK_BYTES: usize = 256 << 10;
const TAG_BYTES: usize = 16;
const SALT_BYTES: usize = 32;
const SEED_ID_BYTES: usize = 8;
/// Marks the last chunk of a section, in its length.
const LAST: u32 = 1 << 31;

fn seed_id(seed: &Seed) -> [u8; SEED_ID_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(b"wasm-epp snapshot seed");
    hasher.update(seed.0);
    let mut id = [0; SEED_ID_BYTES];
    id.copy_from_slice(&hasher.finalize()[..SEED_ID_BYTES]);
    id
}

fn key(seed: &Seed, salt: &[u8]) -> Key {
    let mut hasher = Sha256::new();
    hasher.update(b"wasm-epp snapshot key");
    hasher.update(seed.0);
    hasher.update(salt);
    let mut key = Key::default();
    key.copy_from_slice(&hasher.finalize());
    key
}

fn nonce(chunk: u64, is_last: bool) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[..8].copy_from_slice(&chunk.to_le_bytes());
    nonce[8] = u8::from(is_last);
    nonce
}

/// What is bound to every chunk of a section.
fn associated(start: &[u8], section: u32, header: &[u8]) -> Vec<u8> {
    [start, &section.to_le_bytes(), header].concat()
}

#[cfg(test)]
mod tests;
