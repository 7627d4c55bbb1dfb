use super::*;
use hostcalls::memory::MemoryHost;

const SECOND: u64 = 1_000_000_000;

fn affinity(json: &str) -> Result<SessionAffinity, String> {
    let raw = serde_json::from_str(json).map_err(|err| err.to_string())?;
    SessionAffinity::new("intake", raw).map_err(|err| err.to_string())
}

fn candidates() -> Vec<Candidate> {
    let of = |address: &str| Candidate { address: address.into(), ..Candidate::default() };
    ["10.0.0.1:8000", "[fd00::1]:8000"].map(of).into()
}

/// The address that a request with this header is bound to.
fn marked(
    affinity: &SessionAffinity,
    host: &MemoryHost,
    model: &str,
    now_ns: u64,
) -> Option<String> {
    let mut candidates = candidates();
    affinity.mark(host, model, &mut candidates, now_ns);
    let mut bound = candidates.into_iter().filter(|candidate| candidate.has_session);
    let first = bound.next();
    assert_eq!(bound.next(), None);
    first.map(|candidate| candidate.address.to_string())
}

fn says(host: &MemoryHost, header: &str, value: &[u8]) {
    host.headers.borrow_mut().insert(header.into(), value.to_vec());
}

#[test]
fn errors_name_key_value_and_range() {
    let refused = |json| affinity(json).unwrap_err();
    assert_eq!(
        refused(r#"{"strategy":"cookie"}"#),
        "configuration of intake: session.strategy is cookie, accepted is encoded_endpoint_header, session_id"
    );
    assert!(refused(r#"{"strategy":"session_id","header":"X-A"}"#).contains("header is X-A"));
    assert!(
        refused(r#"{"strategy":"session_id","ttlMs":0}"#).contains("ttlMs is 0, accepted is 1")
    );
    assert!(refused(r#"{"strategy":"encoded_endpoint_header","ttlMs":9}"#).contains("ttlMs is 9"));
    assert!(refused(r#"{"strategy":"session_id","x":1}"#).contains("unknown field `x`"));
    let id =
        SessionAffinity::SessionId { headers: vec!["x-session-id".into()], ttl_ns: 300 * SECOND };
    assert_eq!(affinity(r#"{"strategy":"session_id"}"#), Ok(id));
}

#[test]
fn a_token_is_the_endpoint_in_base64() {
    let host = MemoryHost::default();
    let affinity = affinity(r#"{"strategy":"encoded_endpoint_header"}"#).unwrap();
    // `printf '%s' '[fd00::1]:8000' | base64`.
    let token = "W2ZkMDA6OjFdOjgwMDA=";
    assert_eq!(affinity.token("[fd00::1]:8000"), Some(("x-session-token", token.to_owned())));
    assert_eq!(marked(&affinity, &host, "m", 0), None);
    says(&host, "x-session-token", token.as_bytes());
    assert_eq!(marked(&affinity, &host, "m", 0).as_deref(), Some("[fd00::1]:8000"));
    for other in [&b"[fd00::1]:8000"[..], b"", b"\xff", b"MTAuMC4wLjk6ODAwMA==", &[b'A'; 400]] {
        says(&host, "x-session-token", other);
        assert_eq!(marked(&affinity, &host, "m", 0), None, "{other:?}");
    }
    assert_eq!(affinity.named(&host, "m"), None);
    assert!(affinity.bind(&host, SessionHash(1), EndpointHash(1), 0));
    assert!(host.data.borrow().is_empty(), "nothing is remembered");
}

#[test]
fn a_session_stays_where_it_was_for_as_long_as_it_is_used() {
    let host = MemoryHost::default();
    let affinity = affinity(r#"{"strategy":"session_id","ttlMs":10000}"#).unwrap();
    assert_eq!(affinity.token("[fd00::1]:8000"), None);
    let bind = |address: &str, now_s: u64| {
        let Some(session) = affinity.named(&host, "m") else { return };
        assert!(affinity.bind(&host, session, EndpointHash::of(address), now_s * SECOND));
    };
    bind("[fd00::1]:8000", 0);
    assert!(host.data.borrow().is_empty(), "it names no session");
    says(&host, "x-session-id", b"alice");
    assert_eq!(marked(&affinity, &host, "m", 0), None);
    bind("[fd00::1]:8000", 1);
    let at = |model: &str, now_s: u64| marked(&affinity, &host, model, now_s * SECOND);
    assert_eq!(at("m", 10).as_deref(), Some("[fd00::1]:8000"));
    assert_eq!(at("other", 2), None, "another model's endpoints are others");
    assert_eq!(at("m", 11), None, "unused for ten seconds");
    bind("[fd00::1]:8000", 10);
    assert_eq!(at("m", 19).as_deref(), Some("[fd00::1]:8000"), "refreshed");
    bind("10.0.0.1:8000", 20);
    assert_eq!(at("m", 21).as_deref(), Some("10.0.0.1:8000"), "moved");
    says(&host, "x-session-id", b"bob");
    assert_eq!(at("m", 21), None);
    says(&host, "x-session-id", b"alice");
    *host.refused.borrow_mut() = vec!["set_shared"];
    let alice = affinity.named(&host, "m").unwrap();
    assert!(!affinity.bind(&host, alice, EndpointHash(1), 22 * SECOND));
    *host.refused.borrow_mut() = vec!["shared"];
    assert_eq!(at("m", 21), None);
}
