//! Why a file is not imported at all.

use std::path::{Path, PathBuf};

/// Why a file is refused. As llm-d does, an unknown key is an error and not a warning.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file could not be read.
    #[error("{}: reading it: {source}", file.display())]
    Read {
        /// The file as it was named.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("{}{}: {message}", file.display(), at(*line))]
    Syntax {
        /// The file as it was named.
        file: PathBuf,
        /// Line, from 1; 0 when the reader has no position.
        line: u64,
        /// What the reader said.
        message: String,
    },
    /// No EndpointPickerConfig, or several.
    #[error("{}: {message}", file.display())]
    Kind {
        /// The file as it was named.
        file: PathBuf,
        /// What was found and what is accepted.
        message: String,
    },
    /// A key that is not accepted there.
    #[error("{}{}: {}: unknown key: expected one of {}", file.display(), at(*line), joined(path, key), listed(accepted))]
    Key {
        /// The file as it was named.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The place it is in, like `plugins[2].parameters`.
        path: String,
        /// The key.
        key: String,
        /// What is accepted there.
        accepted: Vec<String>,
    },
    /// A value that is not accepted there.
    #[error("{}{}: {path}: {value} is not accepted: expected {expected}", file.display(), at(*line))]
    Value {
        /// The file as it was named.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The place it is in.
        path: String,
        /// What was found.
        value: String,
        /// What is accepted.
        expected: String,
    },
}

fn at(line: u64) -> String {
    if line == 0 { String::new() } else { format!(":{line}") }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn listed(accepted: &[String]) -> String {
    if accepted.is_empty() { "none, it has no keys".to_owned() } else { accepted.join(", ") }
}

/// The file that messages name, and what precedes the configuration in it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub file: PathBuf,
    /// Lines of the file before the configuration's own first line.
    pub skipped_lines: u64,
}

impl Place {
    pub(super) fn of(file: &Path) -> Self {
        Self { file: file.to_owned(), skipped_lines: 0 }
    }

    pub(super) fn syntax(&self, line: u64, message: String) -> ImportError {
        let line = if line == 0 { 0 } else { line + self.skipped_lines };
        ImportError::Syntax { file: self.file.clone(), line, message }
    }

    pub(super) fn kind(&self, message: impl Into<String>) -> ImportError {
        ImportError::Kind { file: self.file.clone(), message: message.into() }
    }

    pub(super) fn value(
        &self,
        line: u64,
        path: &str,
        value: impl Into<String>,
        expected: impl Into<String>,
    ) -> ImportError {
        ImportError::Value {
            file: self.file.clone(),
            line,
            path: path.to_owned(),
            value: value.into(),
            expected: expected.into(),
        }
    }
}
