//! `added_tokens`: tokens cut out of the text before the model sees it.

use serde_json::Value;

use crate::ModelError;
use crate::files::JsonFile;
use crate::pieces::{PieceKind, SPACE_MARK};

/// One entry of `added_tokens`.
pub(crate) struct AddedToken {
    pub(crate) id: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) content: String,
    /// Path of the entry, for messages.
    pub(crate) field: String,
}

/// All entries; one that eats the blanks around it is refused, because the text it came from
/// cannot be told from the ids.
pub(crate) fn added_tokens(
    file: &JsonFile,
    kind: PieceKind,
) -> Result<Vec<AddedToken>, ModelError> {
    let Some(list) = file.get("added_tokens") else { return Ok(Vec::new()) };
    let list =
        list.as_array().ok_or_else(|| file.unsupported("added_tokens", list, "expected a list"))?;
    list.iter().enumerate().map(|(i, entry)| added_token(file, kind, i, entry)).collect()
}

fn added_token(
    file: &JsonFile,
    kind: PieceKind,
    index: usize,
    entry: &Value,
) -> Result<AddedToken, ModelError> {
    let field = format!("added_tokens[{index}]");
    let id = entry
        .get("id")
        .and_then(Value::as_u64)
        .ok_or_else(|| file.missing(format!("{field}.id")))?;
    let content = entry
        .get("content")
        .and_then(Value::as_str)
        .ok_or_else(|| file.missing(format!("{field}.content")))?;
    let flag = |name: &str| entry.get(name).and_then(Value::as_bool).unwrap_or(false);
    for name in ["lstrip", "rstrip"] {
        if flag(name) {
            return Err(file.unsupported(
                format!("{field}.{name}"),
                entry,
                "a token that eats blanks hides them from its ids",
            ));
        }
    }
    // Gemma lists runs of spaces ("▁▁") among the added tokens; they are pieces of text. A control
    // token with the mark in its name (`<｜begin▁of▁sentence｜>`) is its name.
    let is_text = matches!(kind, PieceKind::SentencePiece { .. }) && !flag("special");
    let bytes = if is_text {
        content.replace(SPACE_MARK, " ").into_bytes()
    } else {
        content.as_bytes().to_vec()
    };
    Ok(AddedToken { id, bytes, content: content.to_owned(), field })
}
