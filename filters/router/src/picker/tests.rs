//! What the picker tells the meter, and what it believes of it.

use feed::{Outcome, SlotAccuracy};
use hostcalls::memory::MemoryHost;
use routing::{Load, PrefixMatch, RequestFeatures};

use super::*;

const SCORERS: &str = r#"[{"type":"prefix-cache","weight":4}]"#;

fn candidate(slot: u16, address: &str, strides: u32) -> Candidate {
    Candidate {
        slot,
        address: address.into(),
        load: Load { is_ready: true, ..Load::default() },
        source: SourceState::Live,
        block_size_tokens: 16,
        matched: PrefixMatch {
            gpu_strides: strides,
            gpu_tokens: 15 * strides,
            ..PrefixMatch::default()
        },
        ..Candidate::default()
    }
}

fn features() -> Features {
    let mut away = candidate(9, "away", 10);
    away.load.is_ready = false;
    let mut mute = candidate(2, "mute", 0);
    mute.source = SourceState::None;
    Features {
        scope: 3,
        epoch: 8,
        request: RequestFeatures { prompt_bytes: 650, strides: 10, ..RequestFeatures::default() },
        candidates: vec![candidate(4, "a", 8), candidate(7, "b", 6), mute, away],
        is_cut: false,
        is_restricted: false,
        is_probe: false,
    }
}

/// Picks for `features`; returns the line and the prediction that is left.
fn pick(host: &MemoryHost, has_meter: bool, features: &Features) -> (Value, Option<Prediction>) {
    let config = format!(r#"{{"destinations":3,"scorers":{SCORERS},"meter":{has_meter}}}"#);
    let picker = Picker::new(PickerConfig::parse(config.as_bytes()).unwrap());
    host.properties.borrow_mut().clear();
    host.set_property(FEATURES_PROPERTY, &features.encode()).unwrap();
    assert!(picker.pick(host, &mut Vm::default(), 1, 1).unwrap().is_some());
    let lines = host.lines.borrow();
    let line = lines.last().unwrap().1.strip_prefix("Got pod scores ").unwrap();
    let left = host.property(&[PREDICTION_PROPERTY]).unwrap();
    (serde_json::from_str(line).unwrap(), left.map(|bytes| Prediction::decode(&bytes).unwrap()))
}

/// `over` of 10 judged predictions of slot 4 were too high.
fn measured(host: &MemoryHost, epoch: u64, over: u32) {
    let mut accuracy = Accuracy { epoch, slots: vec![(1, SlotAccuracy::default())] };
    for i in 0..10 {
        let outcome = if i < over { Outcome::Over } else { Outcome::Right };
        accuracy.observe(4, outcome, true);
    }
    let key = Key::Accuracy(3).encode();
    host.set_shared(key.as_ref(), &accuracy.encode(), Expect::Anything).unwrap();
}

#[test]
fn a_meter_is_told_what_each_destination_holds_and_what_the_best_does() {
    let host = MemoryHost::default();
    let (_, prediction) = pick(&host, true, &features());
    let target = |slot, address: &str, has_state, tokens| Predicted {
        slot,
        address: address.into(),
        has_state,
        tokens,
        block_size_tokens: 16,
    };
    let expected = Prediction {
        epoch: 8,
        scope: 3,
        is_matched: true,
        prompt_bytes: 650,
        // Of those that are ready: a request cannot be routed to the one that is away.
        best_tokens: 120,
        targets: vec![
            target(4, "a", true, 120),
            target(7, "b", true, 90),
            target(2, "mute", false, 0),
        ],
    };
    assert_eq!(prediction, Some(expected));
    let mut unmatched = features();
    unmatched.request.unmatched_reason = Some("several_prompts".into());
    assert!(!pick(&host, true, &unmatched).1.unwrap().is_matched);
}

#[test]
fn without_a_meter_nothing_is_told_and_nothing_looked_up() {
    let host = MemoryHost::default();
    measured(&host, 8, 10);
    let (line, prediction) = pick(&host, false, &features());
    assert_eq!(prediction, None);
    assert_eq!(line["picked"][0].as_str(), Some("a"));
    assert!(line["prefix_weight_lowered"].is_null());
    // The accuracies are one value.
    let gets = |has_meter| {
        let host = MemoryHost::default();
        pick(&host, has_meter, &features());
        host.gets.get()
    };
    assert_eq!(gets(true), gets(false) + 1);
}

#[test]
fn wrong_predictions_count_against_their_endpoint_and_show() {
    let host = MemoryHost::default();
    let check = |over, ratio: Option<f64>, total: f64, first: &str| {
        measured(&host, 8, over);
        let (line, prediction) = pick(&host, true, &features());
        assert_eq!(line["prefix_weight_lowered"]["a"].as_f64(), ratio, "{line}");
        assert_eq!(line["totals"]["a"].as_f64(), Some(total), "{line}");
        assert_eq!((line["totals"]["b"].as_f64(), &line["picked"][0]), (Some(2.4), &json!(first)));
        // What is predicted is what is held, whatever it is worth.
        let prediction = prediction.unwrap();
        assert_eq!(prediction.targets.iter().find(|t| t.slot == 4).unwrap().tokens, 120);
    };
    check(2, None, 3.2, "a");
    check(3, Some(0.5), 1.6, "b");
    check(5, Some(0.25), 0.8, "b");
    let name = "wasm_epp_requests_prefix_weight_lowered_total";
    assert_eq!(host.counters.borrow()[name], 2);
    // Another writer's slots are other endpoints; what cannot be read says nothing.
    measured(&host, 7, 10);
    assert!(pick(&host, true, &features()).0["prefix_weight_lowered"].is_null());
    host.set_shared(Key::Accuracy(3).encode().as_ref(), b"junk", Expect::Anything).unwrap();
    assert!(pick(&host, true, &features()).0["prefix_weight_lowered"].is_null());
}

/// First destinations of one prompt, by this picker, over many requests.
fn firsts(picker: &str) -> std::collections::BTreeSet<String> {
    let config = format!(r#"{{"destinations":1,"scorers":[],"picker":{{"type":"{picker}"}}}}"#);
    let picker = Picker::new(PickerConfig::parse(config.as_bytes()).unwrap());
    let mut features = features();
    features.request.trail = vec![7, 8];
    for candidate in &mut features.candidates {
        candidate.matched = PrefixMatch::default();
    }
    let first = |seed| {
        // A gateway of its own for each, so that no pick is remembered.
        let host = MemoryHost::default();
        host.set_property(FEATURES_PROPERTY, &features.encode()).unwrap();
        assert!(picker.pick(&host, &mut Vm::default(), seed, 1).unwrap().is_some());
        String::from_utf8(host.request_header(DESTINATION_HEADER).unwrap().unwrap()).unwrap()
    };
    (0..64).map(first).collect()
}

#[test]
fn ties_of_a_prompt_are_broken_equally_and_draws_are_not() {
    assert_eq!(firsts("max-score").len(), 1);
    // Three are ready; 64 draws miss one of them with a chance of 3 (2/3)^64, and the seeds are fixed.
    assert_eq!(firsts("random").len(), 3);
    assert_eq!(firsts("weighted-random").len(), 3);
}

#[test]
fn each_plugins_part_in_a_decision_is_told() {
    let host = MemoryHost::default();
    let config = r#"{"destinations":3,
        "filters":[{"type":"prefix-cache-affinity","parameters":{"affinityThreshold":0.7}}],
        "scorers":[{"type":"prefix-cache","weight":4},{"type":"active-request","name":"flight"}]}"#;
    let picker = Picker::new(PickerConfig::parse(config.as_bytes()).unwrap());
    host.set_property(FEATURES_PROPERTY, &features().encode()).unwrap();
    assert!(picker.pick(&host, &mut Vm::default(), 1, 1).unwrap().is_some());
    let lines = host.lines.borrow();
    let line = lines.last().unwrap().1.strip_prefix("Got pod scores ").unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let by = "prefix-cache-affinity";
    assert_eq!(line["filtered"], json!({"b": by, "mute": by}), "away was no candidate");
    let of = |score: f32| json!({"a": score, "b": null, "mute": null, "away": null});
    assert_eq!(line["scorers"], json!({"prefix-cache": of(0.8), "flight": of(1.0)}));
    assert_eq!(line["picked"], json!(["a"]));
}

#[test]
fn filters_that_leave_nobody_leave_the_request_to_the_proxy() {
    let host = MemoryHost::default();
    let config =
        r#"{"destinations":3,"filters":[{"type":"role","parameters":{"role":"prefill"}}]}"#;
    let picker = Picker::new(PickerConfig::parse(config.as_bytes()).unwrap());
    host.set_property(FEATURES_PROPERTY, &features().encode()).unwrap();
    assert!(picker.pick(&host, &mut Vm::default(), 1, 1).unwrap().is_none());
    assert_eq!(host.request_header(DESTINATION_HEADER).unwrap(), None);
    let counters = host.counters.borrow();
    assert_eq!(counters.get("wasm_epp_requests_fallback_filtered_total"), Some(&1));
}

#[test]
fn an_answer_names_the_endpoint_that_gave_it() {
    let check = |served_header: bool, properties: &[(&str, &str)], expected: Option<&str>| {
        let config =
            format!(r#"{{"destinations":3,"scorers":{SCORERS},"servedHeader":{served_header}}}"#);
        let picker = Picker::new(PickerConfig::parse(config.as_bytes()).unwrap());
        let host = MemoryHost::default();
        for (name, value) in properties {
            host.properties.borrow_mut().insert((*name).into(), value.as_bytes().to_vec());
        }
        // Also of a request that nothing was decided for.
        picker.answered(&host, &mut Vm::default(), None);
        let headers = host.response_headers.borrow();
        let named = headers.get(SERVED_HEADER).map(|value| std::str::from_utf8(value).unwrap());
        assert_eq!(named, expected, "{served_header} {properties:?}");
    };
    let (address, details) = (("upstream/address", "[::1]:8000"), "response/code_details");
    check(true, &[address, (details, "via_upstream")], Some("[::1]:8000"));
    check(false, &[address, (details, "via_upstream")], None);
    // The proxy's own answer, after the last attempt failed.
    check(true, &[address, (details, "upstream_reset_before_response_started")], None);
    check(true, &[address], None);
    check(true, &[(details, "via_upstream")], None);
    check(true, &[("upstream/address", ""), (details, "via_upstream")], None);
}

#[test]
fn a_conformance_suite_reads_it_in_a_header_of_its_own() {
    let config = format!(r#"{{"destinations":3,"scorers":{SCORERS},"conformance":true}}"#);
    let picker = Picker::new(PickerConfig::parse(config.as_bytes()).unwrap());
    let answered = |details: &str| {
        let host = MemoryHost::default();
        for (name, value) in
            [("upstream/address", "10.0.0.1:3000"), ("response/code_details", details)]
        {
            host.properties.borrow_mut().insert(name.into(), value.as_bytes().to_vec());
        }
        picker.answered(&host, &mut Vm::default(), None);
        host.response_headers.borrow().clone().into_iter().collect::<Vec<_>>()
    };
    let expected = ("x-conformance-test-served-endpoint".to_owned(), b"10.0.0.1:3000".to_vec());
    assert_eq!(answered("via_upstream"), [expected]);
    assert_eq!(answered("upstream_reset_before_response_started"), []);
}

const DISAGG: &str = r#"{"destinations":2,
    "profiles":[{"name":"decode","scorers":[{"type":"prefix-cache","weight":1}]},
                {"name":"prefill","scorers":[{"type":"lmetric"}]}],
    "profileHandler":{"type":"disagg","parameters":{"nonCachedTokens":0}},
    "session":{"strategy":"session_id"}}"#;

/// Requests and tokens by endpoint, as other VMs see them.
fn in_flight(host: &MemoryHost) -> Vec<(EndpointHash, u32, u64)> {
    let cells = crate::Reservations::default().in_flight(host, None, host.now_ns.get(), (0, 0));
    let mut all: Vec<_> =
        cells.iter().map(|cell| (cell.endpoint, cell.requests, cell.tokens)).collect();
    all.sort_unstable();
    all
}

#[test]
fn who_prefills_has_the_request_until_its_answer_begins() {
    let (a, mute) = (EndpointHash::of("a"), EndpointHash::of("mute"));
    let both = |tokens: u64| {
        let mut both = vec![(a, 1, 80), (mute, 1, tokens)];
        both.sort_unstable();
        both
    };
    let picker = Picker::new(PickerConfig::parse(DISAGG.as_bytes()).unwrap());
    let begin = |host: &MemoryHost, vm: &mut Vm| {
        host.now_ns.set(1_000_000_000);
        let mut features = features();
        features.request.prompt_tokens = 200;
        // `a` lacks 80 tokens and `b` 110, but both are busy; so does `mute` all 200, and is idle.
        features.candidates[0].in_flight.requests = 9;
        features.candidates[1].in_flight.requests = 9;
        host.set_property(FEATURES_PROPERTY, &features.encode()).unwrap();
        picker.pick(host, vm, 1, host.now_ns.get()).unwrap().unwrap()
    };
    let (host, mut vm) = (MemoryHost::default(), Vm::default());
    let mut reservation = begin(&host, &mut vm);
    assert_eq!(in_flight(&host), both(200));
    let lines = host.lines.borrow().last().unwrap().1.clone();
    let line: Value = serde_json::from_str(lines.strip_prefix("Got pod scores ").unwrap()).unwrap();
    let told = json!({"profile": "prefill", "endpoint": "mute", "tokens": 200});
    assert_eq!((&line["prefill"], &line["picked"][0]), (&told, &json!("a")));
    // Both count as picked.
    let held = host.shared(Key::Picks(3).encode().as_ref()).unwrap().unwrap().0;
    let picks = Picks::decode(&held).unwrap();
    assert!(picks.of(4).0 > 0 && picks.of(2).0 > 0 && picks.of(7).0 == 0);
    // Also an answer that is the proxy's own, of no endpoint.
    picker.answered(&host, &mut vm, Some(&mut reservation));
    assert_eq!(in_flight(&host), [(a, 1, 80)]);
    picker.answered(&host, &mut vm, Some(&mut reservation));
    picker.ended(&host, &mut vm, reservation);
    assert_eq!(in_flight(&host), []);

    let (host, mut vm) = (MemoryHost::default(), Vm::default());
    let reservation = begin(&host, &mut vm);
    picker.ended(&host, &mut vm, reservation);
    assert_eq!(in_flight(&host), [], "without an answer");
}

#[test]
fn a_session_is_bound_to_the_endpoint_that_served() {
    let config = r#"{"destinations":2,"scorers":[{"type":"prefix-cache","weight":1}],
        "session":{"strategy":"session_id"}}"#;
    let picker = Picker::new(PickerConfig::parse(config.as_bytes()).unwrap());
    let bound = |details: &str, served: &str| {
        let (host, mut vm) = (MemoryHost::default(), Vm::default());
        host.headers.borrow_mut().insert("x-session-id".into(), b"alice".to_vec());
        host.set_property(FEATURES_PROPERTY, &features().encode()).unwrap();
        let mut reservation = picker.pick(&host, &mut vm, 1, 1).unwrap().unwrap();
        let answer = |name: &str, value: &str| {
            host.properties.borrow_mut().insert(name.into(), value.as_bytes().to_vec());
        };
        answer("upstream/address", served);
        answer("response/code_details", details);
        // Request headers cannot be read any more.
        host.headers.borrow_mut().clear();
        picker.answered(&host, &mut vm, Some(&mut reservation));
        let session = feed::SessionHash::of("", b"alice");
        let held = host.shared(Key::Sessions(session.bucket()).encode().as_ref()).unwrap();
        feed::Sessions::decode(&held.unwrap().0).unwrap().find(session, 2, 1_000)
    };
    assert_eq!(bound("via_upstream", "a"), Some(EndpointHash::of("a")));
    assert_eq!(bound("via_upstream", "b"), Some(EndpointHash::of("b")));
    // Nobody answered: it stays where it was sent.
    assert_eq!(bound("upstream_reset_before_response_started", "b"), Some(EndpointHash::of("a")));
}
