//! `role`.

use routing::{Candidate, Chance, EndpointFilter, Needs, PickHistory, RequestFeatures};
use serde::Deserialize;

/// The label that says what an engine does of a request.
const LABEL: &str = "llm-d.ai/role";

/// Keeps the endpoints whose label `llm-d.ai/role` has the role in it: *decode* for `decode`,
/// `prefill-decode`, `encode-prefill-decode`, `both` or no label; *prefill* for `prefill`,
/// `encode-prefill`, `prefill-decode`, `encode-prefill-decode` or `both`; *encode* for `encode`,
/// `encode-prefill` or `encode-prefill-decode`.
///
/// Source: llm-d `decode-filter`, `prefill-filter`, `encode-filter` (`filter/bylabel/roles.go`).
#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct Role {
    role: Part,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(serde::Serialize))]
enum Part {
    Decode,
    Prefill,
    Encode,
}

impl Part {
    fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Decode => &["decode", "prefill-decode", "both", "encode-prefill-decode"],
            Self::Prefill => {
                &["prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"]
            }
            Self::Encode => &["encode", "encode-prefill", "encode-prefill-decode"],
        }
    }
}

impl EndpointFilter for Role {
    fn keep(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        _: Chance,
    ) -> Vec<bool> {
        let keeps = |candidate: &Candidate| match candidate.label(LABEL) {
            None => self.role == Part::Decode,
            Some(label) => self.role.labels().contains(&label),
        };
        candidates.iter().map(keeps).collect()
    }

    fn needs(&self) -> Needs {
        Needs { labels: vec![LABEL.to_owned()], ..Needs::default() }
    }
}
