//! `tokenizer.json` to a [`TokenTable`].

use serde_json::Value;

use crate::ModelError;
use crate::added::added_tokens;
use crate::files::{JsonFile, kind};
use crate::pieces::{PieceKind, fallback_byte};
use crate::table::{TokenTable, slot_for};

/// Builds the table, or says which value of the file stands in the way.
pub(crate) fn token_table(file: &JsonFile, kind: PieceKind) -> Result<TokenTable, ModelError> {
    let vocabulary = vocabulary(file, kind)?;
    let mut slots: Vec<Option<(String, Vec<u8>)>> = Vec::new();
    for (piece, id) in vocabulary {
        let slot = slot_for(file, &mut slots, id, || format!("model.vocab[{piece:?}]"))?;
        if slot.is_some() {
            return Err(file.unsupported(
                format!("model.vocab[{piece:?}]"),
                &Value::from(id),
                "two pieces share this id",
            ));
        }
        *slot = Some((piece.to_owned(), kind.bytes(piece)));
    }
    for added in added_tokens(file, kind)? {
        let slot = slot_for(file, &mut slots, added.id, || added.field.clone())?;
        if let Some((piece, bytes)) = slot
            && *piece != added.content
            && *bytes != added.bytes
        {
            return Err(file.unsupported(
                format!("{}.content", added.field),
                &Value::from(added.content),
                "its id belongs to another piece of the vocabulary",
            ));
        }
        *slot = Some((added.content, added.bytes));
    }
    let slots: Vec<Option<Vec<u8>>> =
        slots.into_iter().map(|slot| slot.map(|(_, bytes)| bytes)).collect();
    Ok(TokenTable::from_slots(&slots))
}

/// The pieces of the model with their ids.
fn vocabulary(file: &JsonFile, pieces_kind: PieceKind) -> Result<Vec<(&str, u64)>, ModelError> {
    let model = file.get("model").ok_or_else(|| file.missing("model"))?;
    let vocab = model.get("vocab").ok_or_else(|| file.missing("model.vocab"))?;
    // Files written before tokenizers 0.8 do not name the type; only BPE has merges.
    let untyped_bpe = model.get("type").is_none() && model.get("merges").is_some();
    match kind(model) {
        "BPE" => bpe_vocabulary(file, model, vocab, pieces_kind),
        "" if untyped_bpe => bpe_vocabulary(file, model, vocab, pieces_kind),
        "Unigram" => unigram_vocabulary(file, vocab),
        _ => {
            let value = model.get("type").unwrap_or(&Value::Null);
            Err(file.unsupported("model.type", value, "only BPE and Unigram are read"))
        }
    }
}

fn bpe_vocabulary<'a>(
    file: &JsonFile,
    model: &Value,
    vocab: &'a Value,
    pieces_kind: PieceKind,
) -> Result<Vec<(&'a str, u64)>, ModelError> {
    for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if let Some(value) = model.get(name).filter(|v| v.as_str().is_some_and(|s| !s.is_empty())) {
            return Err(file.unsupported(
                format!("model.{name}"),
                value,
                "pieces would not be plain slices of the text",
            ));
        }
    }
    let map = vocab
        .as_object()
        .ok_or_else(|| file.unsupported("model.vocab", vocab, "expected a map"))?;
    let pieces = map
        .iter()
        .map(|(piece, id)| {
            let id = id.as_u64().ok_or_else(|| {
                file.unsupported(format!("model.vocab[{piece:?}]"), id, "expected an id")
            })?;
            Ok((piece.as_str(), id))
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    let fallback = model.get("byte_fallback").filter(|value| value.as_bool() == Some(true));
    if let Some(value) = fallback
        && pieces_kind == PieceKind::ByteLevel
        && pieces.iter().any(|(piece, _)| fallback_byte(piece).is_some())
    {
        return Err(file.unsupported(
            "model.byte_fallback",
            value,
            "byte pieces in a byte-level vocabulary",
        ));
    }
    Ok(pieces)
}

fn unigram_vocabulary<'a>(
    file: &JsonFile,
    vocab: &'a Value,
) -> Result<Vec<(&'a str, u64)>, ModelError> {
    let list = vocab
        .as_array()
        .ok_or_else(|| file.unsupported("model.vocab", vocab, "expected a list of pairs"))?;
    (0u64..)
        .zip(list)
        .map(|(id, pair)| {
            let piece = pair.get(0).and_then(Value::as_str).ok_or_else(|| {
                file.unsupported(format!("model.vocab[{id}]"), pair, "expected [piece, score]")
            })?;
            Ok((piece, id))
        })
        .collect()
}
