//! A JSON tree that borrows its strings from the body and keeps what Python's parser keeps: the
//! order of keys, and of duplicate keys the last value at the place of the first.

use std::borrow::Cow;
use std::fmt;

use minijinja::Value;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::error::Refusal;
use crate::number::float_value;

/// Any JSON value. Depth is bounded by serde_json's limit of 128 levels, so recursion over a tree
/// is bounded too.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Str(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    /// Pairs as written. Duplicates are resolved by [`Json::get`] and [`Json::to_value`].
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl<'a> Json<'a> {
    /// The value of `key`, the last one if there are several; `None` also if this is no object.
    pub(crate) fn get(&self, key: &str) -> Option<&Json<'a>> {
        match self {
            Json::Object(pairs) => pairs.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// Like [`Json::get`], with Python's `None` read as absent.
    pub(crate) fn get_some(&self, key: &str) -> Option<&Json<'a>> {
        self.get(key).filter(|value| !matches!(value, Json::Null))
    }

    /// The same value, borrowing its strings.
    pub(crate) fn reborrow(&self) -> Json<'_> {
        match self {
            Json::Null => Json::Null,
            Json::Bool(value) => Json::Bool(*value),
            Json::Int(value) => Json::Int(*value),
            Json::UInt(value) => Json::UInt(*value),
            Json::Float(value) => Json::Float(*value),
            Json::Str(text) => Json::Str(Cow::Borrowed(text)),
            Json::Array(items) => Json::Array(items.iter().map(Json::reborrow).collect()),
            Json::Object(pairs) => Json::Object(
                pairs
                    .iter()
                    .map(|(key, value)| (Cow::Borrowed(key.as_ref()), value.reborrow()))
                    .collect(),
            ),
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Json::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a template sees it.
    pub(crate) fn to_value(&self) -> Result<Value, Refusal> {
        Ok(match self {
            Json::Null => Value::from(()),
            Json::Bool(value) => Value::from(*value),
            Json::Int(value) => Value::from(*value),
            Json::UInt(value) => Value::from(*value),
            Json::Float(value) => {
                if number_text_is_known(*value) {
                    float_value(*value)
                } else {
                    return Err(Refusal::Number { value: value.to_string() });
                }
            }
            Json::Str(text) => Value::from(text.as_ref()),
            Json::Array(items) => {
                let items: Vec<Value> =
                    items.iter().map(Json::to_value).collect::<Result<_, _>>()?;
                Value::from(items)
            }
            Json::Object(pairs) => {
                let pairs: Vec<(&str, Value)> = pairs
                    .iter()
                    .map(|(key, value)| Ok((key.as_ref(), value.to_value()?)))
                    .collect::<Result<_, Refusal>>()?;
                Value::from_pairs(pairs)
            }
        })
    }
}

/// serde_json reads integers beyond 64 bits, and `-0`, as floats; Python keeps them as integers.
/// A float of that size may have been either, so its text is unknown.
fn number_text_is_known(value: f64) -> bool {
    const TWO_POW_63: f64 = 9_223_372_036_854_775_808.0;
    value.abs() < TWO_POW_63 && (value != 0.0 || value.is_sign_positive())
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(i64::try_from(value).map_or(Json::UInt(value), Json::Int))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Json::Float(value))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Str(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Str(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Json<'de>, E> {
        Ok(Json::Str(Cow::Owned(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            pairs.push((key, map.next_value()?));
        }
        Ok(Json::Object(pairs))
    }
}

/// An object's key, borrowed where it has no escapes.
pub(crate) struct Key<'a>(pub(crate) Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Json<'_> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_last_of_duplicate_keys_wins_at_the_place_of_the_first() {
        // Python: json.loads('{"a":1,"b":2,"a":3}') == {"a": 3, "b": 2}
        let json = parse(r#"{"a":1,"b":2,"a":3}"#);
        assert_eq!(json.get("a"), Some(&Json::Int(3)));
        let value = json.to_value().unwrap();
        let keys: Vec<String> = value.try_iter().unwrap().map(|k| k.to_string()).collect();
        assert_eq!(keys, ["a", "b"]);
        assert_eq!(value.get_attr("a").unwrap(), Value::from(3));
    }

    #[test]
    fn strings_without_escapes_are_borrowed() {
        let Json::Array(items) = parse(r#"["plain","\u00e9\ud83d\ude00\n"]"#) else {
            panic!("not an array");
        };
        assert!(matches!(&items[0], Json::Str(Cow::Borrowed("plain"))));
        assert_eq!(items[1].as_str(), Some("é😀\n"));
    }

    #[test]
    fn numbers_whose_text_is_unknown_are_refused() {
        let reason = |text: &str| parse(text).to_value().map_err(|r| r.reason()).err();
        assert_eq!(reason("-9223372036854775808"), None);
        assert_eq!(reason("18446744073709551615"), None);
        assert_eq!(reason("0.0"), None);
        assert_eq!(reason("[1.5e10]"), None);
        assert_eq!(reason("100000000000000000000"), Some("number"));
        assert_eq!(reason("-0"), Some("number"));
    }
}
