//! `added_tokens`: tokens cut out of the text before the model sees it.

use prompt::AddedToken;
use serde_json::Value;

use crate::ModelError;
use crate::files::JsonFile;
use crate::normalizer::TextRules;
use crate::pieces::{PieceKind, SPACE_MARK};

/// One entry of `added_tokens`.
pub(crate) struct Added {
    pub(crate) id: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) content: String,
    normalized: bool,
    lstrip: bool,
    rstrip: bool,
    /// Path of the entry, for messages.
    pub(crate) field: String,
}

/// All entries.
pub(crate) fn added_tokens(file: &JsonFile, kind: PieceKind) -> Result<Vec<Added>, ModelError> {
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
) -> Result<Added, ModelError> {
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
    if flag("single_word") {
        return Err(file.unsupported(
            format!("{field}.single_word"),
            entry,
            "whether it is a token depends on the letters around it",
        ));
    }
    // Gemma lists runs of spaces ("▁▁") among the added tokens; they are pieces of text. A control
    // token with the mark in its name (`<｜begin▁of▁sentence｜>`) is its name.
    let is_text = matches!(kind, PieceKind::SentencePiece { .. }) && !flag("special");
    let bytes = if is_text {
        content.replace(SPACE_MARK, " ").into_bytes()
    } else {
        content.as_bytes().to_vec()
    };
    Ok(Added {
        id,
        bytes,
        content: content.to_owned(),
        normalized: flag("normalized"),
        lstrip: flag("lstrip"),
        rstrip: flag("rstrip"),
        field,
    })
}

/// The entries as the renderer looks for them. None where they change nothing: most byte-level
/// tokenizers, of which some list hundreds.
pub(crate) fn rendered_tokens(
    file: &JsonFile,
    kind: PieceKind,
    rules: &TextRules,
) -> Result<Vec<AddedToken>, ModelError> {
    let tokens = added_tokens(file, kind)?
        .into_iter()
        .map(|added| rendered(file, rules, added))
        .collect::<Result<Vec<AddedToken>, ModelError>>()?;
    let change_text = tokens.iter().any(|token| {
        token.lstrip
            || token.rstrip
            || token.text.is_some()
            || (rules.space_mark && token.content.contains(SPACE_MARK))
    });
    Ok(if change_text || rules.act_on_segments() { tokens } else { Vec::new() })
}

fn rendered(file: &JsonFile, rules: &TextRules, added: Added) -> Result<AddedToken, ModelError> {
    let mut content = added.content.clone();
    if added.normalized {
        content = rules.normal_form(&content);
        let has_blank = content.contains([' ', SPACE_MARK]);
        let refused = if rules.space_mark && (added.lstrip || added.rstrip) {
            Some("it eats blanks among which the normaliser leaves no space")
        } else if rules.marks_after_tokens && has_blank {
            Some("spaces become U+2581 only after it is looked for")
        } else {
            None
        };
        if let Some(reason) = refused {
            return Err(file.unsupported(added.field, &Value::from(added.content), reason));
        }
    }
    // The bytes come from a string with at most a character replaced.
    let text = String::from_utf8_lossy(&added.bytes);
    Ok(AddedToken {
        text: (text != content).then(|| text.into_owned()),
        content,
        normalized: added.normalized,
        lstrip: added.lstrip,
        rstrip: added.rstrip,
    })
}
