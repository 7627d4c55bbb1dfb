//! Local replies, resets, and what the rest of the chain sees of them.

use crate::support::{One, code, plugin, wat};
use wasm_host::{ChainConfig, Host, HostOptions, PluginConfig, Request, Response, Status};

const REPLY: &str = r#"
    (import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
    (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))"#;

const CALL: &str = r#"(call $code (call $reply (i32.const 429) (i32.const 100) (i32.const 9) (i32.const 110) (i32.const 4)
    (i32.const 200) (i32.const 18) (i32.const -1)))"#;

const DATA: &str = r#"(data (i32.const 100) "too  many") (data (i32.const 110) "busy")
    (data (i32.const 200) "\01\00\00\00\03\00\00\00\01\00\00\00x-C\00v\00")"#;

fn text(body: &str) -> String {
    wat(REPLY, &format!("{DATA} {body}"))
}

fn observer() -> String {
    let note = |name: &str, params: &str, letter: u8| {
        let (result, value) = match name {
            "proxy_on_log" | "proxy_on_delete" => ("", ""),
            _ => ("(result i32)", "(i32.const 0)"),
        };
        format!(
            r#"(func (export "{name}") (param {params}) {result}
            (i32.store8 (i32.const 300) (i32.const {letter})) (call $text (i32.const 300) (i32.const 1)) {value})"#
        )
    };
    text(
        &[
            note("proxy_on_request_headers", "i32 i32 i32", b'q'),
            note("proxy_on_response_headers", "i32 i32 i32", b'r'),
            note("proxy_on_response_body", "i32 i32 i32", b'b'),
            note("proxy_on_done", "i32", b'd'),
            note("proxy_on_log", "i32", b'l'),
            note("proxy_on_delete", "i32", b'x'),
        ]
        .concat(),
    )
}

/// Three filters, of which the middle one answers.
fn three(middle: &str) -> (Host, wasm_host::ChainId) {
    let mut host = Host::new(crate::support::engine(), HostOptions::default());
    let texts = [observer(), text(middle), observer()];
    let plugins = texts.iter().enumerate().map(|(i, text)| {
        let config = PluginConfig { vm_id: i.to_string(), name: i.to_string(), ..plugin(text) };
        host.add_plugin(config).unwrap()
    });
    let plugins: Vec<_> = plugins.collect();
    let chain = host.add_chain(ChainConfig::new(plugins)).unwrap();
    (host, chain)
}

fn said(host: &mut Host) -> Vec<String> {
    host.take_logs().into_iter().map(|line| format!("{}{}", line.source, line.text)).collect()
}

#[test]
fn a_reply_to_a_request_passes_the_filters_that_had_seen_it() {
    let (mut host, chain) = three(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            {CALL} {CALL} (i32.const 0))"#
    ));
    let request = Request::get("/");
    let outcome = host.exchange(chain, 0, request, |_| panic!("it goes nowhere")).unwrap();
    assert!(outcome.local_reply && outcome.upstream.headers.is_none());
    assert_eq!(outcome.details.as_deref(), Some("too__many"));
    assert_eq!(outcome.downstream.text(), "busy");
    let headers = outcome.downstream.headers.unwrap();
    let lines: Vec<_> = headers.iter().map(|(n, v)| [n, v].map(String::from_utf8_lossy)).collect();
    assert_eq!(
        lines,
        [[":status", "429"], ["x-c", "v"], ["content-length", "4"], ["content-type", "text/plain"]]
    );
    // The last filter hears of it in the log phase only, as in Envoy.
    let expected = ["0q", "1=@", "1=@", "0r", "0b", "0l", "2l", "0d", "0x", "2d", "2x"];
    assert_eq!(said(&mut host), expected);
}

#[test]
fn a_reply_to_a_response_replaces_it_past_the_filters() {
    let (mut host, chain) = three(&format!(
        r#"(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            {CALL} (i32.const 0))"#
    ));
    let answer = |_: &wasm_host::Message| Response::new(200, "secret");
    let outcome = host.exchange(chain, 0, Request::get("/"), answer).unwrap();
    assert_eq!(
        (outcome.downstream.status(), outcome.downstream.text()),
        (Some(429), "busy".into())
    );
    let before_the_end = said(&mut host)[..4].to_vec();
    assert_eq!(before_the_end, ["0q", "2q", "2r", "1=@"]);
}

#[test]
fn once_a_response_has_begun_a_reply_is_a_reset() {
    let (mut host, chain) = three(&format!(
        r#"(func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
            {CALL} (i32.const 0))"#
    ));
    let answer = |_: &wasm_host::Message| Response::new(200, "begun");
    let outcome = host.exchange(chain, 0, Request::get("/"), answer).unwrap();
    assert!(outcome.reset && !outcome.downstream.end_of_stream);
    assert_eq!((outcome.downstream.status(), outcome.downstream.text()), (Some(200), "".into()));
}

#[test]
fn grpc_requests_get_trailers_only() {
    let mut one = One::new(&text(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {CALL} (i32.const 1))"#
    )));
    let request = Request::get("/").header("content-type", "application/grpc");
    let outcome = one.host.exchange(one.chain, 0, request, |_| panic!("it goes nowhere")).unwrap();
    let headers = outcome.downstream.headers.unwrap();
    assert_eq!(headers.get_str(":status"), Some("200"));
    assert_eq!(headers.get_str("grpc-message"), Some("busy"));
    assert_eq!(headers.get_str("grpc-status"), Some("14"), "of HTTP status 429");
    assert!(outcome.downstream.body.is_empty() && outcome.downstream.end_of_stream);
}

#[test]
fn a_closed_stream_is_reset() {
    let mut one = One::new(&text(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $code (call $close (i32.const 4))) (call $code (call $close (i32.const 0))) (i32.const 1))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $code (call $close (i32.const 0))) (call $code (call $continue (i32.const 3)))
            (call $code (call $continue (i32.const 2))) (call $code (call $continue (i32.const 9)))
            (i32.const 1))"#,
    ));
    let outcome = one.get();
    assert!(outcome.reset && outcome.downstream.headers.is_none());
    assert_eq!(outcome.details.as_deref(), Some("wasm_close_stream"));
    let (ok, bad) = (code(Status::Ok), code(Status::BadArgument));
    assert_eq!(one.said(), [ok, code(Status::Unimplemented), ok, bad, bad, ok]);
}

/// A resume in one's own callback comes before what the callback returns, as in Envoy.
#[test]
fn a_resume_inside_a_callback_happens_first() {
    let run = |in_headers: &str, in_body: &str| {
        let mut one = One::with_body(&text(&format!(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {in_headers})
            (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) {in_body})"#
        )));
        let stream = one.open();
        one.host.send_request(stream, Request::post("/", "whole")).unwrap();
        let upstream = one.host.outcome(stream).unwrap().upstream;
        (upstream.headers.is_some(), upstream.text(), upstream.end_of_stream)
    };
    let (pass, pause) = ("(i32.const 0)", "(i32.const 1)");
    let resume = "(drop (call $continue (i32.const 0)))";
    let whole = (true, "whole".to_owned(), true);
    assert_eq!(run(&format!("{resume} {pass}"), pass), whole);
    assert_eq!(run(&format!("{resume} {pause}"), pass), whole);
}

#[test]
fn order_is_the_embedders_duty() {
    let mut one = One::new(&observer());
    let stream = one.open();
    assert!(one.host.request_body(stream, "x", false).is_err());
    one.host.request_headers(stream, Request::get("/").headers, true).unwrap();
    assert!(one.host.request_headers(stream, Request::get("/").headers, true).is_err());
    assert!(one.host.request_body(stream, "x", false).is_err());
    one.host.close(stream).unwrap();
    assert!(one.host.close(stream).is_err());
    assert!(one.host.open(one.chain, 1).is_err());
}
