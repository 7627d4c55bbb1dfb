//! What `add_special_tokens` puts before a completion prompt.

use serde_json::Value;

use crate::ModelError;
use crate::files::{JsonFile, flatten, kind};

/// The text of the special tokens before the first sequence.
pub(crate) fn completions_prefix(file: &JsonFile) -> Result<String, ModelError> {
    let parts = file.get("post_processor").map(|p| flatten("post_processor", "processors", p));
    let mut prefix = String::new();
    for (field, part) in parts.into_iter().flatten() {
        match kind(part) {
            // Only offsets change.
            "ByteLevel" => {}
            "TemplateProcessing" => prefix = template_prefix(file, &field, part)? + &prefix,
            "BertProcessing" | "RobertaProcessing" => {
                let cls = part.pointer("/cls/0").and_then(Value::as_str);
                prefix.insert_str(0, cls.ok_or_else(|| file.missing(format!("{field}.cls")))?);
            }
            _ => return Err(file.unsupported(field, part, "unknown kind of post-processor")),
        }
    }
    Ok(prefix)
}

fn template_prefix(file: &JsonFile, field: &str, part: &Value) -> Result<String, ModelError> {
    let single = part
        .get("single")
        .and_then(Value::as_array)
        .ok_or_else(|| file.missing(format!("{field}.single")))?;
    let mut prefix = String::new();
    for (i, piece) in single.iter().enumerate() {
        if piece.get("Sequence").is_some() {
            return Ok(prefix);
        }
        let here = format!("{field}.single[{i}]");
        let name = piece
            .pointer("/SpecialToken/id")
            .and_then(Value::as_str)
            .ok_or_else(|| file.unsupported(&here, piece, "expected SpecialToken or Sequence"))?;
        let tokens = part
            .get("special_tokens")
            .and_then(|map| map.get(name))
            .and_then(|entry| entry.get("tokens"))
            .and_then(Value::as_array)
            .ok_or_else(|| file.missing(format!("{field}.special_tokens[{name:?}].tokens")))?;
        for token in tokens {
            prefix.push_str(token.as_str().ok_or_else(|| {
                file.unsupported(format!("{field}.special_tokens[{name:?}]"), token, "no string")
            })?);
        }
    }
    Err(file.unsupported(
        format!("{field}.single"),
        &Value::from(single.clone()),
        "no Sequence in it",
    ))
}
