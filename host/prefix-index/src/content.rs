//! What tells the children of a node apart.

use std::hash::Hasher;

use prefix::{STRIDE_BYTES, Seed};
use siphasher::sip::SipHasher24;

/// Tells siblings apart by their tokens. Keyed by the pool's secret: the same in every process of
/// the pool and in every build, so that a node of a snapshot and a later store of the same block
/// are one node; and not to be foreseen by who chooses prompts.
pub(crate) struct ContentHasher {
    keys: (u64, u64),
}

impl ContentHasher {
    pub(crate) fn new(seed: &Seed) -> Self {
        let (key, rest) = seed.0.split_at(STRIDE_BYTES / 4);
        let key = key.iter().fold(0u128, |key, byte| key << 8 | u128::from(*byte));
        let derived = |label: &[u8]| {
            let mut hasher = SipHasher24::new_with_keys((key >> 64) as u64, key as u64);
            hasher.write(label);
            hasher.write(rest);
            hasher.finish()
        };
        Self { keys: (derived(b"block content 0"), derived(b"block content 1")) }
    }

    /// SipHash-1-3 of `beyond_text` and the tokens in little-endian bytes. A block is whole words but
    /// for a half one at most, so this takes words where a hasher of streams would take bytes.
    pub(crate) fn hash(&self, tokens: &[u32], beyond_text: u64) -> u64 {
        let mut state = State::new(self.keys);
        state.absorb(beyond_text);
        let (words, rest) = tokens.as_chunks::<2>();
        for [low, high] in words {
            state.absorb(u64::from(*low) | u64::from(*high) << 32);
        }
        // The last byte of the message's padding is its length modulo 256.
        let len = (8 + 4 * tokens.len()) as u64;
        state.absorb(len << 56 | rest.first().map_or(0, |token| u64::from(*token)));
        state.finish()
    }
}

/// Of SipHash (Aumasson and Bernstein 2012), with one round per word and three at the end.
struct State([u64; 4]);

impl State {
    fn new((k0, k1): (u64, u64)) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline]
    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    #[inline]
    fn round(&mut self) {
        let [mut v0, mut v1, mut v2, mut v3] = self.0;
        v0 = v0.wrapping_add(v1);
        v1 = v1.rotate_left(13) ^ v0;
        v0 = v0.rotate_left(32);
        v2 = v2.wrapping_add(v3);
        v3 = v3.rotate_left(16) ^ v2;
        v0 = v0.wrapping_add(v3);
        v3 = v3.rotate_left(21) ^ v0;
        v2 = v2.wrapping_add(v1);
        v1 = v1.rotate_left(17) ^ v2;
        v2 = v2.rotate_left(32);
        self.0 = [v0, v1, v2, v3];
    }

    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        (0..3).for_each(|_| self.round());
        self.0.iter().fold(0, |all, part| all ^ part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;

    proptest! {
        /// Against the `siphasher` crate over the same bytes, for every shape of the last word and
        /// lengths beyond 256 bytes.
        #[test]
        fn contents_are_hashed_as_sip_hash_says(
            keys in any::<(u64, u64)>(),
            beyond_text in any::<u64>(),
            tokens in proptest::collection::vec(any::<u32>(), 0..200),
        ) {
            let mut reference = SipHasher13::new_with_keys(keys.0, keys.1);
            reference.write(&beyond_text.to_le_bytes());
            tokens.iter().for_each(|token| reference.write(&token.to_le_bytes()));
            prop_assert_eq!(
                ContentHasher { keys }.hash(&tokens, beyond_text),
                reference.finish()
            );
        }
    }
}
