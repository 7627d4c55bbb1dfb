//! Messages as vLLM normalises them before the template sees them (`reference/engine-wire.md`
//! d.2, vLLM `renderers/chat_utils`), and as transformers 5 completes them.

use std::borrow::Cow;

use minijinja::Value;

use crate::content_format::ContentFormat;
use crate::error::Refusal;
use crate::json::Json;

/// A normalised message.
#[derive(Debug)]
pub(crate) struct Message<'r> {
    pub(crate) role: &'r str,
    pub(crate) content: Content<'r>,
    /// `thinking`, which transformers puts before all other keys.
    thinking: Option<&'r str>,
    /// The keys after `content`, in order.
    rest: Vec<(&'static str, Value)>,
}

/// A message's content in the template's format.
#[derive(Debug)]
pub(crate) enum Content<'r> {
    Text(Cow<'r, str>),
    Parts(Vec<Cow<'r, str>>),
}

impl<'r> Content<'r> {
    fn text(&self) -> Cow<'_, str> {
        match self {
            Content::Text(text) => Cow::Borrowed(text),
            Content::Parts(parts) => Cow::Owned(parts.join("\n")),
        }
    }

    fn from_texts(texts: Vec<Cow<'r, str>>, format: ContentFormat) -> Content<'r> {
        match format {
            ContentFormat::OpenAi => Content::Parts(texts),
            ContentFormat::String => {
                // vLLM drops empty texts before it joins.
                let mut texts: Vec<_> = texts.into_iter().filter(|t| !t.is_empty()).collect();
                match texts.len() {
                    1 => Content::Text(texts.swap_remove(0)),
                    _ => Content::Text(Cow::Owned(texts.join("\n"))),
                }
            }
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Content::Text(text) => Value::from(text.as_ref()),
            Content::Parts(parts) => parts
                .iter()
                .map(|text| Value::from_pairs([("type", "text"), ("text", text)]))
                .collect(),
        }
    }
}

impl Message<'_> {
    /// The template's `message`.
    pub(crate) fn to_value(&self) -> Value {
        let thinking = self.thinking.map(|text| ("thinking", Value::from(text)));
        let pairs: Vec<(&str, Value)> = thinking
            .into_iter()
            .chain([("role", Value::from(self.role)), ("content", self.content.to_value())])
            .chain(self.rest.iter().cloned())
            .collect();
        Value::from_pairs(pairs)
    }
}

/// Normalises a conversation. `knows_developer` says whether the template has that role; without
/// it, developer messages become system messages.
pub(crate) fn normalise<'r>(
    messages: &'r [Json<'_>],
    format: ContentFormat,
    knows_developer: bool,
) -> Result<Vec<Message<'r>>, Refusal> {
    let mut conversation = Vec::with_capacity(messages.len());
    for message in messages {
        conversation.push(normalise_message(message, format)?);
    }
    if !knows_developer {
        demote_developers(&mut conversation, format);
    }
    Ok(conversation)
}

fn normalise_message<'r>(
    message: &'r Json<'_>,
    format: ContentFormat,
) -> Result<Message<'r>, Refusal> {
    let role = text_of(message, "role")?.ok_or(malformed("role"))?;
    let mut texts = match message.get_some("content") {
        None => Vec::new(),
        Some(Json::Str(text)) => vec![Cow::Borrowed(text.as_ref())],
        Some(Json::Array(parts)) => texts_of(parts)?,
        Some(_) => return Err(malformed("content")),
    };
    if role == "system" {
        texts = without_billing_header(texts);
    }
    let mut content = Content::from_texts(texts, format);
    let mut rest = Vec::new();
    let mut thinking = None;
    match role {
        "assistant" => {
            if let Some(calls) = message.get_some("tool_calls") {
                let Json::Array(calls) = calls else {
                    return Err(malformed("tool_calls"));
                };
                if !calls.is_empty() {
                    let calls: Vec<Value> =
                        calls.iter().map(tool_call).collect::<Result<_, _>>()?;
                    rest.push(("tool_calls", Value::from(calls)));
                }
            }
            thinking = match text_of(message, "reasoning")? {
                Some(text) => Some(text),
                None => text_of(message, "reasoning_content")?,
            };
            if let Some(text) = thinking {
                rest.push(("reasoning", Value::from(text)));
                rest.push(("reasoning_content", Value::from(text)));
            }
        }
        "tool" => {
            if let Some(id) = text_of(message, "tool_call_id")? {
                rest.push(("tool_call_id", Value::from(id)));
            }
            // Unlike in the string format, empty texts are joined too.
            if let Content::Parts(parts) = &content {
                content = Content::Text(Cow::Owned(parts.join("\n")));
            }
        }
        "developer" if message.get_some("tools").is_some() => return Err(malformed("tools")),
        _ => {}
    }
    for key in ["name", "task"] {
        if let Some(text) = message.get(key).and_then(Json::as_str) {
            rest.push((key, Value::from(text)));
        }
    }
    Ok(Message { role, content, thinking, rest })
}

fn malformed(field: &'static str) -> Refusal {
    Refusal::MalformedMessage { field }
}

/// An optional text field; null counts as absent.
fn text_of<'r>(object: &'r Json<'_>, field: &'static str) -> Result<Option<&'r str>, Refusal> {
    match object.get_some(field) {
        None => Ok(None),
        Some(Json::Str(text)) => Ok(Some(text)),
        Some(_) => Err(malformed(field)),
    }
}

/// The texts of content parts; a text that is null is skipped.
fn texts_of<'r>(parts: &'r [Json<'_>]) -> Result<Vec<Cow<'r, str>>, Refusal> {
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        if let Json::Str(text) = part {
            texts.push(Cow::Borrowed(text.as_ref()));
            continue;
        }
        let kind = text_of(part, "type")?.unwrap_or("");
        let field = match kind {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            "thinking" => "thinking",
            "image_url" | "input_image" | "image_embeds" | "image_pil" | "audio_url"
            | "input_audio" | "audio_embeds" | "video_url" | "video_embeds" | "prompt_embeds" => {
                return Err(Refusal::MediaPart { kind: kind.to_owned() });
            }
            _ => {
                return Err(Refusal::UnknownPart { kind: kind.to_owned() });
            }
        };
        // With a uuid vLLM takes the part for media, whatever its type.
        if part.get_some("uuid").is_some() {
            return Err(malformed("uuid"));
        }
        match text_of(part, field)? {
            Some(text) => texts.push(Cow::Borrowed(text)),
            None if matches!(kind, "text" | "refusal") => {}
            None => return Err(malformed("text")),
        }
    }
    Ok(texts)
}

/// Claude Code's first line, different in every request. vLLM drops it from system texts.
fn without_billing_header(texts: Vec<Cow<'_, str>>) -> Vec<Cow<'_, str>> {
    let mut kept = Vec::with_capacity(texts.len());
    for text in texts {
        if !text.starts_with("x-anthropic-billing-header") {
            kept.push(text);
            continue;
        }
        match text.split_once('\n') {
            Some((_, rest)) if !rest.is_empty() => kept.push(Cow::Owned(rest.to_owned())),
            _ => {}
        }
    }
    kept
}

/// A tool call with its arguments as an object, at the place the client wrote them.
fn tool_call(call: &Json<'_>) -> Result<Value, Refusal> {
    let Json::Object(fields) = call else {
        return Err(malformed("tool_calls"));
    };
    match call.get("type") {
        None => {}
        Some(Json::Str(kind)) if kind == "function" => {}
        Some(_) => return Err(malformed("tool_calls.type")),
    }
    let Some(function @ Json::Object(function_fields)) = call.get("function") else {
        return Err(malformed("tool_calls.function"));
    };
    let arguments = match function.get("arguments") {
        Some(object @ Json::Object(_)) => object.to_value()?,
        Some(Json::Str(text)) => parse_arguments(text)?,
        _ => empty_object(),
    };
    let mut function = Vec::with_capacity(function_fields.len() + 1);
    for (key, value) in function_fields {
        match key.as_ref() {
            "arguments" => function.push(("arguments", arguments.clone())),
            key => function.push((key, value.to_value()?)),
        }
    }
    function.push(("arguments", arguments));
    let function = Value::from_pairs(function);

    let mut pairs = Vec::with_capacity(fields.len());
    for (key, value) in fields {
        match (key.as_ref(), value) {
            ("function", _) => pairs.push(("function", function.clone())),
            // transformers drops nulls from messages, not from what is inside them.
            (key, value) => pairs.push((key, value.to_value()?)),
        }
    }
    Ok(Value::from_pairs(pairs))
}

fn empty_object() -> Value {
    Value::from_pairs(Vec::<(&str, Value)>::new())
}

/// `json.loads`, with `{}` for what is not JSON or no object. What Python's parser takes and
/// serde_json does not is refused.
fn parse_arguments(text: &str) -> Result<Value, Refusal> {
    match serde_json::from_str::<Json<'_>>(text) {
        Ok(object @ Json::Object(_)) => object.to_value(),
        Ok(_) => Ok(empty_object()),
        Err(err) => {
            let message = err.to_string();
            let beyond_us = message.contains("recursion limit")
                || message.contains("surrogate")
                || message.contains("out of range")
                || message.contains("unexpected end of hex escape")
                || text.contains("NaN")
                || text.contains("Infinity");
            if beyond_us { Err(Refusal::ToolArguments) } else { Ok(empty_object()) }
        }
    }
}

/// vLLM's rule for templates without a developer role: developer messages become system messages,
/// and if a system message then stands anywhere but first, all of them become one leading message.
fn demote_developers(conversation: &mut Vec<Message<'_>>, format: ContentFormat) {
    let mut demoted = false;
    for message in conversation.iter_mut() {
        if message.role == "developer" {
            message.role = "system";
            demoted = true;
        }
    }
    let out_of_place = conversation.iter().skip(1).any(|m| m.role == "system");
    if !demoted || !out_of_place {
        return;
    }
    let texts: Vec<String> = conversation
        .iter()
        .filter(|message| message.role == "system")
        .map(|message| message.content.text().into_owned())
        .filter(|text| !text.is_empty())
        .collect();
    conversation.retain(|message| message.role != "system");
    let content = Content::from_texts(vec![Cow::Owned(texts.join("\n\n"))], format);
    let leading = Message { role: "system", content, thinking: None, rest: Vec::new() };
    conversation.insert(0, leading);
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
