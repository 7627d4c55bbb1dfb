//! A proxy-wasm filter that takes the bare steps of a decision on a chat: the body copied once and
//! read into borrowed texts, those texts hashed by strides, a few lookups in the shared data, one
//! header set. It renders nothing, scores nobody and is right about nothing: no router can do with
//! less, so this is the floor that the router's cost is a multiple of.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, reason = "the exported entry point is the macro's")]

use std::borrow::Cow;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};
use serde::Deserialize;
use xxhash_rust::xxh64::xxh64;

/// As the router cuts text.
const STRIDE_BYTES: usize = 64;
/// Lookups of one depth, as `prefix` counts them.
const LOOKUPS: u32 = 12;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root));
}}

struct Root;
impl Context for Root {}
impl RootContext for Root {
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { body_bytes: 0 }))
    }
}

#[derive(Deserialize)]
struct Chat<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

struct Stream {
    body_bytes: usize,
}
impl Context for Stream {}
impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        if end_of_stream { Action::Continue } else { Action::Pause }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        // Of what has arrived, not of all there is.
        self.body_bytes = self.body_bytes.max(size);
        if !end_of_stream {
            return Action::Pause;
        }
        let body = self.get_http_request_body(0, self.body_bytes).unwrap_or_default();
        if let Ok(chat) = serde_json::from_slice::<Chat<'_>>(&body) {
            let mut key = xxh64(chat.model.as_bytes(), 0);
            for message in &chat.messages {
                key = xxh64(message.role.as_bytes(), key);
                for stride in message.content.as_bytes().chunks(STRIDE_BYTES) {
                    key = xxh64(stride, key);
                }
            }
            for lookup in 0..LOOKUPS {
                let _ = self.get_shared_data(&format!("floor{lookup}"));
            }
            self.set_http_request_header("x-floor", Some(if key == 0 { "0" } else { "1" }));
        }
        Action::Continue
    }
}
