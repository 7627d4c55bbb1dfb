//! What `render --gateway istio` writes, merged into a gateway's configuration as Istio would and run.

mod patch;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Answer, EngineOptions, Stand, StandOptions, envoy, root, wait_until, wasm_epp};

use crate::scorers::stream;
use crate::support::{COMPLETIONS, Protocol, completion, line, noted, prose, served, teach};
use patch::Gateway;

/// A scorer module in the configuration: name, file, parameters.
type Module<'a> = (&'a str, &'a str, Value);

struct Options<'a> {
    pool_cluster: &'a str,
    scorers: &'a str,
    modules: &'a [Module<'a>],
    /// In place of the strategy that `render` writes into plugins.
    strategy: Option<&'a str>,
}

/// A stand whose gateway is Istio's, patched.
async fn start(options: Options<'_>) -> Stand {
    let flags = ["--inter-token-ms=10", "--max-model-len=100000"].map(str::to_owned).to_vec();
    let mut stand = Stand::prepare(StandOptions {
        engines: vec![EngineOptions { flags }; 3],
        ..StandOptions::default()
    })
    .await
    .unwrap();
    let folder = stand.folder.path().to_owned();
    let mut text = std::fs::read_to_string(stand.config_file()).unwrap();
    let port = stand.gateway.port();
    let _ = write!(
        text,
        "istio:\n  namespace: istio-ingress\n  selector: {{istio: ingressgateway}}\n  port: {port}\n  \
         modulesPath: {}\n  pools:\n  - {{pool: pool, service: vllm.default.svc.cluster.local, \
         port: 8000, poolCluster: {}}}\n\
         routing:\n  modulePlaces: 2\n  scorers:\n  - {{type: prefix-cache, weight: 3}}\n",
        folder.join("pod").display(),
        options.pool_cluster,
    );
    for (name, file, parameters) in options.modules {
        let file = root().join("target/wasm").join(file);
        let _ = writeln!(
            text,
            "  - {{type: module, name: {name}, module: {}, parameters: {parameters}, weight: 100}}",
            file.display()
        );
    }
    let text = text.replace("ENGINE_1", &stand.engines[1].http.to_string());
    std::fs::write(stand.config_file(), text).unwrap();
    let resources = render(&stand, options.scorers);
    merge(&stand, &resources, &options);
    validate(&stand.rendered().join("envoy.yaml"));
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();
    stand
}

/// Runs the command, copies the modules to where the pod has them, and gives the resources.
fn render(stand: &Stand, scorers: &str) -> Vec<Value> {
    let out = stand.folder.path().join("istio");
    let output = Command::new(wasm_epp().unwrap())
        .args(["render", "--gateway", "istio", "--scorers", scorers, "--config"])
        .arg(stand.config_file())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "wasm-epp render: {errors}");
    let pod = stand.folder.path().join("pod");
    std::fs::create_dir(&pod).unwrap();
    for module in std::fs::read_dir(out.join("modules")).unwrap() {
        let module = module.unwrap();
        std::fs::copy(module.path(), pod.join(module.file_name())).unwrap();
    }
    documents(&out)
}

/// All resources of a folder.
pub(crate) fn documents(folder: &Path) -> Vec<Value> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let of = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let parts = text.split("\n---\n").map(|part| part.trim_start_matches("---\n"));
        let has_content = |part: &&str| part.lines().any(|line| !line.starts_with('#'));
        let read = |part: &str| serde_saphyr::from_str::<Value>(part).unwrap();
        parts.filter(has_content).map(read).collect::<Vec<_>>()
    };
    files.iter().flat_map(of).collect()
}

/// Writes what Envoy gets: the gateway's own configuration with the patches in it.
fn merge(stand: &Stand, resources: &[Value], options: &Options<'_>) {
    let folder = stand.rendered();
    std::fs::create_dir_all(folder.join("ecds")).unwrap();
    let base = std::fs::read_to_string(root().join("tests/golden/gateways/istio.yaml")).unwrap();
    let base = base
        .replace("PORT", &stand.gateway.port().to_string())
        .replace("FOLDER", &folder.display().to_string());
    let base: Value = serde_saphyr::from_str(&base).unwrap();
    let mut gateway = Gateway {
        listeners: vec![base["listener"].clone(), base["other_listener"].clone()],
        routes: vec![base["route_configuration"].clone()],
        clusters: vec![base["cluster"].clone()],
        extensions: Vec::new(),
    };
    if options.pool_cluster == "inference-pool" {
        let cluster = &mut gateway.clusters[0];
        cluster.as_object_mut().unwrap().remove("lb_policy");
        cluster["load_balancing_policy"] = base["inference_pool_policy"].clone();
        gateway.clusters.extend(base["picker_clusters"].as_array().unwrap().clone());
        let manager = &mut gateway.listeners[0]["filter_chains"][0]["filters"][0]["typed_config"];
        manager["http_filters"].as_array_mut().unwrap().insert(1, base["ext_proc"].clone());
        let route = &mut gateway.routes[0]["virtual_hosts"][0]["routes"][1];
        route["typed_per_filter_config"] =
            json!({"envoy.filters.http.ext_proc": base["ext_proc_of_route"]});
    }
    let of =
        |kind: &str| resources.iter().filter(|r| r["kind"] == kind).cloned().collect::<Vec<_>>();
    plugins(&mut gateway, &[of("WasmPlugin"), of("TrafficExtension")].concat(), options.strategy);
    let other = gateway.listeners[1].clone();
    patch::apply(&mut gateway, &of("EnvoyFilter"), options.scorers == "envoyfilter");
    assert_eq!(gateway.listeners[1], other, "another port was patched");

    for extension in &mut gateway.extensions {
        let name = extension["name"].as_str().unwrap().replace('/', "_");
        extension["@type"] = json!("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
        write(&folder.join(format!("ecds/{name}.yaml")), &json!({"resources": [extension]}));
    }
    for listener in &mut gateway.listeners {
        from_files(listener, &folder.join("ecds"));
    }
    let mut routes = gateway.routes.remove(0);
    routes["@type"] = json!("type.googleapis.com/envoy.config.route.v3.RouteConfiguration");
    write(&folder.join("rds.yaml"), &json!({"resources": [routes]}));
    let name = gateway.clusters[0]["name"].as_str().unwrap();
    write(&folder.join("eds.yaml"), &endpoints(stand, name));
    let (ip, port) = (stand.envoy_admin.ip().to_string(), stand.envoy_admin.port());
    let bootstrap = json!({
        "node": {"id": "router~127.0.0.1~gateway.istio-ingress~cluster.local", "cluster": "gateway"},
        "admin": {"address": {"socket_address": {"address": ip, "port_value": port}}},
        "static_resources": {"listeners": gateway.listeners, "clusters": gateway.clusters},
    });
    write(&folder.join("envoy.yaml"), &bootstrap);
}

/// The engines, as the server of configuration says them.
pub(crate) fn endpoints(stand: &Stand, cluster: &str) -> Value {
    let endpoints = stand.engines.iter().map(|engine| {
        json!({"endpoint": {"address": {"socket_address": {
            "address": engine.http.ip().to_string(), "port_value": engine.http.port(),
        }}}})
    });
    let assignment = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [{
            "locality": {"region": "region", "zone": "zone"},
            "load_balancing_weight": stand.engines.len(),
            "lb_endpoints": endpoints.collect::<Vec<_>>(),
        }],
    });
    json!({"resources": [assignment]})
}

/// JSON is YAML.
pub(crate) fn write(path: &Path, value: &Value) {
    std::fs::write(path, serde_json::to_string_pretty(value).unwrap()).unwrap();
}

/// Has filters read from files that Istio's server would hand out.
fn from_files(value: &mut Value, folder: &Path) {
    match value {
        Value::Object(map) => {
            let name = map.get("name").and_then(Value::as_str).map(|name| name.replace('/', "_"));
            if let (Some(name), Some(source)) = (name, map.get_mut("config_discovery")) {
                assert!(source["config_source"]["ads"].is_object(), "{source}");
                source["config_source"] = json!({
                    "resource_api_version": "V3",
                    "path_config_source": {"path": folder.join(format!("{name}.yaml"))},
                });
            }
            map.values_mut().for_each(|value| from_files(value, folder));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| from_files(value, folder)),
        _ => {}
    }
}

/// What Istio makes of module resources, after pilot/pkg/model/extensions.go and
/// pilot/pkg/networking/core/extension: behind authorization, by descending priority.
fn plugins(gateway: &mut Gateway, resources: &[Value], strategy: Option<&str>) {
    let mut sorted: Vec<&Value> = resources.iter().collect();
    sorted.sort_by_key(|resource| -resource["spec"]["priority"].as_i64().unwrap());
    for (place, resource) in sorted.into_iter().enumerate() {
        let spec = &resource["spec"];
        assert_eq!(spec["phase"], "STATS");
        let is_plugin = resource["kind"] == "WasmPlugin";
        let wasm = if is_plugin { spec } else { &spec["wasm"] };
        let metadata = &resource["metadata"];
        let of = format!(
            "{}.{}",
            metadata["namespace"].as_str().unwrap(),
            metadata["name"].as_str().unwrap()
        );
        // As from 1.26 to 1.29, and the newer kind.
        let kind = if is_plugin { "wasmplugin" } else { "trafficextension" };
        let name = format!("extensions.istio.io/{kind}/{of}");
        let policy = match strategy.or(wasm["failStrategy"].as_str()).unwrap() {
            "FAIL_CLOSE" => "FAIL_CLOSED",
            other => other,
        };
        let file = wasm["url"].as_str().unwrap().strip_prefix("file://").unwrap();
        gateway.extensions.push(json!({
            "name": name,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": name,
                    "root_id": wasm["pluginName"],
                    "failure_policy": policy,
                    "configuration": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": wasm["pluginConfig"].to_string(),
                    },
                    "vm_config": {
                        "runtime": "envoy.wasm.runtime.v8",
                        "code": {"local": {"filename": file}},
                        "environment_variables": {"key_values": {
                            "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": "1",
                        }},
                    },
                },
            },
        }));
        let manager = &mut gateway.listeners[0]["filter_chains"][0]["filters"][0]["typed_config"];
        let filters = manager["http_filters"].as_array_mut().unwrap();
        let behind = filters.iter().position(|f| f["name"] == "envoy.filters.http.rbac").unwrap();
        filters.insert(
            behind + 1 + place,
            json!({
                "name": name,
                "config_discovery": {
                    "config_source": {
                        "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s",
                    },
                    "type_urls": [
                        "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                        "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                    ],
                },
            }),
        );
    }
}

pub(crate) fn validate(file: &Path) {
    let output = Command::new(envoy().unwrap())
        .args(["--mode", "validate", "-c"])
        .arg(file)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "envoy --mode validate: {errors}");
}

/// Each prompt goes to the engine that holds it, whatever a client says.
pub(crate) async fn holders_are_found(stand: &Stand) {
    let mut holders = std::collections::BTreeSet::new();
    for topic in 0..4 {
        let body = completion(&prose(&format!("topic {topic}"), 3_000));
        let holder = teach(stand, &body).await;
        let other = stand.engines.iter().map(|engine| engine.http.to_string());
        let other = other.into_iter().find(|other| *other != holder).unwrap();
        for protocol in crate::support::BOTH {
            let lies: [(&str, &[u8]); 2] = [
                ("x-gateway-destination-endpoint", other.as_bytes()),
                ("x-wasm-epp-pool", b"elsewhere"),
            ];
            let answer = protocol.send(stand, COMPLETIONS, &lies, &body).await;
            assert_eq!(served(stand, &answer, &body), holder);
            let seen = noted(stand, &holder, &answer).await.to_string();
            assert!(!seen.contains("x-gateway-destination-endpoint\""), "{seen}");
        }
        holders.insert(holder);
    }
    assert!(holders.len() > 1, "all prompts are at one engine");
    // Authorization comes first.
    let body = completion("forbidden");
    let answer = Protocol::H1.send(stand, COMPLETIONS, &[("x-forbidden", b"1")], &body).await;
    assert_eq!(answer.status, 403, "{answer:?}");
}

/// The module between intake and picker decides.
pub(crate) async fn the_module_decides(stand: &Stand, engine: usize) {
    let address = stand.engines[engine].http.to_string();
    for topic in 0..3 {
        let body = completion(&prose(&format!("scored {topic}"), 3_000));
        let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
        assert_eq!(served(stand, &answer, &body), address);
        let record = line(stand, &answer).await.record;
        assert_eq!(record["modules"]["steady"][&address], 1.0, "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patched_gateway_routes_to_who_holds_the_prompt() {
    for pool_cluster in ["service", "inference-pool"] {
        let modules = [];
        let options =
            Options { pool_cluster, scorers: "envoyfilter", modules: &modules, strategy: None };
        let stand = start(options).await;
        holders_are_found(&stand).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scorer_modules_stand_between_intake_and_picker_in_each_kind_of_resource() {
    // The engines' addresses are known when they run: which of them is the best goes by its place.
    for scorers in ["envoyfilter", "wasmplugin", "trafficextension"] {
        let modules = [("steady", "steady-scorer.wasm", json!({"best": "ENGINE_1"}))];
        let options =
            Options { pool_cluster: "service", scorers, modules: &modules, strategy: None };
        let stand = start(options).await;
        the_module_decides(&stand, 1).await;
    }
}

/// What becomes of requests around a trap on one worker: the status of the trapping one, whether a stream
/// that runs meanwhile ends whole, and the status of the next.
pub(crate) async fn fate(stand: &Stand) -> (u16, bool, u16) {
    let running = stream(stand, Protocol::H1, 0, 300);
    let name = "cluster.*upstream_rq_active";
    wait_until("the stream runs", Duration::from_secs(20), async || {
        (stand.envoy_stat(name).await.ok()? == 1).then_some(())
    })
    .await
    .unwrap();
    let body = completion(&prose("a trap", 500));
    let trapping = Protocol::H1.send(stand, COMPLETIONS, &[("x-trap", b"scorer")], &body).await;
    let next = Protocol::H1.post(stand, COMPLETIONS, &body).await;
    (trapping.status.as_u16(), ended_whole(running.await), next.status.as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_trapping_module_costs() {
    let parameters = json!({"does": "trap-on-demand"});
    let modules = [("trap-on-demand", "unruly-scorer.wasm", parameters)];
    // As the table in envoy/istio/README.md says.
    let table = [
        ("envoyfilter", None, (200, true, 200)),
        ("wasmplugin", Some("FAIL_OPEN"), (503, false, 200)),
        ("wasmplugin", Some("FAIL_CLOSE"), (503, false, 503)),
        ("wasmplugin", Some("FAIL_RELOAD"), (503, false, 503)),
    ];
    for (scorers, strategy, expected) in table {
        let options = Options { pool_cluster: "service", scorers, modules: &modules, strategy };
        let stand = start(options).await;
        assert_eq!(fate(&stand).await, expected, "{scorers} {strategy:?}");
        if strategy == Some("FAIL_RELOAD") {
            // Envoy waits a while before it makes another VM.
            wait_until("a new VM serves", Duration::from_secs(20), async || {
                let body = completion(&prose("after a trap", 500));
                (Protocol::H1.post(&stand, COMPLETIONS, &body).await.status == 200).then_some(())
            })
            .await
            .unwrap();
        }
    }
}

/// A connection that is cut under a test's own client makes its task panic.
fn ended_whole(answer: Result<Answer, tokio::task::JoinError>) -> bool {
    answer.is_ok_and(|answer| String::from_utf8_lossy(&answer.body).ends_with("data: [DONE]\n\n"))
}

/// What is rendered of the examples is what the golden files say; those are held to the definitions here.
#[test]
fn every_resource_is_as_its_definition_says() {
    let venv = root().join(".local/venv/bin/python3");
    let has_packages = |python: &Path| {
        let output = Command::new(python).args(["-c", "import jsonschema, yaml"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let pythons = [venv, "python3".into()];
    let Some(python) = pythons.iter().find(|python| has_packages(python)) else {
        assert!(std::env::var_os("CI").is_none(), "no Python with jsonschema and PyYAML");
        eprintln!("skipped: no Python with jsonschema and PyYAML");
        return;
    };
    let definitions = root().join("../shared/data/crds");
    if !definitions.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "no {}", definitions.display());
        eprintln!("skipped: no {}", definitions.display());
        return;
    }
    let folders = std::fs::read_dir(root().join("tests/golden/render")).unwrap();
    let folders: Vec<PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    let validate = |folders: &[PathBuf]| {
        let script = root().join("scripts/validate-resources");
        let mut command = Command::new(python);
        command.arg(script).arg("--definitions").arg(&definitions).args(folders);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (is_valid, said) = validate(&folders);
    assert!(is_valid, "{said}");
    // And what is wrong is refused.
    let wrong = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("workloadSelector", "workloadSelectors"),
        ("operation: MERGE", "operation: MELT"),
        ("portNumber: 80", "portNumber: \"80\""),
    ] {
        let text = root().join("tests/golden/render/istio/gateway.yaml");
        let text = std::fs::read_to_string(text).unwrap();
        assert!(text.contains(from), "no {from}");
        std::fs::write(wrong.path().join("gateway.yaml"), text.replacen(from, to, 1)).unwrap();
        let (is_valid, said) = validate(&[wrong.path().to_owned()]);
        assert!(!is_valid && said.contains("1 resources, "), "{to}: {said}");
    }
}
