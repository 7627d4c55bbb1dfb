//! What the tokenizer does to a text before it cuts it, as far as [`prompt::ModelSpec`] can say.

use prompt::{Normalizer, SegmentPrefix};
use serde_json::Value;

use crate::ModelError;
use crate::files::{JsonFile, flatten, kind};
use crate::pieces::{PieceKind, SPACE_MARK};

const CHANGES_TEXT: &str = "it changes the text in a way the renderer does not follow";
const TWO_PREFIXES: &str = "a second space before a segment, or one before each of its parts";

/// The rules of `normalizer` and `pre_tokenizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextRules {
    pub(crate) normalizer: Normalizer,
    pub(crate) space_mark: bool,
    pub(crate) prefix: SegmentPrefix,
    /// The pre-tokenizer writes the marks, so tokens are looked for before.
    pub(crate) marks_after_tokens: bool,
}

impl TextRules {
    /// Reads the rules. Refuses what would make the tokens' bytes differ from the text.
    pub(crate) fn of(file: &JsonFile, pieces: PieceKind) -> Result<TextRules, ModelError> {
        let mut rules = TextRules {
            normalizer: Normalizer::None,
            space_mark: matches!(pieces, PieceKind::SentencePiece { .. }),
            prefix: SegmentPrefix::None,
            marks_after_tokens: false,
        };
        let parts = file.get("normalizer").map(|n| flatten("normalizer", "normalizers", n));
        for (field, part) in parts.into_iter().flatten() {
            match kind(part) {
                "NFC" => rules.normalizer = Normalizer::Nfc,
                "Replace" if is_space_to_mark(part) => {}
                "Prepend" if rules.is_space(part.get("prepend")) => {
                    rules.set_prefix(file, &field, part, SegmentPrefix::Each)?;
                }
                _ => return Err(file.unsupported(field, part, CHANGES_TEXT)),
            }
        }
        let parts = file.get("pre_tokenizer").map(|p| flatten("pre_tokenizer", "pretokenizers", p));
        for (i, (field, part)) in parts.into_iter().flatten().enumerate() {
            let prefix = rules.pre_tokenizer_prefix(file, &field, part)?;
            if prefix != SegmentPrefix::None {
                // Behind a split it would act on each part.
                if i > 0 {
                    return Err(file.unsupported(field, part, TWO_PREFIXES));
                }
                rules.set_prefix(file, &field, part, prefix)?;
            }
        }
        Ok(rules)
    }

    /// Whether what lies between two added tokens is treated apart.
    pub(crate) fn act_on_segments(&self) -> bool {
        self.prefix != SegmentPrefix::None || self.normalizer != Normalizer::None
    }

    /// What the normaliser makes of an added token that is looked for in normal form.
    pub(crate) fn normal_form(&self, content: &str) -> String {
        let mut form = self.normalizer.apply(content).into_owned();
        if self.space_mark && !self.marks_after_tokens {
            form = form.replace(SPACE_MARK, " ");
        }
        if self.prefix == SegmentPrefix::Each {
            form.insert(0, ' ');
        }
        form
    }

    fn is_space(&self, value: Option<&Value>) -> bool {
        match value.and_then(Value::as_str) {
            Some(" ") => true,
            Some("\u{2581}") => self.space_mark,
            _ => false,
        }
    }

    fn set_prefix(
        &mut self,
        file: &JsonFile,
        field: &str,
        part: &Value,
        prefix: SegmentPrefix,
    ) -> Result<(), ModelError> {
        if self.prefix != SegmentPrefix::None {
            return Err(file.unsupported(field, part, TWO_PREFIXES));
        }
        self.prefix = prefix;
        Ok(())
    }

    fn pre_tokenizer_prefix(
        &mut self,
        file: &JsonFile,
        field: &str,
        part: &Value,
    ) -> Result<SegmentPrefix, ModelError> {
        let add_prefix_space = part.get("add_prefix_space").and_then(Value::as_bool);
        match kind(part) {
            "ByteLevel" if add_prefix_space == Some(true) => Ok(SegmentPrefix::EachUnlessBlank),
            "Metaspace" => {
                self.marks_after_tokens = true;
                let scheme = part.get("prepend_scheme").and_then(Value::as_str);
                match (scheme, add_prefix_space) {
                    (_, Some(false)) | (Some("never"), _) => Ok(SegmentPrefix::None),
                    // Absent means "always" in tokenizers 0.23.2; files before 0.15 say
                    // add_prefix_space.
                    (Some("always") | None, _) => Ok(SegmentPrefix::EachUnlessBlank),
                    (Some("first"), _) => Ok(SegmentPrefix::FirstUnlessBlank),
                    _ => Err(file.unsupported(
                        format!("{field}.prepend_scheme"),
                        part,
                        "unknown scheme",
                    )),
                }
            }
            "Split" | "ByteLevel" | "Digits" | "Punctuation" | "UnicodeScripts"
                if part.get("behavior").and_then(Value::as_str) != Some("Removed") =>
            {
                Ok(SegmentPrefix::None)
            }
            _ => Err(file.unsupported(field, part, CHANGES_TEXT)),
        }
    }
}

fn is_space_to_mark(part: &Value) -> bool {
    part.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
        && part.get("content").and_then(Value::as_str) == Some("\u{2581}")
}
