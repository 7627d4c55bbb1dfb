use minijinja::Value;

use crate::body::{Api, Request, some};
use crate::content_format::{self, ContentFormat};
use crate::error::{Refusal, TemplateError};
use crate::json::Json;
use crate::spec::ModelSpec;
use crate::template::Template;
use crate::text_mode::{TextMode, control_token_bytes};
use crate::{continuation, messages, tools};

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
    format: ContentFormat,
    knows_developer: bool,
}

impl Renderer {
    /// Compiles the model's template.
    pub fn new(spec: &ModelSpec) -> Result<Renderer, TemplateError> {
        let chat = match &spec.chat_template {
            None => None,
            Some(source) => Some(ChatTemplate {
                template: Template::compile(source)?,
                format: content_format::detect(source),
                knows_developer: source.contains("'developer'") || source.contains("\"developer\""),
            }),
        };
        Ok(Renderer { spec: spec.clone(), text_mode: TextMode::new(spec), chat })
    }

    /// The prompt that the engine sees for `request`.
    pub fn render(&self, request: &Request<'_>) -> Result<Prompt, Refusal> {
        if some(&request.fields.truncate_prompt_tokens).is_some() {
            return Err(Refusal::TruncatesPrompt);
        }
        if some(&request.fields.prompt_embeds).is_some() {
            return Err(Refusal::PromptEmbeds);
        }
        let text = match request.api {
            Api::Completions => completion_text(request)?.to_owned(),
            Api::ChatCompletions => self.chat_text(request)?,
        };
        let text = self.text_mode.apply(text);
        let has_prefix =
            !(self.spec.completions_prefix.is_empty() && self.spec.control_prefix.is_empty());
        if !(request.add_special_tokens && has_prefix) {
            return Ok(Prompt { bytes: text.into_bytes() });
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
        let fields = &request.fields;
        if some(&fields.chat_template).is_some() {
            return Err(Refusal::RequestChatTemplate);
        }
        let chat = self.chat.as_ref().ok_or(Refusal::NoChatTemplate)?;
        let messages = match &fields.messages {
            Some(Json::Array(messages)) if !messages.is_empty() => messages,
            _ => return Err(Refusal::NoPrompt),
        };
        let mut conversation = messages::normalise(messages, chat.format, chat.knows_developer)?;

        let final_text = if request.continue_final_message {
            if request.add_generation_prompt {
                return Err(Refusal::ContinueFinalMessage {
                    why: "add_generation_prompt is true, which is its default",
                });
            }
            let source = self.spec.chat_template.as_deref().unwrap_or_default();
            Some(continuation::mark(&mut conversation, source)?)
        } else {
            None
        };

        let context = self.context(request, &conversation)?;
        let limit_bytes = request
            .body_bytes
            .saturating_mul(OUTPUT_PER_BODY_BYTE)
            .saturating_add(OUTPUT_BASE_BYTES);
        let rendered = chat.template.render(context, limit_bytes)?;
        match final_text {
            None => Ok(rendered),
            Some(final_text) => continuation::cut(rendered, &final_text),
        }
    }

    /// The template's variables: special tokens, then the request's kwargs, then what the engine
    /// sets itself; a later one of the same name wins.
    fn context(
        &self,
        request: &Request<'_>,
        conversation: &[messages::Message<'_>],
    ) -> Result<Value, Refusal> {
        let fields = &request.fields;
        let mut pairs: Vec<(&str, Value)> = Vec::new();
        for (name, text) in &self.spec.special_tokens {
            pairs.push((name, Value::from(text.as_str())));
        }
        let kwargs = some(&fields.chat_template_kwargs);
        if let Some(Json::Object(kwargs)) = kwargs {
            for (name, value) in kwargs {
                check_kwarg(name)?;
                // Always overridden by the request's own field, and not handed on.
                if name == "continue_final_message" {
                    continue;
                }
                pairs.push((name, value.to_value()?));
            }
        }
        if let Some(effort) = some(&fields.reasoning_effort).and_then(Json::as_str) {
            pairs.push(("reasoning_effort", Value::from(effort)));
            let is_set = kwargs.is_some_and(|kwargs| kwargs.get("enable_thinking").is_some());
            if !is_set {
                pairs.push(("enable_thinking", Value::from(effort != "none")));
            }
        }
        let tools = match some(&fields.tools) {
            // The engine answers 400 to an empty list.
            Some(Json::Array(tools)) if tools.is_empty() => {
                return Err(Refusal::MalformedTool { field: "tools" });
            }
            Some(Json::Array(tools)) => tools::dump(tools)?,
            _ => Value::from(()),
        };
        let documents = some(&fields.documents)
            .or_else(|| kwargs.and_then(|kwargs| kwargs.get_some("documents")));
        let messages: Vec<Value> = conversation.iter().map(|m| m.to_value()).collect();
        pairs.push(("messages", Value::from(messages)));
        pairs.push(("tools", tools));
        pairs.push(("documents", documents_value(documents)?));
        pairs.push(("add_generation_prompt", Value::from(request.add_generation_prompt)));
        Ok(Value::from_pairs(pairs))
    }
}

/// The text of a completion's only prompt.
fn completion_text<'r>(request: &'r Request<'_>) -> Result<&'r str, Refusal> {
    let prompts = match some(&request.fields.prompt) {
        Some(Json::Str(text)) => return Ok(text),
        Some(Json::Array(prompts)) => prompts,
        _ => return Err(Refusal::NoPrompt),
    };
    match prompts.as_slice() {
        [] => Err(Refusal::NoPrompt),
        [Json::Str(text)] => Ok(text),
        [Json::Str(_) | Json::Array(_), _, ..] => {
            Err(Refusal::SeveralPrompts { count: prompts.len() })
        }
        _ => Err(Refusal::TokenIds),
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
