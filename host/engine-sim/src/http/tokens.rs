//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, App};

#[derive(Deserialize)]
struct TokenizeFields {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Value>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let fields: TokenizeFields = parse(&body)?;
    app.adapter(fields.model.as_deref())?;
    let tokens = match (&fields.prompt, &fields.messages) {
        (Some(text), None) => app.text.encode(text, fields.add_special_tokens.unwrap_or(true))?,
        (None, Some(_)) => app.text.encode_chat(prompt::Api::ChatCompletions, &body)?,
        _ => return Err(ApiError::bad_request("expected either prompt or messages")),
    };
    let token_strs: Option<Vec<String>> = (fields.return_token_strs == Some(true))
        .then(|| tokens.iter().map(|&id| app.text.token_str(id).unwrap_or_default()).collect());
    Ok(Json(json!({
        "count": tokens.len(), "max_model_len": app.max_model_len, "tokens": tokens,
        "token_strs": token_strs,
    })))
}

#[derive(Deserialize)]
struct DetokenizeFields {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let fields: DetokenizeFields = parse(&body)?;
    app.adapter(fields.model.as_deref())?;
    app.text.check_ids(&fields.tokens)?;
    let text = app.text.bytes(&fields.tokens);
    Ok(Json(json!({"prompt": String::from_utf8_lossy(&text)})))
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("invalid request body: {error}")))
}
