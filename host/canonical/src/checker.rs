use std::collections::HashSet;
use std::path::{Path, PathBuf};

use model::{ModelError, ModelFolder};
use prompt::{AddedToken, ModelSpec, TextMode};
use serde_json::Value;

use crate::bpe::Bpe;
use crate::pre_tokens::PreTokens;
use crate::segment::{Finding, Rules, Segment};

/// Tokens of the chain before a block that [`Checker::check`] wants. Enough that a pre-token, and a
/// place where all ways to cut agree, begins among them; more costs time and finds nothing.
pub const CONTEXT_TOKENS: usize = 16;

/// Tokens at a block's end that are judged with the next block.
pub const LOOKAHEAD_TOKENS: usize = 2;

/// What is known of a block's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The tokenizer makes these tokens of their text, as far as the slice shows.
    Canonical,
    /// The tokenizer makes other tokens of it: the engine will miss from here on.
    NonCanonical {
        /// Already the last tokens of the block before are others.
        with_previous: bool,
    },
    /// Nothing of the block could be judged, or it has ids without bytes. So it is with nothing but
    /// white space up to the block's end, which is cut by what follows it.
    Unknown,
}

/// Why a model's tokens cannot be checked; its blocks are then all [`Verdict::Unknown`].
#[derive(Debug, thiserror::Error)]
pub enum CheckerError {
    /// The model's folder cannot be used.
    #[error("reading the model's tokenizer")]
    Model(#[from] ModelError),
    /// `tokenizer.json` cannot be read.
    #[error("reading {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A kind of tokenizer to which the rules here do not apply.
    #[error("{}: tokens of {kind} are not checked", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What it is.
        kind: &'static str,
    },
}

/// Judges blocks of one model. A check depends on nothing but its arguments; pairs of tokens seen
/// before are remembered (behind a lock, so that one checker serves several threads).
#[derive(Debug)]
pub struct Checker {
    rules: Rules,
    added: HashSet<u32>,
}

impl Verdict {
    /// True when the block is not to be listed.
    pub fn is_non_canonical(self) -> bool {
        matches!(self, Verdict::NonCanonical { .. })
    }
}

impl Checker {
    /// Reads `tokenizer.json` of a model's folder.
    pub fn load(folder: &Path) -> Result<Checker, CheckerError> {
        let model = ModelFolder::load(folder)?;
        let file = folder.join("tokenizer.json");
        let read = |source| CheckerError::Read { file: file.clone(), source };
        let text = std::fs::read(&file).map_err(|error| read(error.into()))?;
        let mut json: Value = serde_json::from_slice(&text).map_err(|error| read(error.into()))?;

        let (added, contents) = added_tokens(&json);
        let spec = ModelSpec { added_tokens: contents, ..ModelSpec::default() };
        let pre_tokens = PreTokens::new(json.get("pre_tokenizer")).map_err(|e| read(e.into()))?;
        let model_json = json.get_mut("model").map(Value::take).unwrap_or_default();
        let Some(bpe) = Bpe::new(model_json).map_err(|error| read(error.into()))? else {
            return Err(CheckerError::Unsupported { file, kind: "a model other than BPE" });
        };
        Ok(Checker {
            rules: Rules {
                tokens: model.tokens,
                added_text: TextMode::new(&spec),
                normalizer: model.spec.normalizer,
                bpe,
                pre_tokens,
            },
            added,
        })
    }

    /// Judges `block` but for its last [`LOOKAHEAD_TOKENS`], and that many before it.
    ///
    /// `context` is the last [`CONTEXT_TOKENS`] of the chain before the block; fewer only where the
    /// chain begins.
    pub fn check(&self, context: &[u32], block: &[u32]) -> Verdict {
        let ids = [context, block].concat();
        if ids.iter().any(|id| self.rules.tokens.bytes(*id).is_none()) {
            return Verdict::Unknown;
        }
        let judged_from = context.len().saturating_sub(LOOKAHEAD_TOKENS);
        let judged_to = ids.len().saturating_sub(LOOKAHEAD_TOKENS);
        let mut judged = false;
        let mut start = 0;
        while start < ids.len() {
            let is_added = |at: &usize| self.added.contains(&ids[*at]);
            let end = (start..ids.len()).find(is_added).unwrap_or(ids.len());
            if end > judged_from && start < judged_to && end > start {
                let segment = Segment {
                    ids: &ids[start..end],
                    is_start: start > 0 || context.len() < CONTEXT_TOKENS,
                    is_end: end < ids.len(),
                    judged: judged_from.saturating_sub(start)..judged_to.min(end) - start,
                };
                match self.rules.judge(&segment) {
                    Finding::Wrong(token) => {
                        let with_previous = start + token < context.len();
                        return Verdict::NonCanonical { with_previous };
                    }
                    Finding::Right => judged = true,
                    Finding::Nothing => {}
                }
            }
            // The added token itself is canonical.
            judged |= end < judged_to && end >= judged_from;
            start = end + 1;
        }
        if judged { Verdict::Canonical } else { Verdict::Unknown }
    }
}

/// Ids and texts of `added_tokens`.
fn added_tokens(json: &Value) -> (HashSet<u32>, Vec<AddedToken>) {
    let list = json.get("added_tokens").and_then(Value::as_array);
    let mut ids = HashSet::new();
    let mut contents = Vec::new();
    for token in list.into_iter().flatten() {
        let id = token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let content = token.get("content").and_then(Value::as_str);
        if let (Some(id), Some(content)) = (id, content) {
            ids.insert(id);
            contents.push(AddedToken { content: content.to_owned(), ..AddedToken::default() });
        }
    }
    (ids, contents)
}
