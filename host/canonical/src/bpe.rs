//! Pairs of tokens under the merges.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenizers::Model;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;

/// Pairs remembered; a text uses a few ten thousand. At 12 bytes each with their verdict, and then
/// forgotten all at once.
const MAX_PAIRS: usize = 1 << 16;

/// The second of a "pair" that is one token alone.
const ALONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Bpe {
    /// With `ignore_merges` off.
    model: BPE,
    /// A pre-token that is in the vocabulary is that token, whatever the merges say.
    pub(crate) whole_words: bool,
    /// `<0x00>`..`<0xFF>` to their byte, where the model falls back to bytes.
    byte_ids: HashMap<u32, u8>,
    pairs: Mutex<HashMap<(u32, u32), bool>>,
}

impl Bpe {
    /// `None` for another kind of model.
    pub(crate) fn new(model: Value) -> Result<Option<Bpe>, serde_json::Error> {
        let ModelWrapper::BPE(mut model) = serde_json::from_value(model)? else { return Ok(None) };
        let whole_words = std::mem::take(&mut model.ignore_merges);
        let byte = |b: u8| Some((model.token_to_id(&format!("<0x{b:02X}>"))?, b));
        let byte_ids =
            if model.byte_fallback { (0..=255).filter_map(byte).collect() } else { HashMap::new() };
        Ok(Some(Bpe { model, whole_words, byte_ids, pairs: Mutex::default() }))
    }

    /// The byte of a fallback token.
    pub(crate) fn fallback_byte(&self, id: u32) -> Option<u8> {
        self.byte_ids.get(&id).copied()
    }

    /// Whether a character has a token of its own, so that bytes never stand for it.
    pub(crate) fn has_char(&self, c: char) -> bool {
        let c = if c == ' ' { '\u{2581}' } else { c };
        self.model.token_to_id(c.encode_utf8(&mut [0; 4])).is_some()
    }

    /// Whether the tokens' pieces, joined, are one token.
    pub(crate) fn is_one_token(&self, ids: &[u32]) -> bool {
        self.pieces(ids).is_some_and(|piece| self.model.token_to_id(&piece).is_some())
    }

    /// Whether the merges make `left` and `right` of their joined text.
    pub(crate) fn is_pair(&self, left: u32, right: u32) -> bool {
        // Nothing merges with a fallback byte.
        if self.byte_ids.contains_key(&left) || self.byte_ids.contains_key(&right) {
            return true;
        }
        self.remembered(left, right, &[left, right])
    }

    /// Whether the merges make this token of its text; some vocabularies have unreachable ones.
    pub(crate) fn is_reachable(&self, id: u32) -> bool {
        self.byte_ids.contains_key(&id) || self.remembered(id, ALONE, &[id])
    }

    fn remembered(&self, left: u32, right: u32, ids: &[u32]) -> bool {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pairs.get(&(left, right)) {
            return *known;
        }
        let holds = self.pieces(ids).is_some_and(|piece| {
            let tokens = self.model.tokenize(&piece).unwrap_or_default();
            tokens.iter().map(|token| token.id).eq(ids.iter().copied())
        });
        if pairs.len() >= MAX_PAIRS {
            pairs.clear();
        }
        pairs.insert((left, right), holds);
        holds
    }

    /// The vocabulary's own spelling, which need not be UTF-8 as bytes.
    fn pieces(&self, ids: &[u32]) -> Option<String> {
        ids.iter().map(|id| self.model.id_to_token(*id)).collect()
    }
}
