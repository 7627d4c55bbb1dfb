//! Prompts that are a text or token ids: completions, embeddings, and the engines' own APIs.

use crate::body::{Api, Request, some};
use crate::error::Refusal;
use crate::json::Json;

/// A prompt that needs no template.
#[derive(Debug)]
pub(crate) enum Plain<'r> {
    Text(&'r str),
    TokenIds(&'r [Json<'r>]),
}

/// The request's only prompt. A list of several is refused: the engine runs each on its own and
/// they end up on one endpoint, so none of them speaks for the others.
pub(crate) fn only_prompt<'r>(request: &'r Request<'_>) -> Result<Plain<'r>, Refusal> {
    let fields = &request.fields;
    let field = match request.api {
        Api::Completions => some(&fields.prompt),
        Api::Embeddings => some(&fields.input),
        Api::Generate => some(&fields.token_ids),
        // SGLang takes exactly one of the two.
        Api::SglangGenerate => match (some(&fields.text), some(&fields.input_ids)) {
            (Some(_), Some(_)) => None,
            (text, ids) => text.or(ids),
        },
        Api::ChatCompletions | Api::Responses | Api::Messages => None,
    };
    let prompts = match field {
        Some(Json::Str(text)) => return Ok(Plain::Text(text)),
        Some(Json::Array(prompts)) => prompts.as_slice(),
        _ => return Err(Refusal::NoPrompt),
    };
    match prompts {
        [] => Err(Refusal::NoPrompt),
        [Json::Str(text)] => Ok(Plain::Text(text)),
        [Json::Array(ids)] => Ok(Plain::TokenIds(ids)),
        [Json::Str(_) | Json::Array(_), _, ..] => {
            Err(Refusal::SeveralPrompts { count: prompts.len() })
        }
        // Messages under the name of a prompt (vLLM's embeddings).
        [Json::Object(_), ..] => Err(Refusal::UnsupportedItem { kind: "object".to_owned() }),
        _ => Ok(Plain::TokenIds(prompts)),
    }
}

/// The ids as 32-bit numbers; `None` if one is not, or if there are none.
pub(crate) fn ids(ids: &[Json<'_>]) -> Option<Vec<u32>> {
    let id = |id: &Json<'_>| match id {
        Json::Int(id) => u32::try_from(*id).ok(),
        Json::UInt(id) => u32::try_from(*id).ok(),
        _ => None,
    };
    (!ids.is_empty()).then(|| ids.iter().map(id).collect())?
}
