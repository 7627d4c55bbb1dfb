//! Stride keys: `key_j = xxh64(stride_j XOR seed, seeded with key_{j-1})`.

use xxhash_rust::xxh64::xxh64;

/// Bytes per stride. Of 32, 64 and 128 measured on six tokenizers, 64 never over-counts by more
/// than a block and costs one index entry per 16-token block; 32 doubles the index and gains
/// nothing for growing chats. Part of the meaning of every key: changing it voids all state.
pub const STRIDE_BYTES: usize = 64;

/// The pool's secret. XORed into every stride, because a seeded xxh64 alone lets a fixed pair of
/// strides collide under half of all seeds. Shared by all daemons of a pool.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(pub [u8; STRIDE_BYTES]);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(secret)")
    }
}

/// Key of one prefix of a prompt's bytes, up to the end of a full stride.
/// Never compared with an engine's block hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StrideKey(pub u64);

/// What separates prompts of equal text: an engine shares no block across these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace<'a> {
    /// The model's canonical name in the pool, not an alias.
    pub model: &'a str,
    /// LoRA adapter by name.
    pub lora: Option<&'a str>,
    /// The request's `cache_salt`.
    pub salt: Option<&'a str>,
}

impl Namespace<'_> {
    /// The key before the first stride. Fields are length-prefixed, so no two namespaces share a
    /// spelling.
    pub fn root(&self, seed: &Seed) -> StrideKey {
        let mut spelled = Vec::with_capacity(64);
        for field in [Some(self.model), self.lora, self.salt] {
            match field {
                Some(text) => {
                    spelled.extend_from_slice(&(text.len() as u64 + 1).to_le_bytes());
                    spelled.extend_from_slice(text.as_bytes());
                }
                None => spelled.extend_from_slice(&0u64.to_le_bytes()),
            }
        }
        let secret = xxh64(&seed.0, 0);
        StrideKey(xxh64(&spelled, secret))
    }
}

impl Namespace<'_> {
    /// The key before the first stride of the key space over token ids, in which 16 ids of four
    /// little-endian bytes make a stride.
    pub fn root_of_token_ids(&self, seed: &Seed) -> StrideKey {
        StrideKey(xxh64(b"token ids", self.root(seed).0))
    }
}

fn next(seed: &Seed, previous: StrideKey, stride: &[u8; STRIDE_BYTES]) -> StrideKey {
    let mut mixed = [0u8; STRIDE_BYTES];
    // By words: without vectors a compiler leaves a loop over bytes what it is, which then takes
    // three times as long as the hash.
    let (words, _) = stride.as_chunks::<8>();
    let (secrets, _) = seed.0.as_chunks::<8>();
    let (out, _) = mixed.as_chunks_mut::<8>();
    for ((out, word), secret) in out.iter_mut().zip(words).zip(secrets) {
        *out = (u64::from_ne_bytes(*word) ^ u64::from_ne_bytes(*secret)).to_ne_bytes();
    }
    StrideKey(xxh64(&mixed, previous.0))
}

/// Turns bytes that arrive in pieces of any size into stride keys.
#[derive(Clone, Debug)]
pub struct KeyChain {
    last: StrideKey,
    tail: [u8; STRIDE_BYTES],
    tail_len: u8,
}

impl KeyChain {
    /// A chain that has seen nothing yet of its namespace.
    pub fn new(root: StrideKey) -> Self {
        Self { last: root, tail: [0; STRIDE_BYTES], tail_len: 0 }
    }

    /// Appends `bytes` and calls `emit` with the key of each stride they complete.
    pub fn push(&mut self, seed: &Seed, mut bytes: &[u8], mut emit: impl FnMut(StrideKey)) {
        if self.tail_len > 0 {
            let taken = self.fill(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if usize::from(self.tail_len) < STRIDE_BYTES {
                return;
            }
            self.tail_len = 0;
            self.last = next(seed, self.last, &self.tail);
            emit(self.last);
        }
        let (strides, rest) = bytes.as_chunks::<STRIDE_BYTES>();
        for stride in strides {
            self.last = next(seed, self.last, stride);
            emit(self.last);
        }
        self.fill(rest);
    }

    /// Appends to the stride that is not full yet; returns how many bytes it had room for.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let room = self.tail.get_mut(usize::from(self.tail_len)..).unwrap_or_default();
        let taken = bytes.len().min(room.len());
        if let (Some(to), Some(from)) = (room.get_mut(..taken), bytes.get(..taken)) {
            to.copy_from_slice(from);
        }
        self.tail_len += taken as u8;
        taken
    }

    /// A chain that continues after `last` with bytes that did not fill a stride; what is beyond
    /// a stride's length of them is ignored.
    pub fn resume(last: StrideKey, pending: &[u8]) -> Self {
        let mut chain = Self::new(last);
        chain.fill(pending.get(..STRIDE_BYTES - 1).unwrap_or(pending));
        chain
    }

    /// Key of the last full stride.
    pub fn last_key(&self) -> StrideKey {
        self.last
    }

    /// The bytes after the last full stride.
    pub fn pending(&self) -> &[u8] {
        self.tail.get(..usize::from(self.tail_len)).unwrap_or_default()
    }

    /// Bytes of the stride that is not full yet.
    pub fn pending_bytes(&self) -> usize {
        usize::from(self.tail_len)
    }

    /// Keys of all full strides of `bytes`.
    pub fn keys_of(root: StrideKey, seed: &Seed, bytes: &[u8]) -> Vec<StrideKey> {
        let mut keys = Vec::with_capacity(bytes.len() / STRIDE_BYTES);
        Self::new(root).push(seed, bytes, |key| keys.push(key));
        keys
    }
}

/// Bucket that `key` lives in. `bucket_count` is a power of two; anything else reads as bucket 0.
pub fn bucket_of(key: StrideKey, bucket_count: u32) -> u32 {
    if bucket_count.is_power_of_two() { (key.0 as u32) & (bucket_count - 1) } else { 0 }
}

/// What tells keys of one bucket apart: the upper half, which shares no bit with the bucket number.
pub fn fingerprint_of(key: StrideKey) -> u32 {
    (key.0 >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seed() -> Seed {
        Seed(std::array::from_fn(|i| (i * 37 + 11) as u8))
    }

    fn naive(root: StrideKey, seed: &Seed, bytes: &[u8]) -> Vec<StrideKey> {
        let mut keys = Vec::new();
        let mut last = root.0;
        for stride in bytes.chunks_exact(64) {
            let mixed: Vec<u8> = stride.iter().zip(seed.0.iter()).map(|(a, b)| a ^ b).collect();
            last = xxh64(&mixed, last);
            keys.push(StrideKey(last));
        }
        keys
    }

    /// Vectors from the `xxhash` package of PyPI (`tests/golden/keys/generate.py`).
    #[test]
    fn keys_agree_with_the_reference_hash() {
        let golden = include_str!("../../../tests/golden/keys/keys.txt");
        let mut lines = 0;
        for line in golden.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let fields: Vec<&str> = line.split('|').collect();
            let option = |text: &'static str| (text != "-").then_some(text);
            let namespace =
                Namespace { model: fields[0], lora: option(fields[1]), salt: option(fields[2]) };
            let root = namespace.root(&seed());
            assert_eq!(format!("{:016x}", root.0), fields[3], "root of {line}");
            let text = fields[4].repeat(fields[5].parse().unwrap());
            let keys = KeyChain::keys_of(root, &seed(), text.as_bytes());
            let last = keys.last().map_or("-".to_owned(), |key| format!("{:016x}", key.0));
            assert_eq!((keys.len().to_string().as_str(), last.as_str()), (fields[6], fields[7]));
            lines += 1;
        }
        assert!(lines >= 6, "the golden file is short");
    }

    #[test]
    fn namespaces_do_not_share_keys() {
        let of = |lora, salt| Namespace { model: "m", lora, salt }.root(&seed());
        let all = [
            of(None, None),
            of(Some(""), None),
            of(None, Some("")),
            of(Some("a"), None),
            of(None, Some("a")),
            of(Some("a"), Some("a")),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    proptest! {
        #[test]
        fn pieces_and_whole_agree(bytes in proptest::collection::vec(any::<u8>(), 0..700), cuts in proptest::collection::vec(0usize..700, 0..8)) {
            let root = StrideKey(7);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut chain = KeyChain::new(root);
            let mut keys = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                chain.push(&seed(), &bytes[from..cut], |key| keys.push(key));
                from = cut;
            }
            prop_assert_eq!(&keys, &naive(root, &seed(), &bytes));
            prop_assert_eq!(chain.pending_bytes(), bytes.len() % 64);
            let resumed = KeyChain::resume(chain.last_key(), chain.pending());
            prop_assert_eq!(format!("{:?}", (resumed.last, resumed.pending())), format!("{:?}", (chain.last, chain.pending())));
        }
    }
}
