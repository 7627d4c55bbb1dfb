//! From a text to the bytes of its tokens: what a tokenizer changes before it cuts.
//!
//! The daemon concatenates the bytes of token ids; the filter has only the text. Both must come to
//! the same bytes, so this follows `AddedVocabulary::extract_and_normalize` and the prefix rules of
//! `Prepend`, `Metaspace` and `ByteLevel` of tokenizers 0.23.2.

use std::borrow::Cow;

use crate::spec::{AddedToken, ModelSpec, Normalizer, SegmentPrefix};
use crate::token_finder::TokenFinder;

/// What SentencePiece writes for a space.
const SPACE_MARK: char = '\u{2581}';

/// First byte of a control token that no text can produce; it occurs in no UTF-8.
const SENTINEL: u8 = 0xff;

/// The bytes that stand for control token `id` of a tokenizer which never reads one out of a text
/// (mistral-common, harmony): 0xFF, then the id in little endian.
pub fn control_token_bytes(id: u32) -> [u8; 5] {
    let [a, b, c, d] = id.to_le_bytes();
    [SENTINEL, a, b, c, d]
}

/// The text rules of one model, ready to apply. Time is linear in the text, memory too.
#[derive(Debug, Clone)]
pub struct TextMode {
    normalizer: Normalizer,
    space_mark: bool,
    prefix: SegmentPrefix,
    tokens: Vec<AddedToken>,
    /// Cut out before anything else.
    raw: TokenFinder,
    /// Cut out of what the normaliser made of the rest.
    normalized: TokenFinder,
    /// Some token eats blanks or has other bytes than its content.
    tokens_change_text: bool,
}

impl TextMode {
    /// Compiles the rules of `spec`.
    pub fn new(spec: &ModelSpec) -> TextMode {
        let tokens = spec.added_tokens.clone();
        let of = |normalized: bool| {
            let numbered = tokens.iter().enumerate();
            TokenFinder::new(
                numbered
                    .filter(move |(_, token)| token.normalized == normalized)
                    .map(|(i, token)| (token.content.as_str(), i)),
            )
        };
        TextMode {
            normalizer: spec.normalizer,
            space_mark: spec.space_mark,
            prefix: spec.segment_prefix,
            raw: of(false),
            normalized: of(true),
            tokens_change_text: tokens
                .iter()
                .any(|token| token.lstrip || token.rstrip || token.text.is_some()),
            tokens,
        }
    }

    /// The text that the bytes of `text`'s tokens are.
    pub fn apply(&self, text: String) -> String {
        let changed = match self.applied(&text) {
            Cow::Borrowed(_) => None,
            Cow::Owned(changed) => Some(changed),
        };
        changed.unwrap_or(text)
    }

    /// The same of a text that is not ours; borrowed where nothing changes.
    pub(crate) fn applied<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.keeps(text) {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len() + text.len() / 8 + 16);
        self.split(text, &self.raw, &mut out, |start, piece, out| {
            let piece = self.normalise(piece);
            // The reference asks for the offset in the original text.
            self.split(&piece, &self.normalized, out, |inner, piece, out| {
                self.push_segment(piece, start == 0 && inner == 0, out);
            });
        });
        Cow::Owned(out)
    }

    /// Where the first added token stands in `text`.
    pub fn find_added_token(&self, text: &str) -> Option<std::ops::Range<usize>> {
        let first = |finder: &TokenFinder| finder.find(text, 0).map(|(from, to, _)| from..to);
        [first(&self.raw), first(&self.normalized)].into_iter().flatten().min_by_key(|at| at.start)
    }

    /// True when nothing of the text can change.
    fn keeps(&self, text: &str) -> bool {
        text.is_empty()
            || (self.prefix == SegmentPrefix::None
                && !self.tokens_change_text
                && !(self.space_mark && text.contains(SPACE_MARK))
                && self.normalizer.keeps(text))
    }

    fn normalise<'t>(&self, piece: &'t str) -> Cow<'t, str> {
        let mut piece = self.normalizer.apply(piece);
        if self.space_mark && piece.contains(SPACE_MARK) {
            piece = Cow::Owned(piece.replace(SPACE_MARK, " "));
        }
        if self.prefix == SegmentPrefix::Each && !piece.is_empty() {
            piece.to_mut().insert(0, ' ');
        }
        piece
    }

    fn push_segment(&self, piece: &str, at_start: bool, out: &mut String) {
        let wanted = match self.prefix {
            SegmentPrefix::None | SegmentPrefix::Each => false,
            SegmentPrefix::FirstUnlessBlank => at_start,
            SegmentPrefix::EachUnlessBlank => true,
        };
        if wanted && !piece.starts_with(' ') {
            out.push(' ');
        }
        out.push_str(piece);
    }

    /// Writes the tokens found in `text`, and hands what lies between them to `rest` with its
    /// offset; an empty rest is not handed on.
    fn split(
        &self,
        text: &str,
        finder: &TokenFinder,
        out: &mut String,
        mut rest: impl FnMut(usize, &str, &mut String),
    ) {
        // What is written already, and where to look next: they differ when blanks are eaten.
        let (mut done, mut from) = (0, 0);
        while let Some((mut start, mut end, number)) = finder.find(text, from) {
            let Some(token) = self.tokens.get(number) else { break };
            from = end;
            if token.lstrip {
                let kept = text.get(..start).unwrap_or_default().trim_end().len();
                start = kept.max(done);
            }
            if token.rstrip {
                let after = text.get(end..).unwrap_or_default();
                end += after.len() - after.trim_start().len();
            }
            if let Some(piece) = text.get(done..start)
                && !piece.is_empty()
            {
                rest(done, piece, out);
            }
            out.push_str(token.text.as_deref().unwrap_or(&token.content));
            done = end;
        }
        if let Some(piece) = text.get(done..)
            && !piece.is_empty()
        {
            rest(done, piece, out);
        }
    }
}

#[cfg(test)]
#[path = "text_mode_tests.rs"]
mod tests;
