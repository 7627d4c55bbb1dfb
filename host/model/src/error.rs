use std::path::PathBuf;

/// Why a model folder cannot be used. Every variant names the file; most name field and value.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("reading {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("parsing {} as JSON", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// There is no model at the path.
    #[error("{}: {reason}", path.display())]
    Layout {
        /// What was given.
        path: PathBuf,
        /// What it is not.
        reason: String,
    },
    /// A field that is needed is absent.
    #[error("{}: field {field} is missing", file.display())]
    MissingField {
        /// The file.
        file: PathBuf,
        /// Path of the field inside it.
        field: String,
    },
    /// A field has a value that this crate cannot reproduce exactly.
    #[error("{}: field {field} has unsupported value {value}: {reason}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// Path of the field inside it.
        field: String,
        /// The offending value, shortened.
        value: String,
        /// What stands in the way.
        reason: &'static str,
    },
}

impl ModelError {
    /// True when a file does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, ModelError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}
