//! JSON files that remember their name, so that every complaint can give it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ModelError;

/// Longest value quoted in an error message, in characters.
const QUOTED_CHARS: usize = 120;

/// A parsed file and where it came from.
pub(crate) struct JsonFile {
    pub(crate) path: PathBuf,
    pub(crate) root: Value,
}

impl JsonFile {
    pub(crate) fn read(path: &Path) -> Result<JsonFile, ModelError> {
        let text = std::fs::read(path)
            .map_err(|source| ModelError::Read { file: path.to_owned(), source })?;
        JsonFile::parse(path, &text)
    }

    /// `None` when the file does not exist; any other failure is an error.
    pub(crate) fn read_if_present(path: &Path) -> Result<Option<JsonFile>, ModelError> {
        match JsonFile::read(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<JsonFile, ModelError> {
        let root = serde_json::from_slice(text)
            .map_err(|source| ModelError::Json { file: path.to_owned(), source })?;
        Ok(JsonFile { path: path.to_owned(), root })
    }

    /// The member of the root object, `None` when absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.root.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn missing(&self, field: impl Into<String>) -> ModelError {
        ModelError::MissingField { file: self.path.clone(), field: field.into() }
    }

    pub(crate) fn unsupported(
        &self,
        field: impl Into<String>,
        value: &Value,
        reason: &'static str,
    ) -> ModelError {
        let mut quoted: String = value.to_string().chars().take(QUOTED_CHARS).collect();
        if quoted.chars().count() == QUOTED_CHARS {
            quoted.push('…');
        }
        ModelError::Unsupported {
            file: self.path.clone(),
            field: field.into(),
            value: quoted,
            reason,
        }
    }
}

/// The `type` member of a tokenizer component, empty when absent.
pub(crate) fn kind(component: &Value) -> &str {
    component.get("type").and_then(Value::as_str).unwrap_or("")
}

/// The component itself, or the parts of a `Sequence` of them (nested ones too), with their field
/// paths. `list` is the member that holds the parts.
pub(crate) fn flatten<'a>(
    field: &str,
    list: &str,
    component: &'a Value,
) -> Vec<(String, &'a Value)> {
    if kind(component) != "Sequence" {
        return vec![(field.to_owned(), component)];
    }
    let parts = component.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    parts
        .iter()
        .enumerate()
        .flat_map(|(i, part)| flatten(&format!("{field}.{list}[{i}]"), list, part))
        .collect()
}
