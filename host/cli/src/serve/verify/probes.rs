//! Conversations that show how a template treats what requests are made of.

use prompt::Api;
use serde_json::{Value, json};

/// A request that engine and daemon both turn into tokens.
pub(crate) struct Probe {
    /// For messages.
    pub(crate) name: &'static str,
    pub(crate) api: Api,
    /// Body of the request, and of the question to `/tokenize`.
    pub(crate) body: Value,
}

/// All probes for a model of this name.
pub(crate) fn all(model: &str) -> Vec<Probe> {
    let chat = |name, more: Value| {
        let mut body = json!({"model": model});
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        Probe { name, api: Api::ChatCompletions, body }
    };
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let tool = json!({"type": "function", "function": {
        "name": "weather", "description": "Weather of a \"town\".",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    }});
    let call = json!({"id": "call00001", "type": "function", "function": {
        "name": "weather", "arguments": "{\"town\": \"Zürich\", \"days\": 2}",
    }});
    vec![
        Probe {
            name: "completion",
            api: Api::Completions,
            body: json!({"model": model, "prompt": "Once upon a time,\n  there  was naïveté."}),
        },
        chat("user", json!({"messages": [message("user", "Hello!")]})),
        chat(
            "system",
            json!({"messages": [message("system", "Be brief."), message("user", " Hi \n")]}),
        ),
        chat(
            "turns",
            json!({"messages": [
                message("user", "One?"),
                message("assistant", "<think>\nhm\n</think>\n\nTwo."),
                message("user", "Three: <b>\u{65e5}\u{672c}\u{8a9e}</b> \u{1f600}"),
            ]}),
        ),
        chat(
            "parts",
            json!({"messages": [{"role": "user", "content": [
                {"type": "text", "text": "First."}, {"type": "text", "text": "Second."},
            ]}]}),
        ),
        chat("tools", json!({"messages": [message("user", "Rain?")], "tools": [tool]})),
        chat(
            "tool-calls",
            json!({"tools": [tool], "messages": [
                message("user", "Rain?"),
                {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call00001", "content": "{\"rain\": false}"},
            ]}),
        ),
    ]
}
