//! What the tokenizer does to a text before it cuts it, as far as [`prompt::Normalizer`] can say.

use prompt::Normalizer;
use serde_json::Value;

use crate::ModelError;
use crate::files::{JsonFile, flatten, kind};

const CHANGES_TEXT: &str = "it changes the text in a way the renderer does not follow";
const DUMMY_PREFIX: &str = "it puts a space before each segment between control tokens, \
                            which the renderer does not follow";

/// The normalizer of the spec. Refuses what would make the tokens' bytes differ from the text.
pub(crate) fn text_normalizer(file: &JsonFile) -> Result<Normalizer, ModelError> {
    refuse_prefix_space(file)?;
    let mut found = Normalizer::None;
    let parts = file.get("normalizer").map(|n| flatten("normalizer", "normalizers", n));
    for (field, part) in parts.into_iter().flatten() {
        match kind(part) {
            "NFC" => found = Normalizer::Nfc,
            "Replace" if is_space_to_mark(part) => {}
            "Prepend" => return Err(file.unsupported(field, part, DUMMY_PREFIX)),
            _ => return Err(file.unsupported(field, part, CHANGES_TEXT)),
        }
    }
    Ok(found)
}

fn refuse_prefix_space(file: &JsonFile) -> Result<(), ModelError> {
    let parts = file.get("pre_tokenizer").map(|p| flatten("pre_tokenizer", "pretokenizers", p));
    for (field, part) in parts.into_iter().flatten() {
        let on = |name: &str| part.get(name).and_then(Value::as_bool);
        match kind(part) {
            "ByteLevel" if on("add_prefix_space") == Some(true) => {
                return Err(file.unsupported(
                    format!("{field}.add_prefix_space"),
                    part,
                    DUMMY_PREFIX,
                ));
            }
            // Absent means "always" in tokenizers 0.23.2; files before 0.15 say add_prefix_space.
            "Metaspace" => {
                let scheme = part.get("prepend_scheme").and_then(Value::as_str);
                if scheme != Some("never") && on("add_prefix_space") != Some(false) {
                    return Err(file.unsupported(
                        format!("{field}.prepend_scheme"),
                        part,
                        DUMMY_PREFIX,
                    ));
                }
            }
            "Split" | "ByteLevel" | "Digits" | "Punctuation" | "UnicodeScripts"
                if part.get("behavior").and_then(Value::as_str) != Some("Removed") => {}
            _ => return Err(file.unsupported(field, part, CHANGES_TEXT)),
        }
    }
    Ok(())
}

fn is_space_to_mark(part: &Value) -> bool {
    part.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
        && part.get("content").and_then(Value::as_str) == Some("\u{2581}")
}
