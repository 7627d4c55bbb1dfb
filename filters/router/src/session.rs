//! Session affinity: which endpoint served a client's session before. The strategies are llm-d's
//! (`pkg/epp/framework/plugins/scheduling/scorer/sessionaffinity`).

use feed::{EndpointHash, Key, SessionHash, Sessions};
use hostcalls::{Expect, Host, Status};
use routing::Candidate;
use serde::Deserialize;

use crate::base64;
use crate::config::ConfigError;

/// Longest token or id that is looked at.
const MAX_SESSION_BYTES: usize = 256;
/// Tries to bind a session against other workers; losing all of them leaves the older binding.
const BIND_TRIES: u32 = 4;
/// Longest time that an unused session may be configured to be remembered for: a day.
const MAX_TTL_MS: u64 = 86_400_000;

/// The configuration's object `session`, which intake and picker both have.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RawSession {
    strategy: String,
    header: Option<String>,
    headers: Option<Vec<String>>,
    ttl_ms: Option<u64>,
}

/// How a request says which session it is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionAffinity {
    /// The client brings back what the last answer said: the endpoint's address in base64.
    EncodedEndpoint {
        /// Header of requests and answers.
        header: String,
    },
    /// The client names its session, and the gateway remembers the endpoint.
    SessionId {
        /// Headers of requests; the first that is there counts.
        headers: Vec<String>,
        /// An unused session is forgotten after so long.
        ttl_ns: u64,
    },
}

impl SessionAffinity {
    pub(crate) fn new(filter: &'static str, raw: RawSession) -> Result<Self, ConfigError> {
        let range = |key, value: String, accepted: &str| ConfigError::Range {
            filter,
            key,
            value,
            accepted: accepted.to_owned(),
        };
        let header = |default: &str| {
            let header = raw.header.clone().unwrap_or_else(|| default.to_owned());
            match is_header_name(&header) {
                true => Ok(header),
                false => Err(range("session.header", header, "a header's name in lower case")),
            }
        };
        match raw.strategy.as_str() {
            "encoded_endpoint_header" => match raw.ttl_ms {
                None => Ok(Self::EncodedEndpoint { header: header("x-session-token")? }),
                Some(ttl) => {
                    Err(range("session.ttlMs", ttl.to_string(), "none, as nothing is remembered"))
                }
            },
            "session_id" => {
                let ttl_ms = raw.ttl_ms.unwrap_or(300_000);
                if !(1..=MAX_TTL_MS).contains(&ttl_ms) {
                    let accepted = format!("1 to {MAX_TTL_MS}");
                    return Err(range("session.ttlMs", ttl_ms.to_string(), &accepted));
                }
                let headers = match raw.headers.clone() {
                    None => vec![header("x-session-id")?],
                    Some(headers) => headers,
                };
                if let Some(bad) = headers.iter().find(|name| !is_header_name(name)) {
                    let accepted = "a header's name in lower case";
                    return Err(range("session.headers[]", bad.clone(), accepted));
                }
                Ok(Self::SessionId { headers, ttl_ns: ttl_ms.saturating_mul(1_000_000) })
            }
            _ => {
                let accepted = "encoded_endpoint_header, session_id";
                Err(range("session.strategy", raw.strategy.clone(), accepted))
            }
        }
    }

    /// Marks the candidate that the request's session is bound to.
    pub(crate) fn mark(
        &self,
        host: &impl Host,
        model: &str,
        candidates: &mut [Candidate],
        now_ns: u64,
    ) {
        match self {
            Self::EncodedEndpoint { header } => {
                let Some(address) = told(host, header).and_then(|token| base64::decode(&token))
                else {
                    return;
                };
                for candidate in candidates {
                    candidate.has_session = candidate.address.as_bytes() == address;
                }
            }
            Self::SessionId { headers, ttl_ns } => {
                let Some(id) = headers.iter().find_map(|header| told(host, header)) else { return };
                let session = SessionHash::of(model, &id);
                let held = host.shared(Key::Sessions(session.bucket()).encode().as_ref());
                let bucket = held.ok().flatten().and_then(|(held, _)| Sessions::decode(&held).ok());
                let bound = bucket.and_then(|bucket| bucket.find(session, now_ns, *ttl_ns));
                let Some(bound) = bound else { return };
                for candidate in candidates {
                    candidate.has_session = EndpointHash::of(&candidate.address) == bound;
                }
            }
        }
    }

    /// The session that the request names, if sessions are remembered. To be asked while its headers
    /// can be read.
    pub(crate) fn named(&self, host: &impl Host, model: &str) -> Option<SessionHash> {
        let Self::SessionId { headers, .. } = self else { return None };
        let id = headers.iter().find_map(|header| told(host, header))?;
        Some(SessionHash::of(model, &id))
    }

    /// Binds a session to where its request goes, or keeps it there. False when another worker or the
    /// host would not have it.
    pub(crate) fn bind(
        &self,
        host: &impl Host,
        session: SessionHash,
        endpoint: EndpointHash,
        now_ns: u64,
    ) -> bool {
        let Self::SessionId { ttl_ns, .. } = self else { return true };
        let key = Key::Sessions(session.bucket()).encode();
        for _ in 0..BIND_TRIES {
            let Ok(held) = host.shared(key.as_ref()) else { return false };
            let expect = held.as_ref().map_or(Expect::Absent, |(_, cas)| Expect::Unchanged(*cas));
            let held = held.and_then(|(value, _)| Sessions::decode(&value).ok());
            let mut sessions = held.unwrap_or_default();
            sessions.bind(session, endpoint, now_ns, *ttl_ns);
            match host.set_shared(key.as_ref(), &sessions.encode(), expect) {
                Ok(()) => return true,
                Err(Status::CasMismatch) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Header and value by which the answer of the endpoint at `address` tells the client what to
    /// bring back.
    pub(crate) fn token(&self, address: &str) -> Option<(&str, String)> {
        match self {
            Self::EncodedEndpoint { header } => Some((header, base64::encode(address.as_bytes()))),
            Self::SessionId { .. } => None,
        }
    }

    /// Whether answers carry a token.
    pub(crate) fn has_token(&self) -> bool {
        matches!(self, Self::EncodedEndpoint { .. })
    }
}

/// What the request's header says; nothing, or too much, is not said.
fn told(host: &impl Host, header: &str) -> Option<Vec<u8>> {
    let value = host.request_header(header).ok().flatten()?;
    (1..=MAX_SESSION_BYTES).contains(&value.len()).then_some(value)
}

/// A name that a header may have, as the proxy spells it.
pub(crate) fn is_header_name(name: &str) -> bool {
    let is_part =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=128).contains(&name.len()) && name.bytes().all(is_part)
}

#[cfg(test)]
mod tests;
