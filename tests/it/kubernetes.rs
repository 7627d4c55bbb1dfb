//! The kustomize overlays of `envoy/kubernetes`: rendered by kubectl, held to the Kubernetes API and to each other, and
//! what they configure run with real Envoy. And that dashboards and alerts name metrics which exist.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testbed::{Stand, StandOptions, get, root, wasm_epp};

use crate::feed_tls::pki::{self, Mounted, Pki};
use crate::feed_tls::two_ports;
use crate::support::{COMPLETIONS, Protocol, completion, go_program, prose, served, teach};

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
        let workloads = workloads(&resources);
        assert_eq!(workloads.len(), if overlay == "shared" { 2 } else { 1 }, "{overlay}");
        let labels = |workload: &Value| workload["spec"]["template"]["metadata"]["labels"].clone();
        for workload in &workloads {
            the_workload_is_whole(overlay, workload, &resources);
            let wanted = &workload["spec"]["selector"]["matchLabels"];
            assert!(matches(&labels(workload), wanted), "{overlay}");
        }
        // Of each a workload has one, and each is of one workload.
        let policies = "/spec/podSelector/matchLabels";
        for (kind, pointer) in
            [("PodDisruptionBudget", "/spec/selector/matchLabels"), ("NetworkPolicy", policies)]
        {
            let found = of_kind(&resources, kind);
            assert_eq!(found.len(), workloads.len(), "{overlay}: {kind}");
            for workload in &workloads {
                let of = |one: &&&Value| matches(&labels(workload), one.pointer(pointer).unwrap());
                assert_eq!(found.iter().filter(of).count(), 1, "{overlay}: {kind}");
            }
        }
        for service in of_kind(&resources, "Service") {
            let is_of =
                |workload: &&&Value| matches(&labels(workload), &service["spec"]["selector"]);
            let [one] = workloads.iter().filter(is_of).collect::<Vec<_>>()[..] else {
                panic!("{overlay}: {service}")
            };
            let containers = list(&one["spec"]["template"]["spec"]["containers"]);
            let ports: BTreeSet<&str> =
                containers.iter().flat_map(|c| names(&c["ports"])).collect();
            for port in list(&service["spec"]["ports"]) {
                if let Some(target) = port["targetPort"].as_str() {
                    assert!(ports.contains(target), "{overlay}: {service}");
                }
            }
        }
        let is_daemon = |workload: &&&Value| {
            names(&workload["spec"]["template"]["spec"]["containers"]).contains("wasm-epp")
        };
        let [workload] = workloads.iter().filter(is_daemon).collect::<Vec<_>>()[..] else {
            panic!("{overlay}: daemons")
        };
        let monitor = of_kind(&resources, "PodMonitor");
        let [monitor] = monitor.as_slice() else { panic!("{overlay}: {} monitors", monitor.len()) };
        let monitored = &monitor["spec"]["selector"]["matchLabels"];
        assert!(matches(&labels(workload), monitored), "{overlay}");
        the_role_reads_and_no_more(overlay, &resources, workload);
        // Nobody but who scrapes, and the pods themselves, reaches the daemon's pages.
        for policy in of_kind(&resources, "NetworkPolicy") {
            for rule in list(&policy["spec"]["ingress"]) {
                let is_public =
                    |port: &Value| [80, 8080, 15021].iter().any(|public| port["port"] == *public);
                if !list(&rule["ports"]).iter().all(is_public) {
                    assert!(!list(&rule["from"]).is_empty(), "{overlay}: {rule}");
                }
            }
            assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]), "{overlay}");
        }
    }
}

fn workloads(resources: &[Value]) -> Vec<&Value> {
    ["Deployment", "DaemonSet", "StatefulSet"].map(|kind| of_kind(resources, kind)).concat()
}

/// The names by which both sides of the feed know each other, from the configuration to the certificates, and that
/// daemons reach the feed and nobody else.
#[test]
fn the_shared_gateways_are_fed_by_the_names_they_have() {
    let Some(text) = rendered("shared") else { return };
    let resources = documents(&text);
    let of = |kind: &str, name: &str| {
        let found = of_kind(&resources, kind).into_iter().find(|r| r["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let (config, _) = configuration("shared").unwrap();
    let config: Value = serde_saphyr::from_str(&config).unwrap();
    let gateway = of("StatefulSet", "wasm-epp-gateway");
    let daemon = of("Deployment", "wasm-epp");
    // Kubernetes names a replica NAME-NUMBER, and below the service that governs the set.
    let governing = gateway["spec"]["serviceName"].as_str().unwrap();
    let service = of("Service", governing);
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
    let replicas = gateway["spec"]["replicas"].as_u64().unwrap();
    let expected: Vec<String> = (0..replicas)
        .map(|number| format!("https://wasm-epp-gateway-{number}.{governing}:9500"))
        .collect();
    let feeds: Vec<&str> =
        list(&config["gateways"]).iter().map(|g| g["feed"].as_str().unwrap()).collect();
    assert_eq!(feeds, expected);
    assert_eq!(daemon["spec"]["replicas"], 2);
    for (workload, own, others_name) in [
        (daemon, &config["feedTls"], &config["envoy"]["feedTls"]["clientName"]),
        (gateway, &config["envoy"]["feedTls"], &config["feedTls"]["serverName"]),
    ] {
        let pod = &workload["spec"]["template"]["spec"];
        let is_certificate = |volume: &&Value| volume["name"] == "certificate";
        let volume = list(&pod["volumes"]).iter().find(is_certificate).unwrap();
        let certificate = of("Certificate", volume["secret"]["secretName"].as_str().unwrap());
        assert_eq!(certificate["spec"]["secretName"], volume["secret"]["secretName"]);
        assert_eq!(certificate["spec"]["dnsNames"], json!([others_name]));
        // The files of cert-manager's secrets.
        for (key, file) in [("ca", "ca.crt"), ("certificate", "tls.crt"), ("key", "tls.key")] {
            assert_eq!(own[key], format!("/etc/wasm-epp-tls/{file}"));
        }
        let containers = list(&pod["containers"]).iter();
        let mounts = containers.flat_map(|container| list(&container["volumeMounts"]));
        let at: Vec<&Value> =
            mounts.filter(|m| m["name"] == "certificate").map(|m| &m["mountPath"]).collect();
        assert_eq!(at, ["/etc/wasm-epp-tls"]);
    }
    let policy = of("NetworkPolicy", "wasm-epp-gateway");
    let labels = &daemon["spec"]["template"]["metadata"]["labels"];
    let mut reached = BTreeSet::new();
    for rule in list(&policy["spec"]["ingress"]).iter().filter(|rule| !rule["from"].is_null()) {
        for from in list(&rule["from"]) {
            assert!(matches(labels, &from["podSelector"]["matchLabels"]), "{rule}");
            assert!(from.get("namespaceSelector").is_none(), "{rule}");
        }
        reached.extend(list(&rule["ports"]).iter().map(|port| port["port"].as_u64().unwrap()));
    }
    assert_eq!(reached, [9500, 9501].into());
    // A seed that each daemon drew for itself would void what the other has told the gateways.
    let secrets = list(&daemon["spec"]["template"]["spec"]["volumes"]).iter();
    assert!(secrets.clone().any(|volume| volume["secret"]["secretName"] == "wasm-epp-seeds"));
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
    if let Some(daemon) = all.iter().find(|container| container["name"] == "wasm-epp") {
        assert!(daemon["startupProbe"].is_object() && daemon["livenessProbe"].is_object());
        let monitor = of_kind(resources, "PodMonitor")[0];
        for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
            assert!(names(&daemon["ports"]).contains(endpoint["port"].as_str().unwrap()));
        }
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

/// Decoded into the API's own types, strictly.
#[test]
fn resources_are_of_the_kubernetes_api() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(program) = go_program("resources", scratch.path()) else { return };
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
        // Those of operators are of definitions that are not here.
        let unknown: Vec<&str> =
            said.lines().filter_map(|line| line.strip_prefix("not of the API: ")).collect();
        let others = |group: &str, kinds: &[&str]| {
            kinds.iter().map(|kind| format!("{group}, Kind={kind}")).collect::<Vec<_>>()
        };
        let mut expected = match overlay {
            "shared" => others(
                "cert-manager.io/v1",
                &["Certificate", "Certificate", "Certificate", "Issuer", "Issuer"],
            ),
            _ => Vec::new(),
        };
        expected.extend(others("monitoring.coreos.com/v1", &["PodMonitor", "PrometheusRule"]));
        assert_eq!(unknown, expected);
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
    let init = workloads(&resources)
        .into_iter()
        .find_map(|workload| workload.pointer("/spec/template/spec/initContainers/0"))
        .unwrap();
    let args = list(&init["args"]).iter().map(|arg| arg.as_str().unwrap().to_owned()).collect();
    Some((text.to_owned(), args))
}

/// Every path of the containers, below a folder of this machine.
fn rerooted(text: &str, folder: &std::path::Path) -> String {
    let below = |name: &str| folder.join(name).display().to_string();
    text.replace("/etc/wasm-epp-tls/", &below("tls-of-SIDE/"))
        .replace("/etc/wasm-epp", &below("etc"))
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
    if !pki::is_there() {
        return;
    }
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
    text = fed_by_tls(&stand, &text);
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

/// The configuration of the shared gateway with one replica on loopback, and certificates for the names that those of
/// the overlay are for.
fn fed_by_tls(stand: &Stand, text: &str) -> String {
    let pki = Pki::new();
    let authority = pki.authority("feed");
    let resources = documents(&rendered("shared").unwrap());
    for (side, secret) in [("daemon", "wasm-epp-feed-daemon"), ("gateway", "wasm-epp-feed-gateway")]
    {
        let certificates = of_kind(&resources, "Certificate");
        let certificate = certificates.iter().find(|c| c["spec"]["secretName"] == secret).unwrap();
        let name = certificate["spec"]["dnsNames"][0].as_str().unwrap();
        let folder = Mounted::new(stand.folder.path().join(format!("tls-of-{side}")));
        folder.put(&pki.issue(&authority, name), &[&authority]);
    }
    let (daemons, gateways) = text.split_at(text.find("\nenvoy:").unwrap());
    let text = daemons.replace("tls-of-SIDE", "tls-of-daemon")
        + &gateways.replace("tls-of-SIDE", "tls-of-gateway");
    let port = two_ports();
    let feeds = |line: &&str| !line.contains("wasm-epp-gateway-1.");
    text.lines()
        .filter(feeds)
        .map(|line| format!("{line}\n"))
        .collect::<String>()
        .replace("wasm-epp-gateway-0.wasm-epp-gateway-feed:9500", &format!("127.0.0.1:{port}"))
        .replace("0.0.0.0:9500", &format!("127.0.0.1:{port}"))
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
