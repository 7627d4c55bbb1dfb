//! A profile: filters, weighted scorers, one picker; and the decision it makes.

use std::borrow::Cow;

use crate::{
    Candidate, Chance, EndpointFilter, PickHistory, Picker, RequestFeatures, Scorer, median,
};

/// From which score on a module that filters keeps a candidate.
const KEEPS_FROM: f32 = 0.5;

/// What modules outside said, by their index: one score per candidate, or nothing.
pub type ModuleScores = [Option<Vec<Option<f32>>>];

/// Who gives a scorer's scores.
pub enum ScoredBy {
    /// This code.
    Own(Box<dyn Scorer>),
    /// The module of this index.
    Module(usize),
}

/// Who says which candidates stay.
pub enum KeptBy {
    /// This code.
    Own(Box<dyn EndpointFilter>),
    /// The module of this index: from 0.5 on a candidate stays, and without a score.
    Module(usize),
}

/// A scorer with its weight in the profile.
pub struct WeightedScorer {
    /// Its name in explanations.
    pub name: String,
    /// Finite and not negative.
    pub weight: f32,
    /// The scorer.
    pub scorer: ScoredBy,
}

/// A filter with its name.
pub struct NamedFilter {
    /// Its name in explanations.
    pub name: String,
    /// The filter.
    pub filter: KeptBy,
}

/// Filters candidates, scores them, and lists the best.
pub struct Profile {
    /// Its name, unique among the profiles.
    pub name: String,
    /// Filters, each on what the one before left.
    pub filters: Vec<NamedFilter>,
    /// Scorers in configuration order.
    pub scorers: Vec<WeightedScorer>,
    /// Orders what was scored.
    pub picker: Box<dyn Picker>,
    /// Destinations per decision: one per attempt the proxy may make.
    pub destinations: usize,
}

/// What was decided and why.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// Indices into the candidates, best first.
    pub targets: Vec<usize>,
    /// Weighted sum per candidate; `None` for those filtered out.
    pub totals: Vec<Option<f32>>,
    /// Whether the first target was chosen by a tie-break.
    pub was_tie: bool,
    /// Whether no candidate held any of the prompt.
    pub was_cold: bool,
}

/// What each plugin of the profile itself made of a request.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Explained {
    /// The filter that removed each candidate, by its index; who is not ready is not in it.
    pub removed: Vec<Option<usize>>,
    /// Per scorer of its own its index and one score per candidate.
    pub scores: Vec<(usize, Vec<Option<f32>>)>,
}

/// Why there is no decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoDecision {
    /// The model has no endpoints.
    NoCandidates,
    /// No endpoint is ready.
    NoneReady,
    /// The filters left none.
    Filtered,
    /// The request names a profile that there is not.
    UnknownProfile,
}

impl NoDecision {
    /// Counter name of this reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoCandidates => "no_candidates",
            Self::NoneReady => "none_ready",
            Self::Filtered => "filtered",
            Self::UnknownProfile => "unknown_profile",
        }
    }
}

/// The candidates that are left, with their indices among all. While all are, nothing is copied.
struct Left<'a> {
    indices: Vec<usize>,
    candidates: Cow<'a, [Candidate]>,
    history: Cow<'a, PickHistory>,
}

impl<'a> Left<'a> {
    fn ready(candidates: &'a [Candidate], history: &'a PickHistory) -> Self {
        if candidates.iter().all(|candidate| candidate.load.is_ready) {
            return Self {
                indices: (0..candidates.len()).collect(),
                candidates: Cow::Borrowed(candidates),
                history: Cow::Borrowed(history),
            };
        }
        let ready = candidates.iter().enumerate().filter(|(_, candidate)| candidate.load.is_ready);
        let (indices, candidates): (Vec<usize>, Vec<Candidate>) =
            ready.map(|(i, candidate)| (i, candidate.clone())).unzip();
        let of = |values: &[u64]| -> Vec<u64> {
            indices.iter().map(|i| values.get(*i).copied().unwrap_or(0)).collect()
        };
        let history = PickHistory { any: of(&history.any), cold: of(&history.cold) };
        Self { indices, candidates: Cow::Owned(candidates), history: Cow::Owned(history) }
    }

    /// Keeps those that `keep` says to, and tells the indices of the others.
    fn retain(&mut self, keep: &[bool]) -> Vec<usize> {
        let stays = |at: usize| keep.get(at).copied().unwrap_or(true);
        let removed: Vec<usize> = (0..self.indices.len())
            .filter(|at| !stays(*at))
            .filter_map(|at| self.indices.get(at).copied())
            .collect();
        if removed.is_empty() {
            return removed;
        }
        fn retain<T>(list: &mut Vec<T>, stays: impl Fn(usize) -> bool) {
            let mut at = 0;
            list.retain(|_| {
                at += 1;
                stays(at - 1)
            });
        }
        retain(&mut self.indices, stays);
        let history = self.history.to_mut();
        retain(&mut history.any, stays);
        retain(&mut history.cold, stays);
        match &mut self.candidates {
            Cow::Owned(candidates) => retain(candidates, stays),
            Cow::Borrowed(all) => {
                let kept = all.iter().enumerate().filter(|(at, _)| stays(*at));
                self.candidates = kept.map(|(_, candidate)| candidate.clone()).collect();
            }
        }
        removed
    }

    /// Scores of all candidates, for those that are left.
    fn of<'s>(&self, scores: &'s [Option<f32>]) -> impl Iterator<Item = Option<f32>> + use<'s, '_> {
        self.indices.iter().map(|i| scores.get(*i).copied().flatten())
    }
}

impl Profile {
    /// Decides, by the profile's own plugins and by what `modules` said.
    ///
    /// Scores are clamped to 0..=1, weighted and summed, not normalised (llm-d,
    /// `pkg/epp/scheduling/scheduler_profile.go`). Unknown is not zero: a candidate whose score is
    /// absent counts with the median of the others'.
    pub fn run(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
        modules: &ModuleScores,
        chance: Chance,
    ) -> Result<Decision, NoDecision> {
        if candidates.is_empty() {
            return Err(NoDecision::NoCandidates);
        }
        let mut left = Left::ready(candidates, history);
        if left.indices.is_empty() {
            return Err(NoDecision::NoneReady);
        }
        let was_cold = !left.candidates.iter().any(|candidate| candidate.matched.is_hit());
        for filter in &self.filters {
            left.retain(&filter.keep(request, &left, modules, chance));
            if left.indices.is_empty() {
                return Err(NoDecision::Filtered);
            }
        }
        let mut sums = vec![0f32; left.indices.len()];
        for WeightedScorer { weight, scorer, .. } in &self.scorers {
            match scorer {
                ScoredBy::Own(scorer) => {
                    let scores = scorer.score(request, &left.candidates, &left.history);
                    add(&mut sums, *weight, scores);
                }
                ScoredBy::Module(module) => {
                    if let Some(Some(scores)) = modules.get(*module) {
                        add(&mut sums, *weight, left.of(scores).collect());
                    }
                }
            }
        }
        let picked = self.picker.pick(&sums, &left.candidates, &left.history, chance);
        let mut totals = vec![None; candidates.len()];
        for (i, sum) in left.indices.iter().zip(&sums) {
            if let Some(total) = totals.get_mut(*i) {
                *total = Some(*sum);
            }
        }
        let targets = picked.order.iter().take(self.destinations.max(1));
        Ok(Decision {
            targets: targets.filter_map(|i| left.indices.get(*i).copied()).collect(),
            totals,
            was_tie: picked.was_tie,
            was_cold,
        })
    }

    /// What the plugins said of a request, for people: the same again, as plugins are pure, so that
    /// a request nobody looks at does not pay for it.
    pub fn explain(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
        modules: &ModuleScores,
        chance: Chance,
    ) -> Explained {
        let mut left = Left::ready(candidates, history);
        let mut removed = vec![None; candidates.len()];
        for (number, filter) in self.filters.iter().enumerate() {
            for i in left.retain(&filter.keep(request, &left, modules, chance)) {
                if let Some(by) = removed.get_mut(i) {
                    *by = Some(number);
                }
            }
        }
        let scores = self.scorers.iter().enumerate().filter_map(|(number, weighted)| {
            let ScoredBy::Own(scorer) = &weighted.scorer else { return None };
            let mut all = vec![None; candidates.len()];
            let scores = scorer.score(request, &left.candidates, &left.history);
            for (i, score) in left.indices.iter().zip(scores) {
                if let Some(of) = all.get_mut(*i) {
                    *of = score;
                }
            }
            Some((number, all))
        });
        Explained { removed, scores: scores.collect() }
    }
}

impl NamedFilter {
    fn keep(
        &self,
        request: &RequestFeatures,
        left: &Left<'_>,
        modules: &ModuleScores,
        chance: Chance,
    ) -> Vec<bool> {
        match &self.filter {
            KeptBy::Own(filter) => filter.keep(request, &left.candidates, &left.history, chance),
            KeptBy::Module(module) => match modules.get(*module) {
                Some(Some(scores)) => {
                    let keeps = |score: Option<f32>| {
                        !score.is_some_and(|score| score.is_finite() && score < KEEPS_FROM)
                    };
                    left.of(scores).map(keeps).collect()
                }
                _ => Vec::new(),
            },
        }
    }
}

/// Adds one scorer's share to the sums.
fn add(sums: &mut [f32], weight: f32, mut scores: Vec<Option<f32>>) {
    scores.resize(sums.len(), None);
    let mut is_whole = true;
    for score in &mut scores {
        *score = score.filter(|score| score.is_finite()).map(|score| score.clamp(0.0, 1.0));
        is_whole &= score.is_some();
    }
    // Where every score is known, nobody asks for the median.
    let Some(median) = (if is_whole { Some(0.0) } else { median(&scores) }) else { return };
    for (sum, score) in sums.iter_mut().zip(scores) {
        *sum += weight * score.unwrap_or(median);
    }
}
