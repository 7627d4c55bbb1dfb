//! Prompts of plain text, in tokens.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use model::TokenTable;
use serde_json::json;
use testbed::root;

/// Tokens per block.
pub(crate) const BLOCK: usize = 16;

/// Prompts of random tokens that are plain text each.
pub(crate) struct Prompts {
    table: TokenTable,
    plain: Vec<u32>,
    pub(crate) random: Random,
}

impl Prompts {
    pub(crate) fn new(seed: u64) -> Result<Self> {
        let file = root().join("tests/golden/tiny-model/tokenizer.json");
        let table = TokenTable::read(&file).with_context(|| format!("read {}", file.display()))?;
        let is_plain = |id: &u32| {
            table.bytes(*id).is_some_and(|bytes| {
                !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_lowercase() || *b == b' ')
            })
        };
        let plain: Vec<u32> = (0..table.len() as u32).filter(is_plain).collect();
        ensure!(plain.len() > 1000, "only {} tokens are plain text", plain.len());
        Ok(Self { table, plain, random: Random::new(seed) })
    }

    /// Only of tokens of so many bytes, so that each block is as long.
    pub(crate) fn of_token_bytes(mut self, bytes: usize) -> Result<Self> {
        self.plain.retain(|id| self.table.bytes(*id).is_some_and(|token| token.len() == bytes));
        ensure!(self.plain.len() >= 256, "{} tokens of {bytes} bytes", self.plain.len());
        Ok(self)
    }

    /// Tokens alone, the same ones of the same `seed`.
    pub(crate) fn tokens_of(&mut self, seed: u64, blocks: usize, tokens: &mut Vec<u32>) {
        self.random = Random::new(seed);
        let plain = self.plain.len() as u64;
        tokens.clear();
        tokens.extend((0..blocks * BLOCK).map(|_| self.plain[self.random.below(plain) as usize]));
    }

    /// The request whose prompt is the tokens' text.
    pub(crate) fn question(&self, tokens: &[u32]) -> Bytes {
        let text: Vec<u8> =
            tokens.iter().filter_map(|id| self.table.bytes(*id)).flatten().copied().collect();
        let prompt = String::from_utf8_lossy(&text);
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
        Bytes::from(body.to_string())
    }

    /// Tokens, and the request whose prompt is their text.
    pub(crate) fn next(&mut self, blocks: usize) -> (Vec<u32>, Bytes) {
        let plain = self.plain.len() as u64;
        let mut token = || self.plain[self.random.below(plain) as usize];
        let tokens: Vec<u32> = (0..blocks * BLOCK).map(|_| token()).collect();
        let question = self.question(&tokens);
        (tokens, question)
    }
}

/// xorshift64 (Marsaglia 2003, shifts 13, 7, 17).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
