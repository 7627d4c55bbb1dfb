//! Every plugin type of llm-d's endpoint picker, and what becomes of it here.
//!
//! Types, parameters, defaults and versions are those of `llm-d/llm-d-router` v0.10.0
//! (`cmd/epp/runner/runner.go`, `pkg/epp/framework/plugins`), with the parameters that earlier and
//! later versions accept, so that a file of any of them can be read.

mod control;
mod data;
mod producers;
mod profiles;
mod scheduling;

use super::nearest;

/// A plugin type.
#[derive(Debug)]
pub(super) struct Entry {
    /// llm-d's name of it.
    pub name: &'static str,
    pub kind: Kind,
    pub verdict: Verdict,
    /// Our plugin type or configuration key; empty if there is none.
    pub ours: &'static str,
    /// How it is approximated, why there is no counterpart and what to use instead.
    pub remark: &'static str,
    pub parameters: &'static [Parameter],
    /// Whether parameters that are not listed are passed over: of types without a counterpart.
    pub is_open: bool,
    pub deprecated: Option<Deprecated>,
}

/// What a plugin is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Scorer,
    Filter,
    Picker,
    ProfileHandler,
    Decider,
    Producer,
    RequestControl,
    FlowControl,
    /// Also a filter where a profile names it.
    SaturationDetector,
    DataLayer,
    Parser,
}

/// What becomes of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same name (without its suffix), parameters and formula.
    Supported,
    /// The same under another name.
    Renamed,
    /// Nearly the same.
    Approximated,
    /// Serves what here needs no plugin.
    NotNeeded,
    /// Nothing does this here.
    Unsupported {
        /// Whether requests go elsewhere, or are treated otherwise, for the lack of it.
        differs: bool,
    },
}

impl Verdict {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Renamed => "other name",
            Self::Approximated => "approximated",
            Self::NotNeeded => "not needed",
            Self::Unsupported { .. } => "not supported",
        }
    }
}

/// A name that llm-d wants to be rid of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deprecated {
    /// The version that deprecated it and the one without it, where they are named.
    pub versions: Option<(&'static str, &'static str)>,
    pub instead: &'static str,
}

/// A parameter of a plugin.
#[derive(Debug)]
pub(super) struct Parameter {
    pub name: &'static str,
    pub shape: Shape,
    /// As JSON; empty if there is none.
    pub default: &'static str,
    pub fate: Fate,
}

/// What a parameter may be.
#[derive(Debug)]
pub(super) enum Shape {
    Bool,
    Integer,
    Number,
    Text,
    /// `"5m"`, or nanoseconds.
    Duration,
    OneOf(&'static [&'static str]),
    Each(&'static Shape),
    Object(&'static [Parameter]),
    /// Text to text.
    Labels,
    /// Not looked into.
    Any,
}

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The same key in our plugin.
    Kept,
    /// Read by the conversion of this plugin, or without an effect here.
    Read,
    /// Nothing does this here; why, if it is not the default.
    Lost(&'static str),
}

impl Entry {
    const fn new(name: &'static str, kind: Kind, verdict: Verdict) -> Self {
        Self {
            name,
            kind,
            verdict,
            ours: "",
            remark: "",
            parameters: &[],
            is_open: false,
            deprecated: None,
        }
    }

    const fn ours(mut self, ours: &'static str) -> Self {
        self.ours = ours;
        self
    }

    const fn remark(mut self, remark: &'static str) -> Self {
        self.remark = remark;
        self
    }

    const fn with(mut self, parameters: &'static [Parameter]) -> Self {
        self.parameters = parameters;
        self
    }

    const fn open(mut self) -> Self {
        self.is_open = true;
        self
    }

    /// Deprecated in v0.9.0 and gone in v0.11.0, as `RegisterDeprecated` in `runner.go` says.
    const fn gone_in_v0_11(mut self, instead: &'static str) -> Self {
        self.deprecated = Some(Deprecated { versions: Some(("v0.9.0", "v0.11.0")), instead });
        self
    }

    const fn deprecated(mut self, instead: &'static str) -> Self {
        self.deprecated = Some(Deprecated { versions: None, instead });
        self
    }

    /// Whether a profile may name it.
    pub(super) fn is_for_profiles(&self) -> bool {
        matches!(self.kind, Kind::Scorer | Kind::Filter | Kind::Picker | Kind::SaturationDetector)
    }
}

const fn kept(name: &'static str, shape: Shape, default: &'static str) -> Parameter {
    Parameter { name, shape, default, fate: Fate::Kept }
}

const fn read(name: &'static str, shape: Shape, default: &'static str) -> Parameter {
    Parameter { name, shape, default, fate: Fate::Read }
}

const fn lost(
    name: &'static str,
    shape: Shape,
    default: &'static str,
    why: &'static str,
) -> Parameter {
    Parameter { name, shape, default, fate: Fate::Lost(why) }
}

const DIFFERS: Verdict = Verdict::Unsupported { differs: true };
const HARMLESS: Verdict = Verdict::Unsupported { differs: false };

/// Names of producers, which need no name here.
const PREFIX_PRODUCER: Parameter = read("prefixMatchInfoProducerName", Shape::Text, "\"\"");
const LOAD_PRODUCER: Parameter = read("inFlightLoadProducerName", Shape::Text, "\"\"");
const LATENCY_PRODUCER: Parameter = read("latencyPredictionInfoProducerName", Shape::Text, "\"\"");

/// All of them.
pub(super) fn entries() -> impl Iterator<Item = &'static Entry> {
    [
        scheduling::SCORERS,
        scheduling::FILTERS,
        profiles::PICKERS,
        profiles::HANDLERS,
        producers::PRODUCERS,
        control::REQUEST_CONTROL,
        control::FLOW_CONTROL,
        data::DATA_LAYER,
        data::PARSERS,
    ]
    .into_iter()
    .flatten()
}

pub(super) fn entry(name: &str) -> Option<&'static Entry> {
    entries().find(|entry| entry.name == name)
}

/// The type that an unknown one was probably meant to be.
pub(super) fn nearest_entry(name: &str) -> Option<&'static str> {
    nearest(name, entries().map(|entry| entry.name))
}
