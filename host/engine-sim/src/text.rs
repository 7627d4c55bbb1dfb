//! Text to tokens and back, and the text an engine without a model says.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use model::{ModelFolder, TokenTable};
use prompt::{Api, Renderer, Request};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

/// Words of the answers. All ASCII, so every token of an answer is text of its own.
const WORDS: [&str; 32] = [
    "the", "cache", "holds", "a", "block", "of", "tokens", "for", "each", "request", "and", "an",
    "engine", "answers", "with", "words", "from", "this", "list", "while", "others", "wait", "in",
    "the", "queue", "until", "one", "is", "free", "again", "as", "expected",
];

/// A loaded model folder with its tokenizer.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    table: TokenTable,
    renderer: Renderer,
    /// `max_position_embeddings` of config.json, where there is one.
    pub(crate) model_limit: Option<usize>,
}

impl Text {
    pub(crate) fn load(folder: &Path) -> Result<Text> {
        let loaded = ModelFolder::load(folder).context("loading the model folder")?;
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path)
            .map_err(|error| anyhow!("loading {}: {error}", path.display()))?;
        // vLLM never lets the file's own truncation and padding touch a prompt.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| anyhow!("unsetting truncation: {error}"))?;
        let renderer = Renderer::new(&loaded.spec).context("compiling the chat template")?;
        let model_limit = std::fs::read(folder.join("config.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
            .and_then(|config| config.get("max_position_embeddings")?.as_u64())
            .and_then(|limit| usize::try_from(limit).ok());
        Ok(Text { tokenizer, table: loaded.tokens, renderer, model_limit })
    }

    pub(crate) fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|error| anyhow!("tokenizing the prompt: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a chat of any API: rendered by the code that the router runs, then encoded.
    pub(crate) fn encode_chat(&self, api: Api, body: &[u8]) -> Result<Vec<u32>> {
        let request = Request::parse(api, body)?;
        let prompt = self.renderer.render(&request)?;
        let text = std::str::from_utf8(&prompt.bytes).context("rendering the chat")?;
        self.encode(text, false)
    }

    /// Checks ids a client gave.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let unknown = ids.iter().find(|&&id| self.table.bytes(id).is_none());
        ensure!(unknown.is_none(), "Token id {} is out of vocabulary", unknown.unwrap_or(&0));
        Ok(())
    }

    /// The bytes of known ids; unknown ones are left out.
    pub(crate) fn bytes(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().filter_map(|&id| self.table.bytes(id)).flatten().copied().collect()
    }

    /// The name of a token as vLLM's `token_strs` shows it.
    pub(crate) fn token_str(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The first `count` tokens of the answer to `prompt`.
    pub(crate) fn answer(&self, seed: u64, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
        let mut hasher = Sha256::new_with_prefix(seed.to_le_bytes());
        for id in prompt {
            hasher.update(id.to_le_bytes());
        }
        let mut state = hasher.finalize();
        let mut text = String::new();
        let mut words = 0;
        loop {
            for byte in state {
                text.push(' ');
                text.push_str(WORDS[usize::from(byte) % WORDS.len()]);
            }
            words += state.len();
            if words >= count {
                break;
            }
            state = Sha256::digest(state);
        }
        let mut ids = self.encode(&text, false)?;
        ensure!(ids.len() >= count, "{} tokens of {words} words", ids.len());
        ids.truncate(count);
        Ok(ids)
    }
}
