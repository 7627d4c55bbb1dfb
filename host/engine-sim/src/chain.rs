use sha2::{Digest, Sha256};

/// Hash of one full block and everything before it; engine-private.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct BlockHash([u8; 32]);

impl BlockHash {
    /// What events carry: the last eight bytes, as vLLM's integer block hashes.
    pub(crate) fn wire(self) -> u64 {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0[24..]);
        u64::from_be_bytes(low)
    }

    /// The parent of every first block (vLLM's NONE_HASH).
    pub(crate) fn root(seed: u64) -> BlockHash {
        BlockHash(Sha256::digest(seed.to_le_bytes()).into())
    }

    /// Keys are hashed with their kind, as vLLM does since 0.31: an adapter and a salt of one name
    /// do not meet.
    fn child(self, tokens: &[u32], namespace: &Namespace, index: usize) -> BlockHash {
        let mut hasher = Sha256::new_with_prefix(self.0);
        hasher.update((tokens.len() as u64).to_le_bytes());
        for token in tokens {
            hasher.update(token.to_le_bytes());
        }
        let salt = namespace.cache_salt.as_deref().filter(|_| index == 0);
        for (kind, key) in [(b'l', namespace.lora_name.as_deref()), (b's', salt)] {
            if let Some(key) = key {
                hasher.update([kind]);
                hasher.update((key.len() as u64).to_le_bytes());
                hasher.update(key);
            }
        }
        BlockHash(hasher.finalize().into())
    }
}

/// What separates equal tokens of different requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) lora_name: Option<String>,
    pub(crate) cache_salt: Option<String>,
}

impl Namespace {
    /// Extra keys of the block at `index` in events: the adapter in every block, the salt in the
    /// first, untagged.
    pub(crate) fn extra_keys(&self, index: usize) -> Vec<String> {
        let salt = self.cache_salt.iter().filter(|_| index == 0);
        self.lora_name.iter().chain(salt).cloned().collect()
    }
}

/// The tokens of one request and the blocks that hold them.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) namespace: Namespace,
    pub(crate) tokens: Vec<u32>,
    /// Hashes of the full blocks of `tokens`, computed as blocks fill.
    pub(crate) hashes: Vec<BlockHash>,
    /// Physical blocks, one per begun block.
    pub(crate) blocks: Vec<usize>,
    /// How many leading blocks are registered under their hash.
    pub(crate) registered: usize,
}

impl Chain {
    pub(crate) fn new(namespace: Namespace, tokens: Vec<u32>) -> Chain {
        Chain { namespace, tokens, hashes: Vec::new(), blocks: Vec::new(), registered: 0 }
    }

    /// Brings `hashes` up to the full blocks of `tokens`.
    pub(crate) fn hash_full_blocks(&mut self, root: BlockHash, block_size: usize) {
        let full = self.tokens.len() / block_size;
        for index in self.hashes.len()..full {
            let parent = self.hashes.last().copied().unwrap_or(root);
            let tokens = &self.tokens[index * block_size..(index + 1) * block_size];
            self.hashes.push(parent.child(tokens, &self.namespace, index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(lora: Option<&str>, salt: Option<&str>, seed: u64) -> Vec<BlockHash> {
        let namespace =
            Namespace { lora_name: lora.map(str::to_owned), cache_salt: salt.map(str::to_owned) };
        let mut chain = Chain::new(namespace, (0..11).collect());
        chain.hash_full_blocks(BlockHash::root(seed), 4);
        chain.hashes
    }

    #[test]
    fn only_full_blocks_are_hashed() {
        assert_eq!(hashes(None, None, 0).len(), 2);
    }

    #[test]
    fn namespace_and_seed_separate_every_block() {
        let all = [
            hashes(None, None, 0),
            hashes(Some("a"), None, 0),
            hashes(None, Some("a"), 0),
            hashes(Some("a"), Some("a"), 0),
            hashes(None, None, 1),
        ];
        let mut flat: Vec<BlockHash> = all.concat();
        flat.sort_unstable();
        flat.dedup();
        assert_eq!(flat.len(), 10);
    }
}
