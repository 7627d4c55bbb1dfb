//! What a chat template is given, whichever API it came by.

use std::borrow::Cow;

use crate::body::{Request, some};
use crate::error::Refusal;
use crate::json::Json;

/// A request as one of `/v1/chat/completions`.
#[derive(Debug)]
pub(crate) struct Chat<'r> {
    pub(crate) messages: Cow<'r, [Json<'r>]>,
    /// In the chat API's form, not dumped yet.
    pub(crate) tools: Option<Cow<'r, [Json<'r>]>>,
    pub(crate) documents: Option<&'r Json<'r>>,
    pub(crate) kwargs: Option<&'r Json<'r>>,
    pub(crate) reasoning_effort: Option<&'r str>,
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
}

/// vLLM's `ReasoningEffort` (`renderers/params.py`).
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// The effort, if it is one that the engine knows.
pub(crate) fn effort<'r>(value: Option<&'r Json<'_>>) -> Result<Option<&'r str>, Refusal> {
    match value {
        None => Ok(None),
        Some(Json::Str(effort)) if EFFORTS.contains(&effort.as_ref()) => Ok(Some(effort)),
        Some(_) => Err(Refusal::MalformedMessage { field: "reasoning_effort" }),
    }
}

/// The request of `/v1/chat/completions`, or of `/v1/embeddings` with messages.
pub(crate) fn of_chat<'r>(request: &'r Request<'_>) -> Result<Chat<'r>, Refusal> {
    let fields = &request.fields;
    if some(&fields.chat_template).is_some() {
        return Err(Refusal::RequestChatTemplate);
    }
    let messages = match &fields.messages {
        Some(Json::Array(messages)) => messages.as_slice(),
        _ => return Err(Refusal::NoPrompt),
    };
    let tools = match some(&fields.tools) {
        // The engine answers 400 to an empty list.
        Some(Json::Array(tools)) if tools.is_empty() => {
            return Err(Refusal::MalformedTool { field: "tools" });
        }
        Some(Json::Array(tools)) => Some(Cow::Borrowed(tools.as_slice())),
        _ => None,
    };
    let documents = some(&fields.documents);
    if let Some(documents) = documents {
        check_documents(documents)?;
    }
    Ok(Chat {
        messages: Cow::Borrowed(messages),
        tools,
        documents,
        kwargs: some(&fields.chat_template_kwargs),
        reasoning_effort: effort(some(&fields.reasoning_effort))?,
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
    })
}

/// vLLM takes objects of strings only.
fn check_documents(documents: &Json<'_>) -> Result<(), Refusal> {
    let is_text = |(_, value): &(Cow<'_, str>, Json<'_>)| matches!(value, Json::Str(_));
    let is_document =
        |json: &Json<'_>| matches!(json, Json::Object(pairs) if pairs.iter().all(is_text));
    match documents {
        Json::Array(list) if list.iter().all(is_document) => Ok(()),
        _ => Err(Refusal::MalformedMessage { field: "documents" }),
    }
}

/// Helpers for building messages.
pub(crate) fn object<'r>(pairs: Vec<(&'r str, Json<'r>)>) -> Json<'r> {
    Json::Object(pairs.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)).collect())
}

pub(crate) fn text<'r>(text: &'r str) -> Json<'r> {
    Json::Str(Cow::Borrowed(text))
}

/// `{"role": role, "content": content}`
pub(crate) fn message<'r>(role: &'r str, content: Json<'r>) -> Json<'r> {
    object(vec![("role", text(role)), ("content", content)])
}

/// A tool call with its arguments as an object or as JSON.
pub(crate) fn tool_call<'r>(id: &'r str, name: Cow<'r, str>, arguments: Json<'r>) -> Json<'r> {
    let function = object(vec![("name", Json::Str(name)), ("arguments", arguments)]);
    object(vec![("id", text(id)), ("type", text("function")), ("function", function)])
}
