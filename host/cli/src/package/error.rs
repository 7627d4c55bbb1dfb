//! Why there is no package.

use std::path::PathBuf;

/// What a person or a release script may do something about.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Something is there, which may not be ours to replace.
    #[error("{} exists and is not empty: name another folder with --out", .0.display())]
    Occupied(PathBuf),
    /// A module is no module.
    #[error("{} is no WebAssembly module: it does not begin with \\0asm and version 1", .0.display())]
    NotWasm(PathBuf),
    /// Two modules would be one image.
    #[error("two modules are called {0}: an image is named after its file")]
    Twice(String),
    /// The daemon's binary cannot run without a libc and a loader beside it.
    #[error(
        "{} {what}: an image without a libc needs one of `cargo build --release --target \
         x86_64-unknown-linux-musl`", path.display()
    )]
    Binary {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// A name that the archive's format has no room for.
    #[error("the path {0:?} in an image is longer than 100 bytes")]
    LongName(String),
    /// Cargo did not say which crates there are.
    #[error("asking cargo for the crates of {of}: {why}")]
    Crates {
        /// What the list is of.
        of: &'static str,
        /// Its message, or what it said that was not expected.
        why: String,
    },
    /// The system refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
