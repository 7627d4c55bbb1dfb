//! What the engine received, and how it misbehaves.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ApiError, App, MAX_BODY_BYTES};
use crate::reset::Cut;

/// Requests kept for `GET /sim/requests`.
const KEPT_REQUESTS: usize = 1000;

/// How requests are answered; set by `POST /sim/behaviour`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(tag = "on_request", rename_all = "snake_case")]
pub(crate) enum Behaviour {
    /// As an engine.
    #[default]
    Serve,
    /// The request is read whole, then its connection is reset.
    Reset,
    /// Every request gets this status.
    Status {
        /// 503 when not given.
        #[serde(default = "unavailable")]
        status: u16,
    },
}

fn unavailable() -> u16 {
    503
}

/// Set by a handler on its response: what the recorder and the header say.
#[derive(Clone, Copy)]
pub(crate) struct CachedTokens(pub(crate) usize);

#[derive(Clone, Debug, Serialize)]
struct Received {
    #[serde(skip)]
    number: u64,
    path: String,
    #[serde(rename = "x-request-id")]
    request_id: Option<String>,
    body_sha256: String,
    /// Name (lower case) and value of each, in the order received.
    headers: Vec<(String, String)>,
    status: Option<u16>,
    cached_tokens: Option<usize>,
}

/// The recorder's state.
#[derive(Default)]
pub(crate) struct Record {
    behaviour: Mutex<Behaviour>,
    received: Mutex<(u64, VecDeque<Received>)>,
}

impl Record {
    fn received(&self) -> MutexGuard<'_, (u64, VecDeque<Received>)> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, path: &str, headers: &HeaderMap, body_sha256: &str) -> u64 {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut guard = self.received();
        let (next, list) = &mut *guard;
        let number = *next;
        *next += 1;
        if list.len() == KEPT_REQUESTS {
            list.pop_front();
        }
        list.push_back(Received {
            number,
            path: path.to_owned(),
            request_id: headers.get("x-request-id").map(text),
            body_sha256: body_sha256.to_owned(),
            headers: headers.iter().map(|(k, v)| (k.as_str().to_owned(), text(v))).collect(),
            status: None,
            cached_tokens: None,
        });
        number
    }

    fn finish(&self, number: u64, status: StatusCode, cached_tokens: Option<usize>) {
        let mut guard = self.received();
        if let Some(entry) = guard.1.iter_mut().rev().find(|entry| entry.number == number) {
            entry.status = Some(status.as_u16());
            entry.cached_tokens = cached_tokens;
        }
    }

    fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Around every engine request: read it whole, record it, misbehave or go on, sign the response.
pub(crate) async fn record(
    State(app): State<Arc<App>>,
    Extension(cut): Extension<Cut>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(error) => {
            return ApiError::bad_request(format!("reading the body: {error}")).into_response();
        }
    };
    let body_sha256 = hex(&Sha256::digest(&body));
    let number = app.record.add(parts.uri.path(), &parts.headers, &body_sha256);
    let mut response = match app.record.behaviour() {
        Behaviour::Serve => next.run(Request::from_parts(parts, Body::from(body))).await,
        Behaviour::Reset => cut.cut().await,
        Behaviour::Status { status } => ApiError {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            message: "told to answer with this status".to_owned(),
            param: None,
        }
        .into_response(),
    };
    let cached = response.extensions().get::<CachedTokens>().map(|cached| cached.0);
    app.record.finish(number, response.status(), cached);
    let headers = response.headers_mut();
    let cached = cached.map(|cached| cached.to_string());
    let signature = [
        ("x-sim-engine", Some(&app.config.name)),
        ("x-sim-body-sha256", Some(&body_sha256)),
        ("x-sim-cached-tokens", cached.as_ref()),
    ];
    for (name, value) in signature {
        // A name that is no header value is left out.
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    response
}

pub(crate) async fn set_behaviour(
    State(app): State<Arc<App>>,
    Json(behaviour): Json<Behaviour>,
) -> Result<(), ApiError> {
    if let Behaviour::Status { status } = behaviour
        && !(200..=599).contains(&status)
    {
        return Err(ApiError::bad_request(format!("status is {status}, must be 200..=599")));
    }
    *app.record.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    Ok(())
}

pub(crate) async fn requests(State(app): State<Arc<App>>) -> Response {
    Json(&app.record.received().1).into_response()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
