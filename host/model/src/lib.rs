//! Model folders (Hugging Face layout): what the daemon and the filters need from them.
//!
//! [`ModelFolder::load`] reads `tokenizer.json` (or `tekken.json`, or a `*.tiktoken` file),
//! `tokenizer_config.json`, `chat_template.jinja` and `special_tokens_map.json`, and gives the [`TokenTable`] (id to bytes) and the [`ModelSpec`] that
//! renders prompts. A tokenizer whose text cannot be reproduced exactly is a [`ModelError`] that
//! names file, field and value; nothing is guessed.

mod added;
mod base64;
mod byte_level;
mod config;
mod error;
mod files;
mod layout;
mod normalizer;
mod pieces;
mod postprocess;
mod prompt_format;
mod ranks;
mod table;
mod tokenizer_json;

use std::path::{Path, PathBuf};

use prompt::{ModelSpec, Normalizer, PromptFormat};
use serde_json::Value;

pub use error::ModelError;
pub use layout::{DEFAULT_REVISION, resolve};
pub use table::{Special, TokenTable};

use files::JsonFile;
use normalizer::TextRules;
use pieces::PieceKind;

/// A loaded model folder.
#[derive(Debug)]
pub struct ModelFolder {
    /// How requests become prompt text.
    pub spec: ModelSpec,
    /// The bytes of each token id.
    pub tokens: TokenTable,
}

impl ModelFolder {
    /// Reads `folder`: `tekken.json` where the engine takes mistral-common, else `tokenizer.json`
    /// if it has one, else `tekken.json`, else the `*.tiktoken` or `tiktoken.model` file. A tokenizer.json or tiktoken file needs its
    /// `tokenizer_config.json`.
    pub fn load(folder: &Path) -> Result<ModelFolder, ModelError> {
        let json = folder.join("tokenizer.json");
        let tekken = folder.join("tekken.json");
        if tekken.exists() && prompt_format::is_mistral(folder) {
            return ModelFolder::from_tekken(&tekken);
        }
        match (JsonFile::read(&json), tekken) {
            (Ok(tokenizer), _) => ModelFolder::from_tokenizer_json(folder, &tokenizer),
            (Err(error), _) if !error.is_not_found() => Err(error),
            (Err(_), tekken) if tekken.exists() => ModelFolder::from_tekken(&tekken),
            (Err(error), _) => match tiktoken_file(folder) {
                Some(file) => ModelFolder::from_tiktoken(folder, &file),
                None => Err(error),
            },
        }
    }

    fn from_tokenizer_json(folder: &Path, file: &JsonFile) -> Result<ModelFolder, ModelError> {
        let pieces = PieceKind::of(file)?;
        let tokens = tokenizer_json::token_table(file, pieces)?;
        let rules = TextRules::of(file, pieces)?;
        let mut spec = chat_spec(folder, || postprocess::completions_prefix(file))?;
        spec.normalizer = rules.normalizer;
        spec.space_mark = rules.space_mark;
        spec.segment_prefix = rules.prefix;
        spec.added_tokens = added::rendered_tokens(file, pieces, &rules)?;
        Ok(ModelFolder { spec, tokens })
    }

    /// Control tokens of tekken cannot be written in a template's text, so chats are refused.
    fn from_tekken(path: &Path) -> Result<ModelFolder, ModelError> {
        let file = JsonFile::read(path)?;
        let spec = ModelSpec {
            control_prefix: vec![ranks::tekken_bos(&file)?],
            prompt_format: PromptFormat::Mistral,
            ..ModelSpec::default()
        };
        Ok(ModelFolder { spec, tokens: ranks::tekken(&file)? })
    }

    fn from_tiktoken(folder: &Path, path: &Path) -> Result<ModelFolder, ModelError> {
        let config = JsonFile::read(&folder.join("tokenizer_config.json"))?;
        let mut spec = chat_spec(folder, || Ok(String::new()))?;
        // `tokenization_qwen.py` normalises first; the other models of this kind do not.
        if config.get("tokenizer_class").and_then(Value::as_str) == Some("QWenTokenizer") {
            spec.normalizer = Normalizer::Nfc;
        }
        let special = ranks::added_tokens_decoder(&config)?;
        if spec.normalizer != Normalizer::None {
            spec.added_tokens = special.iter().filter_map(|(_, s)| s.as_added()).collect();
        }
        Ok(ModelFolder { spec, tokens: ranks::tiktoken(path, &special)? })
    }
}

/// Template, special tokens and prefix; `file_prefix` is asked where the configuration does not
/// decide it.
fn chat_spec(
    folder: &Path,
    file_prefix: impl Fn() -> Result<String, ModelError>,
) -> Result<ModelSpec, ModelError> {
    let config = JsonFile::read(&folder.join("tokenizer_config.json"))?;
    let special_map = JsonFile::read_if_present(&folder.join("special_tokens_map.json"))?;
    let special_tokens = config::special_tokens(&config, special_map.as_ref())?;
    let completions_prefix = match config::bos_override(&config, &special_tokens)? {
        Some(prefix) => prefix,
        None => file_prefix()?,
    };
    Ok(ModelSpec {
        chat_template: config::chat_template(folder, &config)?,
        prompt_format: prompt_format::of(folder)?,
        special_tokens,
        completions_prefix,
        ..ModelSpec::default()
    })
}

/// The first by name, so that the choice does not depend on the file system.
fn tiktoken_file(folder: &Path) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|e| e == "tiktoken")
                || path.file_name().is_some_and(|name| name == "tiktoken.model")
        })
        .collect();
    files.sort();
    files.into_iter().next()
}
