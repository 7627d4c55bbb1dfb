//! How a vocabulary piece becomes bytes, decided from the tokenizer's decoder.

use serde_json::Value;

use crate::ModelError;
use crate::byte_level;
use crate::files::{JsonFile, flatten, kind};

/// U+2581, what SentencePiece writes for a space.
pub(crate) const SPACE_MARK: char = '\u{2581}';

/// The family of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    /// GPT-2's byte-level alphabet.
    ByteLevel,
    /// U+2581 for a space; with `byte_fallback`, `<0x0A>` is one byte.
    SentencePiece { byte_fallback: bool },
}

impl PieceKind {
    /// Reads the decoder (and the pre-tokenizer, where there is no decoder).
    pub(crate) fn of(file: &JsonFile) -> Result<PieceKind, ModelError> {
        let model = file.get("model").ok_or_else(|| file.missing("model"))?;
        let byte_fallback = model.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
        let Some(decoder) = file.get("decoder") else {
            let pre = file.get("pre_tokenizer").map(|p| flatten("", "pretokenizers", p));
            if pre.iter().flatten().any(|(_, part)| kind(part) == "ByteLevel") {
                return Ok(PieceKind::ByteLevel);
            }
            return Err(file.missing("decoder"));
        };
        let mut found = None;
        let mut fallback_decoded = false;
        for (field, part) in flatten("decoder", "decoders", decoder) {
            match kind(part) {
                "ByteLevel" => found = Some(PieceKind::ByteLevel),
                "Metaspace" => {
                    let mark = part.get("replacement").and_then(Value::as_str);
                    if mark != Some("\u{2581}") {
                        return Err(file.unsupported(field, part, "only U+2581 is a space mark"));
                    }
                    found = Some(PieceKind::SentencePiece { byte_fallback });
                }
                "Replace" if is_space_mark_replace(part) => {
                    found = Some(PieceKind::SentencePiece { byte_fallback });
                }
                "ByteFallback" => fallback_decoded = true,
                // These join or trim whole texts, not tokens.
                "Fuse" | "Strip" => {}
                _ => return Err(file.unsupported(field, part, "unknown kind of decoder")),
            }
        }
        match found {
            Some(PieceKind::SentencePiece { byte_fallback: true }) if !fallback_decoded => Err(
                file.unsupported("decoder", decoder, "model.byte_fallback without ByteFallback"),
            ),
            Some(found) => Ok(found),
            None => Err(file.unsupported("decoder", decoder, "no rule from pieces to bytes")),
        }
    }

    /// The bytes of a piece of the model's own vocabulary.
    pub(crate) fn bytes(self, piece: &str) -> Vec<u8> {
        match self {
            PieceKind::ByteLevel => byte_level::piece_bytes(piece),
            PieceKind::SentencePiece { byte_fallback } => {
                if byte_fallback && let Some(byte) = fallback_byte(piece) {
                    return vec![byte];
                }
                piece.replace(SPACE_MARK, " ").into_bytes()
            }
        }
    }
}

/// `<0x0A>` to 0x0A.
pub(crate) fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

fn is_space_mark_replace(part: &Value) -> bool {
    part.pointer("/pattern/String").and_then(Value::as_str) == Some("\u{2581}")
        && part.get("content").and_then(Value::as_str) == Some(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentencepiece_pieces() {
        let kind = PieceKind::SentencePiece { byte_fallback: true };
        let check = |piece: &str, bytes: &[u8]| assert_eq!(kind.bytes(piece), bytes, "{piece}");
        check("▁the", b" the");
        check("▁▁", b"  ");
        check("<0x0A>", b"\n");
        check("<0xFF>", &[0xff]);
        check("<0x0a0>", b"<0x0a0>");
        check("<0x+1>", b"<0x+1>");
        let plain = PieceKind::SentencePiece { byte_fallback: false };
        assert_eq!(plain.bytes("<0x0A>"), b"<0x0A>");
    }
}
