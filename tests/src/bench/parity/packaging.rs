//! Ways to run a scorer on a situation.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use routing::{Candidate, PickHistory, RequestFeatures, Scorer};
use scorer_component::{Limits, LoadedComponent, Runtime, ScorerComponent};
use serde_json::{Map, Value};
use testbed::root;

/// What a scorer is asked.
pub(crate) struct Situation {
    pub(crate) about: String,
    pub(crate) scorer: String,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) request: RequestFeatures,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) history: PickHistory,
}

/// One score per candidate; `None` where a packaging cannot be told all of the situation.
pub(crate) type Scores = Option<Vec<Option<f32>>>;

/// The scorer, or the one that is off by the least possible.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Right,
    Skewed,
}

/// One way to run scorers off the gateway.
pub(crate) trait Packaging {
    /// Its name.
    fn name(&self) -> &'static str;
    /// What the scorer says of a situation.
    fn scores(&mut self, which: Which, situation: &Situation) -> Result<Scores>;
}

/// All of them, the native one first.
pub(crate) fn all() -> Result<Vec<Box<dyn Packaging>>> {
    Ok(vec![
        Box::new(Native),
        Box::new(Component::new()?),
        Box::new(super::wasmtime_module::WasmtimeModule::new()?),
        Box::new(super::wasmtime_router::WasmtimeRouter::new()?),
    ])
}

struct Native;

impl Packaging for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn scores(&mut self, which: Which, situation: &Situation) -> Result<Scores> {
        let Situation { scorer, parameters, request, candidates, history, .. } = situation;
        let scorer: Box<dyn Scorer> = match which {
            Which::Skewed => Box::new(skewed_scorer::Skewed {}),
            Which::Right => {
                let entry = scorers::SCORERS.iter().find(|entry| entry.name == scorer);
                let entry = entry.with_context(|| format!("no scorer {scorer}"))?;
                entry.build(parameters.clone())?
            }
        };
        let finite = |score: Option<f32>| score.filter(|score| score.is_finite());
        let mut scores: Vec<_> =
            scorer.score(request, candidates, history).into_iter().map(finite).collect();
        scores.resize(candidates.len(), None);
        Ok(Some(scores))
    }
}

/// As a component of `target/components`.
struct Component {
    runtime: Runtime,
    loaded: BTreeMap<String, LoadedComponent>,
    /// By component and parameters.
    configured: BTreeMap<(String, String), ScorerComponent>,
}

impl Component {
    fn new() -> Result<Self> {
        let runtime = Runtime::new(Limits::default())?;
        Ok(Self { runtime, loaded: BTreeMap::new(), configured: BTreeMap::new() })
    }

    fn configured(&mut self, scorer: &str, parameters: &str) -> Result<&mut ScorerComponent> {
        let key = (scorer.to_owned(), parameters.to_owned());
        if !self.configured.contains_key(&key) {
            if !self.loaded.contains_key(scorer) {
                let file = root().join(format!("target/components/{scorer}-scorer.wasm"));
                let bytes = std::fs::read(&file).with_context(|| format!("{}", file.display()))?;
                self.loaded.insert(scorer.to_owned(), self.runtime.load(&bytes)?);
            }
            let loaded = self.loaded.get(scorer).context("just loaded")?;
            self.configured.insert(key.clone(), loaded.configure(parameters)?);
        }
        self.configured.get_mut(&key).context("just configured")
    }
}

impl Packaging for Component {
    fn name(&self) -> &'static str {
        "component"
    }

    fn scores(&mut self, which: Which, situation: &Situation) -> Result<Scores> {
        let Situation { parameters, request, candidates, history, .. } = situation;
        let scorer = match which {
            Which::Skewed => self.configured("skewed", "{}")?,
            Which::Right => {
                let parameters = Value::Object(parameters.clone()).to_string();
                self.configured(&situation.scorer, &parameters)?
            }
        };
        let scores = scorer.score(request, candidates, history);
        Ok(Some(scores.with_context(|| situation.about.clone())?))
    }
}
