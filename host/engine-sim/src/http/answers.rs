//! Outputs of the engine as JSON or as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Json;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{ApiError, App, engine_gone};
use crate::engine::Output;
use crate::publisher::unix_seconds;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Completion,
    Chat,
    /// `/v1/responses`
    Response,
    /// `/v1/messages`
    Message,
}

type Outputs = mpsc::UnboundedReceiver<(usize, Output)>;

/// One response in the making; dropping it aborts its requests.
pub(crate) struct Answer {
    app: Arc<App>,
    shape: Shape,
    id: String,
    created: u64,
    model: String,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    outputs: Outputs,
    /// Choices that have not been admitted, and that have not finished.
    not_admitted: usize,
    unfinished: usize,
    /// Tokens that came while other choices waited.
    early: VecDeque<(usize, u32, bool)>,
    choices: usize,
}

impl Answer {
    pub(crate) fn new(
        app: Arc<App>,
        shape: Shape,
        id: u64,
        model: String,
        choices: usize,
        prompt_tokens: usize,
        outputs: Outputs,
    ) -> Answer {
        let prefix = match shape {
            Shape::Completion => "cmpl",
            Shape::Chat => "chatcmpl",
            Shape::Response => "resp",
            Shape::Message => "msg",
        };
        Answer {
            app,
            shape,
            id: format!("{prefix}-{id:016x}"),
            created: unix_seconds() as u64,
            model,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
            outputs,
            not_admitted: choices,
            unfinished: choices,
            early: VecDeque::new(),
            choices,
        }
    }

    /// Known once every choice runs.
    pub(crate) fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    pub(crate) async fn wait_for_admission(&mut self) -> Result<(), ApiError> {
        while self.not_admitted > 0 {
            match self.outputs.recv().await.ok_or_else(engine_gone)? {
                (_, Output::Admitted { cached_tokens }) => {
                    self.not_admitted -= 1;
                    self.cached_tokens += cached_tokens;
                }
                (index, Output::Token { token, finished }) => {
                    self.early.push_back((index, token, finished));
                }
            }
        }
        Ok(())
    }

    /// The next token of any choice, `None` after the last one.
    fn poll_token(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, u32, bool)>> {
        let next = loop {
            if self.unfinished == 0 {
                return Poll::Ready(None);
            }
            if let Some(early) = self.early.pop_front() {
                break early;
            }
            match ready!(self.outputs.poll_recv(cx)) {
                Some((index, Output::Token { token, finished })) => break (index, token, finished),
                Some((_, Output::Admitted { .. })) => {}
                None => return Poll::Ready(None),
            }
        };
        self.completion_tokens += 1;
        self.unfinished -= usize::from(next.2);
        Poll::Ready(Some(next))
    }

    /// The whole answer as JSON.
    pub(crate) async fn whole(mut self) -> Result<Response, ApiError> {
        let mut tokens = vec![Vec::new(); self.choices];
        while let Some((index, token, _)) = std::future::poll_fn(|cx| self.poll_token(cx)).await {
            if let Some(choice) = tokens.get_mut(index) {
                choice.push(token);
            }
        }
        if self.unfinished > 0 {
            return Err(engine_gone());
        }
        if matches!(self.shape, Shape::Response | Shape::Message) {
            let text = tokens.first().map(|ids| self.text(ids)).unwrap_or_default();
            return Ok(Json(self.single(&text)).into_response());
        }
        let choices: Vec<Value> = tokens
            .iter()
            .enumerate()
            .map(|(index, ids)| {
                let text = self.text(ids);
                let mut choice = json!({
                    "index": index, "logprobs": null, "finish_reason": "length", "stop_reason": null,
                });
                match self.shape {
                    Shape::Completion => choice["text"] = text.into(),
                    _ => {
                        choice["message"] = json!({"role": "assistant", "content": text});
                    }
                }
                choice
            })
            .collect();
        let object = match self.shape {
            Shape::Completion => "text_completion",
            _ => "chat.completion",
        };
        let mut body = self.envelope(object, choices);
        body["usage"] = self.usage();
        Ok(Json(body).into_response())
    }

    /// The answer of an API that has no choices, in vLLM's shape.
    fn single(&self, text: &str) -> Value {
        if self.shape == Shape::Message {
            return json!({
                "id": self.id, "type": "message", "role": "assistant", "model": self.model,
                "content": [{"type": "text", "text": text}], "stop_reason": "max_tokens",
                "usage": {
                    "input_tokens": self.prompt_tokens - self.cached_tokens,
                    "output_tokens": self.completion_tokens,
                    "cache_read_input_tokens": self.cached_tokens,
                },
            });
        }
        let output = json!({
            "id": format!("{}-0", self.id), "type": "message", "role": "assistant",
            "status": "incomplete",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        });
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "model": self.model,
            "status": "incomplete", "output": [output],
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": self.cached_tokens},
                "output_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
        })
    }

    /// The answer as server-sent events, as tokens come.
    pub(crate) fn stream(self, include_usage: bool) -> Response {
        let mut queue = VecDeque::new();
        if self.shape == Shape::Chat {
            for index in 0..self.choices {
                let delta = json!({"role": "assistant", "content": ""});
                queue.push_back(sse(&self.chunk(index, delta, false)));
            }
        }
        let body = Body::new(SseBody { answer: self, queue, include_usage, done: false });
        let headers =
            [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
        (headers, body).into_response()
    }

    /// Answers are ASCII words, so tokens never split a character.
    fn text(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.app.text.bytes(ids)).into_owned()
    }

    fn chunk(&self, index: usize, content: Value, finished: bool) -> Value {
        let reason = finished.then_some("length");
        let (object, name) = match self.shape {
            Shape::Completion => ("text_completion", "text"),
            _ => ("chat.completion.chunk", "delta"),
        };
        let mut choice = json!({"index": index, "logprobs": null, "finish_reason": reason});
        choice[name] = content;
        self.envelope(object, vec![choice])
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn usage(&self) -> Value {
        // As in vLLM, a miss is left out like a count that is not to be told.
        let is_told = self.app.config.prompt_tokens_details && self.cached_tokens > 0;
        let details = is_told.then(|| json!({"cached_tokens": self.cached_tokens}));
        json!({
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": details,
        })
    }
}

fn sse(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

struct SseBody {
    answer: Answer,
    queue: VecDeque<Bytes>,
    include_usage: bool,
    done: bool,
}

impl hyper::body::Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(chunk) = self.queue.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if self.done {
            return Poll::Ready(None);
        }
        let chunk = match ready!(self.answer.poll_token(cx)) {
            Some((index, token, finished)) => {
                let text = self.answer.text(&[token]);
                let content = match self.answer.shape {
                    Shape::Completion => Value::from(text),
                    _ => json!({"content": text}),
                };
                sse(&self.answer.chunk(index, content, finished))
            }
            None => {
                self.done = true;
                self.queue.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                if !self.include_usage {
                    return self.poll_frame(cx);
                }
                let object = match self.answer.shape {
                    Shape::Completion => "text_completion",
                    _ => "chat.completion.chunk",
                };
                let mut last = self.answer.envelope(object, Vec::new());
                last["usage"] = self.answer.usage();
                sse(&last)
            }
        };
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}
