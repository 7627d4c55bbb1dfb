//! Bodies to prompts: the fields an engine without a model cares about.

use serde::Deserialize;
use serde_json::Value;

use super::{ApiError, App};

/// Tokens generated when the request does not say (vLLM's default for completions).
const DEFAULT_MAX_TOKENS: u64 = 16;

#[derive(Debug, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// The fields of all APIs; others are accepted and ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct Fields {
    pub(crate) model: Option<String>,
    prompt: Option<Value>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    /// `/v1/responses`' name for it.
    max_output_tokens: Option<u64>,
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    pub(crate) cache_salt: Option<String>,
    add_special_tokens: Option<bool>,
    prompt_logprobs: Option<Value>,
    echo: Option<bool>,
    logprobs: Option<Value>,
    n: Option<u64>,
    truncate_prompt_tokens: Option<i64>,
}

impl Fields {
    pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let fields: Fields = serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(format!("invalid request body: {error}")))?;
        if fields.n.is_some_and(|n| n != 1) {
            return Err(ApiError::bad_request("n other than 1 is not simulated"));
        }
        if fields.truncate_prompt_tokens.is_some() {
            return Err(ApiError::bad_request("truncate_prompt_tokens is not simulated"));
        }
        if fields.cache_salt.as_deref() == Some("") {
            return Err(ApiError::bad_request(
                "Parameter 'cache_salt' must be a non-empty string.",
            ));
        }
        Ok(fields)
    }

    pub(crate) fn include_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }

    /// Whether the engine would look into its cache: logprobs of the prompt need all of it.
    pub(crate) fn reads_cache(&self) -> bool {
        let echoes_logprobs = self.echo == Some(true) && self.logprobs.is_some();
        self.prompt_logprobs.is_none() && !echoes_logprobs
    }

    /// How many tokens to generate after a prompt of `prompt_len`.
    pub(crate) fn max_tokens(&self, app: &App, prompt_len: usize) -> Result<usize, ApiError> {
        let limit = app.max_model_len;
        if prompt_len == 0 {
            return Err(ApiError::bad_request("The decoder prompt cannot be empty"));
        }
        if prompt_len >= limit {
            return Err(ApiError::bad_request(format!(
                "This model's maximum context length is {limit} tokens. However, your request has \
                 {prompt_len} input tokens. Please reduce the length of the input messages."
            )));
        }
        let room = limit - prompt_len;
        match self.max_completion_tokens.or(self.max_output_tokens).or(self.max_tokens) {
            Some(0) => Err(ApiError::bad_request("max_tokens must be at least 1, got 0.")),
            Some(wanted) => {
                usize::try_from(wanted).ok().filter(|&wanted| wanted <= room).ok_or_else(|| {
                    ApiError::bad_request(format!(
                        "'max_tokens' or 'max_completion_tokens' is too large: {wanted}. This \
                         model's maximum context length is {limit} tokens and your request has \
                         {prompt_len} input tokens."
                    ))
                })
            }
            None => Ok(room.min(DEFAULT_MAX_TOKENS as usize)),
        }
    }

    /// The token ids of each prompt of a completion.
    pub(crate) fn completion_prompts(&self, app: &App) -> Result<Vec<Vec<u32>>, ApiError> {
        let invalid = || {
            ApiError::bad_request(
                "prompt must be a string, array of strings, array of tokens, or array of token arrays",
            )
        };
        let special = self.add_special_tokens.unwrap_or(true);
        let prompt = self.prompt.as_ref().ok_or_else(invalid)?;
        let list = match prompt {
            Value::String(text) => return Ok(vec![app.text.encode(text, special)?]),
            Value::Array(list) if !list.is_empty() => list,
            _ => return Err(invalid()),
        };
        if list.iter().all(Value::is_u64) {
            return Ok(vec![token_ids(app, list).ok_or_else(invalid)??]);
        }
        list.iter()
            .map(|item| match item {
                Value::String(text) => Ok(app.text.encode(text, special)?),
                Value::Array(ids) => token_ids(app, ids).ok_or_else(invalid)?,
                _ => Err(invalid()),
            })
            .collect()
    }
}

/// `None` when an item is no token id at all.
fn token_ids(app: &App, list: &[Value]) -> Option<Result<Vec<u32>, ApiError>> {
    let ids: Vec<u32> =
        list.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<_>>()?;
    Some(app.text.check_ids(&ids).map(|()| ids).map_err(ApiError::from))
}
