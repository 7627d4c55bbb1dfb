//! `/v1/completions`, `/v1/chat/completions`, `/v1/responses` and `/v1/messages`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use prompt::Api;
use tokio::sync::mpsc;

use super::answers::{Answer, Shape};
use super::prompts::Fields;
use super::record::CachedTokens;
use super::{ApiError, App, engine_gone};
use crate::chain::{Chain, Namespace};
use crate::engine::Command;
use crate::scheduler::{Job, JobId};

pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let fields = Fields::parse(&body)?;
    let adapter = app.adapter(fields.model.as_deref())?;
    let prompts = fields.completion_prompts(&app)?;
    serve(app, Shape::Completion, &fields, adapter, prompts).await
}

pub(crate) async fn chat_completions(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let fields = Fields::parse(&body)?;
    let adapter = app.adapter(fields.model.as_deref())?;
    let prompt = app.text.encode_chat(Api::ChatCompletions, &body)?;
    serve(app, Shape::Chat, &fields, adapter, vec![prompt]).await
}

pub(crate) async fn responses(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    whole_only(app, Api::Responses, Shape::Response, &body).await
}

pub(crate) async fn messages(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    whole_only(app, Api::Messages, Shape::Message, &body).await
}

/// An API whose event stream is not simulated.
async fn whole_only(
    app: Arc<App>,
    api: Api,
    shape: Shape,
    body: &[u8],
) -> Result<Response, ApiError> {
    let fields = Fields::parse(body)?;
    if fields.stream == Some(true) {
        return Err(ApiError::bad_request("stream is not simulated for this API"));
    }
    let adapter = app.adapter(fields.model.as_deref())?;
    let prompt = app.text.encode_chat(api, body)?;
    serve(app, shape, &fields, adapter, vec![prompt]).await
}

/// Submits every prompt as a request of its own, and answers once all of them run.
async fn serve(
    app: Arc<App>,
    shape: Shape,
    fields: &Fields,
    adapter: Option<String>,
    prompts: Vec<Vec<u32>>,
) -> Result<Response, ApiError> {
    let lengths = prompts
        .iter()
        .map(|prompt| fields.max_tokens(&app, prompt.len()))
        .collect::<Result<Vec<usize>, ApiError>>()?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let (sender, outputs) = mpsc::unbounded_channel();
    let model = adapter.clone().unwrap_or_else(|| app.config.model.clone());
    let choices = prompts.len();
    for (index, (prompt, length)) in prompts.into_iter().zip(lengths).enumerate() {
        let output = app.text.answer(app.config.seed, &prompt, length)?;
        let namespace =
            Namespace { lora_name: adapter.clone(), cache_salt: fields.cache_salt.clone() };
        let chain = Chain::new(namespace, prompt);
        let job = Job::new(JobId(app.new_id()), chain, output, fields.reads_cache());
        let submit = Command::Submit { job, index, outputs: sender.clone() };
        app.commands.send(submit).map_err(|_| engine_gone())?;
    }
    drop(sender);

    let id = app.new_id();
    let mut answer = Answer::new(app, shape, id, model, choices, prompt_tokens, outputs);
    answer.wait_for_admission().await?;
    let cached = CachedTokens(answer.cached_tokens());
    let mut response = if fields.stream == Some(true) {
        answer.stream(fields.include_usage())
    } else {
        answer.whole().await?
    };
    response.extensions_mut().insert(cached);
    Ok(response)
}
