//! `header-label-affinity`.

use routing::{Candidate, Needs, OutOfRange, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use crate::names::{header_name, label_name};

/// 1 where the endpoint's label equals the request's header, else 0; 0 everywhere without the header.
///
/// Source: llm-d `header-label-affinity-scorer` (`scorer/headerlabelaffinity`).
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct HeaderLabelAffinity {
    header_name: String,
    label_key: String,
}

impl Scorer for HeaderLabelAffinity {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let wanted = request.header(&self.header_name.to_ascii_lowercase()).unwrap_or_default();
        let is_it = |candidate: &Candidate| {
            !wanted.is_empty() && candidate.label(&self.label_key) == Some(wanted)
        };
        candidates.iter().map(|candidate| Some(f32::from(is_it(candidate)))).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        header_name("headerName", &self.header_name)?;
        label_name("labelKey", &self.label_key)
    }

    fn needs(&self) -> Needs {
        Needs {
            headers: vec![self.header_name.to_ascii_lowercase()],
            labels: vec![self.label_key.clone()],
            ..Needs::default()
        }
    }
}
