//! Which profiles run for a request, and what they decide together.

use crate::{
    Candidate, Chance, Decision, ModuleScores, NoDecision, PickHistory, Profile, RequestFeatures,
    uncached_tokens,
};

/// All profiles, and who says which of them run.
pub struct Profiles {
    /// At least one; names are unique.
    pub profiles: Vec<Profile>,
    /// Who says it.
    pub handler: Handler,
}

/// Says which profiles run for a request, by their index, the primary one first.
#[derive(Clone, PartialEq, Debug)]
pub enum Handler {
    /// The only profile (llm-d `single-profile-handler`).
    Single,
    /// The one that a header names (llm-d `header-profile-handler`); where there is one profile, that.
    Header {
        /// The header, in lower case.
        header: String,
        /// The profile without the header, or with an empty one.
        default: usize,
    },
    /// A decode profile, and a prefill profile after it (llm-d `disagg-profile-handler`, decode first,
    /// with `prefix-based-pd-decider`).
    Disagg {
        /// The primary profile.
        decode: usize,
        /// The profile of the endpoint that computes the prompt.
        prefill: usize,
        /// The prefill profile runs only if the endpoint of the primary one lacks so many tokens of
        /// the prompt.
        non_cached_tokens: u64,
    },
}

/// One profile's decision.
#[derive(Clone, PartialEq, Debug)]
pub struct Chosen {
    /// Index of the profile.
    pub profile: usize,
    /// Its decision.
    pub decision: Decision,
}

/// What was decided for a request.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// The decision that routes it.
    pub primary: Chosen,
    /// Those of the other profiles that ran, in order. One that had no endpoint is not in it.
    pub others: Vec<Chosen>,
}

impl Profiles {
    /// Runs the profiles that the request asks for. As [`Profile::run`].
    pub fn run(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
        modules: &ModuleScores,
        chance: Chance,
    ) -> Result<Outcome, NoDecision> {
        let run = |index: usize, request: &RequestFeatures| {
            let profile = self.profiles.get(index).ok_or(NoDecision::UnknownProfile)?;
            let decision = profile.run(request, candidates, history, modules, chance)?;
            Ok(Chosen { profile: index, decision })
        };
        let primary = run(self.primary(request)?, request)?;
        let mut others = Vec::new();
        let first = primary.decision.targets.first().and_then(|i| candidates.get(*i));
        if let (Handler::Disagg { prefill, non_cached_tokens, .. }, Some(first)) =
            (&self.handler, first)
            && uncached_tokens(request, first) >= *non_cached_tokens
        {
            let after = after(request, first);
            others.extend(run(*prefill, &after).ok());
        }
        Ok(Outcome { primary, others })
    }

    fn primary(&self, request: &RequestFeatures) -> Result<usize, NoDecision> {
        match &self.handler {
            Handler::Single => Ok(0),
            Handler::Disagg { decode, .. } => Ok(*decode),
            Handler::Header { .. } if self.profiles.len() == 1 => Ok(0),
            Handler::Header { header, default } => {
                match request.header(header).map(str::trim).unwrap_or_default() {
                    "" => Ok(*default),
                    name => self
                        .profiles
                        .iter()
                        .position(|profile| profile.name == name)
                        .ok_or(NoDecision::UnknownProfile),
                }
            }
        }
    }
}

/// The request as profiles after the first see it, whose endpoint is `first`.
fn after(request: &RequestFeatures, first: &Candidate) -> RequestFeatures {
    RequestFeatures { peer_labels: first.labels.clone(), ..request.clone() }
}
