//! Attributes of a stream and the bytes a guest gets for them.

use crate::abi::pairs;
use std::collections::BTreeMap;

/// A value that `proxy_get_property` can reach.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text or raw bytes, handed over as they are.
    Bytes(Vec<u8>),
    /// Eight bytes, little endian. Also times (ns since 1970) and durations (ns).
    Int(i64),
    /// Eight bytes, little endian.
    Uint(u64),
    /// Eight bytes, little endian.
    Double(f64),
    /// One byte.
    Bool(bool),
    /// Serialised as pairs when read whole; otherwise a step of the path picks an entry.
    Map(BTreeMap<Vec<u8>, Value>),
    /// Serialised as pairs whose values are empty; a step of the path is an index.
    List(Vec<Value>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Bytes(text.into_bytes())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Uint(n)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl Value {
    /// A map with no entries.
    pub fn map() -> Self {
        Self::Map(BTreeMap::new())
    }

    /// The bytes that a guest gets.
    pub fn serialize(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Int(n) => n.to_le_bytes().to_vec(),
            Self::Uint(n) => n.to_le_bytes().to_vec(),
            Self::Double(x) => x.to_le_bytes().to_vec(),
            Self::Bool(b) => vec![u8::from(*b)],
            Self::Map(map) => {
                let entries: Vec<_> = map.iter().map(|(k, v)| (k, v.serialize())).collect();
                pairs::encode(entries.iter().map(|(k, v)| (k.as_slice(), v.as_slice())))
            }
            Self::List(list) => {
                let entries: Vec<_> = list.iter().map(Self::serialize).collect();
                pairs::encode(entries.iter().map(|k| (k.as_slice(), [].as_slice())))
            }
        }
    }

    /// The value one step further, as Envoy takes it: an entry of a map, or an index into a list.
    pub fn step(&self, part: &[u8]) -> Option<&Value> {
        match self {
            Self::Map(map) => map.get(part),
            Self::List(list) => list.get(std::str::from_utf8(part).ok()?.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// Puts `value` at `path`, making maps on the way; anything else on the way is replaced.
    pub fn put(&mut self, path: &[&str], value: Value) {
        let Some((first, rest)) = path.split_first() else {
            *self = value;
            return;
        };
        if !matches!(self, Self::Map(_)) {
            *self = Self::map();
        }
        if let Self::Map(map) = self {
            map.entry(first.as_bytes().to_vec()).or_insert_with(Self::map).put(rest, value);
        }
    }
}

/// Parts of a path as Envoy cuts it: at zero bytes, where one at the very end adds no part.
pub(crate) fn parts(path: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == 0).collect();
    if parts.last().is_some_and(|last| last.is_empty()) {
        parts.pop();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_eight_bytes_and_a_bool_one() {
        let check = |value: Value, bytes: &[u8]| assert_eq!(value.serialize(), bytes);
        check(Value::Uint(503), &[0xf7, 1, 0, 0, 0, 0, 0, 0]);
        check(Value::Int(-1), &[0xff; 8]);
        check(Value::Double(1.0), &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        check(Value::Bool(true), &[1]);
        check("text".into(), b"text");
    }

    #[test]
    fn paths_step_through_maps_and_lists() {
        let mut root = Value::map();
        root.put(&["a", "b"], Value::List(vec!["x".into(), "y".into()]));
        let b = root.step(b"a").and_then(|a| a.step(b"b")).unwrap();
        assert_eq!(b.step(b"1"), Some(&"y".into()));
        assert_eq!((b.step(b"2"), b.step(b"-1"), b.step(b"x")), (None, None, None));
        assert_eq!(b.serialize(), b"\x02\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0x\0\0y\0\0");
    }

    #[test]
    fn paths_end_like_envoys() {
        assert_eq!(parts(b"a\0b"), [b"a", b"b"]);
        assert_eq!(parts(b"a\0"), [b"a"]);
        assert_eq!(parts(b"\0a"), [b"".as_slice(), b"a"]);
        assert!(parts(b"").is_empty());
    }
}
