//! A guest that calls everything with anything. The host must not panic, hang, or grow without end.

use crate::support::{engine, load};
use proptest::prelude::*;
use std::fmt::Write;
use std::sync::OnceLock;
use wasm_host::{
    ChainConfig, FailurePolicy, GuestLimits, HeaderMap, Host, HostLimits, HostOptions, HttpCall,
    HttpReply, HttpResponse, Module, PluginConfig, Request, Response, Upstreams,
};

/// Every import with its parameters, `I` being the one of 64 bits.
const IMPORTS: &[(&str, &str)] = &[
    ("log", "iii"),
    ("get_log_level", "i"),
    ("get_status", "iii"),
    ("get_property", "iiii"),
    ("set_property", "iiii"),
    ("send_local_response", "iiiiiiii"),
    ("get_shared_data", "iiiii"),
    ("set_shared_data", "iiiii"),
    ("register_shared_queue", "iii"),
    ("resolve_shared_queue", "iiiii"),
    ("dequeue_shared_queue", "iii"),
    ("enqueue_shared_queue", "iii"),
    ("get_header_map_value", "iiiii"),
    ("add_header_map_value", "iiiii"),
    ("replace_header_map_value", "iiiii"),
    ("remove_header_map_value", "iii"),
    ("get_header_map_pairs", "iii"),
    ("set_header_map_pairs", "iii"),
    ("get_header_map_size", "ii"),
    ("get_buffer_bytes", "iiiii"),
    ("get_buffer_status", "iii"),
    ("set_buffer_bytes", "iiiii"),
    ("http_call", "iiiiiiiiii"),
    ("grpc_call", "iiiiiiiiiiii"),
    ("grpc_stream", "iiiiiiiii"),
    ("grpc_send", "iiii"),
    ("grpc_close", "i"),
    ("grpc_cancel", "i"),
    ("set_tick_period_milliseconds", "i"),
    ("get_current_time_nanoseconds", "i"),
    ("define_metric", "iiii"),
    ("get_metric", "ii"),
    ("increment_metric", "iI"),
    ("record_metric", "iI"),
    ("set_effective_context", "i"),
    ("done", ""),
    ("call_foreign_function", "iiiiii"),
    ("continue_stream", "i"),
    ("close_stream", "i"),
];

/// In every callback the guest runs the program in its configuration: records of an import's
/// number and twelve arguments, each four bytes. What a callback returns is in them too.
fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| {
        let (mut imports, mut calls) = (String::new(), String::new());
        for (i, (name, params)) in IMPORTS.iter().enumerate() {
            let types: Vec<_> = params.chars().map(|c| if c == 'I' { "i64" } else { "i32" }).collect();
            let types = if types.is_empty() { String::new() } else { format!("(param {})", types.join(" ")) };
            writeln!(imports, r#"(import "env" "proxy_{name}" (func $f{i} {types} (result i32)))"#).unwrap();
            let mut arguments = String::new();
            for (at, param) in params.chars().enumerate() {
                let at = 4 * (at + 1);
                match param {
                    'I' => write!(arguments, "(i64.load (i32.add (local.get 0) (i32.const {at})))").unwrap(),
                    _ => write!(arguments, "(i32.load (i32.add (local.get 0) (i32.const {at})))").unwrap(),
                }
            }
            writeln!(
                calls,
                "(if (i32.eq (i32.load (local.get 0)) (i32.const {i})) (then (return (call $f{i} {arguments}))))"
            )
            .unwrap();
        }
        let (mut callbacks, mut returned) = (String::new(), 0);
        for (name, params, result) in [
            ("proxy_on_context_create", 2, false), ("proxy_on_tick", 1, false),
            ("proxy_on_request_headers", 3, true), ("proxy_on_request_body", 3, true),
            ("proxy_on_request_trailers", 2, true), ("proxy_on_response_headers", 3, true),
            ("proxy_on_response_body", 3, true), ("proxy_on_response_trailers", 2, true),
            ("proxy_on_http_call_response", 5, false), ("proxy_on_grpc_receive", 3, false),
            ("proxy_on_grpc_close", 3, false), ("proxy_on_queue_ready", 2, false),
            ("proxy_on_done", 1, true), ("proxy_on_log", 1, false), ("proxy_on_delete", 1, false),
        ] {
            let params = vec!["i32"; params].join(" ");
            let result = if result {
                returned += 4;
                format!("(result i32) (call $run) (i32.load (i32.const {returned}))")
            } else {
                "(call $run)".to_owned()
            };
            writeln!(callbacks, r#"(func (export "{name}") (param {params}) {result})"#).unwrap();
        }
        load(&format!(
            r#"(module {imports} (memory (export "memory") 2)
            (func (export "proxy_abi_version_0_2_1"))
            (global $free (mut i32) (i32.const 65536))
            (func (export "malloc") (param i32) (result i32)
                (global.get $free) (global.set $free (i32.add (global.get $free) (local.get 0))))
            (func $call (param i32) (result i32) {calls} (i32.const 0))
            (func $run (local $at i32)
                (global.set $free (i32.const 65536))
                (local.set $at (i32.const 1024))
                (block $end (loop $again
                    (br_if $end (i32.ge_u (local.get $at) (i32.load (i32.const 512))))
                    (drop (call $call (local.get $at)))
                    (local.set $at (i32.add (local.get $at) (i32.const 52)))
                    (br $again))))
            (func (export "proxy_on_configure") (param i32 i32) (result i32)
                (drop (call $f19 (i32.const 7) (i32.const 0) (i32.const -1) (i32.const 520) (i32.const 524)))
                (memory.copy (i32.const 0) (i32.load (i32.const 520)) (i32.load (i32.const 524)))
                (call $run) (i32.const 1))
            {callbacks})"#
        ))
        .unwrap()
    })
}

/// A number that means something more often than a random one would.
fn argument() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0_u32..16,
        2 => 512_u32..2048,
        1 => 131_000_u32..131_100,
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ]
}

type Program = (Vec<u32>, Vec<(usize, Vec<u32>)>);

fn program() -> impl Strategy<Value = Program> {
    let call = (0..IMPORTS.len(), proptest::collection::vec(argument(), 12));
    (proptest::collection::vec(0_u32..6, 8), proptest::collection::vec(call, 1..12))
}

fn configuration((returned, calls): &Program) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    for (i, value) in returned.iter().enumerate() {
        bytes[4 * (i + 1)..4 * (i + 2)].copy_from_slice(&value.to_le_bytes());
    }
    // Names that mean something, and pairs.
    bytes[600..604].copy_from_slice(b"auth");
    bytes[700..720].copy_from_slice(b"\x01\0\0\0\x03\0\0\0\x03\0\0\0x-a\0abc\0");
    for (import, arguments) in calls {
        bytes.extend(u32::try_from(*import).unwrap().to_le_bytes());
        bytes.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    }
    let end = u32::try_from(bytes.len()).unwrap();
    bytes[512..516].copy_from_slice(&end.to_le_bytes());
    bytes
}

struct Anything;

impl Upstreams for Anything {
    fn has_cluster(&self, _: &str) -> bool {
        true
    }

    fn http_call(&mut self, call: &HttpCall) -> HttpReply {
        let after = std::time::Duration::from_millis(u64::from(call.token % 7));
        HttpReply::Response { after, response: HttpResponse::new(200, "x") }
    }
}

fn drive(program: &Program, policy: FailurePolicy, allow: bool) -> Vec<(&'static str, u64)> {
    let limits = HostLimits {
        shared_bytes: 100_000,
        metrics: 100,
        log_lines: 100,
        log_line_bytes: 1000,
        pending: 1000,
        stream_bytes: 100_000,
        call_records: 100_000,
    };
    let options =
        HostOptions { workers: 2, upstreams: Box::new(Anything), limits, ..HostOptions::default() };
    let mut host = Host::new(engine(), options);
    let mut config = PluginConfig::new("hostile", module());
    config.configuration = configuration(program);
    config.failure_policy = policy;
    config.allow_on_headers_stop_iteration = allow;
    config.limits = GuestLimits { fuel: Some(1_000_000), ..GuestLimits::default() };
    let Ok(plugin) = host.add_plugin(config) else { return Vec::new() };
    let chain = host.add_chain(ChainConfig::new([plugin, plugin])).unwrap();
    for worker in [0, 1] {
        let stream = host.open(chain, worker).unwrap();
        let mut request = Request::post("/", "body");
        request.chunks.push(b"more".to_vec());
        request.trailers = Some(HeaderMap::from([("t", "1")]));
        host.send_request(stream, request).unwrap();
        let _ = host.advance(std::time::Duration::from_millis(3));
        let mut response = Response::new(200, "answer");
        response.trailers = Some(HeaderMap::from([("t", "1")]));
        host.send_response(stream, response).unwrap();
        let _ = host.advance(std::time::Duration::from_millis(3));
        let outcome = host.close(stream).unwrap();
        assert!(outcome.filter_state.values().map(Vec::len).sum::<usize>() <= 200_000);
    }
    assert!(host.logs().iter().all(|line| line.text.len() <= 3000));
    host.remove_plugin(plugin).unwrap();
    host.take_calls().iter().map(|call| (call.callback, call.fuel)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_a_guest_passes_harms_the_host(program in program(), open in any::<bool>(), allow in any::<bool>()) {
        let policy = if open { FailurePolicy::LegacyFailOpen } else { FailurePolicy::FailClosed };
        let first = drive(&program, policy, allow);
        // And the same script costs the same fuel.
        prop_assert_eq!(first, drive(&program, policy, allow));
    }
}

/// The program runs at all: one that logs "auth" is in the log.
#[test]
fn the_program_is_run() {
    let program = (vec![0; 8], vec![(0, vec![2, 600, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])]);
    let mut host = Host::new(engine(), HostOptions::default());
    let mut config = PluginConfig::new("hostile", module());
    config.canary = false;
    config.configuration = configuration(&program);
    host.add_plugin(config).unwrap();
    assert!(host.logs().iter().any(|line| line.text == "auth"));
    assert!(!drive(&program, FailurePolicy::FailClosed, true).is_empty());
}
