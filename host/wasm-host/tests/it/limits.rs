//! Fuel, memory and time of a guest.

use crate::support::{One, plugin, wat};
use std::time::Duration;
use wasm_host::{Cause, GuestLimits, HostOptions, LoadError, PluginConfig, VmFailure};

fn failure(text: &str, limits: GuestLimits) -> (Option<u16>, Option<VmFailure>) {
    let config = PluginConfig { limits, ..plugin(&wat("", text)) };
    let mut one = One::of(config, HostOptions::default());
    let status = one.get().downstream.status();
    (status, one.host.failure(one.plugin, 0).unwrap().cloned())
}

const ENDLESS: &str = r#"(func $spin (loop $again (br $again)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $spin) (i32.const 0))"#;

#[test]
fn an_endless_loop_runs_out_of_fuel() {
    let limits = GuestLimits { fuel: Some(10_000), ..GuestLimits::default() };
    let (status, failure) = failure(ENDLESS, limits);
    let failure = failure.unwrap();
    assert_eq!((status, &failure.cause), (Some(503), &Cause::Fuel { limit: 10_000 }));
    assert_eq!(failure.backtrace[0], "spin");
    assert!(failure.to_string().contains("out of fuel after 10000 units"));
}

#[test]
fn an_endless_loop_runs_out_of_time() {
    let limit = Duration::from_millis(20);
    let limits = GuestLimits { wall_time: Some(limit), ..GuestLimits::default() };
    let (status, failure) = failure(ENDLESS, limits);
    assert_eq!((status, failure.unwrap().cause), (Some(503), Cause::WallTime { limit }));
}

/// Each callback has its own budget, and the record says what it used of it.
#[test]
fn fuel_is_counted_per_callback() {
    let text = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $i i32)
            (loop $again (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 1000))))
            (i32.const 0))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 0))"#;
    let limits = GuestLimits { fuel: Some(20_000), ..GuestLimits::default() };
    let mut one =
        One::of(PluginConfig { limits, ..plugin(&wat("", text)) }, HostOptions::default());
    let used = |one: &mut One| {
        assert_eq!(one.get().downstream.status(), Some(200));
        let calls = one.host.take_calls();
        let of = |name| calls.iter().find(|call| call.callback == name).unwrap().fuel;
        (of("proxy_on_request_headers"), of("proxy_on_response_headers"))
    };
    let (request, response) = used(&mut one);
    // Eight instructions a turn, a unit each.
    assert!((8000..8010).contains(&request), "{request}");
    assert!((1..20).contains(&response), "{response}");
    assert_eq!(used(&mut one), (request, response), "and no less is left for the next");
}

#[test]
fn memory_is_refused_not_given() {
    // Grows by a page a time until it is refused, and says how many pages it got; then traps.
    let text = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (call $code (memory.size))
        (if (i32.ne (memory.grow (i32.const 65000)) (i32.const -1)) (then (return (i32.const 0))))
        unreachable)"#;
    let limits = GuestLimits { memory_bytes: 5 * 65536, ..GuestLimits::default() };
    let config = PluginConfig { limits, ..plugin(&wat("", text)) };
    let mut one = One::of(config, HostOptions::default());
    assert_eq!(one.get().downstream.status(), Some(503));
    let failure = one.host.failure(one.plugin, 0).unwrap().unwrap().clone();
    assert!(failure.memory_denied && failure.to_string().contains("after being refused memory"));
    assert_eq!(one.said()[0], "=E", "five pages");
}

#[test]
fn a_module_that_begins_above_its_memory_is_not_started() {
    let limits = GuestLimits { memory_bytes: 65536, ..GuestLimits::default() };
    let mut host = wasm_host::Host::new(crate::support::engine(), HostOptions::default());
    let error = host.add_plugin(PluginConfig { limits, ..plugin(&wat("", "")) }).err().unwrap();
    let said = error.to_string();
    assert!(matches!(error, LoadError::Instantiate { .. }), "{said}");
    assert!(said.starts_with("module guest: instantiating: "), "{said}");
}

#[test]
fn a_stack_without_end_is_a_trap() {
    let text = r#"(func $deeper (call $deeper) (call $deeper))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $deeper) (i32.const 0))"#;
    let (status, failure) = failure(text, GuestLimits::default());
    let failure = failure.unwrap();
    assert_eq!(status, Some(503));
    assert!(failure.cause.to_string().contains("stack"), "{failure}");
    assert_eq!(failure.backtrace.len(), 20, "cut like Envoy's");
}

/// An allocator that fails, lies, or traps.
#[test]
fn a_bad_allocator_is_the_guests_own_trouble() {
    let with = |malloc: &str| {
        format!(
            r#"(module
            (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
            (import "env" "proxy_done" (func $done (result i32)))
            (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) {malloc})
            (func (export "proxy_on_configure") (param i32 i32) (result i32)
                (i32.store8 (i32.const 8) (i32.add (i32.const 64)
                    (call $bytes (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 16) (i32.const 20))))
                (drop (call $log (i32.const 2) (i32.const 8) (i32.const 1)))
                (i32.const 1)))"#
        )
    };
    let run = |malloc: &str| {
        let mut config = plugin(&with(malloc));
        config.configuration = b"text".to_vec();
        let mut host = wasm_host::Host::new(crate::support::engine(), HostOptions::default());
        let started = host.add_plugin(config);
        match started {
            Ok(_) => host.take_logs()[0].text.clone(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(run("(i32.const 1000)"), "@");
    assert_eq!(run("(i32.const 0)"), "F", "no memory");
    assert_eq!(run("(i32.const 65533)"), "F", "past its end");
    assert_eq!(run("(i32.const -1)"), "F");
    assert!(run("unreachable").contains("unreachable"));
    let restricted = run("(drop (call $done)) (i32.const 1000)");
    assert!(restricted.contains("call of proxy_done while allocating"), "{restricted}");
}
