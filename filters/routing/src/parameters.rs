//! A plugin's parameters, from JSON.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

/// Reads a struct and refuses what it has no field for, whatever its author derived, and puts the
/// key before every message, also within structs. serde's own `deny_unknown_fields` is easily
/// forgotten, and its errors of type name no key.
pub fn read_parameters<T: DeserializeOwned>(parameters: Map<String, Value>) -> Result<T, Error> {
    T::deserialize(Parameters(parameters))
}

struct Parameters(Map<String, Value>);

impl<'de> Deserializer<'de> for Parameters {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Pairs { rest: self.0.into_iter(), next: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Some(key) = self.0.keys().find(|key| !fields.contains(&key.as_str())) {
            return Err(match fields {
                [] => Error::custom(format!("unknown key `{key}`, there are none")),
                known => {
                    Error::custom(format!("unknown key `{key}`, expected {}", known.join(", ")))
                }
            });
        }
        self.deserialize_any(visitor)
    }

    // A scorer without parameters may be a unit struct.
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0.keys().next() {
            Some(key) => Err(Error::custom(format!("unknown key `{key}`, there are none"))),
            None => visitor.visit_unit(),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Pairs {
    rest: serde_json::map::IntoIter,
    next: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Pairs {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next = self.rest.next();
        let Some((key, _)) = &self.next else { return Ok(None) };
        seed.deserialize(StrDeserializer::<Error>::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, value)) = self.next.take() else { return Err(Error::custom("no value")) };
        seed.deserialize(Nested(value)).map_err(|source| Error::custom(format!("{key}: {source}")))
    }
}

/// A value within: structs in it are read as the outermost is.
struct Nested(Value);

impl<'de> Deserializer<'de> for Nested {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => Parameters(map).deserialize_struct(name, fields, visitor),
            other => other.deserialize_struct(name, fields, visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// Why parameters were refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {value} is not accepted: expected {accepted}")]
pub struct ParameterError {
    /// The key, with dots where it lies within another one; empty when no single one is at fault.
    pub key: String,
    /// What was found.
    pub value: String,
    /// What is accepted.
    pub accepted: String,
}

impl From<crate::OutOfRange> for ParameterError {
    fn from(error: crate::OutOfRange) -> Self {
        Self { key: error.key.to_owned(), value: error.value, accepted: error.accepted }
    }
}

impl From<Error> for ParameterError {
    /// Takes the message apart that [`read_parameters`] made: serde's own form after the keys.
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let (mut keys, mut rest) = (Vec::new(), message.as_str());
        while let Some((key, more)) = rest.split_once(": ")
            && !key.contains(' ')
        {
            keys.push(key.to_owned());
            rest = more;
        }
        let quoted = |text: &str| text.replace('`', "\"");
        let (value, accepted) = rest.split_once(", expected ").unwrap_or((rest, ""));
        if let Some(key) = rest.strip_prefix("missing field `") {
            keys.push(key.trim_end_matches('`').to_owned());
            return Self::of(keys, "nothing", "a value");
        }
        if let Some(key) = rest.strip_prefix("unknown key `") {
            let (key, known) = key.split_once("`, ").unwrap_or((key, ""));
            keys.push(key.to_owned());
            let known = known.strip_prefix("expected ").map(|known| format!("one of {known}"));
            let none = || "no parameters".to_owned();
            return Self::of(keys, "a value", &known.unwrap_or_else(none));
        }
        for form in ["invalid type: ", "invalid value: ", "unknown variant "] {
            if let Some(value) = value.strip_prefix(form) {
                // "string \"much\"", "integer `7`": the value is what is quoted.
                let value = quoted(value);
                let shown = value.split_once(' ').map_or(value.as_str(), |(_, shown)| shown);
                let shown = match form {
                    "unknown variant " => value.as_str(),
                    _ if shown.starts_with('"') && value.starts_with("string ") => shown,
                    _ => shown.trim_matches('"'),
                };
                return Self::of(keys, shown, &expected(&quoted(accepted)));
            }
        }
        Self::of(keys, "a value", rest)
    }
}

impl ParameterError {
    fn of(keys: Vec<String>, value: &str, accepted: &str) -> Self {
        Self { key: keys.join("."), value: value.to_owned(), accepted: accepted.to_owned() }
    }
}

/// Rust's names of types, in a user's words.
fn expected(accepted: &str) -> String {
    match accepted {
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "text".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") => "keys and values".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(rename_all = "camelCase")]
    enum Kind {
        Least,
        Most,
    }

    #[derive(Deserialize, Debug, PartialEq, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Outer {
        at_most: f32,
        kind: Option<Kind>,
        inner: Option<Inner>,
        names: Vec<String>,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    struct Inner {
        n: f64,
    }

    #[derive(Deserialize, Debug)]
    struct Plain;

    fn read<T: DeserializeOwned>(json: &str) -> Result<T, ParameterError> {
        Ok(read_parameters(serde_json::from_str(json).unwrap())?)
    }

    #[test]
    fn structs_within_are_read() {
        let outer: Outer =
            read(r#"{"atMost":1,"kind":"least","inner":{"n":2},"names":["a"]}"#).unwrap();
        let inner = Some(Inner { n: 2.0 });
        let names = vec!["a".to_owned()];
        assert_eq!(outer, Outer { at_most: 1.0, kind: Some(Kind::Least), inner, names });
        assert_eq!(read::<Outer>(r#"{"inner":null}"#), Ok(Outer::default()));
        assert!(read::<Plain>("{}").is_ok());
    }

    #[test]
    fn errors_name_key_value_and_what_is_accepted() {
        let check = |json: &str, expected: &str| {
            assert_eq!(read::<Outer>(json).unwrap_err().to_string(), expected, "{json}");
        };
        let accepted = "is not accepted: expected";
        check(r#"{"atMost":"much"}"#, &format!("atMost: \"much\" {accepted} a number"));
        check(r#"{"atMost":[1]}"#, &format!("atMost: sequence {accepted} a number"));
        check(
            r#"{"atMots":1}"#,
            &format!("atMots: a value {accepted} one of atMost, kind, inner, names"),
        );
        check(r#"{"inner":{"m":1}}"#, &format!("inner.m: a value {accepted} one of n"));
        check(r#"{"inner":{"n":"x"}}"#, &format!("inner.n: \"x\" {accepted} a number"));
        check(r#"{"inner":{}}"#, &format!("inner.n: nothing {accepted} a value"));
        check(r#"{"inner":7}"#, &format!("inner: 7 {accepted} keys and values"));
        check(r#"{"names":7}"#, &format!("names: 7 {accepted} a list"));
        check(r#"{"names":[7]}"#, &format!("names: 7 {accepted} text"));
        check(r#"{"kind":"some"}"#, &format!("kind: \"some\" {accepted} \"least\" or \"most\""));
        assert_eq!(
            read::<Plain>(r#"{"x":1}"#).unwrap_err().to_string(),
            format!("x: a value {accepted} no parameters")
        );
    }
}
