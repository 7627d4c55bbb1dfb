//! A scorer that says what it read: a feature, as a number between 0 and 1, is the score.

use serde::Deserialize;
use wasm_epp_sdk::{AdapterState, Candidate, OutOfRange, PickHistory, RequestFeatures, Scorer};

/// The feature.
#[derive(Deserialize)]
#[serde(tag = "by", rename_all = "camelCase")]
pub enum Feature {
    /// 1 where the request's header is the endpoint's label, 0 where it is another; absent without
    /// one of them.
    HeaderLabel {
        /// The header.
        header: String,
        /// The label.
        label: String,
    },
    /// An attribute, in hundredths.
    Attribute {
        /// Its name.
        name: String,
    },
    /// The scores of llm-d's `lora-affinity-scorer`; absent where the engine does not tell.
    Adapter,
    /// 1 where the request's session is.
    Session,
    /// The priority in hundredths.
    Priority,
    /// Bytes of the fairness id in hundredths.
    FairnessId,
    /// The longest time to the first token, in seconds.
    SloTtft,
    /// The longest time per token, in seconds.
    SloTpot,
    /// Prefilled tokens per second, in millions.
    PrefillRate,
    /// Time per token, in seconds.
    Tpot,
}

impl Feature {
    fn of(&self, request: &RequestFeatures, endpoint: &Candidate) -> Option<f32> {
        let one_if = |is: bool| if is { 1.0 } else { 0.0 };
        match self {
            Self::HeaderLabel { header, label } => {
                Some(one_if(request.header(header)? == endpoint.label(label)?))
            }
            Self::Attribute { name } => Some(endpoint.attribute(name)? / 100.0),
            Self::Adapter => match endpoint.adapter {
                AdapterState::Unknown => None,
                AdapterState::Active => Some(1.0),
                AdapterState::Room => Some(0.8),
                AdapterState::Waiting => Some(0.6),
                AdapterState::Full => Some(0.0),
            },
            Self::Session => Some(one_if(endpoint.has_session)),
            Self::Priority => Some(request.priority? as f32 / 100.0),
            Self::FairnessId => Some(request.fairness_id.as_ref()?.len() as f32 / 100.0),
            Self::SloTtft => Some(request.slo_ttft_ms? / 1e3),
            Self::SloTpot => Some(request.slo_tpot_ms? / 1e3),
            Self::PrefillRate => Some(endpoint.rates.prefill_tokens_per_s? / 1e6),
            Self::Tpot => Some(endpoint.rates.tpot_ms? / 1e3),
        }
    }
}

impl Scorer for Feature {
    fn score(
        &self,
        request: &RequestFeatures,
        endpoints: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        endpoints.iter().map(|endpoint| self.of(request, endpoint)).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        Ok(())
    }
}

wasm_epp_sdk::scorer!(Feature);

#[cfg(test)]
mod tests {
    use super::Feature;
    use wasm_epp_sdk::fixtures::{endpoint, load, request};
    use wasm_epp_sdk::{AdapterState, Rates};

    #[test]
    fn a_label_is_compared_with_a_header() {
        let scorer =
            load::<Feature>(r#"{"by":"headerLabel","header":"x-zone","label":"zone"}"#).unwrap();
        let mut request = request();
        let endpoints =
            [endpoint(0), endpoint(1).label("zone", "a"), endpoint(2).label("zone", "b")];
        assert_eq!(scorer.score(&request, endpoints.clone()), [None, None, None]);
        request.headers = vec![("x-zone".into(), "b".into())];
        assert_eq!(scorer.score(&request, endpoints), [None, Some(0.0), Some(1.0)]);
    }

    #[test]
    fn what_is_not_said_has_no_score() {
        let scores = |by: &str| {
            let rates = Rates { prefill_tokens_per_s: Some(250_000.0), tpot_ms: Some(125.0) };
            let told = endpoint(1).adapter(AdapterState::Waiting).has_session().rates(rates);
            let scorer = load::<Feature>(&format!(r#"{{"by":"{by}"}}"#)).unwrap();
            scorer.score(&request(), [endpoint(0), told])
        };
        assert_eq!(scores("adapter"), [None, Some(0.6)]);
        assert_eq!(scores("session"), [Some(0.0), Some(1.0)]);
        assert_eq!(scores("prefillRate"), [None, Some(0.25)]);
        assert_eq!(scores("tpot"), [None, Some(0.125)]);
        assert_eq!(scores("priority"), [None, None]);
    }
}
