use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{BodyError, Refusal};
use crate::json::{Json, Key};
use crate::plain::{self, Plain};

/// The APIs whose prompts are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages` (Anthropic)
    Messages,
    /// `/v1/embeddings`
    Embeddings,
    /// `/inference/v1/generate` (vLLM, token ids in and out)
    Generate,
    /// `/generate` (SGLang)
    SglangGenerate,
}

/// The paths, each before any other that ends like it.
const PATHS: [(&[u8], Api); 7] = [
    (b"/v1/chat/completions", Api::ChatCompletions),
    (b"/v1/completions", Api::Completions),
    (b"/v1/responses", Api::Responses),
    (b"/v1/messages", Api::Messages),
    (b"/v1/embeddings", Api::Embeddings),
    (b"/inference/v1/generate", Api::Generate),
    (b"/generate", Api::SglangGenerate),
];

impl Api {
    /// All of them.
    pub const ALL: [Api; 7] = [
        Api::Completions,
        Api::ChatCompletions,
        Api::Responses,
        Api::Messages,
        Api::Embeddings,
        Api::Generate,
        Api::SglangGenerate,
    ];

    /// Which API `path` is; a `?query` is ignored. A pool may be reached by a path prefix, which
    /// the proxy takes off only after its filters ran, so the path counts from its first `/v1/`
    /// (`/inference/v1/`), and SGLang's from its last `/`.
    pub fn from_path(path: &[u8]) -> Option<Api> {
        let end = path.iter().position(|&byte| byte == b'?');
        let path = path.get(..end.unwrap_or(path.len()))?;
        let (_, api) = PATHS.iter().find(|(suffix, _)| path.ends_with(suffix))?;
        let versions = path.windows(4).filter(|window| window == b"/v1/").count();
        let expected = usize::from(*api != Api::SglangGenerate);
        (versions == expected).then_some(*api)
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
        fields.check(api)?;
        // Whether special tokens and the opening of an answer are added where the request does
        // not say (vLLM 0.33: `TokenizeParams` and the request models; SGLang's `encode`).
        let is_chat = some(&fields.messages).is_some();
        let (special, generation) = match api {
            Api::ChatCompletions | Api::Messages => (false, true),
            Api::Embeddings if is_chat => (false, false),
            _ => (true, true),
        };
        // Those of other APIs do not have these fields.
        let has_flags = matches!(api, Api::ChatCompletions | Api::Completions | Api::Embeddings);
        let flag = |name, value, default| {
            if has_flags { flag(name, value, default) } else { Ok(default) }
        };
        Ok(Request {
            api,
            body_bytes: body.len(),
            add_special_tokens: flag("add_special_tokens", &fields.add_special_tokens, special)?,
            add_generation_prompt: flag(
                "add_generation_prompt",
                &fields.add_generation_prompt,
                generation,
            )?,
            continue_final_message: flag(
                "continue_final_message",
                &fields.continue_final_message,
                false,
            )?,
            skips_cache: fields.skips_cache(api, flag("echo", &fields.echo, false)?),
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
        if self.refused().is_some() {
            return None;
        }
        match plain::only_prompt(self) {
            Ok(Plain::TokenIds(ids)) => plain::ids(ids),
            _ => None,
        }
    }

    /// Whether the engine computes the whole prompt without reading its prefix cache, which it
    /// does to return logprobs of the prompt: `prompt_logprobs` set, echo with logprobs, or what
    /// SGLang and the token API call them. Embeddings do read it: vLLM skips it for poolings of
    /// every token only (`pooling_params.py`, `_set_default_parameters`).
    pub fn skips_cache(&self) -> bool {
        self.skips_cache
    }

    /// Why the prompt cannot be known from the body, whatever the model.
    pub(crate) fn refused(&self) -> Option<Refusal> {
        let fields = &self.fields;
        let is_set = |field| some(field).is_some();
        if is_set(&fields.truncate_prompt_tokens)
            || (self.api == Api::Responses
                && fields.truncation.as_ref().is_some_and(|t| t.as_str() != Some("disabled")))
        {
            return Some(Refusal::TruncatesPrompt);
        }
        if is_set(&fields.prompt_embeds) || is_set(&fields.input_embeds) {
            return Some(Refusal::PromptEmbeds);
        }
        let forwarded = some(&fields.kv_transfer_params).and_then(|kv| kv.get("prompt_token_ids"));
        if forwarded.is_some_and(|ids| *ids != Json::Null) {
            return Some(Refusal::ForwardedTokenIds);
        }
        if is_set(&fields.mm_processor_kwargs) || is_set(&fields.media_io_kwargs) {
            return Some(Refusal::MediaKwargs);
        }
        self.refused_by_api()
    }

    fn refused_by_api(&self) -> Option<Refusal> {
        let fields = &self.fields;
        let is_set = |field| some(field).is_some();
        match self.api {
            Api::Completions if is_set(&fields.suffix) => Some(Refusal::Suffix),
            Api::Responses
                if is_set(&fields.previous_response_id)
                    || is_set(&fields.previous_input_messages) =>
            {
                Some(Refusal::PreviousResponse)
            }
            // vLLM answers 400 to a stored prompt.
            Api::Responses if is_set(&fields.prompt) => Some(Refusal::PreviousResponse),
            Api::Embeddings
                if some(&fields.padding).and_then(Json::as_str) == Some("max_length") =>
            {
                Some(Refusal::TruncatesPrompt)
            }
            Api::Generate if is_set(&fields.features) || is_set(&fields.content_parts) => {
                Some(Refusal::MediaPart { kind: "features".to_owned() })
            }
            Api::SglangGenerate => {
                let media = [&fields.image_data, &fields.video_data, &fields.audio_data];
                if media.into_iter().any(is_set) {
                    return Some(Refusal::MediaPart { kind: "image_data".to_owned() });
                }
                // Both keep blocks apart in ways the index does not follow.
                (is_set(&fields.lora_path) || is_set(&fields.extra_key))
                    .then_some(Refusal::OwnNamespace)
            }
            _ => None,
        }
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
    prompt, suffix, prompt_embeds, truncate_prompt_tokens, add_special_tokens,
    messages, tools, documents, chat_template, chat_template_kwargs, reasoning_effort,
    add_generation_prompt, continue_final_message,
    kv_transfer_params, mm_processor_kwargs, media_io_kwargs,
    input, instructions, reasoning, truncation, previous_response_id, previous_input_messages,
    system, thinking, output_config, max_tokens,
    padding, token_ids, features, content_parts, sampling_params,
    text, input_ids, input_embeds, image_data, video_data, audio_data, lora_path, extra_key,
    return_logprob, logprob_start_len,
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

    /// Checks what a request of `api` cannot be without.
    fn check(&self, api: Api) -> Result<(), BodyError> {
        let text_or_list = |json: &Json<'_>| matches!(json, Json::Str(_) | Json::Array(_));
        let list = |json: &Json<'_>| matches!(json, Json::Array(_));
        match api {
            Api::Completions if some(&self.prompt_embeds).is_some() => {
                check("prompt", &self.prompt, text_or_list)
            }
            Api::Completions => need("prompt", &self.prompt, text_or_list),
            Api::ChatCompletions => self.check_chat(),
            Api::Embeddings if some(&self.messages).is_some() => self.check_chat(),
            Api::Embeddings => need("input", &self.input, text_or_list),
            Api::Responses => {
                check_text("instructions", &self.instructions)?;
                check("chat_template_kwargs", &self.chat_template_kwargs, is_object)?;
                check("reasoning", &self.reasoning, is_object)?;
                need("input", &self.input, text_or_list)
            }
            Api::Messages => {
                check("chat_template_kwargs", &self.chat_template_kwargs, is_object)?;
                check("tools", &self.tools, list)?;
                check("system", &self.system, text_or_list)?;
                need("model", &self.model, |json| json.as_str().is_some_and(|m| !m.is_empty()))?;
                need("max_tokens", &self.max_tokens, |json| matches!(json, Json::Int(_)))?;
                need("messages", &self.messages, list)
            }
            Api::Generate => need("token_ids", &self.token_ids, list),
            Api::SglangGenerate if some(&self.text).is_some() => {
                check("text", &self.text, text_or_list)
            }
            Api::SglangGenerate if some(&self.input_embeds).is_some() => Ok(()),
            Api::SglangGenerate => need("input_ids", &self.input_ids, list),
        }
    }

    fn check_chat(&self) -> Result<(), BodyError> {
        need("messages", &self.messages, |json| match json {
            Json::Array(messages) => {
                messages.iter().all(|m| m.get("role").and_then(Json::as_str).is_some())
            }
            _ => false,
        })?;
        check("tools", &self.tools, |json| matches!(json, Json::Array(_)))?;
        check("documents", &self.documents, |json| matches!(json, Json::Array(_)))?;
        check("chat_template_kwargs", &self.chat_template_kwargs, is_object)?;
        check_text("reasoning_effort", &self.reasoning_effort)
    }

    fn skips_cache(&self, api: Api, echo: bool) -> bool {
        let is_true = |json: &Json<'_>| matches!(json, Json::Bool(true));
        match api {
            Api::Completions => {
                some(&self.prompt_logprobs).is_some() || (echo && some(&self.logprobs).is_some())
            }
            // `top_logprobs` is 0 unless the request says null: vLLM then asks for the
            // logprobs of the prompt's own tokens.
            Api::ChatCompletions => {
                some(&self.prompt_logprobs).is_some()
                    || (echo && !matches!(self.top_logprobs, Some(Json::Null)))
            }
            Api::Generate => some(&self.sampling_params).is_some_and(|params| {
                ["prompt_logprobs", "prompt_logprob_token_ids"]
                    .iter()
                    .any(|name| params.get_some(name).is_some())
                    || params.get("skip_reading_prefix_cache").is_some_and(is_true)
            }),
            // SGLang reads its cache up to where the logprobs start.
            Api::SglangGenerate => {
                some(&self.return_logprob).is_some_and(is_true)
                    && !matches!(some(&self.logprob_start_len), None | Some(Json::Int(-1)))
            }
            Api::Responses | Api::Messages | Api::Embeddings => false,
        }
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

/// Like [`check`], of a field that must be there.
fn need(
    field: &'static str,
    value: &Option<Json<'_>>,
    accepts: impl Fn(&Json<'_>) -> bool,
) -> Result<(), BodyError> {
    match some(value) {
        None => Err(BodyError::MissingField { field }),
        Some(_) => check(field, value, accepts),
    }
}

fn is_object(json: &Json<'_>) -> bool {
    matches!(json, Json::Object(_))
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
