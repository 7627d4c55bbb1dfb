//! Scorers as WebAssembly components: the host's side of `wit/scorer.wit`.
//!
//! A component gets what a call passes and nothing else: it has no imports. Each call has a limit of
//! fuel (about an instruction each) and each instance one of memory, so that whatever a component does
//! ends as a typed error. After an error the instance is gone; the next call starts another one, so
//! that one bad request costs one answer.
//!
//! ```no_run
//! use routing::{Candidate, PickHistory, RequestFeatures};
//! use scorer_component::{Limits, Runtime};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::new(Limits::default())?;
//! let component = runtime.load(&std::fs::read("load-aware-scorer.wasm")?)?;
//! let mut scorer = component.configure(r#"{"threshold": 64}"#)?;
//! let candidates = [Candidate::default()];
//! let scores =
//!     scorer.score(&RequestFeatures::default(), &candidates, &PickHistory::default())?;
//! assert_eq!(scores.len(), candidates.len());
//! # Ok(())
//! # }
//! ```

mod bindings;
mod convert;
mod error;
mod instance;

use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine};

use bindings::ScoringPre;
use error::one_line;
use instance::State;

pub use error::{CallError, ConfigureError, LoadError};
pub use instance::ScorerComponent;

/// What one component may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Fuel of one call; an instruction takes about one.
    pub fuel: u64,
    /// Linear memory of one instance, in bytes.
    pub memory_bytes: usize,
}

impl Default for Limits {
    /// Fuel for some hundred times what the built-in scorers take for 100 endpoints, which no machine
    /// computes for longer than about a second, and 64 MiB.
    fn default() -> Self {
        Self { fuel: 500_000_000, memory_bytes: 64 << 20 }
    }
}

/// Compiles components. One for a process.
pub struct Runtime {
    engine: Engine,
    linker: Linker<State>,
    limits: Limits,
}

impl Runtime {
    /// A runtime whose components have these limits.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] where code cannot be compiled for this machine.
    pub fn new(limits: Limits) -> Result<Self, LoadError> {
        let mut config = Config::new();
        config.consume_fuel(true);
        let engine = Engine::new(&config).map_err(|e| LoadError::Unsupported(one_line(&e)))?;
        let linker = Linker::new(&engine);
        Ok(Self { engine, linker, limits })
    }

    /// Compiles a component.
    ///
    /// # Errors
    /// [`LoadError::NotAComponent`] for other bytes, core modules (what Envoy loads) among them, and
    /// [`LoadError::OtherWorld`] when it imports anything, or does not export the interface.
    pub fn load(&self, bytes: &[u8]) -> Result<LoadedComponent, LoadError> {
        let component = Component::from_binary(&self.engine, bytes)
            .map_err(|e| LoadError::NotAComponent(one_line(&e)))?;
        let pre = self
            .linker
            .instantiate_pre(&component)
            .and_then(ScoringPre::new)
            .map_err(|e| LoadError::OtherWorld(one_line(&e)))?;
        Ok(LoadedComponent { pre, limits: self.limits })
    }
}

/// A compiled component, of which any number of scorers can be configured.
pub struct LoadedComponent {
    pre: ScoringPre<State>,
    limits: Limits,
}

impl LoadedComponent {
    /// A scorer with these parameters, the text of a JSON object.
    ///
    /// # Errors
    /// [`ConfigureError::Refused`] with the component's own words when it does not accept them, and
    /// [`ConfigureError::Failed`] when it does not come to an answer.
    pub fn configure(&self, parameters: &str) -> Result<ScorerComponent, ConfigureError> {
        ScorerComponent::new(self.pre.clone(), self.limits, parameters)
    }
}
