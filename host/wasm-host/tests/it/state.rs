//! Shared data, queues, metrics, contexts, foreign functions, WASI.

use crate::support::{One, code, engine, plugin, wat};
use std::collections::BTreeSet;
use std::sync::Arc;
use wasm_host::{
    ChainConfig, Host, HostLimits, HostOptions, LogLevel, Metric, MetricKind, PluginConfig,
    Request, Response, Status,
};

const STATE: &str = r#"
    (import "env" "proxy_get_shared_data" (func $get (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
    (import "env" "proxy_record_metric" (func $record (param i32 i64) (result i32)))
    (import "env" "proxy_get_metric" (func $metric (param i32 i32) (result i32)))
    (import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
    (import "env" "proxy_get_log_level" (func $level (param i32) (result i32)))
    (import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))"#;

fn configured(text: &str, options: HostOptions) -> One {
    let body = format!(
        r#"(data (i32.const 100) "key") (data (i32.const 110) "value") (data (i32.const 120) "m.name")
        (func (export "proxy_on_configure") (param i32 i32) (result i32) {text} (i32.const 1))"#
    );
    One::of(plugin(&wat(STATE, &body)), options)
}

#[test]
fn shared_data_by_compare_and_swap() {
    let set = "(call $code (call $set (i32.const 100) (i32.const 3) (i32.const 110) (i32.const 5) (i32.load (i32.const 24))))";
    let get = "(call $code (call $get (i32.const 100) (i32.const 3) (i32.const 16) (i32.const 20) (i32.const 24)))";
    let mut one = configured(
        &format!(
            r#"{get} (i32.store (i32.const 24) (i32.const 12345)) {set} {set} {get} (call $say) {set} {set}
            (call $code (call $get (i32.const 100) (i32.const 3) (i32.const 16) (i32.const 20) (i32.const 131070)))"#
        ),
        HostOptions::default(),
    );
    let (ok, mismatch) = (code(Status::Ok), code(Status::CasMismatch));
    let memory = code(Status::InvalidMemoryAccess);
    let expected = [code(Status::NotFound), ok, mismatch, ok, "value", ok, mismatch, memory];
    assert_eq!(one.said(), expected);
    assert_eq!(one.host.shared_data("", "key").as_deref(), Some(b"value".as_slice()));
}

/// Several machines see the data of their `vm_id`, on any worker and of any module.
#[test]
fn shared_data_goes_by_vm_id() {
    let counter = wat(
        STATE,
        r#"(data (i32.const 100) "key")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eqz (call $get (i32.const 100) (i32.const 3) (i32.const 16) (i32.const 20) (i32.const 24)))
                (then (i32.store8 (i32.const 30) (i32.add (i32.const 1) (i32.load8_u (i32.load (i32.const 16))))))
                (else (i32.store8 (i32.const 30) (i32.const 49))))
            (drop (call $set (i32.const 100) (i32.const 3) (i32.const 30) (i32.const 1) (i32.const 0)))
            (i32.const 0))"#,
    );
    let other = counter.replace("(data", r#"(data (i32.const 700) "another module") (data"#);
    let mut host = Host::new(engine(), HostOptions { workers: 2, ..HostOptions::default() });
    let add = |host: &mut Host, text: &str, vm_id: &str| {
        let config = PluginConfig { vm_id: vm_id.to_owned(), ..plugin(text) };
        let plugin = host.add_plugin(config).unwrap();
        host.add_chain(ChainConfig::new([plugin])).unwrap()
    };
    let (a, b) = (add(&mut host, &counter, "v"), add(&mut host, &other, "v"));
    let apart = add(&mut host, &counter, "w");
    for (chain, worker) in [(a, 0), (a, 1), (b, 0), (b, 1), (apart, 0)] {
        host.exchange(chain, worker, Request::get("/"), |_| Response::new(200, "")).unwrap();
    }
    assert_eq!(host.shared_data("v", "key").unwrap(), b"4");
    assert_eq!(host.shared_data("w", "key").unwrap(), b"1");
    assert_eq!(host.shared_keys("v"), [b"key"]);
}

#[test]
fn what_guests_make_the_host_keep_is_bounded() {
    let limits = HostLimits { shared_bytes: 10, metrics: 1, ..HostLimits::default() };
    let set = |len: u32| {
        format!(
            "(call $code (call $set (i32.const 100) (i32.const 3) (i32.const 110) (i32.const {len}) (i32.const 0)))"
        )
    };
    let define = |len: u32| {
        format!(
            "(call $code (call $define (i32.const 0) (i32.const 120) (i32.const {len}) (i32.const 24)))"
        )
    };
    let text = [set(8), set(7), set(100_000), define(6), define(5), define(6)].concat();
    let mut one = configured(&text, HostOptions { limits, ..HostOptions::default() });
    let (ok, full) = (code(Status::Ok), code(Status::InternalFailure));
    assert_eq!(one.said(), [full, ok, full, ok, full, full]);
}

#[test]
fn metrics_of_each_kind() {
    let define = |kind: u32| {
        format!(
            "(call $code (call $define (i32.const {kind}) (i32.const 120) (i32.const 6) (i32.const 24)))"
        )
    };
    let call = |name: &str, value: i64| {
        format!("(call $code (call ${name} (i32.load (i32.const 24)) (i64.const {value})))")
    };
    let get = "(call $code (call $metric (i32.load (i32.const 24)) (i32.const 32))) (call $code (i32.load (i32.const 32)))";
    let text = [
        define(0),
        call("increment", 2),
        call("increment", 0),
        call("increment", -1),
        call("record", 5),
        get.to_owned(),
        define(1),
        call("increment", 5),
        call("increment", -2),
        get.to_owned(),
        call("record", 1),
        get.to_owned(),
        define(2),
        call("record", 7),
        call("increment", 1),
        "(call $code (call $metric (i32.load (i32.const 24)) (i32.const 32)))".to_owned(),
        define(3),
        "(i32.store (i32.const 24) (i32.const 400))".to_owned(),
        call("increment", 1),
        call("record", 1),
    ]
    .concat();
    let mut one = configured(&text, HostOptions::default());
    let (ok, bad, missing) = (code(Status::Ok), code(Status::BadArgument), code(Status::NotFound));
    #[rustfmt::skip]
    let expected = [
        ok, ok, bad, bad, ok, ok, "=G",
        ok, ok, ok, ok, "=C", ok, ok, "=A",
        ok, ok, bad, bad,
        bad, missing, missing,
    ];
    assert_eq!(one.said(), expected);
    let value = |kind| one.host.metric(kind, "m.name").unwrap();
    assert_eq!(value(MetricKind::Counter).value, 7);
    assert_eq!(value(MetricKind::Gauge).value, 1);
    assert_eq!(value(MetricKind::Histogram), Metric { value: 1, recorded: vec![7] });
}

/// Two definitions of a name are one metric under two numbers.
#[test]
fn equal_metrics_of_two_machines_are_one() {
    let text = r#"(drop (call $define (i32.const 0) (i32.const 120) (i32.const 6) (i32.const 24)))
                  (drop (call $increment (i32.load (i32.const 24)) (i64.const 1)))"#;
    let one = configured(text, HostOptions { workers: 3, ..HostOptions::default() });
    assert_eq!(one.host.metric(MetricKind::Counter, "m.name").unwrap().value, 3);
}

#[test]
fn the_allow_list_answers_as_envoy_does() {
    let body = r#"(data (i32.const 100) "key")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $code (call $set (i32.const 100) (i32.const 3) (i32.const 100) (i32.const 3) (i32.const 0)))
            (call $code (call $get (i32.const 100) (i32.const 3) (i32.const 16) (i32.const 20) (i32.const 24)))
            (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#;
    let mut config = plugin(&wat(STATE, body));
    let allowed = ["proxy_log", "proxy_set_shared_data", "proxy_on_configure"];
    config.allowed_capabilities = allowed.iter().map(|&name| name.to_owned()).collect();
    let mut one = One::of(config.clone(), HostOptions::default());
    let logged = "Attempted call to restricted proxy-wasm capability: proxy_get_shared_data";
    assert_eq!(one.said(), ["=@", logged, code(Status::InternalFailure)]);
    // The callback that would trap is not on the list, so it is not called.
    assert_eq!(one.get().downstream.status(), Some(200));
    config.allowed_capabilities = BTreeSet::new();
    assert_eq!(One::of(config, HostOptions::default()).get().downstream.status(), Some(503));
}

#[test]
fn the_effective_context_is_of_one_callback() {
    let text = wat(
        STATE,
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $code (call $effective (i32.const 77))) (call $code (call $effective (local.get 0)))
            (i32.const 1))"#,
    );
    let mut one = One::new(&text);
    assert_eq!(one.said(), [code(Status::BadArgument), code(Status::Ok)]);
}

#[test]
fn foreign_functions_of_the_embedder_and_of_envoy() {
    let text = wat(
        STATE,
        r#"(data (i32.const 100) "reverse") (data (i32.const 110) "clear_route_cache") (data (i32.const 130) "abc")
        (data (i32.const 140) "set_envoy_filter_state") (data (i32.const 170) "compress")
        (data (i32.const 200) "\0a\1benvoy.upstream.dynamic_host\12\02hi")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $code (call $foreign (i32.const 100) (i32.const 7) (i32.const 130) (i32.const 3) (i32.const 16) (i32.const 20)))
            (call $say)
            (call $code (call $foreign (i32.const 100) (i32.const 7) (i32.const 130) (i32.const 0) (i32.const 0) (i32.const 0)))
            (call $code (call $foreign (i32.const 110) (i32.const 17) (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 20)))
            (call $code (call $foreign (i32.const 140) (i32.const 22) (i32.const 200) (i32.const 33) (i32.const 16) (i32.const 20)))
            (call $code (call $foreign (i32.const 140) (i32.const 22) (i32.const 130) (i32.const 3) (i32.const 16) (i32.const 20)))
            (call $code (call $foreign (i32.const 170) (i32.const 8) (i32.const 130) (i32.const 3) (i32.const 16) (i32.const 20)))
            (i32.const 0))"#,
    );
    let mut one = One::new(&text);
    let reverse = |bytes: &[u8]| match bytes {
        [] => Err(Status::ParseFailure),
        bytes => Ok(bytes.iter().rev().copied().collect()),
    };
    one.host.add_foreign_function("reverse", Arc::new(reverse));
    let outcome = one.get();
    let ok = code(Status::Ok);
    let expected = [
        ok,
        "cba",
        code(Status::ParseFailure),
        ok,
        ok,
        code(Status::BadArgument),
        code(Status::NotFound),
    ];
    assert_eq!(one.said(), expected);
    assert_eq!(outcome.route_clears, 1);
    assert_eq!(outcome.filter_state[b"envoy.upstream.dynamic_host".as_slice()], b"hi");
}

#[test]
fn levels_filter_the_log() {
    let text = r#"(drop (call $level (i32.const 24))) (call $code (i32.load (i32.const 24)))
        (call $code (call $log (i32.const 6) (i32.const 100) (i32.const 3)))
        (call $code (call $log (i32.const 5) (i32.const 100) (i32.const 3)))
        (call $code (call $log (i32.const 0) (i32.const -1) (i32.const 3)))"#;
    let options = HostOptions { log_level: LogLevel::Warn, ..HostOptions::default() };
    let mut one = configured(text, options);
    assert_eq!(one.said(), ["key"], "the codes are logged as information");
    let mut one = configured(text, HostOptions::default());
    let bad = code(Status::BadArgument);
    assert_eq!(one.said(), ["=@", bad, "key", "=@", code(Status::InvalidMemoryAccess)]);
}

#[test]
fn wasi_as_far_as_envoy_has_it() {
    let wasi = r#"
        (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_unstable" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))"#;
    let errno = |call: &str| {
        format!(
            "(i32.store8 (i32.const 300) (i32.add (i32.const 48) {call})) (call $text (i32.const 300) (i32.const 1))"
        )
    };
    let text = format!(
        r#"(data (i32.const 100) "out\n") (data (i32.const 200) "\64\00\00\00\04\00\00\00\64\00\00\00\03\00\00\00")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
        {} {} {} (drop (call $sizes (i32.const 24) (i32.const 28)))
        (drop (call $environ (i32.const 400) (i32.const 420))) (call $text (i32.const 420) (i32.load (i32.const 28)))
        (call $text (i32.load (i32.const 404)) (i32.const 1))
        {} (call $text (i32.const 500) (i32.const 8))
        {} {} {} {} (call $exit (i32.const 3)) {} {}
        (i32.const 1))"#,
        errno("(call $fd_write (i32.const 1) (i32.const 200) (i32.const 2) (i32.const 32))"),
        errno("(call $fd_write (i32.const 3) (i32.const 200) (i32.const 2) (i32.const 32))"),
        errno("(call $fd_write (i32.const 1) (i32.const 200) (i32.const -1) (i32.const 32))"),
        errno("(call $clock (i32.const 0) (i64.const 1) (i32.const 500))"),
        errno("(call $clock (i32.const 2) (i64.const 1) (i32.const 500))"),
        errno("(call $random (i32.const 600) (i32.const 65537))"),
        errno("(call $random (i32.const 600) (i32.const 65536))"),
        errno("(call $random (i32.const 131071) (i32.const 2))"),
        errno(
            "(call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0))"
        ),
        errno("(call $read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))"),
    );
    let mut config = plugin(&wat(wasi, &text));
    config.environment = [("A", "1"), ("BC", "2")].map(|(n, v)| (n.into(), v.into())).into();
    // Digits of the time, so that they can be seen: "abcdefgh" as a number of nanoseconds.
    let start_ns = u64::from_le_bytes(*b"abcdefgh");
    let mut one = One::of(config, HostOptions { start_ns, ..HostOptions::default() });
    let character = |errno: u8| char::from(48 + errno).to_string();
    let (ok, badf, fault) = (character(0), character(8), character(21));
    let (notsup, inval, noent, nosys) =
        (character(58), character(28), character(44), character(52));
    let expected = [
        "out\nout",
        &ok,
        &badf,
        &fault,
        "A=1\0BC=2\0",
        "B",
        &ok,
        "abcdefgh",
        &notsup,
        &inval,
        &ok,
        &fault,
        "proc_exit(3)",
        &noent,
        &nosys,
    ];
    assert_eq!(one.said(), expected);
}
