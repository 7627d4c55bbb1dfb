//! The kustomize overlays of `envoy/kubernetes`: rendered by kubectl, held to the Kubernetes API and to each other, and
//! what they configure run with real Envoy. And that dashboards and alerts name metrics which exist.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testbed::{Stand, StandOptions, get, root, wasm_epp};

use crate::support::{COMPLETIONS, Protocol, completion, prose, served, teach};

const OVERLAYS: [&str; 3] = ["sidecar", "per-node", "shared"];

fn folder() -> PathBuf {
    root().join("envoy/kubernetes")
}

/// An overlay as `kubectl apply -k` sends it. `None` without kubectl, which CI has.
fn rendered(overlay: &str) -> Option<String> {
    let folder = folder().join("overlays").join(overlay);
    match Command::new("kubectl").arg("kustomize").arg(&folder).output() {
        Ok(output) => {
            assert!(output.status.success(), "{overlay}: {output:?}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "no kubectl: {error}");
            eprintln!("skipped: no kubectl: {error}");
            None
        }
    }
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|part| serde_saphyr::from_str(part).unwrap()).collect()
}

fn of_kind<'a>(resources: &'a [Value], kind: &str) -> Vec<&'a Value> {
    resources.iter().filter(|resource| resource["kind"] == kind).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn names(value: &Value) -> BTreeSet<&str> {
    list(value).iter().map(|item| item["name"].as_str().unwrap()).collect()
}

/// Whether labels satisfy `matchLabels`.
fn matches(labels: &Value, wanted: &Value) -> bool {
    wanted.as_object().unwrap().iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[test]
fn overlays_hold_together() {
    for overlay in OVERLAYS {
        let Some(text) = rendered(overlay) else { return };
        let resources = documents(&text);
        let namespaces: BTreeSet<_> =
            resources.iter().map(|r| r["metadata"]["namespace"].as_str()).collect();
        assert_eq!(namespaces.len(), 1, "{overlay}: {namespaces:?}");
        assert!(namespaces.iter().all(Option::is_some), "{overlay}");
        let workloads =
            [of_kind(&resources, "Deployment"), of_kind(&resources, "DaemonSet")].concat();
        let [workload] = workloads.as_slice() else { panic!("{overlay}: {}", workloads.len()) };
        the_workload_is_whole(overlay, workload, &resources);
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        assert!(matches(labels, &workload["spec"]["selector"]["matchLabels"]), "{overlay}");
        for (kind, pointer) in [
            ("PodDisruptionBudget", "/spec/selector/matchLabels"),
            ("NetworkPolicy", "/spec/podSelector/matchLabels"),
            ("PodMonitor", "/spec/selector/matchLabels"),
        ] {
            let found = of_kind(&resources, kind);
            let [resource] = found.as_slice() else { panic!("{overlay}: {} {kind}", found.len()) };
            assert!(matches(labels, resource.pointer(pointer).unwrap()), "{overlay}: {kind}");
        }
        for service in of_kind(&resources, "Service") {
            assert!(matches(labels, &service["spec"]["selector"]), "{overlay}: {service}");
        }
        the_role_reads_and_no_more(overlay, &resources, workload);
        // Nobody but who scrapes, and the pods themselves, reaches the daemon's pages.
        let policy = of_kind(&resources, "NetworkPolicy")[0];
        for rule in list(&policy["spec"]["ingress"]) {
            let is_pages = |port: &&Value| port["port"] == 9400 || port["port"] == 15090;
            if list(&rule["ports"]).iter().any(|port| is_pages(&port)) {
                assert!(!list(&rule["from"]).is_empty(), "{overlay}: {rule}");
            }
        }
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]), "{overlay}");
    }
}

fn the_workload_is_whole(overlay: &str, workload: &Value, resources: &[Value]) {
    let pod = &workload["spec"]["template"]["spec"];
    let volumes = names(&pod["volumes"]);
    let maps: BTreeSet<&str> = of_kind(resources, "ConfigMap")
        .iter()
        .map(|map| map["metadata"]["name"].as_str().unwrap())
        .collect();
    for volume in list(&pod["volumes"]) {
        if let Some(map) = volume.pointer("/configMap/name") {
            assert!(maps.contains(map.as_str().unwrap()), "{overlay}: {volume} of {maps:?}");
        }
    }
    assert!(pod.pointer("/securityContext/runAsNonRoot") == Some(&json!(true)), "{overlay}");
    let all: Vec<&Value> =
        list(&pod["initContainers"]).iter().chain(list(&pod["containers"])).collect();
    let mut mounted = BTreeSet::new();
    for container in &all {
        let what = format!("{overlay}: {}", container["name"]);
        for mount in list(&container["volumeMounts"]) {
            let name = mount["name"].as_str().unwrap();
            assert!(volumes.contains(name), "{what}: no volume {name}");
            mounted.insert(name);
        }
        let ports = names(&container["ports"]);
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            for how in ["httpGet", "tcpSocket"] {
                if let Some(port) = container[probe][how]["port"].as_str() {
                    assert!(ports.contains(port), "{what}: no port {port}");
                }
            }
        }
        for resource in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
            assert!(container["resources"].pointer(resource).is_some(), "{what}: no {resource}");
        }
    }
    assert_eq!(mounted, volumes, "{overlay}: a volume that nobody mounts");
    let daemon = all.iter().find(|container| container["name"] == "wasm-epp").unwrap();
    assert!(daemon["startupProbe"].is_object() && daemon["livenessProbe"].is_object());
    let monitor = of_kind(resources, "PodMonitor")[0];
    for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
        assert!(names(&daemon["ports"]).contains(endpoint["port"].as_str().unwrap()));
    }
    for container in all.iter().filter(|container| container["name"] != "istio-proxy") {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{overlay}: {container}");
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{overlay}: {container}");
    }
}

fn the_role_reads_and_no_more(overlay: &str, resources: &[Value], workload: &Value) {
    assert!(of_kind(resources, "ClusterRole").is_empty(), "{overlay}");
    let role = of_kind(resources, "Role")[0];
    let rules: BTreeMap<String, Value> = list(&role["rules"])
        .iter()
        .map(|rule| {
            let [group, resource] = ["apiGroups", "resources"].map(|key| {
                let [one] = list(&rule[key]) else { panic!("{rule}") };
                one.as_str().unwrap()
            });
            (format!("{resource}.{group}"), rule["verbs"].clone())
        })
        .collect();
    let expected =
        ["pods.", "endpointslices.discovery.k8s.io", "inferencepools.inference.networking.k8s.io"];
    let verbs = json!(["get", "list", "watch"]);
    assert_eq!(rules, expected.map(|name| (name.to_owned(), verbs.clone())).into(), "{overlay}");
    let binding = of_kind(resources, "RoleBinding")[0];
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let account = &binding["subjects"][0]["name"];
    assert_eq!(*account, of_kind(resources, "ServiceAccount")[0]["metadata"]["name"]);
    assert_eq!(workload["spec"]["template"]["spec"]["serviceAccountName"], *account);
}

/// Decoded into the API's own types, strictly. Go is in no list of what is needed here, so it may be missing.
#[test]
fn resources_are_of_the_kubernetes_api() {
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("resources");
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(root().join("tests/go/resources"));
    match build.output() {
        Ok(built) if built.status.success() => {}
        Ok(built) => {
            eprintln!("skipped: go build: {}", String::from_utf8_lossy(&built.stderr));
            return;
        }
        Err(error) => {
            eprintln!("skipped: no Go: {error}");
            return;
        }
    }
    let decode = |text: &str| {
        let mut child =
            Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    for overlay in OVERLAYS {
        let Some(text) = rendered(overlay) else { return };
        let (is_valid, said) = decode(&text);
        assert!(is_valid, "{overlay}: {said}");
        // The operator's two are of definitions that are not here.
        let unknown: Vec<&str> =
            said.lines().filter_map(|line| line.strip_prefix("not of the API: ")).collect();
        let operator = ["PodMonitor", "PrometheusRule"];
        assert_eq!(unknown, operator.map(|kind| format!("monitoring.coreos.com/v1, Kind={kind}")));
        for (from, to) in [
            ("livenessProbe:", "liveness:"),
            ("containerPort: 9400", "containerPort: admin"),
            ("verbs:", "verb:"),
        ] {
            assert!(text.contains(from), "{overlay}: {from}");
            assert!(!decode(&text.replacen(from, to, 1)).0, "{overlay}: {to} is taken");
        }
    }
}

/// The overlay's ConfigMap and the arguments of its init container.
fn configuration(overlay: &str) -> Option<(String, Vec<String>)> {
    let resources = documents(&rendered(overlay)?);
    let maps = of_kind(&resources, "ConfigMap");
    let text = maps.iter().find_map(|map| map["data"]["wasm-epp.yaml"].as_str()).unwrap();
    let workload = [of_kind(&resources, "Deployment"), of_kind(&resources, "DaemonSet")].concat();
    let init = &workload[0]["spec"]["template"]["spec"]["initContainers"][0];
    let args = list(&init["args"]).iter().map(|arg| arg.as_str().unwrap().to_owned()).collect();
    Some((text.to_owned(), args))
}

/// Every path of the containers, below a folder of this machine.
fn rerooted(text: &str, folder: &std::path::Path) -> String {
    let below = |name: &str| folder.join(name).display().to_string();
    text.replace("/etc/wasm-epp", &below("etc"))
        .replace("/var/lib/wasm-epp", &below("lib"))
        .replace("/var/run/wasm-epp", &below("run"))
        .replace(": /modules", &format!(": {}", root().join("target/wasm").display()))
        .replace("dataDir: /data", &format!("dataDir: {}", below("data")))
}

/// By the init container's own arguments.
#[test]
fn init_containers_render_what_the_proxies_load() {
    for overlay in OVERLAYS {
        let Some((text, args)) = configuration(overlay) else { return };
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        // What is configured for the proxy is where it is in its own container.
        let modules_path =
            text.lines().find(|line| line.contains("modulesPath")).map(str::to_owned);
        let text = rerooted(&text, folder.path());
        std::fs::write(folder.path().join("etc/wasm-epp.yaml"), text).unwrap();
        let args = args.iter().map(|arg| rerooted(arg, folder.path()));
        let output = Command::new(wasm_epp().unwrap()).args(args).output().unwrap();
        assert!(output.status.success(), "{overlay}: {output:?}");
        let modules = std::fs::read_dir(folder.path().join("lib/modules")).unwrap();
        assert!(modules.count() >= 2, "{overlay}");
        if overlay != "shared" {
            assert_eq!(modules_path.unwrap().trim(), "modulesPath: /var/lib/wasm-epp/modules");
        }
    }
}

/// The shared gateway's configuration with engines of this machine: its Envoy, its daemon, and a prompt that finds
/// its holder. And then the pages on which dashboards and alerts look for their metrics.
#[tokio::test(flavor = "multi_thread")]
async fn the_shared_gateway_routes_and_says_what_is_watched() {
    let Some((text, _)) = configuration("shared") else { return };
    let mut stand = Stand::prepare(StandOptions::default()).await.unwrap();
    let own = std::fs::read_to_string(stand.config_file()).unwrap();
    let pools = |text: &str| {
        let start = text.find("pools:\n").unwrap();
        let end = text[start..].find("\nenvoy:").unwrap();
        (start, start + end + 1)
    };
    let (from, to) = pools(&text);
    let engines = pools(&own);
    let mut text = rerooted(&text, stand.folder.path())
        .replace(&rerooted(&text[from..to], stand.folder.path()), &own[engines.0..engines.1]);
    for (container, here) in [
        ("0.0.0.0:9400", stand.daemon_admin),
        ("0.0.0.0:8080", stand.gateway),
        ("127.0.0.1:9901", stand.envoy_admin),
    ] {
        assert!(text.contains(container), "{text}");
        text = text.replace(container, &here.to_string());
    }
    text = text.replace(
        &stand.folder.path().join("lib").display().to_string(),
        &stand.rendered().display().to_string(),
    );
    std::fs::write(stand.config_file(), &text).unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();
    let holder = teach(&stand, &completion(&prose("watched", 3_000))).await;
    let again = completion(&prose("watched", 3_000));
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &again).await;
    assert_eq!(served(&stand, &answer, &again), holder);

    let daemon = get(stand.daemon_admin, "/metrics").await.unwrap();
    let envoy = get(stand.envoy_admin, "/stats/prometheus").await.unwrap();
    let pages = [daemon.body, envoy.body].map(|body| String::from_utf8(body.to_vec()).unwrap());
    let documented = std::fs::read_to_string(root().join("host/cli/METRICS.md")).unwrap();
    let used = expressions();
    assert!(used.len() > 20, "{used:?}");
    for expression in &used {
        for (metric, labels) in metrics(expression) {
            let row = documented.lines().find(|l| l.starts_with(&format!("| `{metric}` ")));
            // A gauge of what is not known yet is on no page.
            let known = match row {
                Some(row) => row.split('|').nth(3).unwrap().to_owned(),
                None => {
                    let start = format!("{metric}{{");
                    let alone = format!("{metric} ");
                    let is_of = |l: &&str| l.starts_with(&start) || l.starts_with(&alone);
                    let line = pages.iter().flat_map(|page| page.lines()).find(is_of);
                    line.unwrap_or_else(|| panic!("{metric} of {expression} is nowhere")).to_owned()
                }
            };
            for label in labels {
                // Prometheus' own, of the target and of histograms.
                if !["namespace", "pod", "le"].contains(&label.as_str()) {
                    assert!(known.contains(&label), "{metric} has no {label}: {expression}");
                }
            }
        }
    }
}

/// Every PromQL expression of the dashboard and of the alerts.
fn expressions() -> Vec<String> {
    let folder = folder().join("monitoring");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let dashboard: Value = serde_json::from_str(&read("wasm-epp.json")).unwrap();
    let panels = list(&dashboard["panels"]).iter().flat_map(|panel| list(&panel["targets"]));
    let rules: Value = serde_saphyr::from_str(&read("rules.yaml")).unwrap();
    let rules = list(&rules["spec"]["groups"]).iter().flat_map(|group| list(&group["rules"]));
    panels.chain(rules).map(|item| item["expr"].as_str().unwrap().to_owned()).collect()
}

/// Metrics of an expression by the names that the daemon documents, each with the labels that the expression names.
fn metrics(expression: &str) -> Vec<(String, BTreeSet<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut labels = BTreeSet::new();
    for part in expression.split("by (").skip(1) {
        let (list, _) = part.split_once(')').unwrap();
        labels.extend(list.split(',').map(|label| label.trim().to_owned()));
    }
    for part in expression.split('{').skip(1) {
        let (list, _) = part.split_once('}').unwrap();
        let names = list.split("\",").filter_map(|one| one.split(['=', '!']).next());
        labels.extend(names.map(|label| label.trim().to_owned()).filter(|l| !l.is_empty()));
    }
    let words = expression.split(|c: char| !is_name(c)).filter(|w| w.starts_with("wasm_epp_"));
    let plain = |word: &str| word.strip_suffix("_bucket").unwrap_or(word).to_owned();
    words.map(|word| (plain(word), labels.clone())).collect()
}
