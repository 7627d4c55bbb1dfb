//! Against a real kube-apiserver with etcd, over TLS, as a service account that has only what
//! `envoy/kubernetes/base/rbac.yaml` gives. `scripts/setup --kube` gets both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::script::until;
use discovery::kubernetes::{EndpointsOf, KubernetesConfig, PodsConfig, Server, Timing, follow};
use discovery::{Publisher, View};
use serde_json::{Value, json};
use tokio::sync::watch;

const NAMESPACE: &str = "inference";
const LIMIT: Duration = Duration::from_secs(90);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Ends with its value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    folder: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    etcd_url: String,
    _etcd: Running,
    server: Option<Running>,
}

fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// `None`, with the reason said, where there is none.
    fn start() -> Option<Self> {
        let bin =
            std::env::var_os("KUBE_BIN").map_or_else(|| root().join(".local/kube"), PathBuf::from);
        let is_there = ["etcd", "kube-apiserver"].iter().all(|name| bin.join(name).exists());
        let has = |tool: &str| Command::new(tool).arg("version").output().is_ok();
        if !is_there || !has("kubectl") || !has("openssl") {
            eprintln!(
                "skipped: no etcd and kube-apiserver in {} (scripts/setup --kube), or no kubectl or openssl",
                bin.display()
            );
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let certs = folder.path().join("certs");
        std::fs::create_dir(&certs).unwrap();
        let made =
            Command::new("openssl").args(["genrsa", "-out"]).arg(certs.join("sa.key")).output();
        assert!(made.unwrap().status.success());
        std::fs::write(certs.join("tokens.csv"), "admin-token,admin,1,system:masters\n").unwrap();
        let (etcd_url, peer) =
            (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let mut etcd = Command::new(bin.join("etcd"));
        etcd.arg("--data-dir").arg(folder.path().join("etcd")).args([
            format!("--listen-client-urls={etcd_url}"),
            format!("--advertise-client-urls={etcd_url}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ]);
        let etcd = spawn(&mut etcd, &folder.path().join("etcd.log"));
        let mut cluster = Self { folder, bin, port: port(), etcd_url, _etcd: etcd, server: None };
        cluster.start_server();
        Some(cluster)
    }

    fn certs(&self) -> PathBuf {
        self.folder.path().join("certs")
    }

    fn start_server(&mut self) {
        let certs = self.certs();
        let file = |name: &str| certs.join(name).display().to_string();
        let mut command = Command::new(self.bin.join("kube-apiserver"));
        command.args([
            format!("--etcd-servers={}", self.etcd_url),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", certs.display()),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            "--endpoint-reconciler-type=none".into(),
            "--disable-admission-plugins=ServiceAccount".into(),
        ]);
        self.server = Some(spawn(&mut command, &self.folder.path().join("server.log")));
        let started = Instant::now();
        while self.kubectl(&["get", "--raw", "/readyz"], None).is_err() {
            assert!(started.elapsed() < LIMIT, "{}", self.folder.path().display());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn kubectl(&self, args: &[&str], input: Option<&Value>) -> Result<String, String> {
        use std::io::Write;
        let mut child = Command::new("kubectl")
            .args([
                format!("--server=https://127.0.0.1:{}", self.port),
                "--token=admin-token".into(),
                format!("--certificate-authority={}", self.certs().join("apiserver.crt").display()),
            ])
            .args(args)
            .env("KUBECONFIG", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        if let Some(input) = input {
            stdin.write_all(input.to_string().as_bytes()).unwrap();
        }
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn run(&self, args: &[&str], input: Option<&Value>) -> String {
        self.kubectl(args, input).unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
    }

    fn apply(&self, object: &Value) {
        self.run(&["apply", "-n", NAMESPACE, "-f", "-"], Some(object));
    }

    fn pod(&self, name: &str) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "vllm", "llm-d.ai/role": "decode"}},
            // Bound, so that deleting it waits for a kubelet that never comes.
            "spec": {"nodeName": "node-0", "automountServiceAccountToken": false,
                "containers": [{"name": "vllm", "image": "vllm"}]},
        }));
    }

    fn status(&self, pod: &str, ip: &str, is_ready: bool) {
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}]}});
        let patch = status.to_string();
        self.run(
            &[
                "patch",
                "-n",
                NAMESPACE,
                "pod",
                pod,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ],
            None,
        );
    }

    /// Has etcd forget all versions but the last.
    fn compact(&self) {
        let call = |path: &str, body: &str| -> Value {
            let url = format!("{}{path}", self.etcd_url);
            let answer = Command::new("curl").args(["-sf", "-d", body, &url]).output().unwrap();
            serde_json::from_slice(&answer.stdout).unwrap()
        };
        let found = call("/v3/kv/range", r#"{"key":"YQ=="}"#);
        let revision = found["header"]["revision"].as_str().unwrap();
        call("/v3/kv/compaction", &json!({"revision": revision, "physical": true}).to_string());
    }

    fn follow(&self, of: EndpointsOf) -> watch::Receiver<View> {
        let config = KubernetesConfig {
            server: Server {
                url: format!("https://127.0.0.1:{}", self.port),
                ca_file: Some(self.certs().join("apiserver.crt")),
                token_file: Some(self.folder.path().join("token")),
            },
            namespace: NAMESPACE.into(),
            of,
            timing: Timing::default(),
        };
        let (publisher, views) = Publisher::new();
        tokio::spawn(follow(config, publisher));
        views
    }
}

fn spawn(command: &mut Command, log: &Path) -> Running {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let log = || file.try_clone().unwrap();
    Running(command.stdout(log()).stderr(log()).stdin(Stdio::null()).spawn().unwrap())
}

fn ready(view: &View) -> BTreeMap<String, bool> {
    view.endpoints.iter().map(|(at, found)| (at.to_string(), found.is_ready)).collect()
}

fn are(expected: &[(&str, bool)]) -> impl Fn(&View) -> bool + use<> {
    let expected: BTreeMap<String, bool> =
        expected.iter().map(|(at, is_ready)| ((*at).to_owned(), *is_ready)).collect();
    move |view: &View| view.is_known && ready(view) == expected
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_is_followed_with_the_narrow_role() {
    let Some(mut cluster) = Cluster::start() else { return };
    cluster.run(&["create", "namespace", NAMESPACE], None);
    let rbac = root().join("envoy/kubernetes/base/rbac.yaml");
    cluster.run(&["apply", "-n", NAMESPACE, "-f", rbac.to_str().unwrap()], None);
    let token = cluster.run(&["create", "token", "-n", NAMESPACE, "wasm-epp"], None);
    std::fs::write(cluster.folder.path().join("token"), token).unwrap();

    let labels = BTreeMap::from([("app".to_owned(), "vllm".to_owned())]);
    let mut views = cluster.follow(EndpointsOf::Pods(PodsConfig { labels, ports: vec![8000] }));
    until(&mut views, "no pods", are(&[])).await;
    cluster.pod("a");
    cluster.status("a", "10.1.0.1", true);
    until(&mut views, "a", are(&[("10.1.0.1:8000", true)])).await;
    cluster.pod("b");
    cluster.status("b", "10.1.0.2", false);
    until(&mut views, "b starts", are(&[("10.1.0.1:8000", true), ("10.1.0.2:8000", false)])).await;
    cluster.status("b", "10.1.0.2", true);
    let view =
        until(&mut views, "b", are(&[("10.1.0.1:8000", true), ("10.1.0.2:8000", true)])).await;
    assert!(view.endpoints.values().all(|found| found.labels["llm-d.ai/role"] == "decode"));

    // It is out before it is gone.
    cluster.run(&["delete", "-n", NAMESPACE, "pod", "a", "--wait=false"], None);
    until(&mut views, "a leaves", are(&[("10.1.0.1:8000", false), ("10.1.0.2:8000", true)])).await;
    let pods = cluster.run(&["get", "-n", NAMESPACE, "pods", "-o", "name"], None);
    assert_eq!(pods, "pod/a\npod/b\n");
    cluster.run(&["delete", "-n", NAMESPACE, "pod", "a", "--force", "--grace-period=0"], None);
    until(&mut views, "a is gone", are(&[("10.1.0.2:8000", true)])).await;
    assert_eq!(views.borrow().lists, 1);

    // The server goes away: nothing changes. It comes back and has forgotten: everything is asked for anew.
    drop(cluster.server.take());
    let view = until(&mut views, "an error", |view| view.error.is_some()).await;
    assert!(are(&[("10.1.0.2:8000", true)])(&view));
    cluster.start_server();
    cluster.pod("c");
    cluster.status("c", "10.1.0.3", true);
    cluster.compact();
    until(&mut views, "c", are(&[("10.1.0.2:8000", true), ("10.1.0.3:8000", true)])).await;
    until(&mut views, "no error", |view| view.error.is_none()).await;

    // Slices, and what the role does not give.
    cluster.apply(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "llama-1", "labels": {"kubernetes.io/service-name": "llama"}},
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": [{"addresses": ["10.1.0.3"], "conditions": {"ready": true}},
            {"addresses": ["10.1.0.4"], "conditions": {"ready": false, "terminating": true}}],
    }));
    let mut slices =
        cluster.follow(EndpointsOf::Service { name: "llama".into(), ports: Vec::new() });
    until(&mut slices, "slices", are(&[("10.1.0.3:8000", true), ("10.1.0.4:8000", false)])).await;
    let may = |args: &[&str]| {
        let mut all = vec!["auth", "can-i", "--as=system:serviceaccount:inference:wasm-epp"];
        all.extend(args);
        cluster.kubectl(&all, None).is_ok()
    };
    assert!(may(&["watch", "pods", "-n", NAMESPACE]));
    for forbidden in [
        ["get", "secrets"],
        ["delete", "pods"],
        ["create", "pods"],
        ["patch", "inferencepools.inference.networking.k8s.io"],
    ] {
        assert!(!may(&[forbidden[0], forbidden[1], "-n", NAMESPACE]), "{forbidden:?}");
    }
    assert!(!may(&["list", "pods", "-n", "default"]) && !may(&["list", "pods", "-A"]));

    // The definition is read where it is, and not part of this repository.
    let crd = root().join("../shared/data/crds/inferencepool.yaml");
    if !crd.exists() {
        eprintln!("skipped the InferencePool: no definition at {}", crd.display());
        return;
    }
    cluster.run(&["apply", "-f", crd.to_str().unwrap()], None);
    let wait = [
        "wait",
        "--for=condition=established",
        "--timeout=60s",
        "crd/inferencepools.inference.networking.k8s.io",
    ];
    cluster.run(&wait, None);
    let mut pools = cluster.follow(EndpointsOf::InferencePool("llama".into()));
    until(&mut pools, "no pool", are(&[])).await;
    cluster.apply(&json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"name": "llama"},
        "spec": {"selector": {"matchLabels": {"app": "vllm"}},
            "targetPorts": [{"number": 8000}, {"number": 8001}],
            "endpointPickerRef": {"name": "none", "port": {"number": 9002}}},
    }));
    let both = [
        ("10.1.0.2:8000", true),
        ("10.1.0.2:8001", true),
        ("10.1.0.3:8000", true),
        ("10.1.0.3:8001", true),
    ];
    until(&mut pools, "ranks", are(&both)).await;
    cluster.run(&["delete", "-n", NAMESPACE, "inferencepool", "llama"], None);
    until(&mut pools, "the pool is gone", are(&[])).await;
}

/// A certificate of another authority, and a token of nobody.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_believed() {
    let Some(cluster) = Cluster::start() else { return };
    let other = cluster.folder.path().join("other");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other", "-keyout"])
        .arg(other.with_extension("key"))
        .arg("-out")
        .arg(other.with_extension("crt"))
        .output();
    assert!(made.unwrap().status.success());
    std::fs::write(cluster.folder.path().join("token"), "nobody").unwrap();
    let of = || EndpointsOf::Service { name: "llama".into(), ports: Vec::new() };
    let mut views = cluster.follow(of());
    let view = until(&mut views, "a stranger", |view| view.error.is_some()).await;
    assert!(view.error.as_ref().unwrap().contains("401") && !view.is_known, "{view:?}");

    let ca = cluster.certs().join("apiserver.crt");
    std::fs::copy(other.with_extension("crt"), &ca).unwrap();
    let mut views = cluster.follow(of());
    let view = until(&mut views, "another authority", |view| view.error.is_some()).await;
    let error = view.error.unwrap();
    assert!(error.contains("certificate"), "{error}");
}
