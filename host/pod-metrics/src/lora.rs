//! LoRA adapters of an engine, as vLLM's `lora_requests_info` tells them: in the labels of a gauge
//! whose value is when they were so. Every combination that there ever was stays on the page.

use std::collections::BTreeSet;

/// Adapters of one list that are read; an engine has a few slots for them.
const MAX_NAMES: usize = 256;

/// LoRA adapters of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoraAdapters {
    /// Adapters that can be loaded at a time.
    pub max: u32,
    /// Those of running requests.
    pub running: BTreeSet<String>,
    /// Those of waiting requests.
    pub waiting: BTreeSet<String>,
}

impl LoraAdapters {
    /// Whether one more can be loaded, as llm-d's `lora-affinity-scorer` counts: one that runs and
    /// waits counts twice.
    pub fn has_room(&self) -> bool {
        self.running.len() + self.waiting.len() < self.max as usize
    }
}

/// Labels of one series.
#[derive(Default)]
pub(crate) struct Series {
    pub(crate) max: Option<u32>,
    pub(crate) running: BTreeSet<String>,
    pub(crate) waiting: BTreeSet<String>,
}

/// Names with commas between them.
pub(crate) fn names(value: &str) -> BTreeSet<String> {
    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.take(MAX_NAMES).map(str::to_owned).collect()
}

/// The latest of the series that a page has.
#[derive(Default)]
pub(crate) struct Latest(Option<(f64, LoraAdapters)>);

impl Latest {
    /// Takes a series in. One without a maximum or a time says nothing.
    pub(crate) fn observe(&mut self, seconds: f64, series: Series) {
        let Some(max) = series.max.filter(|_| seconds.is_finite()) else { return };
        if self.0.as_ref().is_none_or(|(latest, _)| seconds > *latest) {
            let Series { running, waiting, .. } = series;
            self.0 = Some((seconds, LoraAdapters { max, running, waiting }));
        }
    }

    pub(crate) fn adapters(self) -> Option<LoraAdapters> {
        self.0.map(|(_, adapters)| adapters)
    }
}
