use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::BodyError;
use crate::json::{Json, Key};

/// The APIs whose prompts are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    ChatCompletions,
}

impl Api {
    /// Which API `path` is: an exact match, a `?query` is ignored.
    pub fn from_path(path: &[u8]) -> Option<Api> {
        let end = path.iter().position(|&byte| byte == b'?');
        let path = path.get(..end.unwrap_or(path.len()))?;
        match path {
            b"/v1/completions" => Some(Api::Completions),
            b"/v1/chat/completions" => Some(Api::ChatCompletions),
            _ => None,
        }
    }
}

/// A parsed body; borrowed from it where possible.
///
/// Parsing checks what every request has. What makes a prompt unpredictable is found when it is
/// rendered.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub(crate) api: Api,
    pub(crate) body_bytes: usize,
    pub(crate) fields: Fields<'a>,
    pub(crate) add_special_tokens: bool,
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
    skips_cache: bool,
}

impl<'a> Request<'a> {
    /// Parses `body` as a request of `api`.
    pub fn parse(api: Api, body: &'a [u8]) -> Result<Request<'a>, BodyError> {
        let text = std::str::from_utf8(body)
            .map_err(|err| BodyError::NotUtf8 { offset: err.valid_up_to() })?;
        let fields = Fields::parse(text)?;
        check_text("model", &fields.model)?;
        check_text("cache_salt", &fields.cache_salt)?;
        let special_by_default = match api {
            Api::Completions => {
                fields.check_prompt()?;
                true
            }
            Api::ChatCompletions => {
                fields.check_chat()?;
                false
            }
        };
        let echo = flag("echo", &fields.echo, false)?;
        Ok(Request {
            api,
            body_bytes: body.len(),
            add_special_tokens: flag(
                "add_special_tokens",
                &fields.add_special_tokens,
                special_by_default,
            )?,
            add_generation_prompt: flag(
                "add_generation_prompt",
                &fields.add_generation_prompt,
                true,
            )?,
            continue_final_message: flag(
                "continue_final_message",
                &fields.continue_final_message,
                false,
            )?,
            skips_cache: fields.skips_cache(api, echo),
            fields,
        })
    }

    /// The model asked for; without one the engine takes its only model.
    pub fn model(&self) -> Option<&str> {
        self.fields.model.as_ref()?.as_str()
    }

    /// What keeps this request's blocks apart from those of other salts.
    pub fn cache_salt(&self) -> Option<&str> {
        self.fields.cache_salt.as_ref()?.as_str()
    }

    /// The ids of a prompt that is one list of token ids; `None` for any other prompt, or when an
    /// id does not fit 32 bits.
    pub fn token_ids(&self) -> Option<Vec<u32>> {
        let is_cut = |field: &Option<Json<'_>>| !matches!(field, None | Some(Json::Null));
        if is_cut(&self.fields.truncate_prompt_tokens) || is_cut(&self.fields.prompt_embeds) {
            return None;
        }
        let Some(Json::Array(prompts)) = &self.fields.prompt else { return None };
        let ids = match prompts.as_slice() {
            [Json::Array(only)] => only,
            ids => ids,
        };
        let id = |id: &Json<'_>| match id {
            Json::Int(id) => u32::try_from(*id).ok(),
            Json::UInt(id) => u32::try_from(*id).ok(),
            _ => None,
        };
        (!ids.is_empty()).then(|| ids.iter().map(id).collect())?
    }

    /// Whether the engine computes the whole prompt without reading its prefix cache, which it
    /// does to return logprobs of the prompt: `prompt_logprobs` set, or echo with logprobs.
    pub fn skips_cache(&self) -> bool {
        self.skips_cache
    }
}

macro_rules! fields {
    ($($name:ident),* $(,)?) => {
        /// The fields that decide the prompt or the routing. Of duplicate keys the last wins, as
        /// in Python; other fields are skipped without keeping them.
        #[derive(Debug, Clone, Default)]
        pub(crate) struct Fields<'a> {
            $(pub(crate) $name: Option<Json<'a>>,)*
        }

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Option<Fields<'de>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(Key(key)) = map.next_key()? {
                    match key.as_ref() {
                        $(stringify!($name) => fields.$name = Some(map.next_value()?),)*
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Some(fields))
            }
        }
    };
}

struct FieldsVisitor;

fields! {
    model, cache_salt, prompt_logprobs, echo, logprobs, top_logprobs,
    prompt, prompt_embeds, truncate_prompt_tokens, add_special_tokens,
    messages, tools, documents, chat_template, chat_template_kwargs, reasoning_effort,
    add_generation_prompt, continue_final_message,
}

impl<'a> Fields<'a> {
    fn parse(text: &'a str) -> Result<Fields<'a>, BodyError> {
        let not_json = |err: serde_json::Error| BodyError::NotJson { message: err.to_string() };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let fields = match deserializer.deserialize_map(FieldsVisitor) {
            Ok(fields) => fields,
            // The visitor rejects nothing but a value that is no object.
            Err(err) if err.is_data() => None,
            Err(err) => return Err(not_json(err)),
        };
        let fields = fields.ok_or(BodyError::NotAnObject)?;
        deserializer.end().map_err(not_json)?;
        Ok(fields)
    }

    fn check_prompt(&self) -> Result<(), BodyError> {
        let field = "prompt";
        match some(&self.prompt) {
            None if some(&self.prompt_embeds).is_some() => Ok(()),
            None => Err(BodyError::MissingField { field }),
            Some(Json::Str(_) | Json::Array(_)) => Ok(()),
            Some(_) => Err(BodyError::WrongType { field }),
        }
    }

    fn check_chat(&self) -> Result<(), BodyError> {
        let field = "messages";
        let messages = match some(&self.messages) {
            None => return Err(BodyError::MissingField { field }),
            Some(Json::Array(messages)) => messages,
            Some(_) => return Err(BodyError::WrongType { field }),
        };
        for message in messages {
            if message.get("role").and_then(Json::as_str).is_none() {
                return Err(BodyError::WrongType { field });
            }
        }
        check("tools", &self.tools, |j| matches!(j, Json::Array(_)))?;
        check("documents", &self.documents, |j| matches!(j, Json::Array(_)))?;
        check("chat_template_kwargs", &self.chat_template_kwargs, |j| {
            matches!(j, Json::Object(_))
        })?;
        check_text("reasoning_effort", &self.reasoning_effort)
    }

    fn skips_cache(&self, api: Api, echo: bool) -> bool {
        let echoed = match api {
            Api::Completions => some(&self.logprobs).is_some(),
            // `top_logprobs` is 0 unless the request says null: vLLM then asks for the
            // logprobs of the prompt's own tokens.
            Api::ChatCompletions => !matches!(self.top_logprobs, Some(Json::Null)),
        };
        some(&self.prompt_logprobs).is_some() || (echo && echoed)
    }
}

/// The field's value, with null read as absent.
pub(crate) fn some<'r, 'a>(field: &'r Option<Json<'a>>) -> Option<&'r Json<'a>> {
    field.as_ref().filter(|json| !matches!(json, Json::Null))
}

fn check(
    field: &'static str,
    value: &Option<Json<'_>>,
    accepts: impl Fn(&Json<'_>) -> bool,
) -> Result<(), BodyError> {
    match some(value) {
        Some(json) if !accepts(json) => Err(BodyError::WrongType { field }),
        _ => Ok(()),
    }
}

fn check_text(field: &'static str, value: &Option<Json<'_>>) -> Result<(), BodyError> {
    check(field, value, |json| matches!(json, Json::Str(_)))
}

/// A flag as pydantic reads it, which takes 0, 1 and some words for a bool.
fn flag(field: &'static str, value: &Option<Json<'_>>, default: bool) -> Result<bool, BodyError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let word = match value {
        Json::Bool(flag) => return Ok(*flag),
        Json::Int(0) => return Ok(false),
        Json::Int(1) => return Ok(true),
        Json::Str(word) => Cow::Owned(word.to_ascii_lowercase()),
        _ => Cow::Borrowed(""),
    };
    match word.as_ref() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
        _ => Err(BodyError::WrongType { field }),
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
