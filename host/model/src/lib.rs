//! Model folders (Hugging Face layout): what the daemon and the filters need from them.
//!
//! [`ModelFolder::load`] reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and
//! `special_tokens_map.json`, and gives the [`TokenTable`] (id to bytes) and the [`ModelSpec`] that
//! renders prompts. A tokenizer whose text cannot be reproduced exactly is a [`ModelError`] that
//! names file, field and value; nothing is guessed.

mod added;
mod byte_level;
mod config;
mod error;
mod files;
mod normalizer;
mod pieces;
mod postprocess;
mod table;
mod tokenizer_json;

use std::path::Path;

use prompt::ModelSpec;

pub use error::ModelError;
pub use table::TokenTable;

use files::JsonFile;

/// A loaded model folder.
#[derive(Debug)]
pub struct ModelFolder {
    /// How requests become prompt text.
    pub spec: ModelSpec,
    /// The bytes of each token id.
    pub tokens: TokenTable,
}

impl ModelFolder {
    /// Reads `folder`. `tokenizer.json` and `tokenizer_config.json` must exist.
    pub fn load(folder: &Path) -> Result<ModelFolder, ModelError> {
        let tokenizer = JsonFile::read(&folder.join("tokenizer.json"))?;
        let config = JsonFile::read(&folder.join("tokenizer_config.json"))?;
        let special_map = JsonFile::read_if_present(&folder.join("special_tokens_map.json"))?;

        let tokens = tokenizer_json::token_table(&tokenizer)?;
        let special_tokens = config::special_tokens(&config, special_map.as_ref())?;
        let completions_prefix = match config::bos_override(&config, &special_tokens)? {
            Some(prefix) => prefix,
            None => postprocess::completions_prefix(&tokenizer)?,
        };
        let spec = ModelSpec {
            chat_template: config::chat_template(folder, &config)?,
            special_tokens,
            completions_prefix,
            normalizer: normalizer::text_normalizer(&tokenizer)?,
        };
        Ok(ModelFolder { spec, tokens })
    }
}
