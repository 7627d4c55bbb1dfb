//! Anthropic's `/v1/messages` as a chat, following `to_chat_completion_request` of vLLM 0.33's
//! `entrypoints/anthropic/serving.py`.

use std::borrow::Cow;

use crate::body::{Request, some};
use crate::chat::{Chat, message, object, text, tool_call};
use crate::error::Refusal;
use crate::json::Json;

/// A system text that starts like this is Claude Code's, different in every request, and dropped.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// What the engine found out about its template at start.
pub(crate) struct Probes {
    /// System messages inside the conversation are moved to its head.
    pub(crate) merge_inline_system: bool,
    /// The effort that stands for `thinking.type` = `disabled`.
    pub(crate) disabled_effort: &'static str,
}

/// The request as a chat. `probes` is asked only where the answer matters.
pub(crate) fn chat<'r>(
    request: &'r Request<'_>,
    probes: impl Fn() -> Probes,
) -> Result<Chat<'r>, Refusal> {
    let fields = &request.fields;
    let list = match &fields.messages {
        Some(Json::Array(list)) => list.as_slice(),
        _ => return Err(Refusal::NoPrompt),
    };
    let has_system = list.iter().any(|m| m.get("role").and_then(Json::as_str) == Some("system"));
    let merge = has_system && probes().merge_inline_system;

    let mut messages = Vec::with_capacity(list.len() + 1);
    if let Some(system) = leading_system(some(&fields.system), list, merge)? {
        messages.push(message("system", Json::Str(system)));
    }
    for item in list {
        push_message(item, merge, &mut messages)?;
    }
    let tools = match some(&fields.tools) {
        Some(Json::Array(tools)) => {
            Some(Cow::Owned(tools.iter().map(tool).collect::<Result<_, _>>()?))
        }
        _ => None,
    };
    Ok(Chat {
        messages: Cow::Owned(messages),
        tools,
        documents: None,
        kwargs: some(&fields.chat_template_kwargs),
        reasoning_effort: effort(request, probes)?,
        add_generation_prompt: true,
        continue_final_message: false,
    })
}

fn malformed(field: &'static str) -> Refusal {
    Refusal::MalformedMessage { field }
}

fn effort<'r>(
    request: &'r Request<'_>,
    probes: impl Fn() -> Probes,
) -> Result<Option<&'r str>, Refusal> {
    let asked = some(&request.fields.output_config).and_then(|config| config.get_some("effort"));
    let asked = match asked.map(Json::as_str) {
        None => None,
        Some(Some(effort @ ("low" | "medium" | "high" | "xhigh" | "max"))) => Some(effort),
        Some(_) => return Err(malformed("output_config.effort")),
    };
    let Some(thinking) = some(&request.fields.thinking) else { return Ok(asked) };
    match thinking.get("type").and_then(Json::as_str) {
        Some("disabled") => Ok(Some(probes().disabled_effort)),
        Some("adaptive") => Ok(asked),
        Some("enabled") => match thinking.get("budget_tokens") {
            Some(Json::Int(1024..)) => Ok(asked),
            _ => Err(malformed("thinking.budget_tokens")),
        },
        _ => Err(malformed("thinking.type")),
    }
}

/// The texts of `system`, and of system messages where they are merged, one behind the other.
fn leading_system<'r>(
    system: Option<&'r Json<'_>>,
    list: &'r [Json<'_>],
    merge: bool,
) -> Result<Option<Cow<'r, str>>, Refusal> {
    let mut texts: Vec<&str> = Vec::new();
    match system {
        None => {}
        Some(Json::Str(text)) if text.is_empty() => {}
        Some(Json::Str(text)) => texts.push(text),
        Some(Json::Array(blocks)) => push_system_texts(blocks, &mut texts)?,
        Some(_) => return Err(malformed("system")),
    }
    if merge {
        for item in list {
            if item.get("role").and_then(Json::as_str) == Some("system") {
                push_inline_system(item, &mut texts)?;
            }
        }
    }
    Ok(joined(&texts))
}

fn joined<'r>(texts: &[&'r str]) -> Option<Cow<'r, str>> {
    match texts {
        [] => None,
        [only] => Some(Cow::Borrowed(only)),
        several => Some(Cow::Owned(several.concat())),
    }
}

fn push_system_texts<'r>(blocks: &'r [Json<'_>], texts: &mut Vec<&'r str>) -> Result<(), Refusal> {
    for block in blocks {
        match block_type(block)? {
            "text" => {
                let text = optional_text(block, "text")?.unwrap_or_default();
                if !text.is_empty() && !text.starts_with(BILLING_HEADER) {
                    texts.push(text);
                }
            }
            // They change the tools, which the engine resolves over the whole conversation.
            kind @ ("tool_addition" | "tool_removal") => return Err(unsupported(kind)),
            _ => {}
        }
    }
    Ok(())
}

fn push_inline_system<'r>(item: &'r Json<'_>, texts: &mut Vec<&'r str>) -> Result<(), Refusal> {
    match item.get("content") {
        Some(Json::Str(text)) => {
            if !text.is_empty() && !text.starts_with(BILLING_HEADER) {
                texts.push(text);
            }
            Ok(())
        }
        Some(Json::Array(blocks)) => push_system_texts(blocks, texts),
        _ => Err(malformed("content")),
    }
}

fn unsupported(kind: &str) -> Refusal {
    Refusal::UnsupportedItem { kind: kind.to_owned() }
}

/// The block's type, one that the engine knows.
fn block_type<'r>(block: &'r Json<'_>) -> Result<&'r str, Refusal> {
    const KINDS: [&str; 9] = [
        "text",
        "image",
        "tool_use",
        "tool_result",
        "tool_reference",
        "thinking",
        "redacted_thinking",
        "tool_addition",
        "tool_removal",
    ];
    let kind = block.get("type").and_then(Json::as_str).ok_or(malformed("content.type"))?;
    if KINDS.contains(&kind) { Ok(kind) } else { Err(unsupported(kind)) }
}

fn optional_text<'r>(
    object: &'r Json<'_>,
    field: &'static str,
) -> Result<Option<&'r str>, Refusal> {
    match object.get_some(field) {
        None => Ok(None),
        Some(Json::Str(text)) => Ok(Some(text)),
        Some(_) => Err(malformed(field)),
    }
}

fn push_message<'r>(
    item: &'r Json<'_>,
    merge: bool,
    messages: &mut Vec<Json<'r>>,
) -> Result<(), Refusal> {
    let role = item.get("role").and_then(Json::as_str).ok_or(malformed("role"))?;
    match role {
        "system" if merge => Ok(()),
        "system" => {
            let mut texts = Vec::new();
            push_inline_system(item, &mut texts)?;
            messages.extend(joined(&texts).map(|text| message("system", Json::Str(text))));
            Ok(())
        }
        "user" | "assistant" => match item.get("content") {
            Some(Json::Str(content)) => {
                messages.push(message(role, text(content)));
                Ok(())
            }
            Some(Json::Array(blocks)) => push_blocks(role, blocks, messages),
            _ => Err(malformed("content")),
        },
        _ => Err(malformed("role")),
    }
}

/// One message of blocks: results of tools come out as messages of their own, before it.
fn push_blocks<'r>(
    role: &'r str,
    blocks: &'r [Json<'_>],
    messages: &mut Vec<Json<'r>>,
) -> Result<(), Refusal> {
    let mut parts: Vec<Cow<'r, str>> = Vec::new();
    let mut calls = Vec::new();
    let mut reasoning: Option<String> = None;
    for block in blocks {
        match block_type(block)? {
            "text" => {
                let text = optional_text(block, "text")?.unwrap_or_default();
                if !text.is_empty() {
                    parts.push(Cow::Borrowed(text));
                }
            }
            "thinking" => {
                if let Some(text) = optional_text(block, "thinking")? {
                    reasoning.get_or_insert_default().push_str(text);
                }
            }
            "tool_use" => calls.push(tool_use(block)?),
            "tool_result" if role == "user" => messages.push(tool_result(block)?),
            "tool_result" => match block.get_some("content") {
                None => parts.push(Cow::Borrowed("Tool result: ")),
                Some(Json::Str(text)) => parts.push(Cow::Owned(format!("Tool result: {text}"))),
                // The engine writes a list as Python would print it.
                Some(_) => return Err(unsupported("tool_result")),
            },
            "redacted_thinking" | "tool_reference" => {}
            "image" => return Err(Refusal::MediaPart { kind: "image".to_owned() }),
            kind => return Err(unsupported(kind)),
        }
    }
    if role == "user" && parts.is_empty() {
        return Ok(());
    }
    let mut pairs = vec![("role", text(role))];
    if let Some(reasoning) = reasoning {
        pairs.push(("reasoning", Json::Str(Cow::Owned(reasoning))));
    }
    if !calls.is_empty() {
        pairs.push(("tool_calls", Json::Array(calls)));
    }
    match parts.len() {
        0 => {}
        1 => pairs.extend(parts.pop().map(|text| ("content", Json::Str(text)))),
        _ => {
            let part = |text| object(vec![("type", self::text("text")), ("text", Json::Str(text))]);
            pairs.push(("content", Json::Array(parts.into_iter().map(part).collect())));
        }
    }
    messages.push(object(pairs));
    Ok(())
}

fn tool_use<'r>(block: &'r Json<'_>) -> Result<Json<'r>, Refusal> {
    // Without an id the engine makes one of the time.
    let id = optional_text(block, "id")?.filter(|id| !id.is_empty());
    let id = id.ok_or(malformed("tool_use.id"))?;
    let name = optional_text(block, "name")?.unwrap_or_default();
    let input = match block.get_some("input") {
        None => Json::Object(Vec::new()),
        Some(input @ Json::Object(_)) => input.reborrow(),
        Some(_) => return Err(malformed("tool_use.input")),
    };
    Ok(tool_call(id, Cow::Borrowed(name), input))
}

fn tool_result<'r>(block: &'r Json<'_>) -> Result<Json<'r>, Refusal> {
    let content = match block.get_some("content") {
        None => text(""),
        Some(Json::Str(content)) => text(content),
        Some(Json::Array(items)) => {
            let mut texts = Vec::with_capacity(items.len());
            for item in items {
                if !matches!(item, Json::Object(_)) {
                    return Err(malformed("tool_result.content"));
                }
                match item.get("type").and_then(Json::as_str) {
                    Some("text") => match item.get("text") {
                        None => texts.push(""),
                        Some(Json::Str(text)) => texts.push(text.as_ref()),
                        Some(_) => return Err(malformed("tool_result.content.text")),
                    },
                    Some("image") => {
                        return Err(Refusal::MediaPart { kind: "image".to_owned() });
                    }
                    Some("tool_reference") => return Err(unsupported("tool_reference")),
                    _ => {}
                }
            }
            Json::Str(Cow::Owned(texts.join("\n")))
        }
        Some(_) => return Err(malformed("tool_result.content")),
    };
    let id = optional_text(block, "tool_use_id")?.unwrap_or_default();
    Ok(object(vec![("role", text("tool")), ("tool_call_id", text(id)), ("content", content)]))
}

/// `input_schema` is the function's `parameters`; a schema without a type is an object's.
fn tool<'r>(tool: &'r Json<'_>) -> Result<Json<'r>, Refusal> {
    let schema = match tool.get("input_schema") {
        Some(Json::Object(pairs)) => {
            let mut pairs: Vec<(Cow<'r, str>, Json<'r>)> =
                pairs.iter().map(|(key, v)| (Cow::Borrowed(key.as_ref()), v.reborrow())).collect();
            if !pairs.iter().any(|(key, _)| key == "type") {
                pairs.push((Cow::Borrowed("type"), text("object")));
            }
            Json::Object(pairs)
        }
        _ => return Err(Refusal::MalformedTool { field: "input_schema" }),
    };
    let mut function = vec![("parameters", schema)];
    for field in ["name", "description", "strict", "defer_loading"] {
        if let Some(value) = tool.get(field) {
            function.push((field, value.reborrow()));
        }
    }
    Ok(object(vec![("function", object(function))]))
}
