//! HTTP and gRPC callouts, against servers that keep to a script.

use crate::support::{One, code, plugin, wat};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wasm_host::{
    GrpcCall, GrpcEvent, HeaderMap, HostOptions, HttpCall, HttpReply, HttpResponse, Message,
    Request, Response, Schedule, Status, Upstreams,
};

const CALLS: &str = r#"
    (import "env" "proxy_http_call" (func $http (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_call" (func $grpc (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_stream" (func $stream (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_send" (func $send (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_close" (func $close (param i32) (result i32)))
    (import "env" "proxy_grpc_cancel" (func $cancel (param i32) (result i32)))
    (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_get_status" (func $status (param i32 i32 i32) (result i32)))
    (import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
    (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
    (import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (data (i32.const 100) "auth") (data (i32.const 110) "none") (data (i32.const 120) "body") (data (i32.const 130) ":status")
    (data (i32.const 140) "pkg.Service") (data (i32.const 160) "Method")
    (data (i32.const 200) "\03\00\00\00\05\00\00\00\02\00\00\00\07\00\00\00\04\00\00\00\0a\00\00\00\01\00\00\00:path\00/a\00:method\00POST\00:authority\00h\00")"#;

/// Sends the call whose headers are at 200, of that many bytes.
fn http(cluster: u32, headers_len: u32, timeout_ms: i32) -> String {
    format!(
        "(call $code (call $http (i32.const {cluster}) (i32.const 4) (i32.const 200) \
         (i32.const {headers_len}) (i32.const 120) (i32.const 4) (i32.const 0) (i32.const 0) \
         (i32.const {timeout_ms}) (i32.const 24)))"
    )
}

/// 4 of the count, 8 of each pair, and the texts with their zero bytes.
const HEADERS_LEN: u32 = 4 + 3 * 8 + 6 + 3 + 8 + 5 + 11 + 2;

#[derive(Clone, Default)]
struct Script {
    http: Option<HttpReply>,
    grpc: Schedule<GrpcEvent>,
    seen: Arc<Mutex<Vec<HttpCall>>>,
    grpc_seen: Arc<Mutex<Vec<GrpcCall>>>,
}

impl Upstreams for Script {
    fn has_cluster(&self, name: &str) -> bool {
        name == "auth"
    }

    fn http_call(&mut self, call: &HttpCall) -> HttpReply {
        self.seen.lock().unwrap().push(call.clone());
        self.http.clone().unwrap_or(HttpReply::Pending)
    }

    fn grpc_call(&mut self, call: &GrpcCall) -> Schedule<GrpcEvent> {
        self.grpc_seen.lock().unwrap().push(call.clone());
        self.grpc.clone()
    }

    fn grpc_open(&mut self, call: &GrpcCall) -> Schedule<GrpcEvent> {
        self.grpc_seen.lock().unwrap().push(call.clone());
        self.grpc.clone()
    }

    fn grpc_message(&mut self, _: u32, message: &[u8], end: bool) -> Schedule<GrpcEvent> {
        let echo = GrpcEvent::Message([b"echo ", message].concat());
        if end { Vec::new() } else { vec![(Duration::from_millis(1), echo)] }
    }
}

fn one(body: &str, script: Script) -> One {
    let options = HostOptions { upstreams: Box::new(script), ..HostOptions::default() };
    One::of(plugin(&wat(CALLS, body)), options)
}

/// Asks a server about each request, and lets it go on or answers 403.
fn authorizer(script: Script) -> One {
    let body = format!(
        r#"(global $stream (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $stream (local.get 0)) {} (i32.const 1))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (call $code (local.get 1)) (call $code (local.get 2)) (call $code (local.get 3))
            (call $code (call $status (i32.const 24) (i32.const 16) (i32.const 20)))
            (call $code (i32.load (i32.const 24))) (call $say)
            (drop (call $bytes (i32.const 4) (i32.const 0) (i32.const 99) (i32.const 16) (i32.const 20))) (call $say)
            (drop (call $effective (global.get $stream)))
            (call $code (call $get (i32.const 6) (i32.const 130) (i32.const 7) (i32.const 16) (i32.const 20)))
            (if (i32.eqz (local.get 2)) (then
                (drop (call $reply (i32.const 500) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
                (return)))
            (call $say)
            (if (i32.eq (i32.load8_u (i32.load (i32.const 16))) (i32.const 50))
                (then (drop (call $continue (i32.const 0))))
                (else (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1))))))"#,
        http(100, HEADERS_LEN, 50)
    );
    one(&body, script)
}

#[test]
fn a_request_waits_for_its_callout() {
    let response = HttpResponse::new(200, "yes");
    let after = Duration::from_millis(20);
    let script =
        Script { http: Some(HttpReply::Response { after, response }), ..Script::default() };
    let mut one = authorizer(script.clone());
    let stream = one.open();
    one.host.send_request(stream, Request::post("/", "body")).unwrap();
    assert_eq!(one.said(), ["=@"]);
    let seen = script.seen.lock().unwrap()[0].clone();
    let headers =
        [(":path", "/a"), (":method", "POST"), (":authority", "h"), ("content-length", "4")];
    assert_eq!((seen.cluster.as_str(), seen.headers), ("auth", headers.into()));
    assert_eq!((seen.body, seen.timeout), (b"body".to_vec(), Some(Duration::from_millis(50))));

    one.host.advance(Duration::from_millis(19)).unwrap();
    assert!(one.said().is_empty() && one.host.outcome(stream).unwrap().paused.len() == 1);
    one.host.advance(Duration::from_millis(1)).unwrap();
    // Token 4, one header, three bytes; no status to tell.
    assert_eq!(one.said(), ["=D", "=A", "=C", "=@", "=@", "", "yes", "=@", "200"]);
    let outcome = one.host.outcome(stream).unwrap();
    assert_eq!((outcome.upstream.text(), outcome.upstream.end_of_stream), ("body".into(), true));
    // The timeout finds the call answered.
    one.host.advance(Duration::from_secs(1)).unwrap();
    assert!(one.said().is_empty());
}

#[test]
fn refusals_timeouts_and_resets() {
    let answer = |_: &Message| -> Response { panic!("the request is refused") };
    let run = |reply: Option<HttpReply>| {
        let mut one = authorizer(Script { http: reply, ..Script::default() });
        let stream = one.open();
        one.host.send_request(stream, Request::get("/")).unwrap();
        one.host.advance(Duration::from_millis(50)).unwrap();
        let status = one.host.close(stream).unwrap().downstream.status();
        (status, one.said().split_off(1))
    };
    let response = HttpResponse::new(401, "");
    let after = Duration::ZERO;
    let (status, said) = run(Some(HttpReply::Response { after, response }));
    assert_eq!((status, said.last().unwrap().as_str()), (Some(403), "401"));
    // Envoy's router answers for a server that does not.
    let (status, said) = run(None);
    assert_eq!(status, Some(403));
    assert_eq!(said[..3], ["=D", "=C", "=X"], "three headers, 24 bytes");
    assert_eq!(said[6..], ["upstream request timeout", "=@", "504"]);
    let (status, said) = run(Some(HttpReply::Reset { after }));
    // Captured from Envoy 1.40.
    let reset =
        "upstream connect error or disconnect/reset before headers. reset reason: remote reset";
    assert_eq!(status, Some(403));
    assert_eq!((said[6].as_str(), said[8].as_str()), (reset, "503"));
    let mut one = authorizer(Script::default());
    let outcome = one.host.exchange(one.chain, 0, Request::get("/"), answer).unwrap();
    assert_eq!(outcome.paused.len() + usize::from(outcome.local_reply), 0, "closed while waiting");
}

#[test]
fn the_embedder_may_answer_itself() {
    let mut one = authorizer(Script::default());
    let stream = one.open();
    one.host.send_request(stream, Request::get("/")).unwrap();
    one.host.answer_http(5, Some(HttpResponse::new(200, "no such call")));
    one.host.answer_http(4, Some(HttpResponse::new(200, "yes")));
    one.host.run().unwrap();
    assert!(one.host.outcome(stream).unwrap().upstream.end_of_stream);
}

#[test]
fn calls_that_cannot_be_made_say_so() {
    let body = format!(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            {} {} {} {} (i32.const 1))"#,
        http(110, HEADERS_LEN, 0),
        http(100, HEADERS_LEN - 1, 0),
        http(100, HEADERS_LEN, -1),
        "(call $code (call $http (i32.const 100) (i32.const 4) (i32.const 200) (i32.const 63) \
         (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -2)))"
    );
    let script = Script::default();
    let mut one = one(&body, script.clone());
    let bad = code(Status::BadArgument);
    assert_eq!(one.said(), [bad, bad, bad, code(Status::InvalidMemoryAccess)]);
    assert!(script.seen.lock().unwrap().is_empty(), "nothing was sent");
}

const GRPC_CALLBACKS: &str = r#"
    (func (export "proxy_on_grpc_receive_initial_metadata") (param i32 i32 i32) (call $code (i32.const 1)) (call $code (local.get 2)))
    (func (export "proxy_on_grpc_receive") (param i32 i32 i32)
        (drop (call $bytes (i32.const 5) (i32.const 0) (local.get 2) (i32.const 16) (i32.const 20))) (call $say))
    (func (export "proxy_on_grpc_receive_trailing_metadata") (param i32 i32 i32)
        (call $code (call $get (i32.const 5) (i32.const 130) (i32.const 7) (i32.const 16) (i32.const 20))) (call $say))
    (func (export "proxy_on_grpc_close") (param i32 i32 i32)
        (call $code (local.get 2))
        (drop (call $status (i32.const 24) (i32.const 16) (i32.const 20)))
        (call $code (i32.load (i32.const 24))) (call $say))"#;

fn grpc_call(timeout_ms: u32) -> String {
    format!(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $code (call $grpc (i32.const 100) (i32.const 4) (i32.const 140) (i32.const 11) (i32.const 160) (i32.const 6)
                (i32.const 0) (i32.const 0) (i32.const 120) (i32.const 4) (i32.const {timeout_ms}) (i32.const 24)))
            (call $code (i32.load (i32.const 24)))
            (i32.const 1)) {GRPC_CALLBACKS}"#
    )
}

#[test]
fn a_grpc_call_has_a_message_or_a_close() {
    let ms = Duration::from_millis;
    let grpc = vec![(ms(1), GrpcEvent::Message(b"pong".to_vec()))];
    let script = Script { grpc, ..Script::default() };
    let mut ok = one(&grpc_call(10), script.clone());
    ok.host.advance(ms(20)).unwrap();
    // Number 5, and no timeout afterwards.
    assert_eq!(ok.said(), ["=@", "=E", "pong"]);
    let call = script.grpc_seen.lock().unwrap()[0].clone();
    assert_eq!((call.service.as_str(), call.method.as_str()), ("pkg.Service", "Method"));
    assert_eq!((call.message.as_slice(), call.timeout), (b"body".as_slice(), Some(ms(10))));

    let close = GrpcEvent::Close { status: 5, message: "no such thing".to_owned() };
    let mut failed = one(&grpc_call(0), Script { grpc: vec![(ms(1), close)], ..Script::default() });
    failed.host.advance(ms(20)).unwrap();
    assert_eq!(failed.said(), ["=@", "=E", "=E", "=E", "no such thing"]);

    let mut slow = one(&grpc_call(10), Script::default());
    slow.host.advance(ms(9)).unwrap();
    assert_eq!(slow.said().len(), 2);
    slow.host.advance(ms(1)).unwrap();
    assert_eq!(slow.said(), ["=N", "=N", "upstream request timeout"], "status 14");
}

#[test]
fn a_grpc_stream_goes_both_ways() {
    let open = |cluster: u32| {
        format!(
            "(call $code (call $stream (i32.const {cluster}) (i32.const 4) (i32.const 140) (i32.const 11) \
             (i32.const 160) (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 24)))"
        )
    };
    let body = format!(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            {} {}
            (call $code (call $send (i32.load (i32.const 24)) (i32.const 120) (i32.const 4) (i32.const 0)))
            (call $code (call $send (i32.const 10) (i32.const 120) (i32.const 4) (i32.const 0)))
            (call $code (call $send (i32.const 5) (i32.const 120) (i32.const 4) (i32.const 0)))
            (call $code (call $cancel (i32.const 5))) (call $code (call $cancel (i32.const 4)))
            (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $code (call $close (i32.const 6))) (call $code (call $close (i32.const 6))) (i32.const 0))
        {GRPC_CALLBACKS}"#,
        open(110),
        open(100)
    );
    let ms = Duration::from_millis;
    let grpc = vec![
        (ms(0), GrpcEvent::InitialMetadata(HeaderMap::from([("a", "b")]))),
        (ms(5), GrpcEvent::TrailingMetadata(HeaderMap::from([(":status", "t")]))),
        (ms(6), GrpcEvent::Close { status: 0, message: String::new() }),
        (ms(7), GrpcEvent::Message(b"too late".to_vec())),
    ];
    let mut one = one(&body, Script { grpc, ..Script::default() });
    let (parse, missing, bad) =
        (code(Status::ParseFailure), code(Status::NotFound), code(Status::BadArgument));
    assert_eq!(one.said(), [parse, "=@", "=@", missing, bad, missing, bad]);
    one.host.advance(ms(10)).unwrap();
    assert_eq!(one.said(), ["=A", "=A", "echo body", "=@", "t", "=@", "=@", ""]);
    one.get();
    // Closed by both sides now, so it is gone.
    assert_eq!(one.said(), ["=@", missing]);
}
