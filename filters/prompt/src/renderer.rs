use std::borrow::Cow;
use std::sync::OnceLock;

use minijinja::Value;

use crate::body::{Api, Request, some};
use crate::chat::{self, Chat};
use crate::error::{Refusal, TemplateError};
use crate::json::Json;
use crate::messages::Form;
use crate::plain::{self, Plain};
use crate::spec::ModelSpec;
use crate::template::{self, Template};
use crate::text_mode::{TextMode, control_token_bytes};
use crate::{anthropic, content_format, continuation, messages, responses, tools};

/// A prompt may be larger than its body by the template's own text: this much, and
/// [`OUTPUT_PER_BODY_BYTE`] for templates that write a message more than once.
const OUTPUT_BASE_BYTES: usize = 1 << 20;
const OUTPUT_PER_BODY_BYTE: usize = 8;

/// The text the engine tokenises, with the special tokens it adds to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The bytes of the prompt's tokens: UTF-8 as the tokenizer changes it, and
    /// [`control_token_bytes`] of the model's `control_prefix`.
    pub bytes: Vec<u8>,
}

/// Renders the prompts of one model. Compiled once per model and kept.
#[derive(Debug)]
pub struct Renderer {
    spec: ModelSpec,
    text_mode: TextMode,
    chat: Option<ChatTemplate>,
}

#[derive(Debug)]
struct ChatTemplate {
    template: Template,
    form: Form,
    merges_system: OnceLock<bool>,
    disabled_effort: OnceLock<&'static str>,
}

impl Renderer {
    /// Compiles the model's template.
    pub fn new(spec: &ModelSpec) -> Result<Renderer, TemplateError> {
        let chat = match &spec.chat_template {
            None => None,
            Some(source) => Some(ChatTemplate {
                template: Template::compile(source)?,
                form: Form {
                    format: content_format::detect(source),
                    knows_developer: source.contains("'developer'")
                        || source.contains("\"developer\""),
                    typed: true,
                },
                merges_system: OnceLock::new(),
                disabled_effort: OnceLock::new(),
            }),
        };
        Ok(Renderer { spec: spec.clone(), text_mode: TextMode::new(spec), chat })
    }

    /// The prompt that the engine sees for `request`.
    pub fn render(&self, request: &Request<'_>) -> Result<Prompt, Refusal> {
        if let Some(refusal) = request.refused() {
            return Err(refusal);
        }
        let text: Cow<'_, str> = match plain::only_prompt(request) {
            Ok(Plain::Text(text)) => self.text_mode.applied(text),
            Ok(Plain::TokenIds(_)) => return Err(Refusal::TokenIds),
            Err(Refusal::NoPrompt) => Cow::Owned(self.text_mode.apply(self.chat_text(request)?)),
            Err(refusal) => return Err(refusal),
        };
        let has_prefix =
            !(self.spec.completions_prefix.is_empty() && self.spec.control_prefix.is_empty());
        if !(request.add_special_tokens && has_prefix) {
            return Ok(Prompt { bytes: text.into_owned().into_bytes() });
        }
        let mut bytes = Vec::with_capacity(
            5 * self.spec.control_prefix.len() + self.spec.completions_prefix.len() + text.len(),
        );
        for id in &self.spec.control_prefix {
            bytes.extend_from_slice(&control_token_bytes(*id));
        }
        bytes.extend_from_slice(self.spec.completions_prefix.as_bytes());
        bytes.extend_from_slice(text.as_bytes());
        Ok(Prompt { bytes })
    }

    fn chat_text(&self, request: &Request<'_>) -> Result<String, Refusal> {
        let has_messages = match request.api {
            Api::ChatCompletions | Api::Responses | Api::Messages => true,
            Api::Embeddings => some(&request.fields.messages).is_some(),
            Api::Completions | Api::Generate | Api::SglangGenerate => false,
        };
        if !has_messages {
            return Err(Refusal::NoPrompt);
        }
        if let Some(refusal) = self.spec.prompt_format.refusal() {
            return Err(refusal);
        }
        let template = self.chat.as_ref().ok_or(Refusal::NoChatTemplate)?;
        let chat = match request.api {
            Api::Responses => responses::chat(request)?,
            Api::Messages => anthropic::chat(request, || self.probes(template))?,
            _ => chat::of_chat(request)?,
        };
        let form = Form { typed: request.api != Api::Responses, ..template.form };
        self.render_chat(template, &chat, form, request.body_bytes)
    }

    fn render_chat(
        &self,
        template: &ChatTemplate,
        chat: &Chat<'_>,
        form: Form,
        body_bytes: usize,
    ) -> Result<String, Refusal> {
        if chat.messages.is_empty() {
            return Err(Refusal::NoPrompt);
        }
        let mut conversation = messages::normalise(&chat.messages, form)?;
        let final_text = if chat.continue_final_message {
            if chat.add_generation_prompt {
                return Err(Refusal::ContinueFinalMessage {
                    why: "add_generation_prompt is true, which is its default",
                });
            }
            let source = self.spec.chat_template.as_deref().unwrap_or_default();
            Some(continuation::mark(&mut conversation, source)?)
        } else {
            None
        };

        let context = self.context(chat, &conversation)?;
        let limit_bytes =
            body_bytes.saturating_mul(OUTPUT_PER_BODY_BYTE).saturating_add(OUTPUT_BASE_BYTES);
        let rendered = template.template.render(context, limit_bytes)?;
        match final_text {
            None => Ok(rendered),
            Some(final_text) => continuation::cut(rendered, &final_text),
        }
    }

    /// What vLLM finds out about a template at start for `/v1/messages`
    /// (`entrypoints/anthropic/serving.py`), found out once.
    fn probes(&self, template: &ChatTemplate) -> anthropic::Probes {
        let merge_inline_system = *template.merges_system.get_or_init(|| {
            self.spec.chat_template.as_deref().is_none_or(|source| !template::takes_system(source))
        });
        let disabled_effort = template.disabled_effort.get_or_init(|| {
            let with = |effort: &'static str| {
                let chat = Chat {
                    messages: vec![chat::message("user", chat::text("Hi"))].into(),
                    tools: None,
                    documents: None,
                    kwargs: None,
                    reasoning_effort: Some(effort),
                    add_generation_prompt: true,
                    continue_final_message: false,
                };
                self.render_chat(template, &chat, template.form, 0).ok()
            };
            let none = with("none");
            let efforts = ["low", "medium", "high", "xhigh", "max"];
            // A template that refuses the effort, or does not look at it, thinks anyway.
            let is_ignored = none.is_none() || efforts.iter().any(|effort| with(effort) == none);
            if is_ignored { "low" } else { "none" }
        });
        anthropic::Probes { merge_inline_system, disabled_effort }
    }

    /// The template's variables: special tokens, then the request's kwargs, then what the engine
    /// sets itself; a later one of the same name wins.
    fn context(
        &self,
        chat: &Chat<'_>,
        conversation: &[messages::Message<'_>],
    ) -> Result<Value, Refusal> {
        let mut pairs: Vec<(&str, Value)> = Vec::new();
        for (name, text) in &self.spec.special_tokens {
            pairs.push((name, Value::from(text.as_str())));
        }
        if let Some(Json::Object(kwargs)) = chat.kwargs {
            for (name, value) in kwargs {
                check_kwarg(name)?;
                // Always overridden by the request's own field, and not handed on.
                if name == "continue_final_message" {
                    continue;
                }
                pairs.push((name, value.to_value()?));
            }
        }
        if let Some(effort) = chat.reasoning_effort {
            pairs.push(("reasoning_effort", Value::from(effort)));
            let is_set = chat.kwargs.is_some_and(|kwargs| kwargs.get("enable_thinking").is_some());
            if !is_set {
                pairs.push(("enable_thinking", Value::from(effort != "none")));
            }
        }
        let tools = match &chat.tools {
            Some(tools) => tools::dump(tools)?,
            None => Value::from(()),
        };
        let documents =
            chat.documents.or_else(|| chat.kwargs.and_then(|kwargs| kwargs.get_some("documents")));
        let messages: Vec<Value> = conversation.iter().map(|m| m.to_value()).collect();
        pairs.push(("messages", Value::from(messages)));
        pairs.push(("tools", tools));
        pairs.push(("documents", documents_value(documents)?));
        pairs.push(("add_generation_prompt", Value::from(chat.add_generation_prompt)));
        Ok(Value::from_pairs(pairs))
    }
}

/// Arguments of transformers' rendering call, which never reach the template, or collide.
fn check_kwarg(name: &str) -> Result<(), Refusal> {
    const RESERVED: [&str; 15] = [
        "chat_template",
        "conversation",
        "conversations",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    ];
    if RESERVED.contains(&name) {
        return Err(Refusal::ReservedTemplateKwarg { name: name.to_owned() });
    }
    Ok(())
}

fn documents_value(documents: Option<&Json<'_>>) -> Result<Value, Refusal> {
    match documents {
        None => Ok(Value::from(())),
        Some(list @ Json::Array(items)) if items.iter().all(|i| matches!(i, Json::Object(_))) => {
            list.to_value()
        }
        Some(_) => Err(Refusal::MalformedMessage { field: "documents" }),
    }
}

#[cfg(test)]
#[path = "renderer_tests.rs"]
mod tests;
