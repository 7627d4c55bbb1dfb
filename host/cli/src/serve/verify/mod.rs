//! Whether our prompts are the engine's: probe conversations, rendered by us and tokenized by it.
//!
//! One byte of difference at the top makes every match zero, and nothing else would say so. The
//! engine is asked when it is first seen and when it is another process, as its template may be
//! another then.

mod ask;
mod probes;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use model::TokenTable;
use prompt::Request;
use tokio::time::MissedTickBehavior;

use super::scope::Scope;
use crate::config::{Endpoint, EngineKind};
use ask::{Asker, NoAnswer};

/// How an engine's prompts compare with ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rendering {
    /// Not compared yet.
    #[default]
    Unknown,
    /// All that both render is equal, byte for byte.
    Verified {
        /// Probes compared.
        compared: usize,
        /// Probes that we or the engine refuse.
        refused: usize,
    },
    /// Its prompts are not ours: they match up to the difference at most.
    Differs(Difference),
    /// The engine cannot be asked.
    Unverifiable {
        /// Why.
        reason: String,
    },
}

/// The first difference found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Name of the probe.
    pub(crate) probe: &'static str,
    /// First byte that differs.
    pub(crate) at: usize,
    /// Our bytes from there, shortened.
    pub(crate) ours: String,
    /// The engine's.
    pub(crate) theirs: String,
}

impl Rendering {
    /// For status pages and metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Verified { .. } => "verified",
            Self::Differs(_) => "differs",
            Self::Unverifiable { .. } => "unverifiable",
        }
    }
}

impl std::fmt::Display for Rendering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("not compared yet"),
            Self::Verified { compared, refused } => {
                write!(f, "{compared} probes are equal, {refused} were refused")
            }
            Self::Differs(Difference { probe, at, ours, theirs }) => {
                write!(f, "probe {probe} differs at byte {at}: ours {ours}, theirs {theirs}")
            }
            Self::Unverifiable { reason } => f.write_str(reason),
        }
    }
}

/// How often it is looked whether an engine is there, or another process.
const LOOK: Duration = Duration::from_millis(500);
/// After an engine did not answer.
const RETRY: Duration = Duration::from_secs(30);

/// Compares whenever the engine is a process that was not compared yet.
pub(crate) async fn watch(scope: Arc<Scope>, slot: u16) {
    let asker = Asker::new();
    let endpoint = scope.roster.endpoint(slot);
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut compared = None;
    loop {
        ticks.tick().await;
        let process = {
            let live = scope.live();
            let engine = &live.engines[usize::from(slot)];
            engine.load.is_ready.then_some(engine.process_start)
        };
        let Some(process) = process.filter(|process| compared != Some(*process)) else { continue };
        let rendering = compare(&scope, &endpoint, &asker).await;
        match &rendering {
            Rendering::Differs(_) => {
                tracing::error!(endpoint = endpoint.address, %rendering, "prompts are not the engine's");
            }
            _ => tracing::info!(endpoint = endpoint.address, %rendering, "rendering compared"),
        }
        let is_final = !matches!(rendering, Rendering::Unverifiable { .. });
        scope.update(slot, |engine| engine.rendering = rendering);
        if is_final {
            compared = Some(process);
        } else {
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn compare(scope: &Scope, endpoint: &Endpoint, asker: &Asker) -> Rendering {
    let unverifiable = |reason: String| Rendering::Unverifiable { reason };
    let path = match endpoint.engine {
        EngineKind::Vllm => "/tokenize",
        EngineKind::Sglang => "/v1/tokenize",
        EngineKind::Trtllm => return unverifiable("TensorRT-LLM has no /tokenize".to_owned()),
    };
    let renderer = match &scope.renderer {
        Ok(renderer) => renderer,
        Err(error) => return unverifiable(format!("chat template: {error}")),
    };
    let (mut compared, mut refused) = (0, 0);
    for probe in probes::all(&scope.model.name) {
        let body = probe.body.to_string();
        let request = Request::parse(probe.api, body.as_bytes());
        let Some(Ok(ours)) = request.ok().map(|request| renderer.render(&request)) else {
            refused += 1;
            continue;
        };
        let theirs = match asker.tokenize(&endpoint.address, path, body.clone()).await {
            Ok(tokens) => tokens,
            // The engine's template refuses this conversation, or its API this kind of question.
            Err(NoAnswer::Refused(_)) => {
                refused += 1;
                continue;
            }
            Err(error) => return unverifiable(error.to_string()),
        };
        match difference(probe.name, &ours.bytes, &theirs, &scope.tokens) {
            Some(difference) => return Rendering::Differs(difference),
            None => compared += 1,
        }
    }
    match compared {
        0 => unverifiable("every probe was refused".to_owned()),
        _ => Rendering::Verified { compared, refused },
    }
}

/// Bytes shown of each side.
const EXCERPT_BYTES: usize = 48;

fn difference(
    probe: &'static str,
    ours: &[u8],
    theirs: &[u32],
    tokens: &TokenTable,
) -> Option<Difference> {
    let mut at = 0;
    let mut rest = theirs.iter();
    while let Some(id) = rest.next() {
        let Some(bytes) = tokens.bytes(*id) else {
            let theirs = format!("token {id}, which the model's files do not have");
            return Some(Difference { probe, at, ours: excerpt(ours, at), theirs });
        };
        let equal = bytes.iter().zip(&ours[at..]).take_while(|(a, b)| a == b).count();
        if equal < bytes.len() {
            let end = std::iter::once(id).chain(rest).map_while(|id| tokens.bytes(*id));
            let end: Vec<u8> = end.flatten().copied().take(equal + EXCERPT_BYTES + 1).collect();
            let (at, theirs) = (at + equal, excerpt(&end, equal));
            return Some(Difference { probe, at, ours: excerpt(ours, at), theirs });
        }
        at += equal;
    }
    let end = "its end".to_owned();
    (at < ours.len()).then(|| Difference { probe, at, ours: excerpt(ours, at), theirs: end })
}

fn excerpt(bytes: &[u8], from: usize) -> String {
    let rest = &bytes[from.min(bytes.len())..];
    if rest.is_empty() {
        return "its end".to_owned();
    }
    let shown = &rest[..rest.len().min(EXCERPT_BYTES)];
    let mut text = String::from("\"");
    let _ = write!(text, "{}", shown.escape_ascii());
    text.push_str(if shown.len() < rest.len() { "\"…" } else { "\"" });
    text
}

#[cfg(test)]
mod tests;
