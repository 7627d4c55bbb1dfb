//! Where the tokenizer cuts a text before the model sees it.

use serde_json::{Value, json};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

/// The tokenizer's own pre-tokenizer, without what it puts before a text.
#[derive(Debug)]
pub(crate) struct PreTokens(Option<PreTokenizerWrapper>);

impl PreTokens {
    /// Reads the `pre_tokenizer` member of a `tokenizer.json`.
    pub(crate) fn new(json: Option<&Value>) -> Result<PreTokens, serde_json::Error> {
        let parts: Vec<Value> = json.into_iter().flat_map(parts).collect();
        if parts.is_empty() {
            return Ok(PreTokens(None));
        }
        let sequence = json!({"type": "Sequence", "pretokenizers": parts});
        Ok(PreTokens(Some(serde_json::from_value(sequence)?)))
    }

    /// True when every text is one pre-token.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Byte offsets at which pre-tokens of `text` end, ascending, the last one included. `None`
    /// where the pre-tokenizer fails.
    pub(crate) fn ends(&self, text: &str) -> Option<Vec<usize>> {
        let Some(pre_tokenizer) = &self.0 else { return Some(vec![text.len()]) };
        let mut split = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut split).ok()?;
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Some(splits.into_iter().map(|(_, (_, end), _)| end).collect())
    }
}

/// The parts that cut, with their prefixes off. A `ByteLevel` without its expression only spells.
fn parts(part: &Value) -> Vec<Value> {
    let mut changed = part.clone();
    match part.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let list = part.get("pretokenizers").and_then(Value::as_array);
            return list.into_iter().flatten().flat_map(parts).collect();
        }
        Some("ByteLevel") if part.get("use_regex").and_then(Value::as_bool) == Some(false) => {
            return Vec::new();
        }
        Some("ByteLevel") => changed["add_prefix_space"] = json!(false),
        Some("Metaspace") => {
            if part.get("split").and_then(Value::as_bool) == Some(false) {
                return Vec::new();
            }
            changed["prepend_scheme"] = json!("never");
            changed["add_prefix_space"] = json!(false);
        }
        Some("Null") | None => return Vec::new(),
        Some(_) => {}
    }
    vec![changed]
}
