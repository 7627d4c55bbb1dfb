//! What the encoding of events proves of the release that wrote them.
//!
//! No event names its engine or release. Fields were added over the years, so the fields that are
//! there, the form of the events and the kind of the hashes leave few releases over. The releases
//! are those of vLLM 0.9 to 0.33 and SGLang 0.4.9 to 0.5.23.

use std::fmt;

/// Everything seen of how a source writes its events. The default has seen nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    forms: u8,
    hashes: u8,
    fields: u16,
    /// Fewest and most values of a `BlockStored` array, the tag apart.
    values: Option<(u8, u8)>,
}

const ARRAY: u8 = 1;
const MAP: u8 = 2;
/// TensorRT-LLM's list, which is no MessagePack.
const LIST: u8 = 4;

/// An integer that fits both signed and unsigned 64 bits: it tells nothing.
const INTEGER: u8 = 1;
const NEGATIVE: u8 = 2;
/// Too large for a signed one.
const WIDE: u8 = 4;
const BYTES: u8 = 8;

/// Fields of `BlockStored` that not every release has, in the order in which vLLM got them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field {
    Medium,
    LoraName,
    ExtraKeys,
    Group,
    SpecKind,
    SlidingWindow,
    Locality,
    Ownership,
    SessionId,
    Lookahead,
    CacheSalt,
}

/// By [`Field`].
const FIELD_NAMES: [&str; 11] = [
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "ownership",
    "session_id",
    "lookahead_token_ids",
    "cache_salt",
];

const fn bit(field: Field) -> u16 {
    1 << field as u16
}

/// All fields up to this one.
const fn up_to(field: Field) -> u16 {
    bit(field) | (bit(field) - 1)
}

const SGLANG_FIELDS: u16 =
    bit(Field::Medium) | bit(Field::LoraName) | bit(Field::SessionId) | bit(Field::CacheSalt);

/// Releases that write alike.
struct Span {
    engine: &'static str,
    first: &'static str,
    /// `None` for the newest.
    last: Option<&'static str>,
    form: u8,
    /// Fewest and most values of a `BlockStored` array.
    values: (u8, u8),
    fields: u16,
    hashes: u8,
}

const fn vllm(first: &'static str, last: &'static str, values: (u8, u8)) -> Span {
    let hashes = INTEGER | WIDE | BYTES;
    Span { engine: "vLLM", first, last: Some(last), form: ARRAY, values, fields: !0, hashes }
}

const fn vllm_map(first: &'static str, last: Option<&'static str>, fields: u16) -> Span {
    let hashes = INTEGER | WIDE | BYTES;
    Span { engine: "vLLM", first, last, form: MAP, values: (0, 0), fields, hashes }
}

const fn sglang(
    first: &'static str,
    last: Option<&'static str>,
    form: u8,
    values: (u8, u8),
    fields: u16,
) -> Span {
    Span { engine: "SGLang", first, last, form, values, fields, hashes: INTEGER | NEGATIVE }
}

/// In order of release, so that neighbours can be joined. A trailing value that equals its default
/// may be left out, so arrays have a range.
const SPANS: [Span; 14] = [
    // Python's `hash()`, which is signed.
    Span { hashes: INTEGER | NEGATIVE | WIDE, ..vllm("0.9", "0.10.1", (5, 5)) },
    vllm("0.10.2", "0.13", (6, 6)),
    vllm("0.14", "0.16", (7, 7)),
    vllm("0.17", "0.19", (7, 8)),
    vllm("0.20", "0.21", (7, 9)),
    vllm("0.22", "0.23", (7, 11)),
    vllm_map("0.24", Some("0.25"), up_to(Field::SlidingWindow)),
    vllm_map("0.26", Some("0.28"), up_to(Field::Locality)),
    vllm_map("0.29", Some("0.29"), up_to(Field::Ownership)),
    vllm_map("0.30", Some("0.32"), up_to(Field::SessionId)),
    vllm_map("0.33", None, up_to(Field::Lookahead)),
    sglang("0.4.9", Some("0.5.8"), ARRAY, (5, 5), !0),
    sglang("0.5.9", Some("0.5.19"), ARRAY, (6, 6), !0),
    // `lora_name` came with 0.5.22 within this form; see `releases`.
    sglang("0.5.20", None, MAP, (0, 0), SGLANG_FIELDS),
];

/// Releases of one engine, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Releases {
    /// `vLLM`, `SGLang` or `TensorRT-LLM`.
    pub engine: &'static str,
    /// Empty when every release writes so.
    pub first: &'static str,
    /// `None` when the newest known one writes so.
    pub last: Option<&'static str>,
}

impl fmt::Display for Releases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            ("", _) => f.write_str(self.engine),
            (first, None) => write!(f, "{} {first} or later", self.engine),
            (first, Some(last)) if last == first => write!(f, "{} {first}", self.engine),
            (first, Some(last)) => write!(f, "{} {first} to {last}", self.engine),
        }
    }
}

impl Encoding {
    /// TensorRT-LLM's event list.
    pub(crate) fn list() -> Self {
        Self { forms: LIST, hashes: INTEGER, ..Self::default() }
    }

    pub(crate) fn saw_array(&mut self) {
        self.forms |= ARRAY;
    }

    pub(crate) fn saw_map(&mut self) {
        self.forms |= MAP;
    }

    pub(crate) fn saw_stored_values(&mut self, count: usize) {
        let count = u8::try_from(count).unwrap_or(u8::MAX);
        let (least, most) = self.values.unwrap_or((count, count));
        self.values = Some((least.min(count), most.max(count)));
    }

    pub(crate) fn saw_field(&mut self, field: Field) {
        self.fields |= bit(field);
    }

    pub(crate) fn saw_hash_bytes(&mut self) {
        self.hashes |= BYTES;
    }

    pub(crate) fn saw_hash_unsigned(&mut self, hash: u64) {
        self.hashes |= if hash > i64::MAX as u64 { WIDE } else { INTEGER };
    }

    pub(crate) fn saw_hash_negative(&mut self) {
        self.hashes |= NEGATIVE;
    }

    /// Takes what another batch of the source showed.
    pub fn merge(&mut self, other: &Self) {
        self.forms |= other.forms;
        self.hashes |= other.hashes;
        self.fields |= other.fields;
        self.values = match (self.values, other.values) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
    }

    /// How events are written: `arrays`, `maps`, `list`; `None` before the first.
    pub fn form(&self) -> Option<&'static str> {
        match self.forms {
            0 => None,
            ARRAY => Some("arrays"),
            MAP => Some("maps"),
            LIST => Some("list"),
            _ => Some("mixed"),
        }
    }

    /// What block hashes are: `u64`, `i64`, `bytes`, `integers` while neither sign nor size tells.
    pub fn hash_kind(&self) -> Option<&'static str> {
        match self.hashes {
            0 => None,
            INTEGER => Some("integers"),
            kinds if kinds & !(INTEGER | WIDE) == 0 => Some("u64"),
            kinds if kinds & !(INTEGER | NEGATIVE) == 0 => Some("i64"),
            BYTES => Some("bytes"),
            _ => Some("mixed"),
        }
    }

    /// Fields of `BlockStored` that were there and that not every release has.
    pub fn fields(&self) -> Vec<&'static str> {
        let named = FIELD_NAMES.iter().enumerate();
        named.filter(|(at, _)| self.fields & (1 << at) != 0).map(|(_, name)| *name).collect()
    }

    /// The releases that write so, neighbours joined; none when nothing was seen, or when no known
    /// release writes so.
    pub fn releases(&self) -> Vec<Releases> {
        if self.forms == LIST {
            return vec![Releases { engine: "TensorRT-LLM", first: "", last: None }];
        }
        let mut releases: Vec<Releases> = Vec::new();
        let mut is_neighbour = false;
        for span in &SPANS {
            let fits = self.fits(span);
            let mut first = span.first;
            if span.engine == "SGLang"
                && self.forms == MAP
                && self.fields & bit(Field::LoraName) != 0
            {
                first = "0.5.22";
            }
            match releases.last_mut() {
                Some(open) if fits && is_neighbour && open.engine == span.engine => {
                    open.last = span.last;
                }
                _ if fits => {
                    releases.push(Releases { engine: span.engine, first, last: span.last });
                }
                _ => {}
            }
            is_neighbour = fits;
        }
        releases
    }

    fn fits(&self, span: &Span) -> bool {
        self.forms == span.form
            && self.hashes & !span.hashes == 0
            && self.fields & !span.fields == 0
            && self.values.is_none_or(|(least, most)| {
                span.form == MAP || (least >= span.values.0 && most <= span.values.1)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(encoding: Encoding, expected: &str) {
        let releases: Vec<String> = encoding.releases().iter().map(Releases::to_string).collect();
        assert_eq!(releases.join(" | "), expected, "{encoding:?}");
    }

    fn arrays(values: usize) -> Encoding {
        let mut encoding = Encoding::default();
        encoding.saw_array();
        encoding.saw_stored_values(values);
        encoding
    }

    fn map(fields: &[Field]) -> Encoding {
        let mut encoding = Encoding::default();
        encoding.saw_map();
        fields.iter().for_each(|field| encoding.saw_field(*field));
        encoding
    }

    #[test]
    fn only_what_is_seen_is_proven() {
        check(Encoding::default(), "");
        check(arrays(5), "vLLM 0.9 to 0.10.1 | SGLang 0.4.9 to 0.5.8");
        check(arrays(6), "vLLM 0.10.2 to 0.13 | SGLang 0.5.9 to 0.5.19");
        check(arrays(7), "vLLM 0.14 to 0.23");
        check(arrays(8), "vLLM 0.17 to 0.23");
        check(arrays(11), "vLLM 0.22 to 0.23");
        check(map(&[]), "vLLM 0.24 or later | SGLang 0.5.20 or later");
        check(map(&[Field::LoraName]), "vLLM 0.24 or later | SGLang 0.5.22 or later");
        check(map(&[Field::Group]), "vLLM 0.24 or later");
        check(map(&[Field::Locality]), "vLLM 0.26 or later");
        check(map(&[Field::Ownership]), "vLLM 0.29 or later");
        check(map(&[Field::Lookahead]), "vLLM 0.33 or later");
        check(map(&[Field::CacheSalt]), "SGLang 0.5.20 or later");
        check(Encoding::list(), "TensorRT-LLM");
    }

    #[test]
    fn hashes_tell_engines_apart() {
        let with = |mut encoding: Encoding, saw: fn(&mut Encoding)| {
            saw(&mut encoding);
            encoding
        };
        check(with(arrays(6), |e| e.saw_hash_unsigned(u64::MAX)), "vLLM 0.10.2 to 0.13");
        check(with(arrays(6), Encoding::saw_hash_negative), "SGLang 0.5.9 to 0.5.19");
        check(with(arrays(6), Encoding::saw_hash_bytes), "vLLM 0.10.2 to 0.13");
        check(with(map(&[]), Encoding::saw_hash_negative), "SGLang 0.5.20 or later");
        check(with(arrays(7), Encoding::saw_hash_negative), "");
        let unclear = with(map(&[]), |e| e.saw_hash_unsigned(7));
        assert_eq!(unclear.hash_kind(), Some("integers"));
        assert_eq!(with(unclear, Encoding::saw_hash_negative).hash_kind(), Some("i64"));
        assert_eq!(with(unclear, |e| e.saw_hash_unsigned(1 << 63)).hash_kind(), Some("u64"));
    }

    #[test]
    fn batches_add_up_and_two_writers_are_none() {
        let mut encoding = arrays(7);
        encoding.merge(&arrays(9));
        check(encoding, "vLLM 0.20 to 0.23");
        encoding.merge(&map(&[Field::Locality]));
        check(encoding, "");
        assert_eq!(encoding.form(), Some("mixed"));
        assert_eq!(encoding.fields(), ["locality"]);
    }
}
