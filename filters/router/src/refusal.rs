//! Requests that the gateway answers in the place of an endpoint, with llm-d's codes and reasons
//! (`pkg/epp/requestcontrol/director.go`).

use hostcalls::Host;
use routing::{Candidate, NoDecision};

use crate::DROPPED_HEADER;
use crate::report::Report;

/// How a request is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    /// HTTP status.
    pub(crate) status: u32,
    /// Value of [`DROPPED_HEADER`]; llm-d has none for a request that it did not drop.
    pub(crate) dropped: Option<&'static str>,
    /// What the counter is called by.
    pub(crate) reason: &'static str,
}

impl Refusal {
    /// No endpoint may serve the request.
    pub(crate) fn no_endpoints(reason: &'static str) -> Self {
        Self { status: 503, dropped: Some("rejected-no-endpoints"), reason }
    }

    /// Its body is no request of its API.
    pub(crate) fn unreadable(reason: &'static str) -> Self {
        Self { status: 400, dropped: None, reason }
    }

    /// It is only to be served by an endpoint that holds some of its prompt, and is not.
    pub(crate) const NOTHING_HELD: Self =
        Self { status: 412, dropped: None, reason: "nothing_held" };

    /// What llm-d answers where there is no decision.
    pub(crate) fn of(none: NoDecision) -> Self {
        match none {
            NoDecision::NoCandidates | NoDecision::NoneReady => Self::no_endpoints(none.reason()),
            NoDecision::UnknownProfile => Self::unreadable(none.reason()),
            NoDecision::Filtered => {
                let dropped = Some("rejected-saturated");
                Self { status: 429, dropped, reason: none.reason() }
            }
        }
    }

    /// Answers. A host that will not lets the request go on: false.
    pub(crate) fn answer(self, host: &impl Host, report: &mut Report) -> bool {
        let dropped = self.dropped.map(|reason| (DROPPED_HEADER, reason));
        let headers: Vec<(&str, &str)> =
            dropped.into_iter().chain([("content-type", "text/plain")]).collect();
        let body = format!("no endpoint may serve this request: {}\n", self.reason);
        match host.respond(self.status, &headers, body.as_bytes()) {
            Ok(()) => {
                report.refused(host, self.reason);
                true
            }
            Err(_) => {
                report.mishap(host, "request_not_refused");
                false
            }
        }
    }
}

/// Whether the request is only to be served by an endpoint that holds some of its prompt, which
/// `target` does not: `Prefer: if-available` (RFC 7240), by which llm-d's coordinator tries decoding
/// before it has anything prefilled.
pub(crate) fn is_unmet(host: &impl Host, target: &Candidate) -> bool {
    !target.matched.is_hit() && prefers_if_available(host)
}

fn prefers_if_available(host: &impl Host) -> bool {
    let prefer = host.request_header("prefer").ok().flatten().unwrap_or_default();
    prefer.split(|byte| *byte == b',').any(|preference| {
        let token = preference.split(|byte| matches!(byte, b';' | b'=')).next().unwrap_or_default();
        token.trim_ascii().eq_ignore_ascii_case(b"if-available")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostcalls::memory::MemoryHost;
    use routing::PrefixMatch;

    #[test]
    fn a_preference_is_one_token_of_a_list() {
        let check = |prefer: &str, expected| {
            let host = MemoryHost::default();
            host.headers.borrow_mut().insert("prefer".into(), prefer.as_bytes().to_vec());
            assert_eq!(is_unmet(&host, &Candidate::default()), expected, "{prefer}");
            let matched = PrefixMatch { any_strides: 1, ..PrefixMatch::default() };
            assert!(!is_unmet(&host, &Candidate { matched, ..Candidate::default() }));
        };
        check("if-available", true);
        check("wait=9, IF-Available ;x=1", true);
        check("if-available=1", true);
        check("return=minimal", false);
        check("not-if-available", false);
        check("", false);
        assert!(!is_unmet(&MemoryHost::default(), &Candidate::default()));
    }

    #[test]
    fn codes_and_reasons_are_llm_ds() {
        let check = |none, status, dropped: &str| {
            let (host, mut report) = (MemoryHost::default(), Report::default());
            let refusal = Refusal::of(none);
            assert!(refusal.answer(&host, &mut report));
            assert_eq!(host.response.borrow().as_ref().unwrap().0, status);
            let headers = host.response_headers.borrow();
            assert_eq!(headers["x-llm-d-request-dropped-reason"], dropped.as_bytes());
            let name = format!("wasm_epp_requests_refused_{}_total", none.reason());
            assert_eq!(host.counters.borrow()[&name], 1);
        };
        check(NoDecision::NoCandidates, 503, "rejected-no-endpoints");
        check(NoDecision::NoneReady, 503, "rejected-no-endpoints");
        check(NoDecision::Filtered, 429, "rejected-saturated");
    }
}
