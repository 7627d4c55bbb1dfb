//! The OpenAI-shaped HTTP side.

mod answers;
mod inference;
mod metrics;
mod prompts;
mod record;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::SimConfig;
use crate::engine::{Command, SharedStats};
use crate::publisher::unix_seconds;
use crate::text::Text;

/// The release whose shapes this engine follows, as `/version` says.
const VLLM_VERSION: &str = "0.32.0";
/// Longest request body, as much as a router would ever forward.
pub(crate) const MAX_BODY_BYTES: usize = 64 << 20;

/// What every handler shares.
pub(crate) struct App {
    config: SimConfig,
    max_model_len: usize,
    text: Text,
    stats: SharedStats,
    commands: mpsc::UnboundedSender<Command>,
    endpoints: (Option<String>, Option<String>),
    record: record::Record,
    started_s: f64,
    next_id: AtomicU64,
}

impl App {
    pub(crate) fn new(
        config: SimConfig,
        max_model_len: usize,
        text: Text,
        stats: SharedStats,
        commands: mpsc::UnboundedSender<Command>,
        endpoints: (Option<String>, Option<String>),
    ) -> Arc<App> {
        Arc::new(App {
            config,
            max_model_len,
            text,
            stats,
            commands,
            endpoints,
            record: record::Record::default(),
            started_s: unix_seconds(),
            next_id: AtomicU64::new(0),
        })
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The adapter that `model` names, `None` for the base model.
    fn adapter(&self, model: Option<&str>) -> Result<Option<String>, ApiError> {
        match model {
            None => Ok(None),
            Some(model) if model == self.config.model => Ok(None),
            Some(model) if self.config.adapters.iter().any(|name| name == model) => {
                Ok(Some(model.to_owned()))
            }
            Some(model) => Err(ApiError {
                status: StatusCode::NOT_FOUND,
                message: format!("The model `{model}` does not exist."),
                param: Some("model"),
            }),
        }
    }
}

/// Requests and responses of [`App`].
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(inference::completions))
        .route("/v1/chat/completions", post(inference::chat_completions))
        .route("/v1/responses", post(inference::responses))
        .route("/v1/messages", post(inference::messages))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/reset_prefix_cache", post(reset_prefix_cache))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), record::record))
        .route("/v1/models", get(models))
        .route("/kv_event_sources", get(kv_event_sources))
        .route("/metrics", get(metrics::metrics))
        .route("/health", get(|| async {}))
        .route("/version", get(|| async { Json(json!({"version": VLLM_VERSION})) }))
        .route("/sim/behaviour", post(record::set_behaviour))
        .route("/sim/forget", post(forget))
        .route("/sim/requests", get(record::requests))
        .with_state(app)
}

/// An error in vLLM's shape.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
}

impl ApiError {
    fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::BAD_REQUEST, message: message.into(), param: None }
    }
}

impl From<anyhow::Error> for ApiError {
    /// What fails on the way to the engine is the request's fault.
    fn from(error: anyhow::Error) -> ApiError {
        ApiError::bad_request(format!("{error:#}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let kind = match self.status {
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::BAD_REQUEST => "BadRequestError",
            _ => "InternalServerError",
        };
        let error = json!({
            "message": self.message, "type": kind, "param": self.param, "code": self.status.as_u16(),
        });
        (self.status, Json(json!({"error": error}))).into_response()
    }
}

/// A stopped engine answers like this; only seen while shutting down.
fn engine_gone() -> ApiError {
    ApiError {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        message: "the engine has stopped".to_owned(),
        param: None,
    }
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let card = |id: &str, parent: Option<&str>| {
        json!({
            "id": id, "object": "model", "created": app.started_s as u64, "owned_by": "vllm",
            "root": id, "parent": parent, "max_model_len": app.max_model_len, "permission": [],
        })
    };
    let base = app.config.model.as_str();
    let adapters = app.config.adapters.iter().map(|name| card(name, Some(base)));
    let data: Vec<Value> = std::iter::once(card(base, None)).chain(adapters).collect();
    Json(json!({"object": "list", "data": data}))
}

/// vLLM's discovery of event sockets (0.31 and later).
async fn kv_event_sources(State(app): State<Arc<App>>) -> Json<Value> {
    let (endpoint, replay_endpoint) = &app.endpoints;
    Json(json!({"0": {
        "enable_kv_cache_events": endpoint.is_some(), "publisher": "zmq", "endpoint": endpoint,
        "replay_endpoint": replay_endpoint, "buffer_steps": app.config.buffer_steps,
        "topic": app.config.topic,
    }}))
}

/// 503 while requests run: vLLM refuses too, but says so only in its log.
async fn reset_prefix_cache(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    reset_cache(&app, true).await
}

/// The same without a word to anybody.
async fn forget(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    reset_cache(&app, false).await
}

async fn reset_cache(app: &App, is_announced: bool) -> Result<Response, ApiError> {
    let (reply, done) = oneshot::channel();
    let command = Command::ResetCache { is_announced, reply };
    app.commands.send(command).map_err(|_| engine_gone())?;
    let done = done.await.map_err(|_| engine_gone())?;
    let status = if done { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(json!({"success": done}))).into_response())
}
