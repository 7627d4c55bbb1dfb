//! Virtual time: ticks, queue notifications.

use crate::support::{One, code, engine, plugin, wat};
use std::time::Duration;
use wasm_host::{Host, HostError, HostOptions, PluginConfig, Status};

const CLOCK: &str = r#"
    (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
    (import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))
    (import "env" "proxy_register_shared_queue" (func $register (param i32 i32 i32) (result i32)))
    (import "env" "proxy_resolve_shared_queue" (func $resolve (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
    (import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))"#;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn ticks_come_at_their_time_until_the_period_is_changed() {
    // Each tick logs the milliseconds of the time as a letter; the third one stops them.
    let mut one = One::of(
        plugin(&wat(
            CLOCK,
            r#"(global $ticks (mut i32) (i32.const 0))
            (func (export "proxy_on_configure") (param i32 i32) (result i32)
                (drop (call $tick (i32.const 3))) (drop (call $tick (i32.const 2))) (i32.const 1))
            (func (export "proxy_on_tick") (param i32)
                (drop (call $now (i32.const 24)))
                (call $code (i32.wrap_i64 (i64.div_u (i64.load (i32.const 24)) (i64.const 1000000))))
                (global.set $ticks (i32.add (global.get $ticks) (i32.const 1)))
                (if (i32.eq (global.get $ticks) (i32.const 3)) (then (drop (call $tick (i32.const 0))))))"#,
        )),
        HostOptions { start_ns: 0, ..HostOptions::default() },
    );
    assert_eq!(one.host.advance(Duration::from_micros(1999)), Ok(0));
    assert_eq!(one.host.next_event(), Some(Duration::from_micros(1)));
    // The tick of the period that was replaced is forgotten, not called.
    one.host.advance(millis(100)).unwrap();
    assert_eq!(one.said(), ["=B", "=D", "=F"]);
    assert_eq!((one.host.next_event(), one.host.now_ns()), (None, 101_999_000));
}

/// The last that registered is told, wherever it is; anybody may take entries.
#[test]
fn queues_notify_the_last_registrant() {
    let text = wat(
        CLOCK,
        r#"(data (i32.const 100) "q") (data (i32.const 110) "none") (data (i32.const 120) "a") (data (i32.const 130) "v")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $code (call $register (i32.const 100) (i32.const 1) (i32.const 24))) (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $code (call $resolve (i32.const 0) (i32.const 0) (i32.const 110) (i32.const 4) (i32.const 28)))
            (call $code (call $resolve (i32.const 130) (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 28)))
            (call $code (call $resolve (i32.const 0) (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 28)))
            (call $code (call $enqueue (i32.load (i32.const 28)) (i32.const 120) (i32.const 1)))
            (call $code (call $enqueue (i32.const 99) (i32.const 120) (i32.const 1)))
            (i32.const 0))
        (func (export "proxy_on_queue_ready") (param i32 i32)
            (call $code (call $dequeue (local.get 1) (i32.const 16) (i32.const 20))) (call $say)
            (call $code (call $dequeue (local.get 1) (i32.const 16) (i32.const 20)))
            (call $code (call $dequeue (i32.const 99) (i32.const 16) (i32.const 20))))"#,
    );
    let mut one = One::of(
        PluginConfig { vm_id: "v".to_owned(), ..plugin(&text) },
        HostOptions { workers: 2, ..HostOptions::default() },
    );
    one.host.take_logs();
    let stream = one.open();
    one.host.request_headers(stream, wasm_host::Request::get("/").headers, true).unwrap();
    let missing = code(Status::NotFound);
    assert_eq!(one.said(), [missing, "=@", "=@", "=@", missing], "told of nothing yet");
    assert_eq!(one.host.queue_len("v", "q"), Some(1));
    one.host.run().unwrap();
    let lines = one.host.take_logs();
    assert!(lines.iter().all(|line| line.worker == 1), "the second worker came last");
    let said: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(said, ["=@", "a", code(Status::Empty), missing]);
}

#[test]
fn guests_that_keep_each_other_busy_do_not_keep_the_host() {
    let text = wat(
        CLOCK,
        r#"(data (i32.const 100) "q")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $register (i32.const 100) (i32.const 1) (i32.const 24)))
            (drop (call $enqueue (i32.load (i32.const 24)) (i32.const 100) (i32.const 1))) (i32.const 1))
        (func (export "proxy_on_queue_ready") (param i32 i32)
            (drop (call $dequeue (local.get 1) (i32.const 16) (i32.const 20)))
            (global.set $free (i32.const 32768))
            (drop (call $enqueue (local.get 1) (i32.const 100) (i32.const 1))))"#,
    );
    let mut host = Host::new(engine(), HostOptions::default());
    host.add_plugin(plugin(&text)).unwrap();
    assert_eq!(host.run(), Err(HostError::Endless { delivered: 100_000 }));
}
