//! The engine's own count, found in the end of its answer.

use crate::json::{Field, number, object, skip_blanks};

/// Objects of a tail that are tried, from the last backward. An answer that hides its usage behind
/// more than these is read as one without.
const MAX_TRIES: usize = 8;

/// What the engine counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of those, found in its cache.
    pub cached: Cached,
    /// Tokens it generated.
    pub output_tokens: Option<u64>,
}

/// Cached tokens as the answer names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cached {
    /// So many.
    Tokens(u64),
    /// The field that names them is not there: 0, or an engine that never says. vLLM and SGLang
    /// leave it out of the usage of completions and chats in both cases.
    LeftOut,
    /// This API of this engine has no such field.
    Unsaid,
}

/// All spellings: OpenAI's completions and chats, its responses, Anthropic's messages, SGLang's
/// `meta_info`.
#[derive(Default)]
struct Raw {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_details: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_details: Option<u64>,
    cached_tokens: Option<u64>,
    cache_read: Option<u64>,
    cache_creation: Option<u64>,
}

impl Raw {
    /// The object that starts at `at`, if it is whole.
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let mut raw = Self::default();
        object(bytes, at, |field| raw.take(field))?;
        Some(raw)
    }

    fn take(&mut self, Field { key, value, .. }: Field<'_>) {
        match key {
            b"prompt_tokens" => self.prompt_tokens = number(value),
            b"completion_tokens" => self.completion_tokens = number(value),
            b"prompt_tokens_details" => self.prompt_details = cached(value),
            b"input_tokens" => self.input_tokens = number(value),
            b"output_tokens" => self.output_tokens = number(value),
            b"input_tokens_details" => self.input_details = cached(value),
            b"cached_tokens" => self.cached_tokens = number(value),
            b"cache_read_input_tokens" => self.cache_read = number(value),
            b"cache_creation_input_tokens" => self.cache_creation = number(value),
            _ => {}
        }
    }

    fn usage(&self) -> Option<Usage> {
        if let Some(prompt_tokens) = self.prompt_tokens {
            let cached = self.prompt_details.or(self.cached_tokens);
            return Some(Usage {
                prompt_tokens,
                cached: cached.map_or(Cached::LeftOut, Cached::Tokens),
                output_tokens: self.completion_tokens,
            });
        }
        let input_tokens = self.input_tokens?;
        // Anthropic counts what was cached beside the input tokens, OpenAI within them.
        let created = self.cache_creation.unwrap_or(0);
        let prompt_tokens = match self.cache_read {
            Some(read) => input_tokens.saturating_add(read).saturating_add(created),
            None => input_tokens,
        };
        let cached = self.cache_read.or(self.input_details);
        Some(Usage {
            prompt_tokens,
            cached: cached.map_or(Cached::Unsaid, Cached::Tokens),
            output_tokens: self.output_tokens,
        })
    }
}

/// `cached_tokens` of a usage's details.
fn cached(details: &[u8]) -> Option<u64> {
    let mut tokens = None;
    object(details, 0, |field| {
        if field.key == b"cached_tokens" {
            tokens = number(field.value);
        }
    })?;
    tokens
}

/// The last usage in `tail`, the end of a JSON answer or of a stream of JSON events, cut anywhere.
///
/// A key is found by its bytes: within a JSON string its quotes would be escaped.
pub fn find_usage(tail: &[u8]) -> Option<Usage> {
    let mut tries = 0;
    let mut end = tail.len();
    while tries < MAX_TRIES {
        let (at, object) = last_key(tail, end)?;
        end = at;
        let Some(object) = object else { continue };
        tries += 1;
        if let Some(usage) = Raw::read(tail, object).and_then(|raw| raw.usage()) {
            return Some(usage);
        }
    }
    None
}

const KEYS: [&[u8]; 2] = [b"\"usage\"", b"\"meta_info\""];

/// Start of the last key in `tail[..end]`, and start of its object if it has one.
fn last_key(tail: &[u8], end: usize) -> Option<(usize, Option<usize>)> {
    let before = tail.get(..end)?;
    let found = |key: &&'static [u8]| {
        let at = before.windows(key.len()).rposition(|window| window == *key)?;
        Some((at, at + key.len()))
    };
    let (at, after) = KEYS.iter().filter_map(found).max()?;
    let is_escaped = before.get(..at).and_then(<[u8]>::last) == Some(&b'\\');
    // At the very start of a tail it cannot be told.
    if is_escaped || at == 0 {
        return Some((at, None));
    }
    let colon = skip_blanks(tail, after);
    if tail.get(colon) != Some(&b':') {
        return Some((at, None));
    }
    let value = skip_blanks(tail, colon + 1);
    Some((at, (tail.get(value) == Some(&b'{')).then_some(value)))
}

#[cfg(test)]
mod tests;
