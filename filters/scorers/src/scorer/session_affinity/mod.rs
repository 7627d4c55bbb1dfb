//! `session-affinity`.

use routing::{Candidate, Needs, OutOfRange, PickHistory, RequestFeatures, Scorer, SessionSource};
use serde::Deserialize;

use crate::names::header_name;

/// 1 for the endpoint that the request's session is bound to, 0 for the others.
///
/// Source: llm-d `session-affinity-scorer` (`scorer/sessionaffinity`), both strategies. What a session
/// is bound to is looked up before: the plugin only reads it.
#[derive(Deserialize, Default)]
#[serde(transparent)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct SessionAffinity(Sessions);

impl Scorer for SessionAffinity {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        candidates.iter().map(|candidate| Some(f32::from(candidate.has_session))).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        self.0.check()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }
}

/// How sessions are found: the parameters of scorer and filter.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Sessions {
    strategy: Strategy,
    encoded_endpoint_header_config: EncodedEndpointHeader,
    session_id_config: SessionId,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(serde::Serialize))]
enum Strategy {
    #[default]
    EncodedEndpointHeader,
    SessionId,
}

#[derive(Deserialize)]
#[serde(default)]
#[cfg_attr(test, derive(serde::Serialize))]
struct EncodedEndpointHeader {
    header: String,
}

impl Default for EncodedEndpointHeader {
    fn default() -> Self {
        Self { header: "x-session-token".to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
struct SessionId {
    sources: Vec<Source>,
    eviction_ttl_seconds: f32,
}

impl Default for SessionId {
    fn default() -> Self {
        let source = Source { header: "x-session-id".to_owned() };
        Self { sources: vec![source], eviction_ttl_seconds: 300.0 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Source {
    header: String,
}

impl Sessions {
    pub(crate) fn check(&self) -> Result<(), OutOfRange> {
        let header = &self.encoded_endpoint_header_config.header;
        header_name("encodedEndpointHeaderConfig.header", header)?;
        let SessionId { sources, eviction_ttl_seconds } = &self.session_id_config;
        if sources.is_empty() {
            let (value, accepted) = ("[]".to_owned(), "at least one header".to_owned());
            return Err(OutOfRange { key: "sessionIdConfig.sources", value, accepted });
        }
        for source in sources {
            header_name("sessionIdConfig.sources[].header", &source.header)?;
        }
        let key = "sessionIdConfig.evictionTtlSeconds";
        OutOfRange::unless_within(key, *eviction_ttl_seconds, 1.0..=86_400.0)
    }

    pub(crate) fn needs(&self) -> Needs {
        let (headers, session) = match self.strategy {
            Strategy::EncodedEndpointHeader => {
                let header = self.encoded_endpoint_header_config.header.to_ascii_lowercase();
                (vec![header.clone()], SessionSource::EncodedEndpoint { header })
            }
            Strategy::SessionId => {
                let sources = self.session_id_config.sources.iter();
                let headers: Vec<String> =
                    sources.map(|source| source.header.to_ascii_lowercase()).collect();
                let ttl_seconds = self.session_id_config.eviction_ttl_seconds;
                (headers.clone(), SessionSource::SessionId { headers, ttl_seconds })
            }
        };
        Needs { headers, session: Some(session), ..Needs::default() }
    }
}
