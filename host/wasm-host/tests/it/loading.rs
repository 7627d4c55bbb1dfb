//! What is refused before a plugin runs, and what the message says.

use crate::support::{One, engine, load, plugin, wat};
use wasm_host::{AbiVersion, Host, HostOptions, LoadError, PluginConfig};

fn refused(text: &str) -> String {
    load(text).err().expect("it is refused").to_string()
}

/// A module with these fields, an allocator and a memory.
fn module(fields: &str) -> String {
    format!(
        r#"(module {fields} (memory (export "memory") 1)
            (func (export "malloc") (param i32) (result i32) (i32.const 1024)))"#
    )
}

#[test]
fn a_module_must_speak_the_abi() {
    assert!(refused("(module").contains("module guest: not a valid wasm module"));
    let expected = "module guest: no export proxy_abi_version_0_2_1 or proxy_abi_version_0_2_0";
    assert_eq!(refused(&module("")), expected);
    let old = module(r#"(func (export "proxy_abi_version_0_1_0"))"#);
    assert!(refused(&old).ends_with("(it speaks 0.1.0, which is not supported)"));
    let older = load(&module(r#"(func (export "proxy_abi_version_0_2_0"))"#)).unwrap();
    assert_eq!(older.abi(), AbiVersion::V0_2_0);
}

#[test]
fn imports_are_those_of_the_host_with_its_types() {
    let import = |import: &str| {
        let abi = r#"(func (export "proxy_abi_version_0_2_1"))"#;
        refused(&module(&format!("{import} {abi}")))
    };
    assert_eq!(
        import(r#"(import "env" "proxy_get_upstream_hosts" (func (param i32 i32) (result i32)))"#),
        "module guest: missing import env.proxy_get_upstream_hosts"
    );
    assert_eq!(
        import(
            r#"(import "wasi_snapshot_preview1" "thread_spawn" (func (param i32) (result i32)))"#
        ),
        "module guest: missing import wasi_snapshot_preview1.thread_spawn"
    );
    assert_eq!(
        import(r#"(import "env" "proxy_record_metric" (func (param i32 i32) (result i32)))"#),
        "module guest: import env.proxy_record_metric is (i32 i32) -> (i32), \
         expected (i32 i64) -> (i32)"
    );
    assert_eq!(
        import(r#"(import "env" "proxy_log" (global i32))"#),
        "module guest: import env.proxy_log is a global, expected a function"
    );
    // It came with 0.2.1.
    let newer = r#"(import "env" "proxy_get_log_level" (func (param i32) (result i32)))
                   (func (export "proxy_abi_version_0_2_0"))"#;
    assert_eq!(refused(&module(newer)), "module guest: missing import env.proxy_get_log_level");
}

#[test]
fn exports_that_the_host_calls_have_its_types() {
    let abi = r#"(func (export "proxy_abi_version_0_2_1"))"#;
    let body =
        r#"(func (export "proxy_on_request_body") (param i32 i32) (result i32) (i32.const 0))"#;
    assert_eq!(
        refused(&module(&format!("{abi} {body}"))),
        "module guest: export proxy_on_request_body is (i32 i32) -> (i32), \
         expected (i32 i32 i32) -> (i32)"
    );
    assert_eq!(
        refused(&format!(r#"(module {abi} (memory (export "memory") 1))"#)),
        "module guest: no export proxy_on_memory_allocate or malloc"
    );
    let allocator = r#"(func (export "malloc") (param i32) (result i32) (i32.const 0))"#;
    assert_eq!(refused(&format!("(module {abi} {allocator})")), "module guest: no export memory");
}

fn start(config: PluginConfig) -> Result<Host, LoadError> {
    let mut host = Host::new(engine(), HostOptions::default());
    host.add_plugin(config).map(|_| host)
}

#[test]
fn a_start_that_says_no_is_a_refusal_with_the_guests_last_words() {
    for callback in ["proxy_on_vm_start", "proxy_on_configure"] {
        let text = wat(
            "",
            &format!(
                r#"(data (i32.const 100) "bad key") (func (export "{callback}")
                (param i32 i32) (result i32) (call $text (i32.const 100) (i32.const 7)) (i32.const 0))"#
            ),
        );
        let error = start(plugin(&text)).err().unwrap().to_string();
        let expected = format!("plugin plugin: {callback} returned false, having logged: bad key");
        assert_eq!(error, expected);
    }
}

#[test]
fn only_the_log_and_wasi_may_be_called_while_starting() {
    let text = |callback: &str| {
        wat(
            r#"(import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))"#,
            &format!(r#"(func $start (export "{callback}") (drop (call $now (i32.const 100))))"#),
        )
    };
    let error = start(plugin(&text("_initialize"))).err().unwrap();
    let LoadError::Failed { failure, .. } = &error else { panic!("{error}") };
    let said = failure.to_string();
    let expected = "module guest, vm_id \"\", worker 0: _initialize for context 0: call of \
                    proxy_get_current_time_nanoseconds while starting\n  at start";
    assert_eq!(said, expected);
    // The same call is fine as soon as the machine has started.
    assert!(start(plugin(&text("anything_else"))).is_ok());
    // And the log is, before.
    let text = wat(
        "",
        r#"(data (i32.const 100) "here") (func (export "_initialize")
            (call $text (i32.const 100) (i32.const 4)))"#,
    );
    assert_eq!(start(plugin(&text)).unwrap().logs()[0].text, "here");
}

/// Order and arguments of a plugin's first callbacks, each logged as a letter and its arguments.
#[test]
fn plugins_start_in_envoys_order_and_share_a_machine() {
    let note = |name: &str, letter: u8, result: &str| {
        format!(
            r#"(func (export "{name}") (param i32 i32) {result}
            (i32.store8 (i32.const 100) (i32.const {letter}))
            (i32.store8 (i32.const 101) (i32.add (i32.const 48) (local.get 0)))
            (i32.store8 (i32.const 102) (i32.add (i32.const 48) (local.get 1)))
            (call $text (i32.const 100) (i32.const 3))
            {})"#,
            if result.is_empty() { "" } else { "(i32.const 1)" }
        )
    };
    let text = wat(
        "",
        &[
            note("proxy_on_context_create", b'c', ""),
            note("proxy_on_vm_start", b's', "(result i32)"),
            note("proxy_on_configure", b'k', "(result i32)"),
        ]
        .concat(),
    );
    let mut config = plugin(&text);
    (config.vm_configuration, config.configuration) = (b"ab".to_vec(), b"abc".to_vec());
    let mut one = One::of(config.clone(), HostOptions::default());
    assert_eq!(one.said(), ["c10", "s12", "k13"]);
    // Another plugin of the same identity is another root context of the machine.
    config.name = "second".to_owned();
    config.canary = true;
    one.host.add_plugin(config.clone()).unwrap();
    assert_eq!(one.said(), ["c10", "s12", "k13", "c20", "s22", "k23"], "canary first");
    // With another identity it has a machine of its own.
    config.vm_id = "other".to_owned();
    config.canary = false;
    one.host.add_plugin(config).unwrap();
    assert_eq!(one.said(), ["c10", "s12", "k13"]);
}

#[test]
fn a_plugin_ends_when_it_says_so() {
    // on_done returns what its configuration's length says; a tick calls proxy_done.
    let text = wat(
        r#"(import "env" "proxy_done" (func $done (result i32)))
           (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))"#,
        r#"(data (i32.const 100) "deleted") (global $immediate (mut i32) (i32.const 0))
           (func (export "proxy_on_configure") (param i32 i32) (result i32)
               (call $code (call $done))
               (drop (call $tick (i32.const 10)))
               (global.set $immediate (local.get 1)) (i32.const 1))
           (func (export "proxy_on_done") (param i32) (result i32) (global.get $immediate))
           (func (export "proxy_on_tick") (param i32) (call $code (call $done)))
           (func (export "proxy_on_delete") (param i32) (call $text (i32.const 100) (i32.const 7)))"#,
    );
    let mut config = plugin(&text);
    config.configuration = b"x".to_vec();
    let mut one = One::of(config.clone(), HostOptions::default());
    one.host.remove_plugin(one.plugin).unwrap();
    assert_eq!(one.said(), ["=A", "deleted"], "nobody asked it to be done before");

    config.configuration.clear();
    let mut one = One::of(config, HostOptions::default());
    one.host.set_shared_data("", "k", "v");
    let stream = one.open();
    one.host.remove_plugin(one.plugin).unwrap();
    assert_eq!(one.said(), ["=A"], "a stream is still in it");
    assert!(one.host.shared_data("", "k").is_some());
    one.host.close(stream).unwrap();
    assert_eq!(one.said(), ["deleted"], "the stream's own context");
    assert_eq!(one.host.shared_data("", "k"), None, "nobody of that vm_id is left");
    one.host.advance(std::time::Duration::from_millis(10)).unwrap();
    assert_eq!(one.said(), ["=@", "deleted"]);
    assert!(one.host.remove_plugin(one.plugin).is_err());
}
