//! Requests and answers on a host in memory.

use super::*;
use hostcalls::memory::MemoryHost;

/// A gateway whose picker expects `tokens` of 1000 (4 bytes each) of endpoint `a`, and more of the
/// best.
struct Gateway {
    host: MemoryHost,
    meter: Meter,
}

fn target(slot: u16, address: &str, tokens: u32) -> Predicted {
    Predicted { slot, address: address.into(), has_state: true, tokens, block_size_tokens: 16 }
}

fn prediction(tokens: u32) -> Prediction {
    Prediction {
        epoch: 8,
        scope: 2,
        is_matched: true,
        prompt_bytes: 4000,
        best_tokens: 800,
        targets: vec![target(5, "a", tokens), target(1, "b", 100)],
    }
}

/// The answer of an engine; `details` as it spells them.
fn answer(details: &str) -> String {
    format!(
        r#"{{"choices":[],"usage":{{"prompt_tokens":1000,"completion_tokens":3,"prompt_tokens_details":{details}}}}}"#
    )
}

impl Gateway {
    fn new(include_usage: bool) -> Self {
        let host = MemoryHost::default();
        let config = MeterConfig { include_usage, max_body_bytes: 1000 };
        for (name, value) in [(":path", "/pool/v1/completions?x=1"), ("content-length", "15")] {
            host.headers.borrow_mut().insert(name.into(), value.into());
        }
        let gateway = Self { host, meter: Meter::new(config) };
        gateway.expect(&prediction(500));
        gateway.answers("200", "application/json");
        gateway.served_by("a");
        gateway
    }

    fn property(&self, name: &str, value: Vec<u8>) {
        self.host.properties.borrow_mut().insert(name.into(), value);
    }

    fn expect(&self, prediction: &Prediction) {
        self.property(PREDICTION_PROPERTY, prediction.encode());
    }

    fn served_by(&self, address: &str) {
        self.property("upstream/address", address.into());
    }

    fn answers(&self, status: &str, kind: &str) {
        let mut headers = self.host.response_headers.borrow_mut();
        headers.insert(":status".into(), status.into());
        headers.insert("content-type".into(), kind.into());
    }

    /// Sends `body`; returns what the engine gets.
    fn request(&mut self, stream: &mut MeterStream, body: &str) -> String {
        *self.host.body.borrow_mut() = body.into();
        let (host, now) = (&self.host, self.host.now_ns.get());
        if self.meter.on_request_headers(stream, host, now, false) == RequestStep::WaitForBody {
            let step = self.meter.on_request_body(stream, host, body.len(), true);
            assert_eq!(step, RequestStep::Continue);
        }
        String::from_utf8(host.body.borrow().clone()).unwrap()
    }

    /// Passes the chunks of an answer; returns what the client gets.
    fn respond(&mut self, stream: &mut MeterStream, chunks: &[&str]) -> String {
        self.meter.on_response_headers(stream, &self.host, false);
        let mut out = Vec::new();
        for (i, chunk) in chunks.iter().enumerate() {
            self.host.now_ns.set(self.host.now_ns.get() + 7_000_000);
            *self.host.chunk.borrow_mut() = chunk.as_bytes().to_vec();
            let is_last = i + 1 == chunks.len();
            self.meter.on_response_body(stream, &self.host, chunk.len(), is_last);
            out.extend_from_slice(&self.host.chunk.borrow());
        }
        String::from_utf8(out).unwrap()
    }

    /// A whole exchange with a JSON answer.
    fn exchange(&mut self, answer: &str) {
        let mut stream = MeterStream::default();
        self.request(&mut stream, "{}");
        assert_eq!(self.respond(&mut stream, &[answer]), answer);
        self.meter.on_end(&mut stream, &self.host);
    }

    fn counter(&self, name: &str) -> u64 {
        let name = format!("wasm_epp_meter_{name}_total");
        self.host.counters.borrow().get(&name).copied().unwrap_or(0)
    }

    fn accuracy(&self) -> Accuracy {
        let held = self.host.shared(Key::Accuracy(2).encode().as_ref()).unwrap();
        held.map(|(value, _)| Accuracy::decode(&value).unwrap()).unwrap_or_default()
    }
}

#[test]
fn an_answer_is_split_into_its_causes() {
    let mut gateway = Gateway::new(false);
    gateway.exchange(&answer(r#"{"cached_tokens":160}"#));
    let expected = [
        ("answers", 1),
        ("prompt_tokens", 1000),
        ("cached_tokens", 160),
        ("predicted_tokens", 500),
        ("best_tokens", 800),
        ("shortfall_no_reuse_tokens", 200),
        ("shortfall_not_routed_tokens", 300),
        ("shortfall_state_wrong_tokens", 340),
        ("shortfall_within_tolerance_tokens", 0),
        ("predictions_over", 1),
    ];
    for (name, value) in expected {
        assert_eq!(gateway.counter(name), value, "{name}");
    }
    let held = gateway.accuracy();
    assert_eq!((held.epoch, held.slots.len()), (8, 1));
    let slot = held.of(5);
    assert_eq!((slot.answers, slot.reported, slot.judged, slot.over), (1, 1, 1, 1));
}

#[test]
fn the_endpoint_that_served_is_the_one_that_is_judged() {
    let mut gateway = Gateway::new(false);
    gateway.served_by("b");
    gateway.exchange(&answer(r#"{"cached_tokens":96}"#));
    assert_eq!(gateway.counter("shortfall_not_routed_tokens"), 700);
    assert_eq!((gateway.counter("predictions_right"), gateway.counter("predictions_over")), (1, 0));
    assert_eq!(gateway.accuracy().of(1).judged, 1);
    gateway.expect(&prediction(500));
    gateway.served_by("c");
    gateway.exchange(&answer(r#"{"cached_tokens":96}"#));
    assert_eq!(gateway.counter("unpredicted_other_endpoint"), 1);
}

/// vLLM and SGLang leave the field out both when nothing was cached and when they never report.
#[test]
fn a_field_that_is_left_out_is_zero_only_of_an_engine_that_reports() {
    let mut gateway = Gateway::new(false);
    gateway.exchange(&answer("null"));
    assert_eq!(gateway.counter("unpredicted_silent_engine"), 1);
    assert_eq!(gateway.counter("prompt_tokens"), 0, "unknown is not zero");
    let slot = gateway.accuracy().of(5);
    assert_eq!((slot.answers, slot.reported, slot.silent, slot.judged), (1, 0, 1, 0));

    gateway.expect(&prediction(500));
    gateway.exchange(&answer(r#"{"cached_tokens":496}"#));
    gateway.expect(&prediction(500));
    gateway.exchange(&answer("null"));
    let slot = gateway.accuracy().of(5);
    assert_eq!((slot.answers, slot.reported, slot.silent), (3, 1, 1));
    assert_eq!((slot.judged, slot.over), (2, 0b01));
    assert_eq!(gateway.counter("shortfall_state_wrong_tokens"), 500);

    gateway.expect(&prediction(500));
    gateway.exchange(r#"{"usage":{"input_tokens":1000,"output_tokens":3}}"#);
    assert_eq!(gateway.counter("unpredicted_api_without_cached_tokens"), 1);
    assert_eq!(gateway.accuracy().of(5), slot);
}

#[test]
fn what_cannot_be_read_is_counted_by_its_reason() {
    let check = |reason: &str, change: &dyn Fn(&mut Gateway), body: &str| {
        let mut gateway = Gateway::new(false);
        change(&mut gateway);
        gateway.exchange(body);
        assert_eq!(gateway.counter(reason), 1, "{reason}");
        assert_eq!(gateway.counter("prompt_tokens"), 0, "{reason}");
    };
    let good = answer(r#"{"cached_tokens":0}"#);
    check("unreadable_status", &|g| g.answers("429", "application/json"), &good);
    check("unreadable_content_type", &|g| g.answers("200", "text/html"), &good);
    let encoded = |g: &mut Gateway| {
        g.host.response_headers.borrow_mut().insert("content-encoding".into(), "gzip".into());
    };
    check("unreadable_encoded", &encoded, &good);
    check("unreadable_no_usage", &|_| {}, "{}");
    let refused = |call| move |g: &mut Gateway| g.host.refused.borrow_mut().push(call);
    check("unreadable_chunk_refused", &refused("response_chunk"), &good);
    check("mishaps_accuracy_not_kept", &refused("set_shared"), &good);
    check("mishaps_prediction_not_emptied", &refused("set_property"), "{}");
    let malformed = |g: &mut Gateway| g.property(PREDICTION_PROPERTY, b"junk".to_vec());
    check("mishaps_prediction_malformed", &malformed, &good);
    let unmatched = |g: &mut Gateway| {
        g.expect(&Prediction { is_matched: false, ..prediction(0) });
    };
    check("unpredicted_no_match", &unmatched, &good);
    let stateless = |g: &mut Gateway| {
        let mut without = prediction(0);
        without.targets[0].has_state = false;
        g.expect(&without);
    };
    check("unpredicted_no_state", &stateless, &good);
}

#[test]
fn a_request_without_a_prediction_costs_nothing_and_counts_nothing() {
    let mut gateway = Gateway::new(true);
    gateway.property(PREDICTION_PROPERTY, Vec::new());
    gateway.exchange(&answer("null"));
    assert!(gateway.host.counters.borrow().is_empty());
}

#[test]
fn a_client_that_leaves_midway_is_not_judged() {
    let mut gateway = Gateway::new(false);
    let mut stream = MeterStream::default();
    gateway.request(&mut stream, "{}");
    gateway.meter.on_response_headers(&mut stream, &gateway.host, false);
    let part = answer(r#"{"cached_tokens":0}"#);
    *gateway.host.chunk.borrow_mut() = part.as_bytes().to_vec();
    gateway.meter.on_response_body(&mut stream, &gateway.host, part.len(), false);
    gateway.meter.on_end(&mut stream, &gateway.host);
    gateway.meter.on_end(&mut stream, &gateway.host);
    assert_eq!((gateway.counter("unreadable_cut_off"), gateway.counter("answers")), (1, 0));
}

#[test]
fn slots_of_a_writer_that_was_replaced_are_not_written() {
    let mut gateway = Gateway::new(false);
    let newer = Accuracy { epoch: 9, slots: vec![] };
    let key = Key::Accuracy(2).encode();
    gateway.host.set_shared(key.as_ref(), &newer.encode(), Expect::Anything).unwrap();
    gateway.exchange(&answer(r#"{"cached_tokens":0}"#));
    assert_eq!(gateway.accuracy(), newer);
    // An older one's are forgotten.
    let older = Accuracy { epoch: 7, slots: vec![(3, Default::default())] };
    gateway.host.set_shared(key.as_ref(), &older.encode(), Expect::Anything).unwrap();
    gateway.expect(&prediction(500));
    gateway.exchange(&answer(r#"{"cached_tokens":0}"#));
    assert_eq!((gateway.accuracy().epoch, gateway.accuracy().slots.len()), (8, 1));
}

const TEXT: &str = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":496}}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[test]
fn a_stream_is_asked_and_the_client_sees_nothing_of_it() {
    let mut gateway = Gateway::new(true);
    gateway.answers("200", "text/event-stream; charset=utf-8");
    gateway.host.response_headers.borrow_mut().insert("content-length".into(), "999".into());
    let mut stream = MeterStream::default();
    let sent = gateway.request(&mut stream, r#"{"stream":true}"#);
    assert_eq!(sent, r#"{"stream_options":{"include_usage":true},"stream":true}"#);
    let length = gateway.host.headers.borrow()["content-length"].clone();
    assert_eq!(length, sent.len().to_string().into_bytes());
    let (first, second) = USAGE.split_at(30);
    let got = gateway.respond(&mut stream, &[TEXT, TEXT, first, second, DONE, ""]);
    assert_eq!(got, format!("{TEXT}{TEXT}{DONE}"));
    assert!(!gateway.host.response_headers.borrow().contains_key("content-length"));
    gateway.meter.on_end(&mut stream, &gateway.host);
    assert_eq!((gateway.counter("answers"), gateway.counter("predictions_right")), (1, 1));
    let histograms = gateway.host.histograms.borrow();
    assert_eq!(histograms["wasm_epp_meter_ttft_ms"], [7]);
    // 35 ms between the first chunk and the end, two tokens after the first.
    assert_eq!(histograms["wasm_epp_meter_tpot_us"], [17_500]);
}

#[test]
fn streams_tell_how_fast_their_endpoint_is() {
    let mut gateway = Gateway::new(false);
    let mut exchange = |kind: &str, details: &str, served_by: &str, is_matched| {
        gateway.answers("200", kind);
        gateway.served_by(served_by);
        gateway.expect(&Prediction { is_matched, ..prediction(160) });
        let mut stream = MeterStream::default();
        gateway.request(&mut stream, "{}");
        let usage = format!("data: {}\n\n", answer(details));
        gateway.respond(&mut stream, &[TEXT, &usage, DONE]);
        gateway.meter.on_end(&mut stream, &gateway.host);
        let held = gateway.accuracy();
        let of = |slot| (held.of(slot).prefill, held.of(slot).decode);
        (of(5), of(1))
    };
    const STREAM: &str = "text/event-stream";
    const CACHED: &str = r#"{"cached_tokens":160}"#;
    let nothing = (feed::Speed::default(), feed::Speed::default());
    // An answer that begins when it is whole says neither.
    assert_eq!(exchange("application/json", CACHED, "a", true), (nothing, nothing));
    // Nor does one of an endpoint that nothing was expected of.
    assert_eq!(exchange(STREAM, CACHED, "c", true), (nothing, nothing));
    // Of an engine that has never named its cached tokens, it is not known how many there were.
    let (_, (prefill, decode)) = exchange(STREAM, "null", "b", true);
    assert_eq!((prefill.answers, decode.answers), (0, 1));
    // Also of a prompt that was not matched.
    for _ in 0..2 {
        exchange(STREAM, CACHED, "a", false);
    }
    for _ in 0..3 {
        exchange(STREAM, CACHED, "a", true);
    }
    let ((prefill, decode), _) = exchange(STREAM, "null", "a", true);
    assert_eq!((prefill.answers, decode.answers), (6, 6));
    // 840 tokens in 7 ms five times, then 1000, of which nothing was cached. In Python:
    // for n in [840] * 5 + [1000]: t, m = t * .9375 + n, m * .9375 + 7
    let is = |value: Option<f32>, expected: f32| {
        assert!((value.unwrap() / expected - 1.0).abs() < 1e-3, "{value:?} {expected}");
    };
    is(prefill.tokens_per_s(), 124_449.5);
    // Two tokens after the first, in 14 ms.
    is(decode.ms_per_token(), 7.0);
}

#[test]
fn a_client_that_asks_itself_gets_what_it_asked_for() {
    for include_usage in [true, false] {
        let mut gateway = Gateway::new(include_usage);
        gateway.answers("200", "text/event-stream");
        let body = r#"{"stream":true,"stream_options":{"include_usage":true}}"#;
        let mut stream = MeterStream::default();
        assert_eq!(gateway.request(&mut stream, body), body);
        let got = gateway.respond(&mut stream, &[TEXT, USAGE, DONE]);
        assert_eq!(got, format!("{TEXT}{USAGE}{DONE}"));
        gateway.meter.on_end(&mut stream, &gateway.host);
        assert_eq!(gateway.counter("predictions_right"), 1);
    }
}

#[test]
fn a_body_is_changed_wholly_or_not_at_all() {
    let body = r#"{"stream":true}"#;
    let check = |call: &'static str, length: Option<&str>| {
        let mut gateway = Gateway::new(true);
        gateway.host.refused.borrow_mut().push(call);
        let mut stream = MeterStream::default();
        let sent = gateway.request(&mut stream, body);
        let announced = gateway.host.headers.borrow().get("content-length").cloned();
        assert_eq!(announced.as_deref(), length.map(str::as_bytes), "{call}");
        (sent, gateway.counter("usage_asked"))
    };
    assert_eq!(check("request_body", Some("15")), (body.to_owned(), 0));
    assert_eq!(check("set_request_header", Some("15")), (body.to_owned(), 0));
    assert_eq!(check("splice_request_body", None), (body.to_owned(), 0));
}

#[test]
fn only_what_takes_the_option_and_fits_is_waited_for() {
    let check = |headers: &[(&str, &str)], body_bytes: usize, expected: RequestStep| {
        let mut gateway = Gateway::new(true);
        for (name, value) in headers {
            gateway.host.headers.borrow_mut().insert((*name).into(), (*value).into());
        }
        let mut stream = MeterStream::default();
        let step = gateway.meter.on_request_headers(&mut stream, &gateway.host, 0, false);
        assert_eq!(step, expected, "{headers:?}");
        gateway.meter.on_request_body(&mut stream, &gateway.host, body_bytes, false)
    };
    use RequestStep::{Continue, WaitForBody};
    assert_eq!(check(&[], 1000, WaitForBody), WaitForBody);
    assert_eq!(check(&[], 1001, WaitForBody), Continue);
    for header in [
        (":path", "/v1/responses"),
        (":path", "/v1/completions/x"),
        ("content-length", "1001"),
        ("content-encoding", "gzip"),
    ] {
        assert_eq!(check(&[header], 10, Continue), Continue);
    }
}
