//! A module's configuration: `{"name": NAME, "parameters": {...}, "revision": NUMBER}`.

use routing::{OutOfRange, Scorer, read_parameters};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Error, Map, Value};

/// Why a configuration was refused. The gateway then keeps the one it has.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not `{"name": NAME, "parameters": {...}}`.
    #[error("configuration of a scorer: {0}")]
    Shape(Error),
    /// The name cannot be part of a property's name.
    #[error("configuration of a scorer: name is {0:?}, accepted is 1 to 64 of a-z, 0-9 and -")]
    Name(String),
    /// An unknown or missing parameter, or one of another type.
    #[error("configuration of scorer {name}: parameters: {source}")]
    Parameter {
        /// The scorer.
        name: String,
        /// What is wrong, with the key.
        source: Error,
    },
    /// A parameter outside its range.
    #[error("configuration of scorer {name}: parameters: {source}")]
    Range {
        /// The scorer.
        name: String,
        /// Key, value and range.
        source: OutOfRange,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    revision: u32,
}

/// A configuration that was accepted.
pub(crate) struct Parsed<S> {
    pub(crate) name: String,
    /// Said with every score, so that a gateway can tell which configuration scored; 0 if not given.
    pub(crate) revision: u32,
    pub(crate) scorer: S,
}

/// Reads a configuration.
pub(crate) fn parse<S: Scorer + DeserializeOwned>(json: &[u8]) -> Result<Parsed<S>, ConfigError> {
    let Envelope { name, parameters, revision } =
        serde_json::from_slice(json).map_err(ConfigError::Shape)?;
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !(1..=64).contains(&name.len()) || !name.bytes().all(is_plain) {
        return Err(ConfigError::Name(name));
    }
    match read_parameters::<S>(parameters) {
        Err(source) => Err(ConfigError::Parameter { name, source }),
        Ok(scorer) => match scorer.check() {
            Err(source) => Err(ConfigError::Range { name, source }),
            Ok(()) => Ok(Parsed { name, revision, scorer }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use routing::{Candidate, PickHistory, RequestFeatures};

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Two {
        at_most: f32,
        #[serde(default)]
        names: Vec<String>,
    }

    impl Scorer for Two {
        fn score(&self, _: &RequestFeatures, _: &[Candidate], _: &PickHistory) -> Vec<Option<f32>> {
            Vec::new()
        }
        fn check(&self) -> Result<(), OutOfRange> {
            OutOfRange::unless_within("atMost", self.at_most, 0.0..=1.0)
        }
    }

    #[derive(Deserialize, Debug)]
    struct Plain;

    impl Scorer for Plain {
        fn score(&self, _: &RequestFeatures, _: &[Candidate], _: &PickHistory) -> Vec<Option<f32>> {
            Vec::new()
        }
    }

    fn refused<S: Scorer + DeserializeOwned>(json: &str) -> String {
        parse::<S>(json.as_bytes()).err().unwrap().to_string()
    }

    #[test]
    fn parameters_are_the_scorers_fields() {
        let json = br#"{"name":"a-1","parameters":{"names":["x"],"atMost":0.5},"revision":9}"#;
        let Parsed { name, revision, scorer } = parse::<Two>(json).unwrap();
        assert_eq!((name.as_str(), revision), ("a-1", 9));
        assert_eq!(scorer, Two { at_most: 0.5, names: vec!["x".into()] });
        assert!(parse::<Plain>(br#"{"name":"a"}"#).is_ok());
        assert!(parse::<Plain>(br#"{"name":"a","parameters":{}}"#).is_ok());
    }

    #[test]
    fn errors_name_key_value_and_range() {
        let two = |parameters: &str| {
            refused::<Two>(&format!(r#"{{"name":"a","parameters":{parameters}}}"#))
        };
        let of = "configuration of scorer a: parameters: ";
        assert_eq!(two(r#"{"atMost":1.5}"#), format!("{of}atMost is 1.5, accepted is 0 to 1"));
        assert_eq!(
            two(r#"{"atMots":1}"#),
            format!("{of}unknown key `atMots`, expected atMost, names")
        );
        assert_eq!(two("{}"), format!("{of}missing field `atMost`"));
        let typed = two(r#"{"atMost":"much"}"#);
        assert_eq!(typed, format!("{of}atMost: invalid type: string \"much\", expected f32"));
        assert!(
            two(r#"{"atMost":0,"names":[1]}"#).starts_with(&format!("{of}names: invalid type"))
        );
        assert_eq!(
            refused::<Plain>(r#"{"name":"a","parameters":{"x":1}}"#),
            format!("{of}unknown key `x`, there are none")
        );
        assert!(refused::<Plain>("").starts_with("configuration of a scorer: EOF"));
        assert!(refused::<Plain>(r#"{"name":"a","parameter":{}}"#).contains("`parameter`"));
        assert!(refused::<Plain>(r#"{"name":"a.b"}"#).contains("name is \"a.b\", accepted"));
    }
}
