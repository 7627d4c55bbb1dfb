//! Header maps and properties: what is there when, and what calls say otherwise.

use crate::support::{One, code, plugin, wat};
use wasm_host::{
    ChainConfig, HeaderMap, Host, HostOptions, Outcome, PluginConfig, Request, Response, Status,
    Value,
};

const MAPS: &str = r#"
    (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
    (import "env" "proxy_get_header_map_size" (func $size (param i32 i32) (result i32)))
    (import "env" "proxy_set_header_map_pairs" (func $set_pairs (param i32 i32 i32) (result i32)))
    (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))
    (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))"#;

fn headers_guest(in_headers: &str, in_body: &str) -> One {
    One::new(&wat(
        MAPS,
        &format!(
            r#"(data (i32.const 100) "x-a") (data (i32.const 110) "x-b") (data (i32.const 120) "new")
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                {in_headers} (i32.const 0))
            (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
                {in_body} (i32.const 0))"#
        ),
    ))
}

fn upstream(outcome: &Outcome) -> &HeaderMap {
    outcome.upstream.headers.as_ref().unwrap()
}

fn post(one: &mut One) -> Outcome {
    let request = Request::post("/", "body").header("X-A", "1").header("x-a", "2");
    one.host.exchange(one.chain, 0, request, |_| Response::new(200, "")).unwrap()
}

#[test]
fn headers_are_read_and_changed_in_their_own_phase() {
    let mut one = headers_guest(
        r#"(call $code (call $get (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 16) (i32.const 20)))
           (call $say)
           (call $code (call $get (i32.const 0) (i32.const 110) (i32.const 3) (i32.const 16) (i32.const 20)))
           (call $code (call $add (i32.const 0) (i32.const 110) (i32.const 3) (i32.const 120) (i32.const 3)))
           (call $code (call $set (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 120) (i32.const 3)))"#,
        r#"(call $code (call $get (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 16) (i32.const 20)))
           (call $code (call $set (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 120) (i32.const 3)))
           (call $code (call $size (i32.const 0) (i32.const 24)))
           (i32.store (i32.const 20) (i32.const 7))
           (call $code (call $pairs (i32.const 0) (i32.const 16) (i32.const 20)))
           (call $code (i32.load (i32.const 20)))"#,
    );
    let outcome = post(&mut one);
    assert_eq!(upstream(&outcome).get_all("x-a").collect::<Vec<_>>(), [b"new"]);
    assert_eq!(upstream(&outcome).get("x-b"), Some(b"new".as_slice()));
    let (ok, not_found, bad) =
        (code(Status::Ok), code(Status::NotFound), code(Status::BadArgument));
    let expected = [
        ok, "1", not_found, ok, ok,
        // In the body phase they have gone on; all pairs are none.
        bad, bad, bad, ok, "=@",
    ];
    assert_eq!(one.said(), expected);
}

#[test]
fn a_map_that_is_set_whole_replaces_everything_and_garbage_empties_it() {
    let call = |pointer: u32, len: u32| {
        format!(
            "(call $code (call $set_pairs (i32.const 0) (i32.const {pointer}) (i32.const {len})))"
        )
    };
    let text = |call: String| {
        wat(
            MAPS,
            &format!(
                r#"(data (i32.const 200) "\01\00\00\00\03\00\00\00\01\00\00\00X-C\00v\00")
                (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {call} (i32.const 0))"#
            ),
        )
    };
    let outcome = post(&mut One::new(&text(call(200, 18))));
    assert_eq!(*upstream(&outcome), HeaderMap::from([("x-c", "v")]));
    let outcome = post(&mut One::new(&text(call(200, 17))));
    assert!(upstream(&outcome).is_empty(), "cut short it is no map at all");
}

#[test]
fn pairs_read_back_as_they_are_serialised() {
    let mut one = headers_guest(
        r#"(drop (call $pairs (i32.const 0) (i32.const 16) (i32.const 20))) (call $say)
           (drop (call $size (i32.const 0) (i32.const 24))) (i32.store (i32.const 16) (i32.const 24))
           (i32.store (i32.const 20) (i32.const 4)) (call $say)"#,
        "",
    );
    let headers = HeaderMap::from([(":path", "/"), ("a", "bc")]);
    let stream = one.open();
    one.host.request_headers(stream, headers, true).unwrap();
    let said = one.said();
    assert_eq!(said[0], "\x02\0\0\0\x05\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0:path\0/\0a\0bc\0");
    assert_eq!(said[1], "\x09\0\0\0", "all names and values");
}

#[test]
fn bad_pointers_and_unknown_maps_are_said_and_change_nothing() {
    let mut one = headers_guest(
        r#"(call $code (call $get (i32.const 8) (i32.const 100) (i32.const 3) (i32.const 16) (i32.const 20)))
           (call $code (call $get (i32.const 0) (i32.const 131070) (i32.const 3) (i32.const 16) (i32.const 20)))
           (call $code (call $get (i32.const 0) (i32.const -1) (i32.const -1) (i32.const 16) (i32.const 20)))
           (call $code (call $get (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 131070) (i32.const 20)))
           (call $code (call $add (i32.const 0) (i32.const 131072) (i32.const 0) (i32.const 0) (i32.const 131073)))
           (call $code (call $remove (i32.const 3) (i32.const 100) (i32.const 3)))"#,
        "",
    );
    let outcome = post(&mut one);
    let (bad, memory) = (code(Status::BadArgument), code(Status::InvalidMemoryAccess));
    assert_eq!(one.said(), [bad, memory, memory, memory, memory, bad]);
    assert_eq!(upstream(&outcome).len(), 7);
}

#[test]
fn the_log_phase_sees_all_headers_again() {
    let read = |map: u32, key: u32, len: u32| {
        format!(
            "(call $code (call $get (i32.const {map}) (i32.const {key}) (i32.const {len}) \
             (i32.const 16) (i32.const 20)))"
        )
    };
    let text = format!(
        r#"(data (i32.const 100) "x-a") (data (i32.const 110) ":status")
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            {} {} (i32.const 0))
        (func (export "proxy_on_log") (param i32) {} {} {} {})
        (func (export "proxy_on_done") (param i32) (result i32) {} (i32.const 1))"#,
        // Of a request that went on long ago: the mistake that kills guests of the SDK.
        read(0, 100, 3),
        read(2, 110, 7),
        read(0, 100, 3),
        read(2, 110, 7),
        read(3, 100, 3),
        read(1, 100, 3),
        read(0, 100, 3),
    );
    let mut one = One::new(&wat(MAPS, &text));
    post(&mut one);
    let (ok, not_found, bad) =
        (code(Status::Ok), code(Status::NotFound), code(Status::BadArgument));
    assert_eq!(one.said(), [bad, ok, ok, ok, not_found, not_found, bad]);
}

fn property(path: &str, store: u32) -> String {
    let len = path.len();
    format!(
        r#"(call $code (call $property (i32.const {store}) (i32.const {len}) (i32.const 16) (i32.const 20)))
           (call $say) (i32.store (i32.const 20) (i32.const 0))"#
    )
}

#[test]
fn properties_by_path() {
    // Path in WAT's escapes, length in bytes.
    let paths = [
        ("request\\00path", "request\0path"),
        ("request\\00headers\\00x-a", "request\0headers\0x-a"),
        ("xds\\00route_name", "xds\0route_name"),
        ("plugin_root_id", "plugin_root_id"),
        ("response\\00code", "response\0code"),
        ("node\\00id", "node\0id"),
        ("nothing", "nothing"),
        ("", ""),
        ("plugin_name\\00", "plugin_name\0"),
        ("request\\00path\\00more", "request\0path\0more"),
    ];
    let (mut data, mut calls) = (String::new(), String::new());
    for (i, (escaped, path)) in paths.iter().enumerate() {
        let at = 1000 + 100 * u32::try_from(i).unwrap();
        data.push_str(&format!("(data (i32.const {at}) \"{escaped}\")"));
        calls.push_str(&property(path, at));
    }
    let text = wat(
        MAPS,
        &format!(
            r#"{data} (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                {calls} (i32.const 0))
               (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
                {} {} (i32.const 0))"#,
            property("request\0path", 1000),
            property("response\0code", 1400),
        ),
    );
    let mut config = plugin(&text);
    config.root_id = "root".to_owned();
    let mut attributes = Value::map();
    attributes.put(&["node", "id"], "gateway".into());
    let mut one = One::of(config, HostOptions { attributes, ..HostOptions::default() });
    let stream = one.open();
    one.host.set_attribute(stream, &["xds", "route_name"], "r").unwrap();
    let request = Request::get("/p?q").header("x-a", "1").header("x-a", "2");
    one.host.send_request(stream, request).unwrap();
    let (ok, not_found) = (code(Status::Ok), code(Status::NotFound));
    let serialization = code(Status::SerializationFailure);
    let expected = [
        ok,
        "/p?q",
        ok,
        "1,2",
        ok,
        "r",
        ok,
        "root",
        not_found,
        "",
        ok,
        "gateway",
        not_found,
        "",
        serialization,
        "",
        ok,
        "plugin",
        not_found,
        "",
    ];
    assert_eq!(one.said(), expected);
    one.host.send_response(stream, Response::new(404, "")).unwrap();
    // The request's attributes went with its headers.
    assert_eq!(one.said(), [not_found, "", ok, "\u{fffd}\x01\0\0\0\0\0\0"]);
}

/// A property that one plugin sets another reads, and one with more than one part nobody does.
#[test]
fn properties_of_a_stream_go_from_plugin_to_plugin() {
    let set = |at: u32, len: u32| {
        format!(
            "(call $code (call $set_property (i32.const {at}) (i32.const {len}) (i32.const 120) (i32.const 5)))"
        )
    };
    let data = r#"(data (i32.const 100) "a.b") (data (i32.const 110) "a\00b") (data (i32.const 120) "value")"#;
    let setter = wat(
        MAPS,
        &format!(
            r#"{data} (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                {} {} (i32.const 0))
               (func (export "proxy_on_configure") (param i32 i32) (result i32) {} (i32.const 1))"#,
            set(100, 3),
            set(110, 3),
            set(100, 3)
        ),
    );
    let reader = wat(
        MAPS,
        &format!(
            r#"{data} (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                {} {} (i32.const 0))
               (func (export "proxy_on_log") (param i32) {})"#,
            property("a.b", 100),
            property("a\0b", 110),
            property("a.b", 100)
        ),
    );
    let mut host = Host::new(crate::support::engine(), HostOptions::default());
    let add = |host: &mut Host, name: &str, vm_id: &str, text: &str| {
        let config =
            PluginConfig { vm_id: vm_id.to_owned(), name: name.to_owned(), ..plugin(text) };
        host.add_plugin(config).unwrap()
    };
    let plugins = [add(&mut host, "setter", "v", &setter), add(&mut host, "reader", "w", &reader)];
    let chain = host.add_chain(ChainConfig::new(plugins)).unwrap();
    let outcome = host.exchange(chain, 0, Request::get("/"), |_| Response::new(200, "")).unwrap();
    let said: Vec<_> = host.take_logs().into_iter().map(|line| line.text).collect();
    // Without a stream there is nowhere to put one.
    assert_eq!(said, ["=A", "=@", "=@", "=@", "value", "=A", "", "=@", "value"]);
    let state = &outcome.filter_state;
    assert_eq!(state[b"wasm.a.b".as_slice()], b"value");
    assert_eq!(state[b"wasm.a\0b".as_slice()], b"value");
}

#[test]
fn routes_are_chosen_again_until_the_headers_are_gone() {
    let text = wat(
        MAPS,
        &format!(
            r#"(data (i32.const 100) "x-a") (data (i32.const 120) "new") (data (i32.const 200) "xds\00cluster_name")
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                {read} (drop (call $set (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 120) (i32.const 3)))
                {read} (i32.const 0))"#,
            read = property("xds\0cluster_name", 200),
        ),
    );
    let mut one = One::new(&text);
    let mut chain = ChainConfig::new([one.plugin]);
    chain.route = Some(std::sync::Arc::new(|headers: &HeaderMap| {
        let mut route = Value::map();
        let cluster = headers.get_str("x-a").unwrap_or("none").to_owned();
        route.put(&["xds", "cluster_name"], cluster.into());
        route
    }));
    one.host.set_chain(one.chain, chain).unwrap();
    let outcome = one.get();
    assert_eq!(one.said(), ["=@", "none", "=@", "new"]);
    assert_eq!(outcome.route_clears, 1);
}
