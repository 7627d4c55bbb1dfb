//! Request bodies to the prompt bytes an engine would see.
//!
//! A [`Request`] is parsed from the body of one of the [`Api`]s; a [`Renderer`], compiled once per
//! model from a [`ModelSpec`], turns it into the [`Prompt`] that vLLM would tokenise (for
//! `/generate`, SGLang). The reference for every rule here is vLLM 0.33 with transformers 5.24
//! and Jinja2 3.1.6; `tests/golden/prompt` holds their output.
//!
//! What cannot or must not be matched in the gateway is a [`Refusal`] and never a guess: such a
//! request is still routed, by load. That is why [`Request::parse`] accepts bodies that
//! [`Renderer::render`] refuses.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that fails should say where"))]

mod anthropic;
mod body;
mod chat;
mod content_format;
mod continuation;
mod error;
mod json;
mod messages;
mod number;
mod plain;
mod python;
mod renderer;
mod responses;
mod source;
mod spec;
mod template;
mod text_mode;
mod tojson;
mod token_finder;
mod tools;

pub use body::{Api, Request};
pub use error::{BodyError, Refusal, TemplateError};
pub use renderer::{Prompt, Renderer};
pub use spec::{AddedToken, ModelSpec, Normalizer, PromptFormat, SegmentPrefix};
pub use text_mode::{TextMode, control_token_bytes};
