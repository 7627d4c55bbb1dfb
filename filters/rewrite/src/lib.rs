//! Replaces the name of the model in a request, a JSON answer or an event stream, and leaves every
//! other byte as it is.
//!
//! [`Renamer`] takes a body in pieces of any size and holds nothing back: a value that is replaced
//! is written when its first quote comes, and what it was is passed over.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

/// Property with the name that the client asked for, as written in its request: intake leaves it for
/// the filter of the answer.
pub const ASKED_PROPERTY: &str = "wasm_epp.asked_model";
/// Header by which the filter of the answer is put into a stream. Set by intake alone, as a client's
/// own is taken off before and it before the request leaves.
pub const REWRITTEN_HEADER: &str = "x-wasm-epp-rewritten";
/// Header that tells the engine to which model the request was rewritten, by llm-d's name.
pub const TARGET_HEADER: &str = "x-llm-d-model-name-rewrite";

/// What a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One JSON object: the `model` of its top level is replaced.
    Object,
    /// Server-sent events: the `model` of the top level of each event's JSON, and that of the answer
    /// which events of `/v1/responses` and `/v1/messages` carry as `response` and `message`.
    Events,
}

/// Longest key that is told from others.
const MAX_KEY: usize = 10;
const MODEL: &[u8] = b"model";
/// Objects within an event that are the answer.
const ANSWERS: [&[u8]; 2] = [b"response", b"message"];
const DATA: &[u8] = b"data:";

/// A body on its way.
#[derive(Clone, Debug)]
pub struct Renamer {
    kind: Kind,
    /// What stands in the place of the value, quotes included.
    literal: Vec<u8>,
    line: Line,
    json: Json,
    replaced: u32,
}

/// Where in a line of an event stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    /// So many bytes of `data:` have come.
    Name(usize),
    /// In an event's data.
    Data,
    /// In a line that is something else.
    Other,
}

/// Where in a JSON text.
#[derive(Clone, Debug, Default)]
struct Json {
    depth: u32,
    /// Whether the innermost bracket that is looked into is an object's, by depth: bit 1 the first's.
    is_answer: bool,
    within: Within,
    /// The last key of the object that is looked into, if short.
    key: Vec<u8>,
    is_key_long: bool,
    /// A key is to come, else a value.
    wants_key: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Within {
    #[default]
    Between,
    Key {
        is_escaped: bool,
    },
    Text {
        is_escaped: bool,
    },
    /// In the value that is replaced.
    Replaced {
        is_escaped: bool,
    },
}

/// What becomes of a byte.
enum Fate {
    Keep,
    Drop,
    Replace,
}

impl Renamer {
    /// Puts `literal`, a JSON string with its quotes, in the place of the model's name.
    pub fn new(kind: Kind, literal: Vec<u8>) -> Self {
        Self { kind, literal, line: Line::Name(0), json: Json::default(), replaced: 0 }
    }

    /// Names replaced so far.
    pub fn replaced(&self) -> u32 {
        self.replaced
    }

    /// What `piece` becomes; `None` when nothing of it changes.
    pub fn pass(&mut self, piece: &[u8]) -> Option<Vec<u8>> {
        let mut out: Option<Vec<u8>> = None;
        for (at, byte) in piece.iter().enumerate() {
            let fate = match self.kind {
                Kind::Object => self.json.step(*byte, false),
                Kind::Events => self.step_line(*byte),
            };
            match (fate, &mut out) {
                (Fate::Keep, None) => {}
                (Fate::Keep, Some(out)) => out.push(*byte),
                (Fate::Drop, out) => drop(changed(out, piece, at)),
                (Fate::Replace, out) => {
                    changed(out, piece, at).extend_from_slice(&self.literal);
                    self.replaced = self.replaced.saturating_add(1);
                }
            }
        }
        out
    }

    fn step_line(&mut self, byte: u8) -> Fate {
        if byte == b'\n' || byte == b'\r' {
            (self.line, self.json) = (Line::Name(0), Json::default());
            return Fate::Keep;
        }
        match self.line {
            Line::Data => return self.json.step(byte, true),
            Line::Name(at) if DATA.get(at) == Some(&byte) => {
                let is_whole = at + 1 == DATA.len();
                self.line = if is_whole { Line::Data } else { Line::Name(at + 1) };
            }
            Line::Name(_) | Line::Other => self.line = Line::Other,
        }
        Fate::Keep
    }
}

fn changed<'o>(out: &'o mut Option<Vec<u8>>, piece: &[u8], at: usize) -> &'o mut Vec<u8> {
    out.get_or_insert_with(|| {
        let mut kept = Vec::with_capacity(piece.len() + 64);
        kept.extend_from_slice(piece.get(..at).unwrap_or_default());
        kept
    })
}

impl Json {
    /// Whether keys are looked at: in the object itself, and in the answer it carries.
    fn is_looked_into(&self) -> bool {
        self.depth == 1 || (self.depth == 2 && self.is_answer)
    }

    fn step(&mut self, byte: u8, has_answers: bool) -> Fate {
        match &mut self.within {
            Within::Key { is_escaped } | Within::Text { is_escaped }
                if *is_escaped || byte == b'\\' =>
            {
                *is_escaped = !*is_escaped;
                // A key with an escape is none that engines write.
                self.is_key_long = true;
                Fate::Keep
            }
            Within::Replaced { is_escaped } if *is_escaped || byte == b'\\' => {
                *is_escaped = !*is_escaped;
                Fate::Drop
            }
            Within::Key { .. } | Within::Text { .. } if byte == b'"' => {
                self.within = Within::Between;
                Fate::Keep
            }
            Within::Replaced { .. } => {
                if byte == b'"' {
                    self.within = Within::Between;
                }
                Fate::Drop
            }
            Within::Key { .. } => {
                if self.key.len() < MAX_KEY {
                    self.key.push(byte);
                } else {
                    self.is_key_long = true;
                }
                Fate::Keep
            }
            Within::Text { .. } => Fate::Keep,
            Within::Between => self.between(byte, has_answers),
        }
    }

    fn between(&mut self, byte: u8, has_answers: bool) -> Fate {
        let is_key = |this: &Self, key: &[u8]| !this.is_key_long && this.key == key;
        match byte {
            b'"' if self.is_looked_into() && self.wants_key => {
                self.key.clear();
                self.is_key_long = false;
                self.within = Within::Key { is_escaped: false };
            }
            b'"' if self.is_looked_into() && is_key(self, MODEL) => {
                self.within = Within::Replaced { is_escaped: false };
                return Fate::Replace;
            }
            b'"' => self.within = Within::Text { is_escaped: false },
            b'{' | b'[' => {
                let is_answer = has_answers
                    && byte == b'{'
                    && self.depth == 1
                    && ANSWERS.iter().any(|key| is_key(self, key));
                // A list at the top is no object of ours: nothing in it is looked at.
                let step = if self.depth == 0 && byte == b'[' { 3 } else { 1 };
                self.depth = self.depth.saturating_add(step);
                self.is_answer = is_answer || (self.is_answer && self.depth > 2);
                self.wants_key = byte == b'{';
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth < 2 {
                    self.is_answer = false;
                }
                self.key.clear();
                self.wants_key = false;
            }
            b':' => self.wants_key = false,
            b',' => self.wants_key = self.is_looked_into(),
            _ => {}
        }
        Fate::Keep
    }
}

/// The model's name in a request's body, as written there with its quotes: the last, if several.
pub fn model_of(body: &[u8]) -> Option<&[u8]> {
    let mut json = Json::default();
    let (mut found, mut start) = (None, None);
    for (at, byte) in body.iter().enumerate() {
        match (json.step(*byte, false), start) {
            (Fate::Replace, _) => start = Some(at),
            (Fate::Drop, Some(from)) if json.within == Within::Between => {
                found = body.get(from..=at);
                start = None;
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
