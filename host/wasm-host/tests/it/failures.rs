//! What a dead machine means for streams, by policy: the matrix that was measured on Envoy.

use crate::support::{One, engine, plugin, wat};
use std::time::Duration;
use wasm_host::{
    Cause, ChainConfig, FailurePolicy, Host, HostOptions, Message, PluginConfig, Reloads, Request,
    Response, StreamId,
};

/// Traps in the headers callback of requests to "/trap", and in a tick if it is told to.
const TRAPS: &str = r#"
    (data (i32.const 100) ":path") (data (i32.const 110) "said in the log")
    (func $inner unreachable)
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (drop (call $get (i32.const 0) (i32.const 100) (i32.const 5) (i32.const 16) (i32.const 20)))
        (if (i32.eq (i32.load (i32.const 20)) (i32.const 5)) (then (call $inner)))
        (i32.const 0))
    (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (i32.const 0))
    (func (export "proxy_on_log") (param i32) (call $text (i32.const 110) (i32.const 15)))"#;

fn traps(policy: FailurePolicy) -> PluginConfig {
    let import = r#"(import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))"#;
    PluginConfig { failure_policy: policy, ..plugin(&wat(import, TRAPS)) }
}

fn ask(one: &mut One, worker: usize, path: &str) -> Option<u16> {
    let answer = |_: &Message| Response::new(200, "answer");
    let outcome = one.host.exchange(one.chain, worker, Request::get(path), answer).unwrap();
    outcome.downstream.status()
}

/// A stream whose response is under way.
fn running(one: &mut One) -> StreamId {
    let stream = one.open();
    one.host.send_request(stream, Request::get("/")).unwrap();
    let headers = wasm_host::HeaderMap::from([(":status", "200")]);
    one.host.response_headers(stream, headers, false).unwrap();
    one.host.response_body(stream, "first ", false).unwrap();
    stream
}

fn check(policy: FailurePolicy, trapping: u16, others_cut: bool, later: u16) {
    let options = HostOptions { workers: 2, ..HostOptions::default() };
    let mut one = One::of(traps(policy), options);
    let stream = running(&mut one);
    assert_eq!(ask(&mut one, 0, "/trap"), Some(trapping), "{policy:?}");
    one.host.response_body(stream, "second", true).unwrap();
    let outcome = one.host.outcome(stream).unwrap();
    assert_eq!(outcome.reset, others_cut, "{policy:?}");
    let text = if others_cut { "first " } else { "first second" };
    assert_eq!(outcome.downstream.text(), text, "{policy:?}");
    one.host.take_logs();
    one.host.close(stream).unwrap();
    assert!(one.said().is_empty(), "no log phase in a dead machine");
    assert_eq!(ask(&mut one, 0, "/"), Some(later), "{policy:?}");
    assert_eq!(ask(&mut one, 1, "/"), Some(200), "{policy:?}: the other worker's lives");
}

#[test]
fn failure_policies() {
    check(FailurePolicy::FailClosed, 503, true, 503);
    check(FailurePolicy::FailOpen, 503, true, 200);
    check(FailurePolicy::LegacyFailOpen, 200, false, 200);
    check(FailurePolicy::FailReload { backoff: Duration::ZERO }, 503, true, 200);
}

#[test]
fn a_reload_waits_for_its_backoff() {
    let backoff = Duration::from_secs(1);
    let mut one = One::of(traps(FailurePolicy::FailReload { backoff }), HostOptions::default());
    let reloads = |one: &One| one.host.reloads(one.plugin).unwrap();
    // Long after the start: the first reload is at once.
    one.host.advance(Duration::from_secs(10)).unwrap();
    assert_eq!(ask(&mut one, 0, "/trap"), Some(503));
    assert_eq!(ask(&mut one, 0, "/"), Some(200));
    assert_eq!(reloads(&one), Reloads { success: 1, backoff: 0, failure: 0 });
    // Soon after that one: not before a second, and surely after one and a half.
    assert_eq!(ask(&mut one, 0, "/trap"), Some(503));
    one.host.advance(Duration::from_millis(999)).unwrap();
    assert_eq!(ask(&mut one, 0, "/"), Some(503));
    assert_eq!(reloads(&one), Reloads { success: 1, backoff: 1, failure: 0 });
    one.host.advance(Duration::from_millis(501)).unwrap();
    assert_eq!(ask(&mut one, 0, "/"), Some(200));
    assert_eq!(reloads(&one).success, 2);
}

#[test]
fn reports_say_where() {
    let mut one = One::of(traps(FailurePolicy::FailClosed), HostOptions::default());
    assert!(one.host.failure(one.plugin, 0).unwrap().is_none());
    assert!(one.host.memory_bytes(one.plugin, 0).unwrap().is_some());
    ask(&mut one, 0, "/trap");
    let failure = one.host.failure(one.plugin, 0).unwrap().unwrap();
    assert_eq!((failure.callback, failure.context), ("proxy_on_request_headers", 2));
    assert_eq!(failure.backtrace[0], "inner");
    let Cause::Trap(trap) = &failure.cause else { panic!("{failure}") };
    assert!(trap.contains("unreachable"), "{trap}");
    let said = failure.to_string();
    assert!(said.starts_with("module guest, vm_id \"\", worker 0: proxy_on_request_headers"));
    assert_eq!(one.host.memory_bytes(one.plugin, 0).unwrap(), None, "it is given back");
}

/// All plugins of a machine die with it, and only they.
#[test]
fn one_trap_ends_all_contexts_of_its_machine() {
    let mut host = Host::new(engine(), HostOptions::default());
    let mut add = |name: &str, vm_id: &str| {
        let config = traps(FailurePolicy::FailClosed);
        let config = PluginConfig { name: name.to_owned(), vm_id: vm_id.to_owned(), ..config };
        let plugin = host.add_plugin(config).unwrap();
        (plugin, host.add_chain(ChainConfig::new([plugin])).unwrap())
    };
    let (one, same, other) = (add("one", "v"), add("same", "v"), add("other", "w"));
    let mut ask = |chain, path| {
        let answer = |_: &Message| Response::new(200, "");
        host.exchange(chain, 0, Request::get(path), answer).unwrap().downstream.status()
    };
    assert_eq!(ask(one.1, "/trap"), Some(503));
    assert_eq!((ask(same.1, "/"), ask(other.1, "/")), (Some(503), Some(200)));
    assert!(host.failure(same.0, 0).unwrap().is_some());
}

/// A guest that dies in a body callback under `fail_open` lets go of what it held.
#[test]
fn what_a_dead_filter_held_goes_on() {
    let text = wat(
        "",
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
        (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (if (local.get 2) (then unreachable)) (i32.const 1))"#,
    );
    let config = PluginConfig {
        failure_policy: FailurePolicy::LegacyFailOpen,
        allow_on_headers_stop_iteration: true,
        ..plugin(&text)
    };
    let mut one = One::of(config, HostOptions::default());
    let mut request = Request::post("/", "123");
    request.chunks.push(b"456".to_vec());
    let answer = |_: &Message| Response::new(200, "");
    let outcome = one.host.exchange(one.chain, 0, request, answer).unwrap();
    assert_eq!(
        (outcome.upstream.text(), outcome.downstream.status()),
        ("123456".into(), Some(200))
    );
}
