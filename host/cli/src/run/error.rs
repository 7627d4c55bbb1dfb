//! What can be wrong with what `run` is given, and what can go wrong while it runs.

use std::path::{Path, PathBuf};

use wasm_host::{HostError, LoadError};

use crate::config::ConfigError;
use crate::render::RenderError;

/// Why `run` cannot start or has to stop. A reason is part of the text, and so not told again as its source.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Our own configuration file is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A module of our own configuration file cannot be read.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A file could not be read.
    #[error("{}: reading {what}: {reason}", file.display())]
    Read {
        /// The file as it was named.
        file: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What the system said.
        reason: std::io::Error,
    },
    /// Not YAML or JSON, an unknown key, a missing key, or a value of another type.
    #[error("{}:{line}: {message}", file.display())]
    Shape {
        /// The file as it was named.
        file: PathBuf,
        /// Line, from 1; 0 where the reader has no position.
        line: u64,
        /// What was found, and what is accepted.
        message: String,
    },
    /// A value of the right type that is not accepted.
    #[error("{}: {key}: {value} is not accepted: expected {expected}", file.display())]
    Value {
        /// The file as it was named.
        file: PathBuf,
        /// Path of the key, like `modules[0].failurePolicy`.
        key: String,
        /// The value found.
        value: String,
        /// The accepted range or form.
        expected: String,
    },
    /// A module does not compile, is refused by the host, or refuses its configuration.
    #[error("{}: {key}: {reason}", file.display())]
    Load {
        /// The file that names the module.
        file: PathBuf,
        /// Path of the key that names it.
        key: String,
        /// What the host said.
        reason: Box<LoadError>,
    },
    /// The state of a fixture cannot be put in place.
    #[error("{}: {message}", file.display())]
    State {
        /// The fixture.
        file: PathBuf,
        /// What did not work.
        message: String,
    },
    /// The runtime cannot be set up.
    #[error(transparent)]
    Runtime(Box<LoadError>),
    /// The host refused a call.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A listener cannot be bound.
    #[error("listening on {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The thread that runs the modules has ended.
    #[error("the thread that runs the modules has ended")]
    Ended,
    /// What was asked for is not possible with these flags.
    #[error("{0}")]
    Usage(String),
}

impl RunError {
    /// Whether the user has to mend what was given: exit code 64.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_) | Self::Render(_) | Self::Read { .. } | Self::Shape { .. } => true,
            Self::Value { .. } | Self::Load { .. } | Self::State { .. } | Self::Usage(_) => true,
            Self::Runtime(_) | Self::Host(_) | Self::Listen { .. } | Self::Ended => false,
        }
    }

    pub(super) fn value(
        file: &Path,
        key: impl Into<String>,
        value: impl std::fmt::Debug,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value {
            file: file.to_owned(),
            key: key.into(),
            value: format!("{value:?}"),
            expected: expected.into(),
        }
    }
}

/// A file's text.
pub(super) fn read(file: &Path, what: &'static str) -> Result<String, RunError> {
    std::fs::read_to_string(file).map_err(|reason| RunError::Read {
        file: file.to_owned(),
        what,
        reason,
    })
}

/// YAML of a known shape.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    file: &Path,
    text: &str,
) -> Result<T, RunError> {
    serde_saphyr::from_str(text).map_err(|error| RunError::Shape {
        file: file.to_owned(),
        line: error.location().map_or(0, |at| at.line()),
        message: error.without_snippet().to_string(),
    })
}
