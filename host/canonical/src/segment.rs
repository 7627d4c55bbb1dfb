//! One run of tokens between two added tokens.

use std::ops::Range;

use model::TokenTable;
use prompt::{Normalizer, TextMode};

use crate::bpe::Bpe;
use crate::pre_tokens::PreTokens;

/// What a judgement needs of the model.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) tokens: TokenTable,
    /// Finds added tokens in a text.
    pub(crate) added_text: TextMode,
    pub(crate) normalizer: Normalizer,
    pub(crate) bpe: Bpe,
    pub(crate) pre_tokens: PreTokens,
}

/// What a look at some tokens brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// None of them could be judged.
    Nothing,
    /// The tokenizer makes them of their text.
    Right,
    /// It makes others from this token on, counted in the segment.
    Wrong(usize),
}

/// Tokens without an added one among them.
pub(crate) struct Segment<'a> {
    pub(crate) ids: &'a [u32],
    /// The segment begins here; otherwise this is the middle of one.
    pub(crate) is_start: bool,
    /// It ends here.
    pub(crate) is_end: bool,
    /// Which tokens to judge.
    pub(crate) judged: Range<usize>,
}

/// The segment as text: UTF-8 from the start of token `first` on.
struct Slice<'a> {
    text: &'a str,
    /// `joints[i]` is where token `first + i` starts in the text; one more at the end.
    joints: Vec<usize>,
    first: usize,
    is_start: bool,
    is_end: bool,
}

impl Rules {
    pub(crate) fn judge(&self, segment: &Segment<'_>) -> Finding {
        let mut bytes = Vec::new();
        let mut joints = vec![0];
        for id in segment.ids {
            bytes.extend_from_slice(self.tokens.bytes(*id).unwrap_or_default());
            joints.push(bytes.len());
        }
        // What is wrong somewhere in the slice is this block's, not the one's before it.
        let somewhere = Finding::Wrong(segment.judged.end);
        let Some(slice) = slice(&bytes, &joints, segment) else { return somewhere };
        let first_judged = segment.judged.start.saturating_sub(slice.first);
        let last_judged = segment.judged.end.saturating_sub(slice.first);
        let judged = first_judged..last_judged.min(slice.joints.len().saturating_sub(1));
        if judged.is_empty() {
            return Finding::Nothing;
        }
        if let Some(found) = self.added_text.find_added_token(slice.text)
            && found.end > slice.joints[judged.start]
            && found.end <= slice.joints[judged.end]
        {
            let token = slice.joints.partition_point(|at| *at <= found.start).saturating_sub(1);
            return Finding::Wrong(slice.first + token);
        }
        if self.normalizer.apply(slice.text) != slice.text {
            return somewhere;
        }
        let ids = &segment.ids[slice.first..];
        if !self.fallback_bytes_are_right(&slice, ids, &judged) {
            return somewhere;
        }
        // Where the segment's start is out of sight, each token of the context may start the
        // pre-token of which the slice shows the rest.
        let last_start = if slice.is_start || self.pre_tokens.is_none() {
            0
        } else {
            judged.start.saturating_sub(1)
        };
        let mut finding = Finding::Nothing;
        let mut tried: Option<usize> = None;
        for token in 0..=last_start {
            let joint = slice.joints[token];
            let from = (joint..=slice.text.len()).find(|at| slice.text.is_char_boundary(*at));
            let Some(from) = from.filter(|from| tried != Some(*from)) else { continue };
            tried = Some(from);
            match self.judge_from(&slice, ids, &judged, from) {
                Finding::Wrong(token) => {
                    let token = slice.first + token;
                    // The latest place that any way to cut allows.
                    finding = match finding {
                        Finding::Wrong(other) => Finding::Wrong(other.max(token)),
                        _ => Finding::Wrong(token),
                    };
                }
                other => return other,
            }
        }
        finding
    }

    /// Judges with a pre-token starting at byte `from`.
    fn judge_from(
        &self,
        slice: &Slice<'_>,
        ids: &[u32],
        judged: &Range<usize>,
        from: usize,
    ) -> Finding {
        let Some(rest) = slice.text.get(from..) else { return Finding::Nothing };
        let Some(ends) = self.pre_tokens.ends(rest) else { return Finding::Nothing };
        let ends: Vec<usize> = ends.into_iter().map(|end| end + from).collect();
        // What follows can move cuts in trailing white space, and the end of the last pre-token.
        let seen_to = if slice.is_end { slice.text.len() } else { slice.text.trim_end().len() };
        let is_end = |at: usize| ends.binary_search(&at).is_ok();
        let mut seen = false;
        for token in judged.clone() {
            let (start, end) = (slice.joints[token], slice.joints[token + 1]);
            if start < from || start >= seen_to {
                continue;
            }
            seen = true;
            // Pre-tokens that end inside the token: none, unless what follows may move them.
            let inside = ends.partition_point(|at| *at <= start);
            if ends.get(inside).is_some_and(|at| *at < end && *at < seen_to) {
                return Finding::Wrong(token);
            }
            if start == from || is_end(start) {
                let last = ends.get(inside).copied();
                if let Some(last) = last.filter(|last| slice.is_end || *last < seen_to)
                    && !self.word_is_right(slice, ids, token, last)
                {
                    return Finding::Wrong(token);
                }
            } else if token > 0 && !self.bpe.is_pair(ids[token - 1], ids[token]) {
                return Finding::Wrong(token - 1);
            }
        }
        if seen { Finding::Right } else { Finding::Nothing }
    }

    /// The pre-token that starts with `token` and ends at byte `end`, as a whole.
    fn word_is_right(&self, slice: &Slice<'_>, ids: &[u32], token: usize, end: usize) -> bool {
        let Ok(last) = slice.joints.binary_search(&end) else { return true };
        match ids.get(token..last) {
            Some([one]) => self.bpe.whole_words || self.bpe.is_reachable(*one),
            Some(several) => !(self.bpe.whole_words && self.bpe.is_one_token(several)),
            None => true,
        }
    }

    /// No character that has a token of its own is spelled in fallback bytes.
    fn fallback_bytes_are_right(
        &self,
        slice: &Slice<'_>,
        ids: &[u32],
        judged: &Range<usize>,
    ) -> bool {
        judged.clone().all(|token| {
            let is_last_byte = ids
                .get(token)
                .and_then(|id| self.bpe.fallback_byte(*id))
                .is_some_and(|_| slice.text.is_char_boundary(slice.joints[token + 1]));
            !is_last_byte
                || slice
                    .text
                    .get(..slice.joints[token + 1])
                    .and_then(|text| text.chars().next_back())
                    .is_none_or(|c| !self.bpe.has_char(c))
        })
    }
}

/// The part of the segment that is text. `None` where a judged token makes it no UTF-8.
fn slice<'a>(bytes: &'a [u8], joints: &[usize], segment: &Segment<'_>) -> Option<Slice<'a>> {
    let (mut first, mut is_start) = (0, segment.is_start);
    loop {
        let from = joints[first];
        let rest = bytes.get(from..).unwrap_or_default();
        // A character cut by the start of the slice.
        let cut = if is_start {
            0
        } else {
            rest.iter().take(3).take_while(|b| (**b & 0xc0) == 0x80).count()
        };
        let text = rest.get(cut..).unwrap_or_default();
        let make = |text: &'a str, is_end| {
            let to = from + cut + text.len();
            let shifted = joints[first..].iter().take_while(|at| **at <= to);
            Slice {
                text,
                joints: shifted.map(|at| at.saturating_sub(from + cut)).collect(),
                first,
                is_start,
                is_end,
            }
        };
        let error = match std::str::from_utf8(text) {
            Ok(text) => return Some(make(text, segment.is_end)),
            Err(error) => error,
        };
        let valid = error.valid_up_to();
        let Some(bad) = error.error_len().or(segment.is_end.then_some(1)) else {
            // A character cut by the end: the whole tokens before it are text.
            let whole = std::str::from_utf8(&text[..valid]).ok()?;
            return Some(make(whole, false));
        };
        let at = from + cut + valid + bad - 1;
        let token = joints.partition_point(|joint| *joint <= at).saturating_sub(1);
        if token >= segment.judged.end {
            let whole = std::str::from_utf8(&text[..valid]).ok()?;
            return Some(make(whole, false));
        }
        if token >= segment.judged.start {
            return None;
        }
        (first, is_start) = (token + 1, false);
    }
}
