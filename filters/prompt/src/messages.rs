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
    Parts(Vec<Part<'r>>),
}

/// A text part with the keys that are not the engine's, which it hands on.
#[derive(Debug, Default)]
pub(crate) struct Part<'r> {
    pub(crate) text: Cow<'r, str>,
    extra: Vec<(&'r str, Value)>,
}

impl<'r> Content<'r> {
    fn text(&self) -> Cow<'_, str> {
        match self {
            Content::Text(text) => Cow::Borrowed(text),
            Content::Parts(parts) => Cow::Owned(joined(parts)),
        }
    }

    fn from_parts(parts: Vec<Part<'r>>, format: ContentFormat) -> Content<'r> {
        match format {
            ContentFormat::OpenAi => Content::Parts(parts),
            ContentFormat::String => {
                // vLLM drops empty texts before it joins.
                let mut parts: Vec<_> = parts.into_iter().filter(|p| !p.text.is_empty()).collect();
                match parts.len() {
                    1 => Content::Text(parts.swap_remove(0).text),
                    _ => Content::Text(Cow::Owned(joined(&parts))),
                }
            }
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Content::Text(text) => Value::from(text.as_ref()),
            Content::Parts(parts) => parts
                .iter()
                .map(|part| {
                    let own = [("type", Value::from("text")), ("text", Value::from(&*part.text))];
                    Value::from_pairs(own.into_iter().chain(part.extra.iter().cloned()))
                })
                .collect(),
        }
    }
}

fn joined(parts: &[Part<'_>]) -> String {
    let texts: Vec<&str> = parts.iter().map(|part| &*part.text).collect();
    texts.join("\n")
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

/// How a template wants its messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub(crate) format: ContentFormat,
    /// It has that role; without it, developer messages become system messages.
    pub(crate) knows_developer: bool,
    /// The messages went through the types of the chat API, which put known keys first.
    pub(crate) typed: bool,
}

/// Normalises a conversation.
pub(crate) fn normalise<'r>(
    messages: &'r [Json<'_>],
    form: Form,
) -> Result<Vec<Message<'r>>, Refusal> {
    let mut conversation = Vec::with_capacity(messages.len());
    for message in messages {
        conversation.push(normalise_message(message, form)?);
    }
    if !form.knows_developer {
        demote_developers(&mut conversation);
    }
    Ok(conversation)
}

fn normalise_message<'r>(message: &'r Json<'_>, form: Form) -> Result<Message<'r>, Refusal> {
    let role = text_of(message, "role")?.ok_or(malformed("role"))?;
    let mut parts = match message.get_some("content") {
        None => Vec::new(),
        Some(Json::Str(text)) => {
            vec![Part { text: Cow::Borrowed(text.as_ref()), extra: Vec::new() }]
        }
        Some(Json::Array(parts)) => parts_of(parts, form.format)?,
        Some(_) => return Err(malformed("content")),
    };
    if role == "system" {
        parts = without_billing_header(parts);
    }
    let mut content = Content::from_parts(parts, form.format);
    let mut rest = Vec::new();
    let mut thinking = None;
    match role {
        "assistant" => {
            if let Some(calls) = message.get_some("tool_calls") {
                let Json::Array(calls) = calls else {
                    return Err(malformed("tool_calls"));
                };
                if !calls.is_empty() {
                    let calls: Vec<Value> = calls
                        .iter()
                        .map(|call| tool_call(call, form.typed))
                        .collect::<Result<_, _>>()?;
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
                content = Content::Text(Cow::Owned(joined(parts)));
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

/// What the types of the chat API name; other keys of a part are handed on to the template
/// (vLLM `chat_utils/chat_message.py`, `_KNOWN_CONTENT_PART_FIELDS`).
const PART_FIELDS: [&str; 18] = [
    "audio_embeds",
    "audio_url",
    "closed",
    "data",
    "file",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "name",
    "prompt_cache_breakpoint",
    "refusal",
    "text",
    "thinking",
    "type",
    "uuid",
    "video_embeds",
    "video_url",
];

/// The text parts of a content; one whose text is null is skipped.
fn parts_of<'r>(list: &'r [Json<'_>], format: ContentFormat) -> Result<Vec<Part<'r>>, Refusal> {
    let mut parts = Vec::with_capacity(list.len());
    for part in list {
        if let Json::Str(text) = part {
            parts.push(Part { text: Cow::Borrowed(text.as_ref()), extra: Vec::new() });
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
            Some(text) => {
                let extra = match format {
                    ContentFormat::String => Vec::new(),
                    ContentFormat::OpenAi => extra_fields(part)?,
                };
                parts.push(Part { text: Cow::Borrowed(text), extra });
            }
            None if matches!(kind, "text" | "refusal") => {}
            None => return Err(malformed("text")),
        }
    }
    Ok(parts)
}

fn extra_fields<'r>(part: &'r Json<'_>) -> Result<Vec<(&'r str, Value)>, Refusal> {
    let Json::Object(pairs) = part else { return Ok(Vec::new()) };
    pairs
        .iter()
        .filter(|(key, _)| !PART_FIELDS.contains(&key.as_ref()))
        .map(|(key, value)| Ok((key.as_ref(), value.to_value()?)))
        .collect()
}

/// Claude Code's first line, different in every request. vLLM drops it from system texts.
fn without_billing_header(parts: Vec<Part<'_>>) -> Vec<Part<'_>> {
    let mut kept = Vec::with_capacity(parts.len());
    for part in parts {
        if !part.text.starts_with("x-anthropic-billing-header") {
            kept.push(part);
            continue;
        }
        match part.text.split_once('\n') {
            Some((_, rest)) if !rest.is_empty() => {
                kept.push(Part { text: Cow::Owned(rest.to_owned()), ..part });
            }
            _ => {}
        }
    }
    kept
}

/// A tool call with its arguments as an object. The types of the chat API put the keys they know
/// in an order of their own, whatever the client's.
fn tool_call(call: &Json<'_>, typed: bool) -> Result<Value, Refusal> {
    let Json::Object(fields) = call else {
        return Err(malformed("tool_calls"));
    };
    let required = |object: &Json<'_>, key: &str, field: &'static str| {
        object.get(key).and_then(Json::as_str).map(str::to_owned).ok_or(malformed(field))
    };
    if required(call, "type", "tool_calls.type")? != "function" {
        return Err(malformed("tool_calls.type"));
    }
    let id = Value::from(required(call, "id", "tool_calls.id")?);
    let Some(function @ Json::Object(function_fields)) = call.get("function") else {
        return Err(malformed("tool_calls.function"));
    };
    let name = Value::from(required(function, "name", "tool_calls.function.name")?);
    let arguments = match function.get("arguments") {
        // The types ask for a string, but the parser behind them takes an object.
        Some(object @ Json::Object(_)) => object.to_value()?,
        Some(Json::Str(text)) => parse_arguments(text)?,
        _ => return Err(malformed("tool_calls.function.arguments")),
    };
    let mut pairs = [("arguments", arguments), ("name", name)];
    if !typed {
        pairs.reverse();
    }
    let function = with_others(pairs.to_vec(), function_fields)?;
    with_others(vec![("id", id), ("function", function), ("type", Value::from("function"))], fields)
}

/// The pairs, then the other fields as the client wrote them.
fn with_others<'r>(
    mut pairs: Vec<(&'r str, Value)>,
    fields: &'r [(Cow<'_, str>, Json<'_>)],
) -> Result<Value, Refusal> {
    let known = pairs.len();
    for (key, value) in fields {
        let is_known = pairs.iter().take(known).any(|(name, _)| name == key);
        if !is_known {
            pairs.push((key, value.to_value()?));
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
fn demote_developers(conversation: &mut Vec<Message<'_>>) {
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
    // A string also where the template wants parts.
    let content = Content::Text(Cow::Owned(texts.join("\n\n")));
    let leading = Message { role: "system", content, thinking: None, rest: Vec::new() };
    conversation.insert(0, leading);
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
