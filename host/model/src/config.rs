//! `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::ModelError;
use crate::files::JsonFile;

/// Tokenizer classes of transformers that build their post-processor from `add_bos_token` instead
/// of taking the one of `tokenizer.json` (`update_post_processor`, transformers 4.x).
const BOS_CLASSES: [&str; 3] = ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"];

/// The names a chat template can use. `additional_special_tokens` is a list and has no name.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token"];

/// The chat template: `chat_template.jinja` first, then the configuration (a string, or the one
/// called "default" of a list). `None` where the model has none.
pub(crate) fn chat_template(
    folder: &Path,
    config: &JsonFile,
) -> Result<Option<String>, ModelError> {
    let file = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&file) {
        Ok(text) => return Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(ModelError::Read { file, source }),
    }
    match config.get("chat_template") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(list)) => {
            let named = |name: &str| {
                list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))
            };
            named("default")
                .and_then(|entry| entry.get("template"))
                .and_then(Value::as_str)
                .map(|text| Some(text.to_owned()))
                .ok_or_else(|| config.missing("chat_template[name=default].template"))
        }
        Some(other) => {
            Err(config.unsupported("chat_template", other, "expected a string or a list"))
        }
    }
}

/// The named special tokens: those of the configuration, and those it does not mention from the
/// map. An explicit null in the configuration is "none".
pub(crate) fn special_tokens(
    config: &JsonFile,
    map: Option<&JsonFile>,
) -> Result<BTreeMap<String, String>, ModelError> {
    let mut tokens = BTreeMap::new();
    for name in SPECIAL_NAMES {
        let sources = [Some(config), map];
        let Some((file, value)) =
            sources.into_iter().flatten().find_map(|file| Some((file, file.root.get(name)?)))
        else {
            continue;
        };
        let content = match value {
            Value::Null => continue,
            Value::String(text) => text.as_str(),
            Value::Object(object) => object
                .get("content")
                .and_then(Value::as_str)
                .ok_or_else(|| file.missing(format!("{name}.content")))?,
            other => return Err(file.unsupported(name, other, "expected a string or an object")),
        };
        tokens.insert(name.to_owned(), content.to_owned());
    }
    Ok(tokens)
}

/// The completions prefix where `add_bos_token` decides it; `None` where the post-processor does.
pub(crate) fn bos_override(
    config: &JsonFile,
    special_tokens: &BTreeMap<String, String>,
) -> Result<Option<String>, ModelError> {
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
    let class = class.strip_suffix("Fast").unwrap_or(class);
    let Some(add_bos) = config.get("add_bos_token").filter(|_| BOS_CLASSES.contains(&class)) else {
        return Ok(None);
    };
    match add_bos {
        Value::Bool(false) => Ok(Some(String::new())),
        Value::Bool(true) => special_tokens
            .get("bos_token")
            .map(|bos| Some(bos.clone()))
            .ok_or_else(|| config.missing("bos_token")),
        other => Err(config.unsupported("add_bos_token", other, "expected true or false")),
    }
}
