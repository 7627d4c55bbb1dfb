//! What a decision is measured over: one axis at a time around a usual request.

use anyhow::{Context, Result};
use prompt::{Api, ModelSpec, Renderer, Request};
use serde_json::{Value, json};
use testbed::wasmtime::{Held, State};

use crate::cpu::filler;

/// About what a token of English or code is, and what the pushed model says.
pub(super) const BYTES_PER_TOKEN: usize = 4;
const STRIDE_BYTES: usize = prefix::STRIDE_BYTES;
/// Bytes of each message, as far as there are that many.
const MESSAGE_BYTES: usize = 2 << 10;

/// Which scorers decide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub(super) enum Scorers {
    /// `prefix-cache`.
    One,
    /// The four of a configuration that names none.
    Default,
    /// All that there are.
    All,
}

impl Scorers {
    pub(super) const EACH: [Self; 3] = [Self::One, Self::Default, Self::All];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Default => "default",
            Self::All => "all",
        }
    }

    /// `routing` of the configuration file.
    pub(super) fn yaml(self) -> String {
        // Long enough that the state, which is pushed anew for each case, is never too old.
        let head = "routing:\n  maxStateAgeMs: 60000\n";
        let plugin = |entry: &scorers::Entry<dyn routing::Scorer>| {
            let parameters = match entry.name {
                "endpoint-attribute" => {
                    json!({"attributeKey": "cost", "algorithm": {"type": "linear_lower_is_better"}})
                }
                "header-label-affinity" => json!({"headerName": "x-tier", "labelKey": "tier"}),
                _ => json!({}),
            };
            json!({"type": entry.name, "parameters": parameters})
        };
        let list: Vec<Value> = match self {
            Self::One => vec![json!({"type": "prefix-cache"})],
            Self::Default => return head.to_owned(),
            Self::All => scorers::SCORERS.iter().map(plugin).collect(),
        };
        format!("{head}  scorers: {}\n", Value::Array(list))
    }
}

/// How much of a prompt its holders hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Depth {
    None,
    Half,
    Full,
}

impl Depth {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Half => "half",
            Self::Full => "full",
        }
    }
}

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Case {
    pub(super) bytes: usize,
    pub(super) endpoints: u16,
    pub(super) scorers: Scorers,
    pub(super) depth: Depth,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, endpoints, scorers, depth } = self;
        write!(f, "{bytes} B, {endpoints} endpoints, {}, {}", scorers.name(), depth.name())
    }
}

/// A request of a case with the state that it meets.
pub(super) struct Ready {
    pub(super) body: String,
    /// Text that the engine sees.
    text: String,
    held_strides: usize,
    endpoints: u16,
    spec: ModelSpec,
}

impl Case {
    pub(super) fn json(&self) -> Value {
        json!({
            "prompt_bytes": self.bytes, "endpoints": self.endpoints,
            "scorers": self.scorers.name(), "held": self.depth.name(),
        })
    }

    pub(super) fn cells(&self) -> Vec<String> {
        vec![
            self.bytes.to_string(),
            self.endpoints.to_string(),
            self.scorers.name().to_owned(),
            self.depth.name().to_owned(),
        ]
    }

    /// The chat of this size and its state: a third of the endpoints hold the first part of it.
    pub(super) fn ready(&self, spec: &ModelSpec) -> Result<Ready> {
        let count = (self.bytes / MESSAGE_BYTES).max(1) | 1;
        let role = |at: usize| if at.is_multiple_of(2) { "user" } else { "assistant" };
        let message =
            |at: usize| json!({"role": role(at), "content": filler(at, self.bytes / count)});
        let messages: Vec<Value> = (0..count).map(message).collect();
        let body = json!({"model": "m", "messages": messages, "stream": true}).to_string();
        let renderer = Renderer::new(spec)?;
        let request = Request::parse(Api::ChatCompletions, body.as_bytes())?;
        let text = String::from_utf8(renderer.render(&request)?.bytes).context("a chat's text")?;
        let held_strides = match self.depth {
            Depth::None => 0,
            Depth::Half => text.len() / STRIDE_BYTES / 2,
            Depth::Full => usize::MAX,
        };
        Ok(Ready { body, text, held_strides, endpoints: self.endpoints, spec: spec.clone() })
    }
}

impl Ready {
    /// The state as a writer of that epoch tells it.
    pub(super) fn records(&self, epoch: u64) -> Vec<(feed::Key, Vec<u8>)> {
        let slots: Vec<u16> = (0..self.endpoints).step_by(3).collect();
        let held = [Held { text: &self.text, strides: self.held_strides, slots: &slots }];
        State { endpoints: self.endpoints, held: &held }.records_of(epoch, &self.spec)
    }

    /// Strides that a decision must find held, at least.
    pub(super) fn must_match(&self) -> usize {
        self.held_strides.min(self.text.len() / STRIDE_BYTES)
    }
}
