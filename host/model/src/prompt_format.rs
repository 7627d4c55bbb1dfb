//! Which models' chats an engine does not render with their template: vLLM 0.33 decides by the
//! model's configuration and files (`config/model.py`, `tokenizers/registry.py`,
//! `renderers/online_renderer.py`).

use std::path::Path;

use prompt::PromptFormat;
use serde_json::Value;

use crate::ModelError;
use crate::files::JsonFile;

/// The format of the model in `folder`.
pub(crate) fn of(folder: &Path) -> Result<PromptFormat, ModelError> {
    if is_mistral(folder) {
        return Ok(PromptFormat::Mistral);
    }
    let Some(config) = JsonFile::read_if_present(&folder.join("config.json"))? else {
        return Ok(PromptFormat::Template);
    };
    if config.get("model_type").and_then(Value::as_str) == Some("gpt_oss") {
        return Ok(PromptFormat::Harmony);
    }
    let first =
        |list: &Value| list.as_array().and_then(|list| list.first()?.as_str()).map(str::to_owned);
    Ok(match config.get("architectures").and_then(first).as_deref() {
        Some(
            "DeepseekV32ForCausalLM"
            | "DeepseekV4ForCausalLM"
            | "DeepseekV4ForConditionalGeneration"
            | "DeepseekV41ForCausalLM",
        ) => PromptFormat::Deepseek,
        Some("KimiK3ForConditionalGeneration") => PromptFormat::KimiK3,
        Some("InklingForCausalLM" | "InklingForConditionalGeneration") => PromptFormat::Inkling,
        _ => PromptFormat::Template,
    })
}

/// Whether the engine takes mistral-common: the model has its weights in Mistral's form beside a
/// tokenizer of Mistral's. A folder without any weights does not say; a `tekken.json` in it does,
/// as the hub's models with one have such weights.
pub(crate) fn is_mistral(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let (mut tekken, mut versioned, mut consolidated, mut weights) = (false, false, false, false);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        tekken |= name == "tekken.json";
        versioned |= name.starts_with("tokenizer.model.v");
        let is_weights = name.ends_with(".safetensors");
        consolidated |= is_weights && name.starts_with("consolidated");
        weights |= is_weights;
    }
    if weights { consolidated && (tekken || versioned) } else { tekken }
}
