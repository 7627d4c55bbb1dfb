//! What can be wrong with a configuration file.

use std::path::{Path, PathBuf};

/// Why a configuration file is refused. Every message is one a person can act on without reading
/// the source: it names the file and the place in it, what was found, and what is accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: reading the configuration: {source}", file.display())]
    Read {
        /// The file as it was named.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not YAML, an unknown key, a missing key, or a value of another type.
    #[error("{}:{line}:{column}: {message}{}", file.display(), quoted(text))]
    Shape {
        /// The file as it was named.
        file: PathBuf,
        /// Line, from 1; 0 when the reader has no position.
        line: u64,
        /// Column, from 1; 0 when the reader has no position.
        column: u64,
        /// What was found and what is accepted there.
        message: String,
        /// The line itself, without blanks around it.
        text: String,
    },
    /// A value of the right type that is not accepted.
    #[error("{}: {key}: {value} is not accepted: expected {expected}", file.display())]
    Value {
        /// The file as it was named.
        file: PathBuf,
        /// Path of the key, like `pools[0].endpoints[1].address`.
        key: String,
        /// The value found, quoted when it is text.
        value: String,
        /// The accepted range or form.
        expected: String,
    },
}

impl ConfigError {
    pub(super) fn shape(file: &Path, content: &str, error: &serde_saphyr::Error) -> Self {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        // The position belongs in front of the message, where editors and terminals make a link
        // of it, and once.
        let message = error.without_snippet().to_string();
        let position = format!(" at line {line}, column {column}");
        let message = plain(message.strip_suffix(&position).unwrap_or(&message));
        let index = usize::try_from(line).unwrap_or(0).checked_sub(1);
        let text = index.and_then(|index| content.lines().nth(index)).unwrap_or_default().trim();
        Self::Shape { file: file.to_owned(), line, column, message, text: text.to_owned() }
    }
}

/// The YAML reader's messages that speak of its events and options, in the user's words.
fn plain(message: &str) -> String {
    match message.split(", set DuplicateKeyPolicy").next().unwrap_or(message) {
        "invalid i64" => "expected a whole number",
        "invalid f64" | "invalid floating point" => "expected a number",
        "expected mapping start" => "expected keys and values",
        "expected sequence start" => "expected a list",
        "expected string scalar" => "expected text",
        "unexpected end of input" => "the file is empty, or ends too early",
        other => other,
    }
    .to_owned()
}

/// The end of a message that shows a line of the file, cut where it would fill the screen.
fn quoted(text: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    match (text.is_empty(), text.char_indices().nth(SHOWN_CHARS)) {
        (true, _) => String::new(),
        (false, None) => format!("\n  {text}"),
        (false, Some((end, _))) => format!("\n  {} ...", &text[..end]),
    }
}

/// A refused value before the file's name is known.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) expected: String,
}

impl Refused {
    pub(super) fn new(
        key: impl Into<String>,
        value: impl std::fmt::Debug,
        expected: impl Into<String>,
    ) -> Self {
        Self { key: key.into(), value: format!("{value:?}"), expected: expected.into() }
    }

    pub(super) fn in_file(self, file: &Path) -> ConfigError {
        ConfigError::Value {
            file: file.to_owned(),
            key: self.key,
            value: self.value,
            expected: self.expected,
        }
    }
}
