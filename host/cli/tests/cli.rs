//! The command as a person runs it: exit codes, and what goes to stdout and stderr.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_wasm-epp");

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).current_dir(folder).output().expect("the binary runs")
}

/// A folder with modules that only look like some, and this configuration.
fn folder(configuration: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("target/wasm")).expect("a folder");
    for module in ["router", "feeder"] {
        let path = folder.path().join(format!("target/wasm/{module}.wasm"));
        std::fs::write(path, b"\0asm").expect("written");
    }
    std::fs::write(folder.path().join("c.yaml"), configuration).expect("written");
    folder
}

const GOOD: &str =
    "pools: [{name: a, models: [{name: m, folder: f}], endpoints: [{address: '127.0.0.1:8000'}]}]";
const RENDER: [&str; 8] =
    ["render", "--gateway", "envoy", "--config", "c.yaml", "--out", "out", "--json"];

#[test]
fn render_reports_in_one_json_object_on_the_last_line() {
    let folder = folder(GOOD);
    let output = run(folder.path(), &RENDER);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("wrote /")).count(), 10, "{stdout}");
    let report: serde_json::Value =
        serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!(report["written"].as_array().map(Vec::len), Some(10), "{report}");
    assert_eq!(report["unchanged"].as_array().map(Vec::len), Some(0), "{report}");
    assert!(folder.path().join("run").is_dir(), "the folder of the feed's socket");
}

#[test]
fn a_wrong_configuration_is_64_and_says_where() {
    for command in [&RENDER[..], &["serve", "--config", "c.yaml"]] {
        let folder = folder("pools: []");
        let output = run(folder.path(), command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(stderr.contains("c.yaml: pools: [] is not accepted"), "{stderr}");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn a_wrong_plugin_is_64_and_named_with_key_value_and_range() {
    for (routing, expected) in [
        (
            "{scorers: [{type: load-aware, parameters: {threshold: 0}}]}",
            "c.yaml: routing.scorers[0].parameters.threshold of load-aware: 0 is not accepted: expected 1 to 1000000",
        ),
        ("{filters: [{type: utilisation}]}", "context-length-aware, module; is utilization meant?"),
    ] {
        for command in [&RENDER[..], &["serve", "--config", "c.yaml"]] {
            let folder = folder(&format!("{GOOD}\nrouting: {routing}\n"));
            let output = run(folder.path(), command);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{output:?}");
            assert!(stderr.contains(expected), "{stderr}");
        }
    }
}

#[test]
fn new_scorer_writes_a_project_once() {
    let folder = folder(GOOD);
    let first = run(folder.path(), &["new-scorer", "mine", "--path", "a/b"]);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    assert!(String::from_utf8_lossy(&first.stdout).contains("wrote a/b/src/lib.rs"), "{first:?}");
    let again = run(folder.path(), &["new-scorer", "mine", "--path", "a/b"]);
    assert_eq!(again.status.code(), Some(64), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("a/b exists already"), "{again:?}");
    let misnamed = run(folder.path(), &["new-scorer", "Mine"]);
    assert_eq!(misnamed.status.code(), Some(64), "{misnamed:?}");
}

const EPP: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: queue-scorer}]
schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer, weight: 2}]}]
";

#[test]
fn import_writes_the_configuration_and_reports_to_stderr() {
    let folder = folder(GOOD);
    std::fs::write(folder.path().join("epp.yaml"), EPP).expect("written");
    let output = run(folder.path(), &["import", "epp.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(stdout.contains("\n  - {type: queue, weight: 2}\n"), "{stdout}");
    assert!(stderr.contains("queue-scorer"), "{stderr}");
    assert!(!stdout.contains("verdict") && !stderr.contains("routing:"), "{output:?}");
    let output = run(folder.path(), &["import", "epp.yaml", "--out", "ours.yaml", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let written = std::fs::read_to_string(folder.path().join("ours.yaml")).expect("written");
    assert_eq!(written, stdout);
    let last = String::from_utf8_lossy(&output.stdout).lines().last().expect("a line").to_owned();
    let report: serde_json::Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(report["ok"], true, "{report}");
    assert_eq!(report["plugins"][0]["verdict"], "supported", "{report}");
    assert_eq!(report["traps"].as_array().map(Vec::len), Some(0), "{report}");
}

#[test]
fn import_exits_by_what_is_lost() {
    let folder = folder(GOOD);
    let unsupported = EPP.replace("queue-scorer", "mm-embeddings-cache-scorer");
    std::fs::write(folder.path().join("lost.yaml"), unsupported).expect("written");
    std::fs::write(folder.path().join("wrong.yaml"), format!("{EPP}metadata: {{}}\n"))
        .expect("written");
    let lost = run(folder.path(), &["import", "lost.yaml", "--out", "ours.yaml"]);
    assert_eq!(lost.status.code(), Some(1), "{lost:?}");
    assert!(folder.path().join("ours.yaml").exists(), "what there is, is written");
    let accepted = run(folder.path(), &["import", "lost.yaml", "--allow-unsupported", "--json"]);
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    let stdout = String::from_utf8_lossy(&accepted.stdout);
    assert_eq!(stdout.lines().count(), 1, "with --json the configuration goes to --out only");
    assert!(stdout.contains(r#""ok":false"#), "{stdout}");
    for (file, says) in [
        ("wrong.yaml", "wrong.yaml:5: metadata: unknown key: expected one of apiVersion, kind"),
        ("c.yaml", "there is no EndpointPickerConfig in it"),
        ("none.yaml", "none.yaml: reading it"),
    ] {
        let output = run(folder.path(), &["import", file]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(stderr.contains(says), "{stderr}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    let folder = folder(GOOD);
    for wrong in [&["render"][..], &["rendre"], &[], &["simulate-engine", "--seed", "x"]] {
        assert_eq!(run(folder.path(), wrong).status.code(), Some(64), "{wrong:?}");
    }
    let help = run(folder.path(), &["render", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--gateway"), "{help:?}");
}

#[test]
fn a_missing_module_is_1() {
    let folder = folder(GOOD);
    std::fs::remove_file(folder.path().join("target/wasm/feeder.wasm")).expect("removed");
    let output = run(folder.path(), &RENDER);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr.contains("target/wasm/feeder.wasm"), "{stderr}");
    assert_eq!(stderr.matches("No such file").count(), 1, "{stderr}");
}

#[test]
fn a_simulated_engine_says_where_it_is_and_ends_when_told() {
    let mut engine = Command::new(BINARY)
        .args(["simulate-engine", "--no-replay"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut line = String::new();
    let stdout = engine.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let addresses: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let http = addresses["http"].as_str().expect("an address").to_owned();
    assert!(std::net::TcpStream::connect(&http).is_ok(), "{line}");
    assert!(addresses["kvEvents"].as_str().is_some_and(|at| at.starts_with("tcp://")), "{line}");
    assert!(addresses["replay"].is_null(), "{line}");
    let told = Command::new("kill").arg(engine.id().to_string()).status().expect("kill runs");
    assert!(told.success());
    assert_eq!(engine.wait().expect("our child").code(), Some(0));
}

#[test]
fn the_example_configuration_loads_and_says_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../envoy/standalone/wasm-epp.yaml");
    let example = wasm_epp::config::load(&file).expect("the example is accepted");
    assert!(example.warnings.is_empty(), "{:?}", example.warnings);
    let folder = folder(GOOD);
    let default = wasm_epp::config::load(folder.path().join("c.yaml")).expect("accepted");
    assert_eq!(example.routing.spec, default.routing.spec);
    let numbers = |config: &wasm_epp::config::Config| {
        (
            (config.admin, config.envoy.listen, config.envoy.admin, config.envoy.feed_mode),
            (config.metrics.interval_ms, config.metrics.timeout_ms),
            config.metrics.down_after_failures,
            (
                config.routing.max_state_age_ms,
                config.routing.max_body_bytes,
                config.routing.retries,
            ),
            config.pools[0].models[0].max_strides,
        )
    };
    assert_eq!(numbers(&example), numbers(&default), "the example shows the defaults");
}

#[test]
fn a_gateway_that_cannot_be_reached_is_64_and_says_what_is_missing_in_which_file() {
    let gateways = "gateways: [{name: a, feed: 'unix:a.sock', admin: '127.0.0.1:1'}, \
                    {name: b, feed: 'unix:b.sock'}]";
    let folder = folder(&format!("{GOOD}\n{gateways}\n"));
    for (more, expected) in [
        (
            &[][..],
            "c.yaml: no gateway has both admin and resources, which the command needs: \
             a has no resources; b has no admin and no resources",
        ),
        (&["--gateway", "a"], "c.yaml: gateway a has no resources, which the command needs"),
        (&["--gateway", "b"], "c.yaml: gateway b has no admin, which the command needs"),
    ] {
        let arguments = [&["modules", "swap", "--config", "c.yaml"][..], more].concat();
        let output = run(folder.path(), &arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}
