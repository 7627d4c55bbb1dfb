//! `/v1/responses` as a chat, following `construct_input_messages` of vLLM 0.33's
//! `entrypoints/openai/responses/utils.py` and the request model beside it.

use std::borrow::Cow;

use crate::body::{Request, some};
use crate::chat::{Chat, effort, message, object, text, tool_call};
use crate::error::Refusal;
use crate::json::Json;

/// The request as a chat.
pub(crate) fn chat<'r>(request: &'r Request<'_>) -> Result<Chat<'r>, Refusal> {
    let fields = &request.fields;
    let mut messages = Vec::new();
    if let Some(Json::Str(instructions)) = some(&fields.instructions)
        && !instructions.is_empty()
    {
        messages.push(message("system", text(instructions)));
    }
    let mut continues = false;
    match some(&fields.input) {
        Some(Json::Str(input)) => messages.push(message("user", text(input))),
        Some(Json::Array(items)) => {
            // Items of one answer are put together, but not with the instructions.
            let mut turns: Vec<Turn<'r>> = Vec::with_capacity(items.len());
            for item in items {
                push_item(item, &mut turns)?;
            }
            continues = items.last().map(continues_at).transpose()?.unwrap_or(false);
            messages.extend(turns.into_iter().map(Turn::into_json));
        }
        _ => return Err(Refusal::NoPrompt),
    }
    Ok(Chat {
        messages: Cow::Owned(messages),
        tools: tools(some(&fields.tools))?,
        documents: None,
        kwargs: some(&fields.chat_template_kwargs),
        reasoning_effort: effort(
            some(&fields.reasoning).and_then(|reasoning| reasoning.get_some("effort")),
        )?,
        add_generation_prompt: !continues,
        continue_final_message: continues,
    })
}

fn malformed(field: &'static str) -> Refusal {
    Refusal::MalformedMessage { field }
}

fn unsupported(kind: &str) -> Refusal {
    Refusal::UnsupportedItem { kind: kind.to_owned() }
}

/// A message; what an assistant's is made of may come as several items.
enum Turn<'r> {
    Other(Json<'r>),
    Assistant { content: Option<&'r str>, reasoning: Option<&'r str>, calls: Vec<Json<'r>> },
}

impl<'r> Turn<'r> {
    fn into_json(self) -> Json<'r> {
        match self {
            Turn::Other(json) => json,
            Turn::Assistant { content, reasoning, calls } => {
                let mut pairs = vec![("role", text("assistant"))];
                pairs.extend(content.map(|content| ("content", text(content))));
                pairs.extend(reasoning.map(|reasoning| ("reasoning", text(reasoning))));
                if !calls.is_empty() {
                    pairs.push(("tool_calls", Json::Array(calls)));
                }
                object(pairs)
            }
        }
    }
}

fn push_item<'r>(item: &'r Json<'_>, turns: &mut Vec<Turn<'r>>) -> Result<(), Refusal> {
    let kind = match item.get("type") {
        None => "message",
        Some(Json::Str(kind)) => kind.as_ref(),
        Some(_) => return Err(malformed("input.type")),
    };
    match kind {
        "function_call" => {
            let name = required(item, "name")?;
            let name = match optional(item, "namespace")? {
                None | Some("") => Cow::Borrowed(name),
                Some(namespace) => Cow::Owned(format!("{namespace}__{name}")),
            };
            push_call(
                tool_call(required(item, "call_id")?, name, text(required(item, "arguments")?)),
                turns,
            );
        }
        "custom_tool_call" => {
            let input = text(optional(item, "input")?.unwrap_or_default());
            let name = Cow::Borrowed(required(item, "name")?);
            let arguments = object(vec![("input", input)]);
            push_call(tool_call(required(item, "call_id")?, name, arguments), turns);
        }
        "reasoning" => {
            let reasoning = reasoning_text(item)?;
            match turns.last_mut() {
                Some(Turn::Assistant { reasoning: earlier @ None, .. }) => {
                    *earlier = Some(reasoning);
                }
                _ => turns.push(Turn::Assistant {
                    content: None,
                    reasoning: Some(reasoning),
                    calls: Vec::new(),
                }),
            }
        }
        "function_call_output" | "custom_tool_call_output" => {
            let id = text(required(item, "call_id")?);
            let content = output(item)?;
            turns.push(Turn::Other(object(vec![
                ("role", text("tool")),
                ("content", content),
                ("tool_call_id", id),
            ])));
        }
        "message" => push_message(item, turns)?,
        kind => return Err(unsupported(kind)),
    }
    Ok(())
}

fn push_call<'r>(call: Json<'r>, turns: &mut Vec<Turn<'r>>) {
    match turns.last_mut() {
        Some(Turn::Assistant { calls, .. }) => calls.push(call),
        _ => {
            turns.push(Turn::Assistant { content: None, reasoning: None, calls: vec![call] });
        }
    }
}

fn push_message<'r>(item: &'r Json<'_>, turns: &mut Vec<Turn<'r>>) -> Result<(), Refusal> {
    let role = required(item, "role")?;
    let content = item.get("content").ok_or(malformed("content"))?;
    match role {
        "assistant" => {
            let said = assistant_text(item, content)?;
            match turns.last_mut() {
                Some(Turn::Assistant { content: earlier @ None, .. }) => *earlier = Some(said),
                _ => turns.push(Turn::Assistant {
                    content: Some(said),
                    reasoning: None,
                    calls: Vec::new(),
                }),
            }
        }
        "user" | "system" | "developer" => {
            let content = match content {
                Json::Str(content) => text(content),
                Json::Array(parts) => input_parts(parts)?,
                _ => return Err(malformed("content")),
            };
            turns.push(Turn::Other(message(role, content)));
        }
        _ => return Err(malformed("role")),
    }
    Ok(())
}

/// What the assistant said: of parts the engine takes the first only.
fn assistant_text<'r>(item: &'r Json<'_>, content: &'r Json<'_>) -> Result<&'r str, Refusal> {
    let parts = match content {
        Json::Str(text) => return Ok(text),
        Json::Array(parts) => parts,
        _ => return Err(malformed("content")),
    };
    let is_message = item.get("type").is_some();
    for part in parts {
        match part.get("type").and_then(Json::as_str) {
            // Parts of output belong to an item that says what it is.
            Some("output_text") if is_message => {}
            Some(kind) => return Err(unsupported(kind)),
            None => return Err(malformed("content.type")),
        }
    }
    let first = parts.first().ok_or(malformed("content"))?;
    first.get("text").and_then(Json::as_str).ok_or(malformed("content.text"))
}

/// The text parts of an input message, or of a tool's output.
fn input_parts<'r>(parts: &'r [Json<'_>]) -> Result<Json<'r>, Refusal> {
    let mut list = Vec::with_capacity(parts.len());
    for part in parts {
        match part.get("type").and_then(Json::as_str) {
            Some("input_text") => {
                let said = part.get("text").and_then(Json::as_str);
                let said = said.ok_or(malformed("content.text"))?;
                list.push(object(vec![("type", text("input_text")), ("text", text(said))]));
            }
            Some(kind @ ("input_image" | "input_file" | "input_audio")) => {
                return Err(Refusal::MediaPart { kind: kind.to_owned() });
            }
            Some(kind) => return Err(unsupported(kind)),
            None => return Err(malformed("content.type")),
        }
    }
    Ok(Json::Array(list))
}

fn output<'r>(item: &'r Json<'_>) -> Result<Json<'r>, Refusal> {
    match item.get("output") {
        Some(Json::Str(output)) => Ok(text(output)),
        Some(Json::Array(parts)) => input_parts(parts),
        _ => Err(malformed("output")),
    }
}

/// The first text of a reasoning item's content, else of its summary.
fn reasoning_text<'r>(item: &'r Json<'_>) -> Result<&'r str, Refusal> {
    let first_text = |field: &'static str| -> Result<Option<&'r str>, Refusal> {
        match item.get_some(field) {
            None => Ok(None),
            Some(Json::Array(list)) => match list.first() {
                None => Ok(None),
                Some(part) => {
                    let text = part.get("text").and_then(Json::as_str);
                    Ok(Some(text.ok_or(malformed("reasoning.text"))?))
                }
            },
            Some(_) => Err(malformed("reasoning")),
        }
    };
    if optional(item, "encrypted_content")?.is_some_and(|sealed| !sealed.is_empty()) {
        return Err(unsupported("reasoning.encrypted_content"));
    }
    if !matches!(item.get("summary"), Some(Json::Array(_))) {
        return Err(malformed("reasoning.summary"));
    }
    let content = first_text("content")?;
    Ok(content.or(first_text("summary")?).unwrap_or_default())
}

/// Whether the engine goes on with the last item instead of opening an answer.
fn continues_at(last: &Json<'_>) -> Result<bool, Refusal> {
    let is_open =
        matches!(last.get("status").and_then(Json::as_str), Some("in_progress" | "incomplete"));
    if !is_open {
        return Ok(false);
    }
    match last.get("type").and_then(Json::as_str) {
        Some("message") if last.get("role").and_then(Json::as_str) == Some("assistant") => Ok(true),
        Some("reasoning") => Ok(true),
        Some("function_call" | "function_call_output" | "custom_tool_call") => Ok(false),
        // Which of the request's types takes this item decides whether its status is kept.
        _ => Err(malformed("status")),
    }
}

fn required<'r>(item: &'r Json<'_>, field: &'static str) -> Result<&'r str, Refusal> {
    item.get(field).and_then(Json::as_str).ok_or(malformed(field))
}

fn optional<'r>(item: &'r Json<'_>, field: &'static str) -> Result<Option<&'r str>, Refusal> {
    match item.get_some(field) {
        None => Ok(None),
        Some(Json::Str(text)) => Ok(Some(text)),
        Some(_) => Err(malformed(field)),
    }
}

/// The function tools; the engine shows the model no others. No tools at all are none.
fn tools<'r>(tools: Option<&'r Json<'_>>) -> Result<Option<Cow<'r, [Json<'r>]>>, Refusal> {
    let list = match tools {
        None => return Ok(None),
        Some(Json::Array(list)) if list.is_empty() => return Ok(None),
        Some(Json::Array(list)) => list,
        Some(_) => return Err(Refusal::MalformedTool { field: "tools" }),
    };
    let mut functions = Vec::with_capacity(list.len());
    for tool in list {
        match tool.get("type").and_then(Json::as_str) {
            Some("function") => {
                functions.push(object(vec![("function", tool.reborrow())]));
            }
            Some(
                "web_search"
                | "web_search_preview"
                | "file_search"
                | "code_interpreter"
                | "mcp"
                | "image_generation"
                | "local_shell"
                | "computer_use_preview",
            ) => {}
            // Rewritten by the engine into functions.
            _ => return Err(Refusal::MalformedTool { field: "type" }),
        }
    }
    Ok(Some(Cow::Owned(functions)))
}
