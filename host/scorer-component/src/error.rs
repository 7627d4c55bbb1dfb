//! What can go wrong, by what a caller can do about it.

/// Why a component was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No component can run here.
    #[error("compiling components on this machine: {0}")]
    Unsupported(String),
    /// Not the bytes of a component.
    #[error("not a component: {0}")]
    NotAComponent(String),
    /// A component of another world, or of an incompatible version of the package.
    #[error("not a component of the world wasm-epp:scoring/scoring: {0}")]
    OtherWorld(String),
}

/// Why a scorer was not configured.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ConfigureError {
    /// It does not accept the parameters; its own words.
    #[error("parameters refused: {0}")]
    Refused(String),
    /// It came to no answer.
    #[error("while it was configured: {0}")]
    Failed(#[from] CallError),
}

/// Why a call has no answer.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// It took too long.
    #[error("more than {fuel} fuel used in one call")]
    OutOfFuel {
        /// The limit.
        fuel: u64,
    },
    /// It asked for too much memory.
    #[error("{wanted_bytes} bytes of memory wanted, accepted is up to {limit_bytes}")]
    OutOfMemory {
        /// What it would have had.
        wanted_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// It trapped: a panic, a stack that overflowed, an access outside its memory.
    #[error("trapped: {0}")]
    Trap(String),
    /// There is not one score per candidate.
    #[error("{found} scores, accepted is {expected}: one per candidate")]
    ScoreCount {
        /// Candidates.
        expected: usize,
        /// Scores.
        found: usize,
    },
    /// A score is infinite or no number.
    #[error("score of candidate {candidate} is {score}, accepted is 0 to 1")]
    NotFinite {
        /// Its place among the candidates.
        candidate: usize,
        /// The score.
        score: f32,
    },
}

/// An error of wasmtime's with its sources, in one line.
pub(crate) fn one_line(error: &wasmtime::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
