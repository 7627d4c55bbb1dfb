//! One configured scorer: its instance, and what becomes of it when a call fails.

use routing::{Candidate, Needs, PickHistory, RequestFeatures};
use wasmtime::{ResourceLimiter, Store, Trap};

use crate::bindings::{Scoring, ScoringPre};
use crate::error::one_line;
use crate::{CallError, ConfigureError, Limits, convert};

/// A scorer with its parameters.
pub struct ScorerComponent {
    pre: ScoringPre<State>,
    limits: Limits,
    parameters: String,
    needs: Needs,
    /// None after a call that failed.
    instance: Option<Instance>,
}

struct Instance {
    store: Store<State>,
    exports: Scoring,
}

impl ScorerComponent {
    pub(crate) fn new(
        pre: ScoringPre<State>,
        limits: Limits,
        parameters: &str,
    ) -> Result<Self, ConfigureError> {
        let (instance, needs) = Instance::start(&pre, limits, parameters)?;
        let parameters = parameters.to_owned();
        Ok(Self { pre, limits, parameters, needs, instance: Some(instance) })
    }

    /// What it reads by name.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// One score per candidate, finite or absent, not clamped.
    ///
    /// # Errors
    /// When the component comes to no answer within its limits, or to none that the interface allows.
    /// The next call finds it started anew; where even that fails, it is the call's error.
    pub fn score(
        &mut self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Result<Vec<Option<f32>>, CallError> {
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => match Instance::start(&self.pre, self.limits, &self.parameters) {
                Ok((instance, _)) => instance,
                Err(ConfigureError::Failed(error)) => return Err(error),
                Err(ConfigureError::Refused(reason)) => {
                    return Err(CallError::Trap(format!("parameters refused anew: {reason}")));
                }
            },
        };
        let request = convert::request(request);
        let told = convert::candidates(candidates, history);
        let scores = instance.call(self.limits, |exports, store| {
            exports.wasm_epp_scoring_scorer().call_score(store, &request, &told)
        })?;
        checked(&scores, candidates.len())?;
        self.instance = Some(instance);
        Ok(scores)
    }

    /// Fuel that the last call took; 0 after one that failed.
    pub fn fuel_used(&self) -> u64 {
        let left = self.instance.as_ref().and_then(|instance| instance.store.get_fuel().ok());
        left.map_or(0, |left| self.limits.fuel.saturating_sub(left))
    }
}

fn checked(scores: &[Option<f32>], expected: usize) -> Result<(), CallError> {
    if scores.len() != expected {
        return Err(CallError::ScoreCount { expected, found: scores.len() });
    }
    let not_finite = |(candidate, score): (usize, &Option<f32>)| {
        let score = score.filter(|score| !score.is_finite())?;
        Some(CallError::NotFinite { candidate, score })
    };
    scores.iter().enumerate().find_map(not_finite).map_or(Ok(()), Err)
}

impl Instance {
    fn start(
        pre: &ScoringPre<State>,
        limits: Limits,
        parameters: &str,
    ) -> Result<(Self, Needs), ConfigureError> {
        let state = State { memory_bytes: limits.memory_bytes, refused_bytes: None };
        let mut store = Store::new(pre.engine(), state);
        store.limiter(|state| state);
        // Constructors and initializers of memory are part of the first call.
        let fueled = store.set_fuel(limits.fuel);
        let exports = fueled.and_then(|()| pre.instantiate(&mut store));
        let exports = exports.map_err(|error| typed(&error, &store, limits))?;
        let mut instance = Self { store, exports };
        let needs = instance.call(limits, |exports, store| {
            exports.wasm_epp_scoring_scorer().call_configure(store, parameters)
        })?;
        let needs = needs.map_err(ConfigureError::Refused)?;
        Ok((instance, convert::needs(needs)))
    }

    fn call<T>(
        &mut self,
        limits: Limits,
        call: impl FnOnce(&Scoring, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        let Self { store, exports } = self;
        let result = store.set_fuel(limits.fuel).and_then(|()| call(exports, store));
        result.map_err(|error| typed(&error, store, limits))
    }
}

fn typed(error: &wasmtime::Error, store: &Store<State>, limits: Limits) -> CallError {
    if let Some(wanted_bytes) = store.data().refused_bytes {
        return CallError::OutOfMemory { wanted_bytes, limit_bytes: limits.memory_bytes };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => CallError::OutOfFuel { fuel: limits.fuel },
        Some(trap) => CallError::Trap(trap.to_string()),
        None => CallError::Trap(one_line(error)),
    }
}

/// What one instance may have, and what it was refused.
pub(crate) struct State {
    memory_bytes: usize,
    refused_bytes: Option<usize>,
}

/// Tables hold functions only: a scorer's has some hundred.
const MAX_TABLE_ELEMENTS: usize = 1 << 16;

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired <= self.memory_bytes {
            return Ok(true);
        }
        // An allocator that gets no memory aborts, which looks like any other trap.
        self.refused_bytes = Some(desired);
        Err(wasmtime::Error::msg("too much memory"))
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}
