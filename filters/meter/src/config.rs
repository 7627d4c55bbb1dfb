//! Plugin configuration, written by `wasm-epp render`.

use crate::json::{number, whole_object};

/// Longest body that may be configured: the buffer limit of the route is 16 MiB.
const MAX_BODY_BYTES: usize = (16 << 20) - 1;

/// Why a configuration was refused. The gateway then keeps the one it has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("configuration of meter is no JSON object")]
    NotAnObject,
    /// A key that this build does not know.
    #[error("configuration of meter: unknown key {0}")]
    UnknownKey(String),
    /// A key is missing, or its value outside its range.
    #[error("configuration of meter: {key} is {value}, accepted is {accepted}")]
    Range {
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        accepted: String,
    },
}

/// Configuration of the meter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MeterConfig {
    /// Ask streams for their usage, and take the extra event out of the answer.
    pub include_usage: bool,
    /// Longer request bodies are not changed.
    pub max_body_bytes: usize,
}

impl MeterConfig {
    /// Parses and checks.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let (mut include_usage, mut max_body_bytes, mut unknown) = (None, None, None);
        let is_object = whole_object(json, |field| match field.key {
            b"includeUsage" => include_usage = Some(field.value),
            b"maxBodyBytes" => max_body_bytes = Some(field.value),
            other => unknown = Some(String::from_utf8_lossy(other).into_owned()),
        });
        is_object.ok_or(ConfigError::NotAnObject)?;
        if let Some(key) = unknown {
            return Err(ConfigError::UnknownKey(key));
        }
        let range = |key, value: Option<&[u8]>, accepted: String| ConfigError::Range {
            key,
            value: value.map_or("missing".into(), |v| String::from_utf8_lossy(v).into_owned()),
            accepted,
        };
        let max = max_body_bytes.and_then(number).and_then(|bytes| usize::try_from(bytes).ok());
        let max = max.filter(|bytes| (1..=MAX_BODY_BYTES).contains(bytes));
        Ok(Self {
            include_usage: match include_usage {
                Some(b"true") => true,
                Some(b"false") => false,
                other => return Err(range("includeUsage", other, "true or false".into())),
            },
            max_body_bytes: max.ok_or_else(|| {
                range("maxBodyBytes", max_body_bytes, format!("1 to {MAX_BODY_BYTES}"))
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_key_value_and_range() {
        let refused = |json: &str| MeterConfig::parse(json.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            refused(r#"{"includeUsage":true,"maxBodyBytes":0}"#),
            "configuration of meter: maxBodyBytes is 0, accepted is 1 to 16777215"
        );
        assert_eq!(
            refused(r#"{"includeUsage":"yes","maxBodyBytes":1}"#),
            "configuration of meter: includeUsage is \"yes\", accepted is true or false"
        );
        assert!(refused(r#"{"maxBodyBytes":1}"#).contains("includeUsage is missing"));
        let unknown = refused(r#"{"includeUsage":true,"maxBodyBytes":1,"x":1}"#);
        assert_eq!(unknown, "configuration of meter: unknown key x");
        assert_eq!(refused(""), "configuration of meter is no JSON object");
        let good = MeterConfig::parse(br#"{"includeUsage":false,"maxBodyBytes":7}"#).unwrap();
        assert_eq!(good, MeterConfig { include_usage: false, max_body_bytes: 7 });
    }
}
