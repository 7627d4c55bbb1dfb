//! Asking an engine for its tokens.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

/// Covers a question from the connection to the last byte.
const LIMIT: Duration = Duration::from_secs(10);
/// A probe has some hundred tokens, of up to 8 bytes in JSON, and as many strings if it wants.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// 400, 422 or 500: it understood the question, and did not like the conversation.
    #[error("the engine answered {0}")]
    Refused(StatusCode),
    /// The engine does not answer such questions, or not to us.
    #[error("{path} answered {status}")]
    Status {
        /// What was asked.
        path: &'static str,
        /// The answer.
        status: StatusCode,
    },
    /// No connection, or it broke.
    #[error("asking {path}: {reason}")]
    Failed {
        /// What was asked.
        path: &'static str,
        /// What went wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Answer {
    tokens: Vec<u32>,
}

/// Keeps connections between questions.
pub(super) struct Asker(Client<HttpConnector, Full<Bytes>>);

impl Asker {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(LIMIT));
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    /// The tokens of a prompt or conversation.
    pub(super) async fn tokenize(
        &self,
        address: &str,
        path: &'static str,
        body: String,
    ) -> Result<Vec<u32>, NoAnswer> {
        let failed = |reason: String| NoAnswer::Failed { path, reason };
        match tokio::time::timeout(LIMIT, self.exchange(address, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    async fn exchange(
        &self,
        address: &str,
        path: &'static str,
        body: String,
    ) -> Result<Vec<u32>, NoAnswer> {
        let failed = |reason: String| NoAnswer::Failed { path, reason };
        let request = Request::post(format!("http://{address}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))
            .map_err(|error| failed(error.to_string()))?;
        let answer = self.0.request(request).await.map_err(|error| failed(chain(&error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
        match status {
            StatusCode::OK => serde_json::from_slice::<Answer>(&body)
                .map(|answer| answer.tokens)
                .map_err(|error| failed(error.to_string())),
            StatusCode::BAD_REQUEST
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::INTERNAL_SERVER_ERROR => Err(NoAnswer::Refused(status)),
            _ => Err(NoAnswer::Status { path, status }),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
