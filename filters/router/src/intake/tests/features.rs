//! What only some plugins read, on its way from the daemon and the request to the picker; and
//! requests that are refused where the configuration says so.

use feed::{EngineAdapters, Sessions};
use hostcalls::Status;
use routing::AdapterState;

use super::*;
use crate::SessionAffinity;

const NEEDS: &str = r#""headers":["x-zone"],"labels":["zone"],"attributes":["cost"],
    "requestControl":true,"objectives":[{"name":"chat","priority":5}]"#;

impl Gateway {
    /// The gateway with more in both configurations.
    fn with(intake: &str, picker: &str) -> Self {
        let mut gateway = Self::new();
        let json = format!(
            r#"{{"maxBodyBytes":4096,"maxStateAgeMs":1000,"pools":[{{"name":"pool"}}],{intake}}}"#
        );
        gateway.intake = Intake::new(IntakeConfig::parse(json.as_bytes()).unwrap());
        let json = format!(
            r#"{{"destinations":2,"scorers":[{{"type":"prefix-cache","weight":3}}],{picker}}}"#
        );
        gateway.picker = Picker::new(PickerConfig::parse(json.as_bytes()).unwrap());
        gateway
    }

    fn header(&self, name: &str, value: &str) {
        self.host.headers.borrow_mut().insert(name.into(), value.as_bytes().to_vec());
    }

    /// What intake publishes for `model`.
    fn features(&mut self, model: &str) -> Features {
        self.header(":path", "/v1/completions");
        self.header(":method", "POST");
        let body = serde_json::json!({"model": model, "prompt": text(640)}).to_string();
        *self.host.body.borrow_mut() = body.into_bytes();
        let now = self.host.now_ns.get();
        let api = Api::from_path(b"/v1/completions").unwrap();
        assert_eq!(self.intake.decide(&self.host, &mut self.vm, api, now), Outcome::GoesOn);
        let published = self.host.property(&[FEATURES_PROPERTY]).unwrap().unwrap();
        Features::decode(&published).unwrap()
    }

    /// Labels and attributes, and adapters, as a daemon says them.
    fn push_labels(&self) {
        let entry = |slot, name: &str, zone: &str| EndpointEntry {
            slot,
            address: name.into(),
            labels: vec![("team".into(), "x".into()), ("zone".into(), zone.into())],
            attributes: vec![("cost".into(), f32::from(slot) + 0.5), ("else".into(), 1.0)],
        };
        let endpoints = vec![entry(0, "a", "1"), entry(1, "b", "2"), entry(2, "c", "1")];
        self.set(Key::Table(false, 0), &Table { epoch: 8, endpoints }.encode());
        let record = |slot, adapters| LoadRecord {
            slot,
            load: Load { is_ready: true, ..Load::default() },
            adapters,
            ..LoadRecord::default()
        };
        let told = |has_room, running: &[u16]| {
            Some(EngineAdapters { has_room, running: running.to_vec(), waiting: vec![] })
        };
        let records =
            vec![record(0, told(true, &[])), record(1, told(false, &[0])), record(2, None)];
        self.set(Key::Load(false, 0), &LoadTable { epoch: 8, records }.encode());
    }
}

#[test]
fn listed_features_are_published_and_others_are_not() {
    let mut gateway = Gateway::with(NEEDS, r#""meter":false"#);
    gateway.push_labels();
    for (name, value) in [
        ("x-zone", "1"),
        ("x-other", "2"),
        ("x-llm-d-inference-objective", "chat"),
        ("x-llm-d-slo-ttft-ms", "soon"),
    ] {
        gateway.header(name, value);
    }
    let features = gateway.features("m:sql");
    assert_eq!(features.request.headers, [("x-zone".to_owned(), "1".to_owned())]);
    assert_eq!((features.request.priority, features.request.slo_ttft_ms), (Some(5), None));
    assert_eq!(gateway.counter("wasm_epp_mishaps_slo_malformed_total"), 1);
    let of = |i: usize| &features.candidates[i];
    assert_eq!(of(1).labels, [("zone".to_owned(), "2".to_owned())]);
    assert_eq!(of(2).attributes, [("cost".to_owned(), 2.5)]);
    let states = [0, 1, 2].map(|i| of(i).adapter);
    assert_eq!(states, [AdapterState::Room, AdapterState::Active, AdapterState::Unknown]);

    // Nobody asked: only where the adapter is, which costs a byte.
    let mut plain = Gateway::new();
    plain.push_labels();
    plain.header("x-zone", "1");
    plain.header("x-llm-d-inference-objective", "chat");
    let features = plain.features("m");
    assert_eq!((&features.request.headers, features.request.priority), (&vec![], None));
    let is_bare = |c: &Candidate| c.labels.is_empty() && c.attributes.is_empty() && !c.has_session;
    assert!(features.candidates.iter().all(is_bare));
}

#[test]
fn a_session_is_bound_when_it_is_picked_and_known_to_every_worker() {
    let session = r#""session":{"strategy":"session_id","ttlMs":60000}"#;
    let mut gateway = Gateway::with(session, session);
    let bound = |gateway: &mut Gateway| {
        let features = gateway.features("alias");
        let bound = features.candidates.into_iter().find(|c| c.has_session);
        bound.map(|candidate| candidate.address)
    };
    gateway.complete("short").unwrap();
    assert!(!gateway.host.data.borrow().keys().any(|key| key[0] == b'E'), "of no session");
    gateway.header("x-session-id", "alice");
    assert_eq!(bound(&mut gateway), None);
    let first = gateway.complete("short").unwrap().split(',').next().unwrap().to_owned();
    assert_eq!(bound(&mut gateway).as_deref(), Some(first.as_str()), "by any name of the model");
    // Another worker's VM reads the same data.
    let json = format!(
        r#"{{"maxBodyBytes":4096,"maxStateAgeMs":1000,"pools":[{{"name":"pool"}}],{session}}}"#
    );
    gateway.intake = Intake::new(IntakeConfig::parse(json.as_bytes()).unwrap());
    assert_eq!(bound(&mut gateway).as_deref(), Some(first.as_str()));
    let mut values = Vec::new();
    for (key, (value, _)) in gateway.host.data.borrow().iter().filter(|(key, _)| key[0] == b'E') {
        values.push((key.clone(), Sessions::decode(value).unwrap().sessions.len()));
    }
    assert!(matches!(values.as_slice(), [(key, 1)] if key.len() == 3), "{values:?}");
    // What cannot be read binds nobody, and is written anew.
    let key = values.remove(0).0;
    gateway.host.set_shared(&key, b"junk", Expect::Anything).unwrap();
    assert_eq!(bound(&mut gateway), None);
    let next = gateway.complete("short").unwrap().split(',').next().unwrap().to_owned();
    assert_eq!(bound(&mut gateway).as_deref(), Some(next.as_str()));
}

#[test]
fn an_answer_carries_the_token_of_the_endpoint_that_gave_it() {
    let session = r#""session":{"strategy":"encoded_endpoint_header"}"#;
    let mut gateway = Gateway::with(session, session);
    let answer = |details: &str| {
        let mut properties = gateway.host.properties.borrow_mut();
        properties.insert("upstream/address".into(), b"b".to_vec());
        properties.insert("response/code_details".into(), details.as_bytes().to_vec());
        drop(properties);
        gateway.host.response_headers.borrow_mut().clear();
        gateway.picker.answered(&gateway.host, &mut Vm::default(), None);
        let headers = gateway.host.response_headers.borrow();
        headers.get("x-session-token").map(|token| String::from_utf8(token.clone()).unwrap())
    };
    // `printf b | base64`
    assert_eq!(answer("via_upstream").as_deref(), Some("Yg=="));
    assert_eq!(answer("upstream_reset_before_response_started"), None, "the proxy's own");
    gateway.header("x-session-token", "Yg==");
    let features = gateway.features("m");
    assert_eq!([0, 1, 2].map(|i| features.candidates[i].has_session), [false, true, false]);
    let config: SessionAffinity =
        SessionAffinity::EncodedEndpoint { header: "x-session-token".into() };
    assert!(config.has_token());
}

#[test]
fn a_request_is_refused_with_llm_ds_codes_only_where_configured() {
    let refusing = r#""refuse":true"#;
    let status = |gateway: &Gateway| gateway.host.response.borrow().as_ref().map(|r| r.0);
    let dropped = |gateway: &Gateway| {
        let headers = gateway.host.response_headers.borrow();
        headers.get("x-llm-d-request-dropped-reason").cloned().unwrap_or_default()
    };
    let reserved = |gateway: &Gateway| gateway.vm.reservations.cells().len();

    // Nobody is ready.
    let mut gateway = Gateway::with(refusing, refusing);
    gateway.loads(8, &[None, None, None]);
    gateway.keep = true;
    assert_eq!(gateway.complete("short"), None);
    assert_eq!((status(&gateway), reserved(&gateway)), (Some(503), 0));
    assert_eq!(dropped(&gateway), b"rejected-no-endpoints");
    assert_eq!(gateway.counter("wasm_epp_requests_refused_none_ready_total"), 1);
    assert_eq!(gateway.counter("wasm_epp_requests_fallback_none_ready_total"), 0);

    // Nobody holds it, and it is only to be served by somebody who does.
    let mut gateway = Gateway::with(refusing, refusing);
    gateway.keep = true;
    gateway.header("prefer", "if-available");
    assert_eq!(gateway.complete(&text(640)), None);
    assert_eq!((status(&gateway), reserved(&gateway)), (Some(412), 0));
    assert_eq!(dropped(&gateway), b"");
    assert!(gateway.host.data.borrow().keys().all(|key| key[0] != b'P'), "no pick is counted");
    gateway.hold(8, &text(640), None, 6, &[1]);
    assert!(gateway.complete(&text(640)).unwrap().starts_with("b,"));

    // The body is none.
    let mut gateway = Gateway::with(refusing, refusing);
    assert_eq!(gateway.send("/v1/completions", "{"), None);
    assert_eq!(status(&gateway), Some(400));
    assert_eq!(gateway.counter("wasm_epp_requests_refused_body_not_json_total"), 1);

    // Not configured, all of them go on.
    let mut gateway = Gateway::new();
    gateway.header("prefer", "if-available");
    assert!(gateway.complete(&text(640)).is_some());
    gateway.loads(8, &[None, None, None]);
    gateway.complete("short");
    gateway.send("/v1/completions", "{");
    assert_eq!(status(&gateway), None);
    assert_eq!(gateway.counter("wasm_epp_requests_fallback_none_ready_total"), 1);
    assert_eq!(gateway.counter("wasm_epp_requests_fallback_body_not_json_total"), 1);

    // A host that will not answer lets it go on.
    let mut gateway = Gateway::with(refusing, refusing);
    gateway.header("prefer", "if-available");
    *gateway.host.refused.borrow_mut() = vec!["respond"];
    assert_eq!(gateway.host.respond(412, &[], b""), Err(Status::InternalFailure));
    assert!(gateway.complete(&text(640)).is_some());
    assert_eq!(gateway.counter("wasm_epp_mishaps_request_not_refused_total"), 1);
}
