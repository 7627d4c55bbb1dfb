//! `wasm-epp render --gateway envoy`, and what a real Envoy makes of it.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use support::gateway::{Gateway, envoy_binary};
use support::{Configure, ask, echo_engine, guest, write_config};
use tempfile::TempDir;
use wasm_epp::config;
use wasm_epp::render::{self, RenderError, Rendered};

/// A folder with a configuration rendered into its `out`.
struct Rendering {
    folder: TempDir,
    rendered: Rendered,
}

impl Rendering {
    fn of(configure: Configure) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let rendered = render_into(folder.path(), &guest(configure), 2).expect("rendered");
        Self { folder, rendered }
    }

    fn router_module(&self) -> &Path {
        let is_router = |path: &&std::path::PathBuf| path.to_string_lossy().contains("/router-");
        self.rendered.written.iter().find(is_router).expect("a router module")
    }
}

fn render_into(folder: &Path, router: &[u8], retries: u32) -> Result<Rendered, RenderError> {
    let file = write_config(folder, echo_engine(), router, retries);
    render::envoy(&config::load(file).expect("a good configuration"), &folder.join("out"))
}

fn names(rendered: &Rendered, paths: &[std::path::PathBuf]) -> Vec<String> {
    let strip = |path: &std::path::PathBuf| {
        path.strip_prefix(&rendered.dir).expect("inside").to_string_lossy().into_owned()
    };
    paths.iter().map(strip).collect()
}

#[test]
fn a_second_rendering_changes_nothing() {
    let first = Rendering::of(Configure::Accept);
    assert_eq!(first.rendered.unchanged, Vec::<std::path::PathBuf>::new());
    let config = config::load(first.folder.path().join("wasm-epp.yaml")).expect("loads");
    let second = render::envoy(&config, &first.folder.path().join("out")).expect("rendered");
    assert_eq!(second.written, Vec::<std::path::PathBuf>::new());
    assert_eq!(second.unchanged, first.rendered.written);
}

#[test]
fn a_damaged_copy_of_a_module_is_written_again() {
    let first = Rendering::of(Configure::Accept);
    fs::write(first.router_module(), b"\0asm").expect("written");
    let config = config::load(first.folder.path().join("wasm-epp.yaml")).expect("loads");
    let second = render::envoy(&config, &first.folder.path().join("out")).expect("rendered");
    assert_eq!(second.written, [first.router_module()]);
}

#[test]
fn a_new_module_gets_a_new_name_and_the_old_one_stays() {
    let first = Rendering::of(Configure::Accept);
    let config = config::load(first.folder.path().join("wasm-epp.yaml")).expect("loads");
    fs::write(first.folder.path().join("modules/router.wasm"), guest(Configure::Refuse))
        .expect("written");
    let second = render::envoy(&config, &first.folder.path().join("out")).expect("rendered");
    let written = names(&second, &second.written);
    assert!(written[0].starts_with("modules/router-"), "{written:?}");
    assert_eq!(written[1..], ["ecds/intake.yaml", "ecds/picker.yaml"]);
    assert!(first.router_module().exists());
    // Three filters and four places for scorers.
    assert_eq!(fs::read_dir(second.dir.join("ecds")).expect("a folder").count(), 7);
}

#[test]
fn a_missing_module_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write_config(folder.path(), echo_engine(), b"", 2);
    fs::remove_file(folder.path().join("modules/router.wasm")).expect("removed");
    let out = folder.path().join("out");
    let error = render::envoy(&config::load(file).expect("loads"), &out).expect_err("refused");
    assert!(error.to_string().contains("modules/router.wasm"), "{error}");
    assert!(!out.exists());
}

#[test]
fn a_module_that_is_no_webassembly_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = render_into(folder.path(), b"<html>not found</html>", 2).expect_err("refused");
    assert!(matches!(error, RenderError::NotWasm { .. }), "{error}");
}

#[test]
fn envoy_validates_the_rendering() {
    let Some(envoy) = envoy_binary() else { return };
    let rendering = Rendering::of(Configure::Accept);
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--use-dynamic-base-id", "-c"])
        .arg(rendering.rendered.dir.join("envoy.yaml"))
        .output()
        .expect("Envoy runs");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("[error]"), "{log}");
}

#[test]
fn envoy_runs_intake_and_picker_and_hides_routing_headers_both_ways() {
    let Some(envoy) = envoy_binary() else { return };
    let rendering = Rendering::of(Configure::Accept);
    let gateway = Gateway::start(&envoy, &rendering.rendered.dir);
    let from_client = "X-Gateway-Destination-Endpoint: 9.9.9.9:9\r\n\
         x-gateway-destination-endpoint-served: a\r\nX-GATEWAY-DESTINATION-ENDPOINT-SUBSET: b\r\n\
         x-prefiller-host-port: c\r\nx-request-id: mine\r\n";
    let answer = gateway.ask("/v1/models", from_client);
    let (head, engine_saw) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(head.contains("x-request-id: mine"), "{answer}");
    assert!(engine_saw.starts_with("GET /v1/models "), "{answer}");
    // Once by intake, which the route enables, and once by picker.
    assert_eq!(engine_saw.matches("x-guest: ran").count(), 2, "{answer}");
    assert!(!engine_saw.contains("x-gateway-destination"), "{answer}");
    assert!(!engine_saw.contains("x-prefiller"), "{answer}");
    // The callback of response bodies is withheld: it would trap.
    assert!(!gateway.log().contains("unreachable"), "{}", gateway.log());
}

#[test]
fn envoy_routes_a_prefix_to_its_pool_without_the_prefix() {
    let Some(envoy) = envoy_binary() else { return };
    let rendering = Rendering::of(Configure::Accept);
    let mut gateway = Gateway::start(&envoy, &rendering.rendered.dir);
    let answer = gateway.ask("/pool-b/v1/models", "");
    assert!(answer.contains("\r\n\r\nGET /v1/models "), "{answer}");
    gateway.wait_for_stat("cluster.pool-b.upstream_rq_200: 1");
    let answer = gateway.ask("/pool-bc/v1/models", "");
    assert!(answer.contains("\r\n\r\nGET /pool-bc/v1/models "), "{answer}");
    gateway.wait_for_stat("cluster.pool-a.upstream_rq_200: 1");
}

#[test]
fn the_feed_listener_is_private_and_never_acks_for_a_module_that_does_not() {
    let Some(envoy) = envoy_binary() else { return };
    let rendering = Rendering::of(Configure::Accept);
    let _gateway = Gateway::start(&envoy, &rendering.rendered.dir);
    let socket = rendering.folder.path().join("run/feed.sock");
    let mode = fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let answer = ask(UnixStream::connect(&socket).expect("a listener"), "/", "").expect("answered");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[test]
fn a_running_envoy_takes_a_new_rendering() {
    let Some(envoy) = envoy_binary() else { return };
    let rendering = Rendering::of(Configure::Accept);
    let mut gateway = Gateway::start(&envoy, &rendering.rendered.dir);
    render_into(rendering.folder.path(), &guest(Configure::Accept), 5).expect("rendered");
    let picker =
        fs::read_to_string(rendering.rendered.dir.join("ecds/picker.yaml")).expect("there");
    assert!(picker.contains(r#"\"destinations\":6"#), "{picker}");
    let version = picker.lines().find_map(|line| line.strip_prefix("version_info: "));
    let version = version.expect("a version").trim_matches('"');
    let stat = "extension_config_discovery.http_filter.picker.version_text";
    gateway.wait_for_stat(&format!("{stat}: \"{version}\""));
}

/// Starts Envoy after `damage` to what it loads; a request must get through, unrouted.
fn serves_without_the_router(rendering: Rendering, damage: impl FnOnce(&Path)) {
    let Some(envoy) = envoy_binary() else { return };
    damage(rendering.router_module());
    let mut gateway = Gateway::start(&envoy, &rendering.rendered.dir);
    for filter in ["intake", "picker"] {
        let stat = "extension_config_discovery.http_filter";
        gateway.wait_for_stat(&format!("{stat}.{filter}.update_rejected: 1"));
    }
    let answer = gateway.ask("/v1/models", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("GET /v1/models "), "{answer}");
    assert!(!answer.contains("x-guest"), "{answer}");
}

#[test]
fn envoy_serves_when_the_router_module_is_missing() {
    serves_without_the_router(Rendering::of(Configure::Accept), |module| {
        fs::remove_file(module).expect("removed");
    });
}

#[test]
fn envoy_serves_when_the_router_module_is_cut_short() {
    serves_without_the_router(Rendering::of(Configure::Accept), |module| {
        let bytes = fs::read(module).expect("readable");
        fs::write(module, &bytes[..bytes.len() / 2]).expect("written");
    });
}

#[test]
fn envoy_serves_when_the_router_module_refuses_its_configuration() {
    serves_without_the_router(Rendering::of(Configure::Refuse), |_| {});
}

/// The configuration of a rendered filter, as Envoy hands it over.
fn configuration(rendered: &Rendered, filter: &str) -> serde_json::Value {
    let text = fs::read_to_string(rendered.dir.join(format!("ecds/{filter}.yaml"))).expect("file");
    let resource: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
    let config = &resource["resources"][0]["typed_config"]["config"]["configuration"]["value"];
    serde_json::from_str(config.as_str().expect("text")).expect("JSON")
}

#[test]
fn profiles_and_what_plugins_read_are_rendered_as_the_gateway_reads_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write_config(folder.path(), echo_engine(), &guest(Configure::Accept), 2);
    let text = fs::read_to_string(&file).expect("written");
    fs::write(folder.path().join("modules/mine.wasm"), guest(Configure::Accept)).expect("written");
    let render = |routing: &str| {
        let text =
            text.replace("routing: {retries: 2}", &format!("routing:\n  retries: 2\n{routing}"));
        fs::write(&file, text).expect("written");
        let config = config::load(&file).expect("a good configuration");
        let rendered = render::envoy(&config, &folder.path().join("out")).expect("rendered");
        let [intake, picker] = ["intake", "picker"].map(|name| configuration(&rendered, name));
        // Both sides read one format.
        router::IntakeConfig::parse(intake.to_string().as_bytes()).expect("the gateway's intake");
        router::PickerConfig::parse(picker.to_string().as_bytes()).expect("the gateway's picker");
        (intake, picker)
    };
    let (intake, mut picker) = render("");
    for key in ["headers", "labels", "attributes", "session"] {
        assert!(intake.get(key).is_none(), "no plugin reads any: {intake}");
    }
    let expected = serde_json::json!({"destinations": 3, "servedHeader": true, "scorers": [
        {"type": "prefix-cache", "weight": 3.0}, {"type": "queue", "weight": 2.0},
        {"type": "kv-cache-utilization", "weight": 2.0}, {"type": "no-hit-lru", "weight": 2.0},
    ]});
    assert_eq!(intake["revision"], picker["revision"]);
    picker.as_object_mut().expect("an object").remove("revision");
    assert_eq!(picker, expected);

    let module = "type: module, name: mine, module: modules/mine.wasm, parameters: {a: 1}";
    let revision = intake["revision"].clone();
    let (intake, picker) = render(&format!(
        "  profiles:
  - name: decode
    filters: [{{type: role, parameters: {{role: decode}}}}]
    scorers: [{{{module}, weight: 2}}]
    picker: {{type: weighted-random}}
  - name: prefill
    scorers:
    - {{type: module, name: mine}}
    - {{type: endpoint-attribute, parameters: {{attributeKey: power, algorithm: {{type: linear_lower_is_better}}}}}}
    - {{type: session-affinity, parameters: {{strategy: session_id}}}}
  profileHandler: {{type: header, parameters: {{header: EPP-Profile}}}}
  features: {{headers: [x-mine]}}
"
    ));
    assert_eq!(intake["headers"], serde_json::json!(["epp-profile", "x-mine", "x-session-id"]));
    assert_eq!(intake["labels"], serde_json::json!(["llm-d.ai/role"]));
    assert_eq!(intake["attributes"], serde_json::json!(["power"]));
    // Both filters of the VM are others, or none.
    assert!(intake["revision"] != revision && intake["revision"] == picker["revision"]);
    let session = serde_json::json!(
        {"strategy": "session_id", "headers": ["x-session-id"], "ttlMs": 300_000}
    );
    assert_eq!(intake["session"], session);
    assert_eq!(picker["profiles"][0]["picker"], serde_json::json!({"type": "weighted-random"}));
    assert_eq!(picker["profileHandler"]["type"], "header");
    // The module is loaded once, and its parameters are its own.
    let mine = &picker["profiles"][0]["scorers"][0];
    assert!(mine["name"] == "mine" && mine["parameters"].is_null(), "{mine}");
    let place = |number| {
        let path = folder.path().join(format!("out/ecds/scorer-{number}.yaml"));
        fs::read_to_string(path).expect("rendered").contains("mine")
    };
    assert_eq!([place(0), place(1)], [true, false]);
}

#[test]
fn what_plugins_read_is_in_the_filters_configurations_only_if_it_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write_config(folder.path(), echo_engine(), &guest(Configure::Accept), 2);
    let plain = fs::read_to_string(&file).expect("written");
    fs::write(folder.path().join("modules/meter.wasm"), guest(Configure::Accept)).expect("written");
    let configurations = |text: &str| {
        fs::write(&file, text).expect("written");
        let config = config::load(&file).expect("a good configuration");
        let rendered = render::envoy(&config, &folder.path().join("out")).expect("rendered");
        ["intake", "picker"].map(|name| {
            let path = rendered.dir.join(format!("ecds/{name}.yaml"));
            let text = fs::read_to_string(path).expect("rendered");
            let resource: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
            let value =
                &resource["resources"][0]["typed_config"]["config"]["configuration"]["value"];
            serde_json::from_str::<serde_json::Value>(value.as_str().expect("text")).expect("JSON")
        })
    };
    let keys = [
        "headers",
        "labels",
        "attributes",
        "requestControl",
        "rates",
        "objectives",
        "session",
        "refuse",
    ];
    for filter in configurations(&plain) {
        assert!(keys.iter().all(|key| filter[*key].is_null()), "{filter}");
    }
    let features = "routing: {refuse: true, features: {headers: [x-a], labels: [zone], rates: true, session: {strategy: session_id}}, ";
    let more = "objectives: [{name: batch, priority: -10, pool: pool-a}]\nmeter: {}\n";
    let [intake, picker] = configurations(&(plain.replace("routing: {", features) + more));
    let session = serde_json::json!(
        {"strategy": "session_id", "headers": ["x-session-id"], "ttlMs": 300_000}
    );
    for filter in [&intake, &picker] {
        assert_eq!((&filter["session"], &filter["refuse"]), (&session, &true.into()));
    }
    assert_eq!(intake["headers"], serde_json::json!(["x-a"]));
    assert_eq!(intake["labels"], serde_json::json!(["zone"]));
    assert!(intake["attributes"].is_null() && picker["headers"].is_null());
    assert_eq!((&intake["rates"], &intake["requestControl"]), (&true.into(), &true.into()));
    let objectives = serde_json::json!([{"name": "batch", "priority": -10, "pool": "pool-a"}]);
    assert_eq!(intake["objectives"], objectives);
}

#[test]
fn a_further_pool_has_a_route_by_model_and_one_by_its_path_if_it_has_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write_config(folder.path(), echo_engine(), &guest(Configure::Accept), 2);
    let text = fs::read_to_string(&file).expect("written");
    let third = "- name: pool-c
  models: [{name: third, aliases: [c], adapters: [lora], folder: tiny}]
  endpoints: [{address: '127.0.0.1:9'}]
routing: {servedHeader: false, ";
    let text = text.replace("routing: {", third) + "meter: {share: 0.5}\n";
    fs::write(&file, text).expect("written");
    fs::write(folder.path().join("modules/meter.wasm"), guest(Configure::Accept)).expect("written");
    let config = config::load(&file).expect("a good configuration");
    let rendered = render::envoy(&config, &folder.path().join("out")).expect("rendered");
    let read = |name: &str| fs::read_to_string(rendered.dir.join(name)).expect("rendered");

    let envoy: serde_json::Value = serde_saphyr::from_str(&read("envoy.yaml")).expect("YAML");
    let manager = &envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    let hosts = &manager["typed_config"]["route_config"]["virtual_hosts"];
    let routes = hosts[0]["routes"].as_array().expect("routes");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    let seen: Vec<_> = routes
        .iter()
        .map(|route| {
            let header = &route["match"]["headers"][0];
            let is_rewritten = route["route"]["prefix_rewrite"] == "/";
            let way = (text(&route["match"]["prefix"]), is_rewritten);
            let by = (text(&header["name"]), text(&header["string_match"]["exact"]));
            (text(&route["name"]), text(&route["route"]["cluster"]), way, by)
        })
        .collect();
    let expected = |name: &str, pool: &str, prefix: &str, by_model: bool| {
        let by = if by_model { ("x-wasm-epp-pool", pool) } else { ("-", "-") };
        ["-metered", ""].map(|end| {
            let way = (prefix.to_owned(), prefix != "/");
            (format!("{name}{end}"), pool.to_owned(), way, (by.0.to_owned(), by.1.to_owned()))
        })
    };
    let expected = [
        expected("pool-b", "pool-b", "/pool-b/", false),
        expected("pool-b-by-model", "pool-b", "/", true),
        expected("pool-c-by-model", "pool-c", "/", true),
        expected("pool-a", "pool-a", "/", false),
    ];
    assert_eq!(seen, expected.concat());

    let intake = read("ecds/intake.yaml");
    assert!(intake.contains(r#"\"byModel\":\"pool-a\""#), "{intake}");
    let names = r#"\"models\":[{\"adapters\":[\"lora\"],\"aliases\":[\"c\"],\"name\":\"third\"}]"#;
    assert!(intake.contains(names), "{intake}");
    assert!(!read("ecds/picker.yaml").contains("servedHeader"));
}

/// A folder with a configuration whose meter takes this share of the requests.
fn metered(share: f64, meter: Option<&[u8]>) -> (TempDir, Result<Rendered, RenderError>) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = write_config(folder.path(), echo_engine(), &guest(Configure::Accept), 2);
    let text =
        fs::read_to_string(&file).expect("written") + &format!("meter: {{share: {share}}}\n");
    fs::write(&file, text).expect("written");
    if let Some(meter) = meter {
        fs::write(folder.path().join("modules/meter.wasm"), meter).expect("written");
    }
    let config = config::load(file).expect("a good configuration");
    let rendered = render::envoy(&config, &folder.path().join("out"));
    (folder, rendered)
}

#[test]
fn a_meter_is_rendered_only_where_one_is_configured() {
    let rendering = Rendering::of(Configure::Accept);
    let without = &rendering.rendered;
    let read = |rendered: &Rendered, name: &str| {
        fs::read_to_string(rendered.dir.join(name)).expect("rendered")
    };
    assert!(!names(without, &without.written).iter().any(|name| name.contains("meter")));
    for name in ["envoy.yaml", "ecds/picker.yaml"] {
        assert!(!read(without, name).contains("meter"), "{name}");
    }

    let (_folder, rendered) = metered(1.0, Some(b"\0asm a meter"));
    let rendered = rendered.expect("rendered");
    let written = names(&rendered, &rendered.written);
    assert!(written.iter().any(|name| name.starts_with("modules/meter-")), "{written:?}");
    assert!(written.contains(&"ecds/meter.yaml".to_owned()), "{written:?}");
    assert!(read(&rendered, "ecds/picker.yaml").contains(r#"\"meter\":true"#));
    // Only the meter may see answers.
    let sees = |name| read(&rendered, name).contains("proxy_on_response_body");
    assert_eq!(
        ["ecds/intake.yaml", "ecds/picker.yaml", "ecds/meter.yaml"].map(sees),
        [false, false, true]
    );

    let (_folder, missing) = metered(1.0, None);
    let error = missing.expect_err("refused").to_string();
    assert!(error.contains("modules/meter.wasm"), "{error}");
}

/// The stand-in traps when it sees an answer.
#[test]
fn a_meter_runs_on_its_share_and_harms_nobody_when_it_traps() {
    let Some(envoy) = envoy_binary() else { return };
    let (_folder, rendered) = metered(1.0, Some(&guest(Configure::Accept)));
    let gateway = Gateway::start(&envoy, &rendered.expect("rendered").dir);
    let answer = gateway.ask("/v1/models", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // That it ran shows in that it trapped: adding headers is not among what it may do.
    assert!(gateway.log().contains("unreachable"), "{}", gateway.log());
    let answer = gateway.ask("/v1/models", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Were it called for a request outside its share, it would trap there.
#[test]
fn a_meter_is_never_called_for_a_request_outside_its_share() {
    let Some(envoy) = envoy_binary() else { return };
    let (_folder, rendered) = metered(0.0, Some(&guest(Configure::Accept)));
    let gateway = Gateway::start(&envoy, &rendered.expect("rendered").dir);
    for _ in 0..10 {
        let answer = gateway.ask("/v1/models", "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.matches("x-guest: ran").count(), 2, "intake and picker: {answer}");
    }
    assert!(!gateway.log().contains("unreachable"), "{}", gateway.log());
}

#[test]
fn envoy_serves_without_a_meter_that_cannot_be_loaded() {
    let Some(envoy) = envoy_binary() else { return };
    let (_folder, rendered) = metered(1.0, Some(b"\0asm cut short"));
    let mut gateway = Gateway::start(&envoy, &rendered.expect("rendered").dir);
    let stat = "extension_config_discovery.http_filter.meter.update_rejected: 1";
    gateway.wait_for_stat(stat);
    let answer = gateway.ask("/v1/models", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches("x-guest: ran").count(), 2, "{answer}");
}
