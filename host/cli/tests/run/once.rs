//! Requests of a file: what is printed, what is refused, and what is done on changes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Running, guest, run, write};

const CHAIN: &str = "modules:\n- path: guest.wasm\n";
const REQUESTS: &str = r#"{"name": "hello", "path": "/a", "body": {"n": 1}, "headers": {"x-mine": "1"}}
{"path": "/b", "response": {"status": 404}}
"#;

/// A folder with a chain of one module, and requests.
fn folder(chain: &str, requests: &str, module: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "chain.yaml", chain.as_bytes());
    write(folder.path(), "requests.jsonl", requests.as_bytes());
    write(folder.path(), "guest.wasm", module);
    folder
}

const ONCE: [&str; 3] = ["chain.yaml", "--requests", "requests.jsonl"];

#[test]
fn each_request_is_shown_with_its_changes_logs_and_what_callbacks_used() {
    let folder = folder(CHAIN, REQUESTS, &guest("ran", ""));
    let output = run(folder.path(), &ONCE);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let first =
        "hello\n  answer      200\n  request     + x-guest: ran\n  log         info guest: ran\n";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("\n#2 GET /b\n  answer      404\n"), "{text}");
    let table: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = table.iter().find(|row| row.get(1) == Some(&"proxy_on_request_headers"));
    let row = row.unwrap_or_else(|| panic!("no row of the callback in {text}"));
    assert_eq!((row[0], row[2]), ("guest", "2"), "{text}");
    let numbers: Vec<u64> = row[3..].iter().map(|cell| cell.parse().expect("a number")).collect();
    let [total, per_call, most] = numbers[..] else { panic!("{row:?}") };
    assert!(total > 0 && per_call * 2 == total && most == per_call, "{text}");
    // The columns of numbers end below their heads.
    let end_of = |line: &str, cell: &str| line.find(cell).map(|at| at + cell.len());
    let head = text.lines().find(|line| line.starts_with("module ")).expect("a head");
    let line = text.lines().find(|line| line.contains("proxy_on_request_headers")).expect("a row");
    assert_eq!(end_of(head, "calls"), end_of(line, " 2"), "{text}");
}

#[test]
fn the_same_is_one_json_object_on_the_last_line() {
    let folder = folder(CHAIN, REQUESTS, &guest("ran", ""));
    let output = run(folder.path(), &[&ONCE[..], &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(report["ok"], true, "{report}");
    let first = &report["requests"][0];
    assert_eq!((&first["name"], &first["status"]), (&json!("hello"), &json!(200)), "{report}");
    assert_eq!(
        first["requestHeaders"],
        json!([{"name": "x-guest", "before": [], "after": ["ran"]}]),
        "{report}"
    );
    assert_eq!(report["requests"][1]["status"], 404, "{report}");
    let fuel = report["fuel"].as_array().expect("a list");
    let calls = |name: &str| fuel.iter().find(|row| row["callback"] == name).map(|r| &r["calls"]);
    assert_eq!(calls("proxy_on_request_headers"), Some(&json!(2)), "{report}");
}

#[test]
fn a_trap_is_told_with_module_callback_and_backtrace_and_fails() {
    let folder = folder(CHAIN, REQUESTS, &guest("ran", "unreachable"));
    let output = run(folder.path(), &ONCE);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains("  trapped     guest in proxy_on_request_headers\n"), "{text}");
    assert!(text.contains("FAILED module guest, vm_id \"\", worker 0: proxy_on_request_headers"));
    assert!(text.contains("\n  at ") && text.contains("deep"), "{text}");
    // Fail closed is the default: the client gets an answer of the host's.
    assert!(text.contains("  answer      503 by the chain (wasm_fail_stream)"), "{text}");
}

#[test]
fn what_was_expected_and_did_not_come_fails() {
    let check = |expect: &str, code: i32, told: &str| {
        let requests = format!("- path: /a\n  expect: {expect}\n");
        let folder = folder(CHAIN, &requests, &guest("ran", ""));
        let output = run(folder.path(), &ONCE);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{expect}: {output:?}");
        assert!(text.contains(told), "{text}");
    };
    check("{status: 200, endpoint: ''}", 0, "answer      200");
    check("{status: 201}", 1, "NOT AS EXPECTED expected status 201, got 200");
    check("{endpoint: '127.0.0.1:1'}", 1, "expected endpoint \"127.0.0.1:1\", got \"\"");
}

#[test]
fn what_is_not_accepted_is_named_with_file_key_value_and_range() {
    let wasm = guest("ran", "");
    let check = |chain: &str, requests: &str, told: &str| {
        let folder = folder(chain, requests, &wasm);
        let output = run(folder.path(), &ONCE);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{chain}{requests}: {output:?}");
        assert!(text.contains(told), "expected {told:?} in {text}");
        assert!(text.matches("No such file").count() < 2, "told twice: {text}");
    };
    let module = |more: &str| format!("modules:\n- path: guest.wasm\n  {more}\n");
    check(
        "moduls: []\n",
        REQUESTS,
        "chain.yaml: the file: \"neither\" is not accepted: expected modules",
    );
    check("modules: []\n", REQUESTS, "chain.yaml: modules: [] is not accepted");
    check(&module("rootID: a"), REQUESTS, "chain.yaml:3: unknown field");
    check(
        &module("failurePolicy: fail"),
        REQUESTS,
        "chain.yaml: modules[0].failurePolicy: \"fail\" is not accepted: expected one of fail-closed, ",
    );
    check(
        &module("limits: {fuel: 0}"),
        REQUESTS,
        "chain.yaml: modules[0].limits.fuel: 0 is not accepted: expected 1 to ",
    );
    check(
        "modules:\n- path: other.wasm\n",
        REQUESTS,
        "other.wasm: reading the module: No such file",
    );
    check(CHAIN, "{\"path\": \"/\"}\n{\"pth\": \"/\"}\n", "requests.jsonl:2: unknown field `pth`");
    check(
        CHAIN,
        "- path: a\n",
        "requests.jsonl: [0].path: \"a\" is not accepted: expected a path that begins with /",
    );
    check(
        CHAIN,
        "- {path: /, response: {status: 100}}\n",
        "requests.jsonl: [0].response.status: 100 is not accepted: expected 200 to 599",
    );
    let folder = folder(CHAIN, REQUESTS, b"\0asm but no module");
    let output = run(folder.path(), &ONCE);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(text.contains("chain.yaml: modules[0].path: module guest: not a valid wasm"), "{text}");
}

#[test]
fn watching_shows_what_differs_after_each_change() {
    let folder = folder(CHAIN, REQUESTS, &guest("ran", ""));
    let mut watch = Running::start(folder.path(), &[&ONCE[..], &["--watch"]].concat());
    let first = watch.until("watching");
    assert!(first.starts_with("== run 1\nhello\n") && first.contains("#2 GET /b"), "{first}");

    write(folder.path(), "guest.wasm", &guest("again", ""));
    let second = watch.until("watching");
    assert!(second.starts_with("== run 2\nhello\n"), "{second}");
    assert!(second.contains("- request     + x-guest: ran\n"), "{second}");
    assert!(second.contains("+ request     + x-guest: again\n"), "{second}");
    assert!(!second.contains("answer"), "what is as before is not shown: {second}");
    assert!(second.contains("proxy_on_request_headers"), "the table is: {second}");

    write(folder.path(), "requests.jsonl", REQUESTS.replace("404", "500").as_bytes());
    let third = watch.until("watching");
    assert!(
        third.starts_with("== run 3\n#2 GET /b\n- answer      404\n+ answer      500\n"),
        "{third}"
    );
    assert!(!third.contains("hello"), "{third}");

    write(folder.path(), "chain.yaml", b"modules: []\n");
    let refused = watch.until("chain.yaml: modules: [] is not accepted");
    assert!(refused.contains("== run 4\n"), "{refused}");
    write(folder.path(), "chain.yaml", CHAIN.as_bytes());
    let mended = watch.until("watching");
    assert!(mended.contains("== run 5\nnothing differs\n"), "{mended}");
}

/// Our own modules, or `None` with the reason printed. With `CI` set there is no reason that counts.
fn own_modules() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/wasm");
    if folder.join("router.wasm").exists() && folder.join("feeder.wasm").exists() {
        return Some(folder);
    }
    let reason = "skipped: no modules in target/wasm; run scripts/build-modules";
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    eprintln!("{reason}");
    None
}

#[test]
fn our_own_configuration_decides_by_a_fixture_of_what_engines_hold() {
    let Some(modules) = own_modules() else { return };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-model");
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "pools:\n- name: pool\n  models: [{{name: tiny, folder: {}}}]\n  endpoints:\n\
         \x20 - {{address: '127.0.0.1:8001', kvEvents: 'tcp://127.0.0.1:9001'}}\n\
         \x20 - {{address: '127.0.0.1:8002', kvEvents: 'tcp://127.0.0.1:9002'}}\n\
         envoy: {{modules: {}, feed: 'unix:feed.sock'}}\n",
        model.display(),
        modules.display(),
    );
    write(folder.path(), "wasm-epp.yaml", config.as_bytes());
    let mut prompt =
        "Every engine remembers what it has read, and forgets it in the end. ".repeat(16);
    // Fifteen blocks of 16 tokens, which the fixture has of four bytes each, and a part of one.
    prompt.truncate(1_000);
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
    let request = |name: &str, body: &Value, endpoint: &str| json!({"name": name, "path": "/v1/completions", "body": body, "expect": {"endpoint": endpoint}});
    let busy = |address: &str, waiting: u32, holds: &[Value]| json!({"address": address, "waiting": waiting, "running": 0, "kvUsageRatio": 0.1, "holds": holds});
    let held = json!({"path": "/v1/completions", "body": body});
    let state = |holds: [&[Value]; 2], waiting: [u32; 2]| {
        json!({"endpoints": [
            busy("127.0.0.1:8001", waiting[0], holds[0]),
            busy("127.0.0.1:8002", waiting[1], holds[1]),
        ]})
    };
    let once = |state: &Value, requests: &[Value]| {
        let lines: Vec<String> = requests.iter().map(Value::to_string).collect();
        write(folder.path(), "requests.jsonl", lines.join("\n").as_bytes());
        write(folder.path(), "state.yaml", state.to_string().as_bytes());
        let flags =
            ["wasm-epp.yaml", "--requests", "requests.jsonl", "--state", "state.yaml", "--json"];
        let output = run(folder.path(), &flags);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}{output:?}");
        serde_json::from_str::<Value>(text.lines().last().expect("a line")).expect("JSON")
    };
    // The holder is chosen although it is the busier one, whichever that is.
    for (holds, waiting, holder) in [
        ([std::slice::from_ref(&held), &[]], [1, 0], "127.0.0.1:8001"),
        ([&[], std::slice::from_ref(&held)], [0, 1], "127.0.0.1:8002"),
    ] {
        let report = once(&state(holds, waiting), &[request("warm", &body, holder)]);
        let warm = &report["requests"][0];
        let said = warm["logs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let said = said.filter_map(|line| line.split_once("Got pod scores ")).map(|(_, json)| json);
        let said: Vec<Value> = said.map(|json| serde_json::from_str(json).expect("JSON")).collect();
        assert_eq!(said.len(), 1, "{report}");
        assert_eq!(said[0]["scores"], json!({holder: 15}), "{report}");
        let names: Vec<&Value> = warm["responseHeaders"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| &c["after"][0])
            .collect();
        assert_eq!(names, [holder], "the client is told who served: {report}");
        let fuel = report["fuel"].as_array().expect("a list");
        assert!(
            fuel.iter()
                .any(|row| row["module"] == "router" && row["callback"] == "proxy_on_request_body"),
            "{report}"
        );
    }
    // Time passes, and the state does not grow old: the daemon would go on.
    let mut later = request("later", &body, "127.0.0.1:8001");
    later["afterMs"] = json!(20_000);
    once(&state([std::slice::from_ref(&held), &[]], [1, 0]), &[later]);
    // Nobody holds it: the idle one.
    let report = once(&state([&[], &[]], [5, 0]), &[request("cold", &body, "127.0.0.1:8002")]);
    assert_eq!(report["ok"], true);
    assert!(!folder.path().join("data").exists(), "a run leaves nothing behind");
}
