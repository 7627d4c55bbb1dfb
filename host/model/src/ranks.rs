//! Tokenizers that are lists of byte strings: `*.tiktoken` and `tekken.json`.

use std::path::Path;

use serde_json::Value;

use crate::base64;
use crate::files::JsonFile;
use crate::table::{Slots, TokenTable};
use crate::{ModelError, Special};

/// `base64(token) SP rank` a line; `special` comes from wherever the model keeps it.
pub(crate) fn tiktoken(path: &Path, special: &[(u32, Special)]) -> Result<TokenTable, ModelError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ModelError::Read { file: path.to_owned(), source })?;
    let file = JsonFile { path: path.to_owned(), root: Value::Null };
    let mut slots = Slots::default();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let field = || format!("line {}", number + 1);
        let (token, rank) = line
            .split_once(' ')
            .and_then(|(token, rank)| Some((base64::decode(token)?, rank.parse::<u64>().ok()?)))
            .ok_or_else(|| {
                file.unsupported(field(), &Value::from(line), "expected a base64 token and a rank")
            })?;
        slots.set(&file, rank, token, field)?;
    }
    for (id, token) in special {
        slots.set(&file, u64::from(*id), token.bytes(*id), || format!("special token {id}"))?;
    }
    Ok(slots.finish())
}

/// mistral-common's file: control tokens first, then the vocabulary by rank, cut at the size the
/// configuration gives (`Tekkenizer` of mistral-common 1.13.1).
pub(crate) fn tekken(file: &JsonFile) -> Result<TokenTable, ModelError> {
    let number = |name: &str| {
        file.root
            .pointer(&format!("/config/{name}"))
            .and_then(Value::as_u64)
            .ok_or_else(|| file.missing(format!("config.{name}")))
    };
    let size = number("default_vocab_size")?;
    let control = number("default_num_special_tokens")?;
    let vocab = file.get("vocab").and_then(Value::as_array).ok_or_else(|| file.missing("vocab"))?;
    let inner = size.checked_sub(control).filter(|inner| *inner <= vocab.len() as u64);
    let Some(inner) = inner else {
        let value = Value::from(size);
        return Err(file.unsupported("config.default_vocab_size", &value, "more than the tokens"));
    };
    let mut slots = Slots::default();
    for id in 0..control {
        // Above the limit of ids, `set` refuses.
        let bytes = prompt::control_token_bytes(u32::try_from(id).unwrap_or(u32::MAX));
        slots.set(file, id, bytes.to_vec(), || "config.default_num_special_tokens".to_owned())?;
    }
    for (i, entry) in vocab.iter().enumerate() {
        let field = |name: &str| format!("vocab[{i}].{name}");
        let rank = entry.get("rank").and_then(Value::as_u64);
        let rank = rank.ok_or_else(|| file.missing(field("rank")))?;
        if rank >= inner {
            continue;
        }
        let token = entry.get("token_bytes").and_then(Value::as_str);
        let token = token.ok_or_else(|| file.missing(field("token_bytes")))?;
        let bytes = base64::decode(token).ok_or_else(|| {
            file.unsupported(field("token_bytes"), &Value::from(token), "expected base64")
        })?;
        slots.set(file, control + rank, bytes, || field("rank"))?;
    }
    Ok(slots.finish())
}

/// Id of tekken's BOS, which mistral-common puts before a completion's prompt.
pub(crate) fn tekken_bos(file: &JsonFile) -> Result<u32, ModelError> {
    // Files before version 8 have no list; `<s>` is 1 in `DEPRECATED_SPECIAL_TOKENS`.
    let Some(list) = file.get("special_tokens").and_then(Value::as_array) else { return Ok(1) };
    list.iter()
        .find(|token| token.get("token_str").and_then(Value::as_str) == Some("<s>"))
        .and_then(|token| u32::try_from(token.get("rank")?.as_u64()?).ok())
        .ok_or_else(|| file.missing("special_tokens[token_str=<s>].rank"))
}

/// `added_tokens_decoder` of a `tokenizer_config.json`: the special tokens of a tiktoken model.
pub(crate) fn added_tokens_decoder(config: &JsonFile) -> Result<Vec<(u32, Special)>, ModelError> {
    let Some(map) = config.get("added_tokens_decoder").and_then(Value::as_object) else {
        return Ok(Vec::new());
    };
    map.iter()
        .map(|(id, entry)| {
            let field = format!("added_tokens_decoder[{id}]");
            let number = id.parse::<u32>().ok();
            let number =
                number.ok_or_else(|| config.unsupported(&field, entry, "its key is no id"))?;
            let content = entry.get("content").and_then(Value::as_str);
            let content = content.ok_or_else(|| config.missing(format!("{field}.content")))?;
            Ok((number, Special::Text(content.to_owned())))
        })
        .collect()
}
