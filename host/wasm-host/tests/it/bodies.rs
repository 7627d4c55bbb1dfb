//! Bodies and pauses, by the rules that were measured on Envoy itself.

use crate::support::{One, code, plugin, wat};
use wasm_host::{
    ChainConfig, HeaderMap, Host, HostOptions, Outcome, PluginConfig, Request, Response, Status,
    StreamId, Warning,
};

const BUFFERS: &str = r#"
    (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_get_buffer_status" (func $status (param i32 i32 i32) (result i32)))
    (import "env" "proxy_set_buffer_bytes" (func $set (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
    (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
    (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))"#;

fn text(body: &str) -> String {
    wat(BUFFERS, &format!(r#"(data (i32.const 100) "x-a") (data (i32.const 110) "NEW") {body}"#))
}

/// Pauses in headers, reads the whole body at its end, then lets it go with one more header.
const INTAKE: &str = r#"
    (func $result (param $end i32) (result i32) (i32.eqz (local.get $end)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (call $result (local.get 2)))
    (func (export "proxy_on_request_body") (param $ctx i32) (param $size i32) (param $end i32) (result i32)
        (if (i32.eqz (local.get $end)) (then (return (i32.const 1))))
        (drop (call $bytes (i32.const 0) (i32.const 0) (local.get $size) (i32.const 16) (i32.const 20)))
        (call $say)
        (drop (call $add (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 110) (i32.const 3)))
        (i32.const 0))
    (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
        (drop (call $add (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 110) (i32.const 3)))
        (i32.const 0))"#;

/// Logs the size of each body callback, and the end.
const OBSERVER: &str = r#"
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (call $note (i32.const 104) (i32.const 0) (local.get 2)) (i32.const 0))
    (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
        (call $note (i32.const 98) (local.get 1) (local.get 2)) (i32.const 0))
    (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
        (call $note (i32.const 116) (local.get 1) (i32.const 1)) (i32.const 0))
    (func $note (param i32 i32 i32)
        (i32.store8 (i32.const 200) (local.get 0))
        (i32.store8 (i32.const 201) (i32.add (i32.const 48) (local.get 1)))
        (i32.store8 (i32.const 202) (i32.add (i32.const 48) (local.get 2)))
        (call $text (i32.const 200) (i32.const 3)))"#;

struct Two {
    host: Host,
    chain: wasm_host::ChainId,
    first: wasm_host::PluginId,
}

impl Two {
    fn new(first: &str, second: &str, allow: bool) -> Self {
        let mut host = Host::new(crate::support::engine(), HostOptions::default());
        let mut add = |vm_id: &str, body: &str| {
            let vm_id = vm_id.to_owned();
            let config = PluginConfig {
                vm_id,
                allow_on_headers_stop_iteration: allow,
                ..plugin(&text(body))
            };
            host.add_plugin(config).unwrap()
        };
        let (first, second) = (add("1", first), add("2", second));
        let chain = host.add_chain(ChainConfig::new([first, second])).unwrap();
        Self { host, chain, first }
    }

    fn said(&mut self) -> Vec<String> {
        self.host.take_logs().into_iter().map(|line| line.text).collect()
    }
}

fn request(chunks: &[&str], trailers: bool) -> Request {
    let mut request = Request::get("/");
    request.headers.set(":method", "POST");
    request.chunks = chunks.iter().map(|chunk| chunk.as_bytes().to_vec()).collect();
    request.trailers = trailers.then(|| HeaderMap::from([("t", "1")]));
    request
}

/// The pattern that decides after the body: later filters see nothing before, then the whole body once.
#[test]
fn a_body_is_held_until_the_filter_continues() {
    let check = |chunks: &[&str], trailers: bool, expected: &[&str]| {
        let mut two = Two::new(INTAKE, OBSERVER, true);
        let sent = request(chunks, trailers);
        let outcome = two.host.exchange(two.chain, 0, sent, |_| Response::new(200, "")).unwrap();
        let upstream = &outcome.upstream;
        assert_eq!(two.said(), expected, "{chunks:?} {trailers}");
        assert_eq!(upstream.text(), chunks.concat());
        assert!(upstream.end_of_stream);
        assert_eq!(upstream.trailers.is_some(), trailers);
        let header = upstream.headers.as_ref().unwrap().get("x-a");
        let has_end = !chunks.is_empty() || trailers;
        assert_eq!(header, has_end.then_some(b"NEW".as_slice()));
        assert!(outcome.warnings.is_empty());
    };
    check(&[], false, &["h01"]);
    check(&["12345"], false, &["12345", "h00", "b51"]);
    check(&["123", "45", "6"], false, &["123456", "h00", "b61"]);
    check(&["123", "45", ""], false, &["12345", "h00", "b51"]);
    // With trailers no body callback is the last: they are.
    check(&["123", "45"], true, &["h00", "b50", "t11"]);
    check(&[], true, &["h00", "t11"]);
}

#[test]
fn without_the_flag_a_pause_in_headers_holds_everything() {
    let mut two = Two::new(INTAKE, OBSERVER, false);
    let stream = two.host.open(two.chain, 0).unwrap();
    two.host.send_request(stream, request(&["123"], false)).unwrap();
    let outcome = two.host.outcome(stream).unwrap();
    assert!(two.said().is_empty() && outcome.upstream.headers.is_none());
    assert_eq!(outcome.buffered_bytes, (3, 0));
    let [pause] = outcome.paused.as_slice() else { panic!("{:?}", outcome.paused) };
    assert!(pause.all && !pause.response && pause.plugin == two.first);
    let warning = Warning::HeldBeforeBody { plugin: two.first, response: false };
    assert_eq!(outcome.warnings, [warning]);
    let outcome = two.host.close(stream).unwrap();
    assert_eq!(outcome.upstream, wasm_host::Message::default());
}

#[test]
fn what_was_taken_of_a_body_is_handed_over_once() {
    let mut two = Two::new(OBSERVER, OBSERVER, true);
    let stream = two.host.open(two.chain, 0).unwrap();
    two.host.request_headers(stream, request(&[], false).headers, false).unwrap();
    let mut taken = Vec::new();
    for chunk in ["123", "45"] {
        two.host.request_body(stream, chunk, false).unwrap();
        taken.push(two.host.take_outcome(stream).unwrap().upstream.text());
    }
    assert_eq!(taken, ["123", "45"]);
    two.host.request_body(stream, "6", true).unwrap();
    let outcome = two.host.outcome(stream).unwrap();
    assert_eq!((outcome.upstream.text(), outcome.upstream.end_of_stream), ("6".to_owned(), true));
    assert!(outcome.upstream.headers.is_some(), "headers stay");
}

/// Holds everything in headers, then goes on from a tick: the filter sees the body afterwards.
#[test]
fn a_stream_held_whole_goes_on_from_outside() {
    let first = r#"(global $stream (mut i32) (i32.const 0))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $tick (i32.const 5))) (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $stream (local.get 0)) (i32.const 1))
        (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (drop (call $bytes (i32.const 0) (i32.const 0) (local.get 1) (i32.const 16) (i32.const 20)))
            (call $say) (i32.const 0))
        (func (export "proxy_on_tick") (param i32)
            (if (global.get $stream) (then
                (call $code (call $effective (global.get $stream)))
                (call $code (call $continue (i32.const 0)))
                (global.set $stream (i32.const 0)))))"#;
    let mut two = Two::new(first, OBSERVER, false);
    let stream = two.host.open(two.chain, 0).unwrap();
    two.host.send_request(stream, request(&["123", "4"], true)).unwrap();
    assert!(two.said().is_empty());
    two.host.advance(std::time::Duration::from_millis(5)).unwrap();
    assert_eq!(two.said(), ["=@", "=@", "h00", "1234", "b40", "t11"]);
    let outcome = two.host.outcome(stream).unwrap();
    assert_eq!((outcome.upstream.text(), outcome.paused.len()), ("1234".to_owned(), 0));
}

fn tick_resumes(outcome_after: &[&str], end_before_tick: bool) -> (Outcome, Two) {
    let first = r#"(global $stream (mut i32) (i32.const 0)) (global $resumed (mut i32) (i32.const 0))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $tick (i32.const 5))) (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $stream (local.get 0)) (i32.const 1))
        (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (i32.eqz (global.get $resumed)))
        (func (export "proxy_on_tick") (param i32)
            (if (i32.eqz (global.get $resumed)) (then
                (drop (call $effective (global.get $stream)))
                (drop (call $continue (i32.const 0)))
                (global.set $resumed (i32.const 1)))))"#;
    let mut two = Two::new(first, OBSERVER, true);
    let stream: StreamId = two.host.open(two.chain, 0).unwrap();
    two.host.request_headers(stream, request(&[], false).headers, false).unwrap();
    two.host.request_body(stream, "123", end_before_tick).unwrap();
    two.host.advance(std::time::Duration::from_millis(5)).unwrap();
    for (i, chunk) in outcome_after.iter().enumerate() {
        two.host.request_body(stream, *chunk, i + 1 == outcome_after.len()).unwrap();
    }
    (two.host.outcome(stream).unwrap(), two)
}

/// The one thing that corrupts bodies in Envoy 1.40: here it is visible, and named.
#[test]
fn a_resume_from_outside_is_clean_only_after_the_end() {
    let (outcome, _) = tick_resumes(&[], true);
    assert_eq!(outcome.upstream.text(), "123");
    assert!(outcome.upstream.end_of_stream && outcome.warnings.is_empty());

    let (outcome, two) = tick_resumes(&["456", "789"], false);
    let warning = Warning::ResumedBeforeEnd { plugin: two.first, response: false };
    assert_eq!(outcome.warnings, [warning]);
    assert_ne!(outcome.upstream.text(), "123456789");
}

/// What `set_buffer_bytes` does at each place of a body of five bytes.
#[test]
fn bodies_are_replaced_at_the_front_and_extended_at_the_end() {
    let check = |start: i32, len: i32, status: Status, expected: &str| {
        let guest = text(&format!(
            r#"(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
                (call $code (call $set (i32.const 0) (i32.const {start}) (i32.const {len})
                    (i32.const 110) (i32.const 3))) (i32.const 0))"#
        ));
        let mut one = One::with_body(&guest);
        let outcome = one.post("12345");
        assert_eq!(outcome.upstream.text(), expected, "{start} {len}");
        assert_eq!(one.said(), [code(status)]);
    };
    check(0, 0, Status::Ok, "NEW12345");
    check(0, 2, Status::Ok, "NEW345");
    check(0, 5, Status::Ok, "NEW");
    check(0, -1, Status::Ok, "NEW");
    check(1, 0, Status::BadArgument, "12345");
    check(4, 1, Status::BadArgument, "12345");
    check(5, 0, Status::Ok, "12345NEW");
    check(-1, -1, Status::Ok, "12345NEW");
}

#[test]
fn reading_is_cut_to_what_is_there() {
    let read = |start: i32, len: i32| {
        format!(
            "(i32.store (i32.const 16) (i32.const 99)) (call $code (call $bytes (i32.const 0) \
             (i32.const {start}) (i32.const {len}) (i32.const 16) (i32.const 20))) (call $say)"
        )
    };
    let guest = text(&format!(
        r#"(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            {} {} {} {} {}
            (call $code (call $bytes (i32.const 9) (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 20)))
            (call $code (call $bytes (i32.const 4) (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 20)))
            (call $code (call $bytes (i32.const 7) (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 20)))
            (call $code (call $bytes (i32.const 0) (i32.const 0) (i32.const 1) (i32.const -4) (i32.const 20)))
            (call $code (call $set (i32.const 6) (i32.const 0) (i32.const 1) (i32.const 110) (i32.const 3)))
            (call $code (call $status (i32.const 0) (i32.const 24) (i32.const 28)))
            (call $code (i32.load (i32.const 24)))
            (i32.const 0))
        (func (export "proxy_on_log") (param i32) {} (call $code (call $set (i32.const 0)
            (i32.const 0) (i32.const 0) (i32.const 110) (i32.const 3))))"#,
        read(0, 2),
        read(3, 100),
        read(5, 1),
        read(6, 1),
        read(-1, -1),
        read(0, 9),
    ));
    let mut one = One::with_body(&guest);
    one.post("12345");
    let (ok, bad) = (code(Status::Ok), code(Status::BadArgument));
    let (missing, memory) = (code(Status::NotFound), code(Status::InvalidMemoryAccess));
    let expected = [
        ok, "12", ok, "45", ok, "", ok, "", ok, "", bad, missing, missing, memory, bad, ok, "=E",
        // In the log phase the body is there and empty, and cannot be set.
        ok, "", bad,
    ];
    assert_eq!(one.said(), expected);
}

#[test]
fn configurations_are_buffers_of_their_phase() {
    let read = |buffer: u32| {
        format!(
            "(call $code (call $bytes (i32.const {buffer}) (i32.const 0) (i32.const 99) \
             (i32.const 16) (i32.const 20))) (call $say) (i32.store (i32.const 20) (i32.const 0))"
        )
    };
    let guest = text(&format!(
        r#"(func (export "proxy_on_vm_start") (param i32 i32) (result i32) {} {} (i32.const 1))
        (func (export "proxy_on_configure") (param i32 i32) (result i32) {} {} (i32.const 1))"#,
        read(6),
        read(7),
        read(6),
        read(7)
    ));
    let mut config = plugin(&guest);
    (config.vm_configuration, config.configuration) = (b"of vm".to_vec(), b"of plugin".to_vec());
    let mut one = One::of(config, HostOptions::default());
    let expected = ["=@", "of vm", "=A", "", "=@", "of vm", "=@", "of plugin"];
    assert_eq!(one.said(), expected);
}

#[test]
fn a_body_above_the_limit_is_answered_like_envoy_does() {
    let mut one = One::with_body(&text(INTAKE));
    let mut chain = ChainConfig::new([one.plugin]);
    chain.buffer_limit_bytes = 5;
    one.host.set_chain(one.chain, chain).unwrap();
    assert_eq!(one.post("12345").upstream.text(), "12345");
    let mut long = Request::post("/", "123");
    long.chunks.push(b"456".to_vec());
    long.chunks.push(b"789".to_vec());
    let outcome = one.host.exchange(one.chain, 0, long, |_| panic!("it is not sent")).unwrap();
    assert_eq!(outcome.downstream.status(), Some(413));
    assert_eq!(outcome.details.as_deref(), Some("request_payload_too_large"));
    assert!(outcome.upstream.headers.is_none());
}

/// Responses pass the chain the other way; a guest that adds trailers gets them to the client.
#[test]
fn responses_pass_backwards_and_may_gain_trailers() {
    let responder = |letter: u8| {
        format!(
            r#"(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
                (i32.store8 (i32.const 200) (i32.const {letter})) (call $text (i32.const 200) (i32.const 1))
                (i32.const 0))
            (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
                (call $code (call $add (i32.const 3) (i32.const 100) (i32.const 3) (i32.const 110) (i32.const 3)))
                (i32.const 0))
            (func (export "proxy_on_response_trailers") (param i32 i32) (result i32)
                (call $code (local.get 1)) (i32.const 0))"#
        )
    };
    let mut two = Two::new(&responder(b'1'), &responder(b'2'), true);
    let answer = |_: &wasm_host::Message| {
        let mut response = Response::new(200, "ab");
        response.chunks.push(b"cd".to_vec());
        response
    };
    let outcome = two.host.exchange(two.chain, 0, Request::get("/"), answer).unwrap();
    // The first chunk is not the last; at the second the later filter makes trailers, so it is not
    // the last for the earlier one, which then is given them.
    assert_eq!(two.said(), ["2", "1", "=B", "=B", "=@", "=B", "=A"]);
    assert_eq!(outcome.downstream.text(), "abcd");
    assert_eq!(outcome.downstream.chunks, [2, 2]);
    let trailers = HeaderMap::from([("x-a", "NEW")]);
    assert_eq!(outcome.downstream.trailers, Some(trailers));
}
