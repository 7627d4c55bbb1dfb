#!/usr/bin/env python3
"""Records what a real kube-apiserver answers, for the tests that have none.

    scripts/setup --kube
    host/discovery/tests/recorded/record.py [InferencePool CRD]

Writes beside itself: `pods.json`, steps of one life of a few pods, each with the lines that a watch brought and the
endpoints that there are then, as this script, which did it, knows them; `gone.json`, how the server refuses to go on
from a version it has forgotten; with the CRD `pools.json`; and `slices.json`. Versions, uids and times are the server's.
"""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(os.path.join(HERE, "../../../.."))
KUBE = os.environ.get("KUBE_BIN", os.path.join(ROOT, ".local/kube"))
NAMESPACE = "inference"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
POOLS = f"/apis/inference.networking.k8s.io/v1/namespaces/{NAMESPACE}/inferencepools"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="kube-")
        certs = os.path.join(self.folder, "certs")
        os.mkdir(certs)
        key = os.path.join(certs, "sa.key")
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = os.path.join(certs, "tokens.csv")
        with open(tokens, "w") as f:
            f.write("admin-token,admin,1,system:masters\n")
        etcd, peer, self.port = free_port(), free_port(), free_port()
        self.etcd_url, peer_url = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peer}"
        log = open(os.path.join(self.folder, "log"), "w")
        start = lambda *args: subprocess.Popen(args, stdout=log, stderr=log)
        self.processes = [
            start(f"{KUBE}/etcd", "--data-dir", f"{self.folder}/etcd",
                  "--listen-client-urls", self.etcd_url, "--advertise-client-urls", self.etcd_url,
                  "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
                  "--initial-cluster", f"default={peer_url}"),
            start(f"{KUBE}/kube-apiserver", f"--etcd-servers={self.etcd_url}",
                  "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
                  f"--secure-port={self.port}", f"--cert-dir={certs}",
                  "--service-account-issuer=https://kubernetes.default.svc",
                  f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
                  f"--token-auth-file={tokens}", "--authorization-mode=RBAC",
                  "--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none",
                  "--disable-admission-plugins=ServiceAccount"),
        ]
        self.ca = os.path.join(certs, "apiserver.crt")
        for _ in range(600):
            try:
                self.request("GET", "/readyz", raw=True)
                return self
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        raise SystemExit(f"the API server does not start: see {self.folder}/log")

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self, method, path, body=None, kind="application/json"):
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer admin-token", "Content-Type": kind})
        context = ssl.create_default_context(cafile=self.ca)
        return urllib.request.urlopen(request, context=context, timeout=120)

    def request(self, method, path, body=None, kind="application/json", raw=False):
        with self.open(method, path, body, kind) as answer:
            text = answer.read().decode()
        return text if raw else json.loads(text)


class Watch:
    """Collects the lines of a watch."""

    def __init__(self, cluster, path, version):
        self.lines, self.changed = [], threading.Condition()
        self.answer = cluster.open("GET", f"{path}&watch=1&allowWatchBookmarks=true&resourceVersion={version}")
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.answer:
            with self.changed:
                self.lines.append(line.decode())
                self.changed.notify_all()

    def take(self, of):
        """The lines up to the first that `of` accepts."""
        with self.changed:
            if not self.changed.wait_for(lambda: any(of(json.loads(l)) for l in self.lines), 90):
                raise SystemExit(f"no such event among {self.lines}")
            end = next(i for i, l in enumerate(self.lines) if of(json.loads(l))) + 1
            taken, self.lines = self.lines[:end], self.lines[end:]
            return taken


def pod(name, role):
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "vllm", "llm-d.ai/role": role}},
            # Bound, so that deleting it waits for a kubelet that never comes.
            "spec": {"nodeName": "node-0", "automountServiceAccountToken": False,
                     "containers": [{"name": "vllm", "image": "vllm"}]}}


def record_pods(cluster):
    selector = "?labelSelector=app%3Dvllm"
    send = lambda method, name, body=None, sub="", kind="application/json": cluster.request(
        method, f"{PODS}/{name}{sub}" if name else PODS, body, kind)

    def status(name, ip, ready, phase="Running"):
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        body = {"status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]}}
        return send("PATCH", name, body, "/status", "application/merge-patch+json")

    send("POST", "", pod("a", "both"))
    status("a", "10.1.0.1", True)
    listed = cluster.request("GET", PODS + selector, raw=True)
    version = json.loads(listed)["metadata"]["resourceVersion"]
    watch = Watch(cluster, PODS + selector, version)
    steps, truth = [], {"10.1.0.1": True}

    def step(what, until, **change):
        for ip, ready in change.pop("now", {}).items():
            if ready is None:
                truth.pop(ip, None)
            else:
                truth[ip] = ready
        steps.append({"what": what, "lines": watch.take(until), "ready": dict(sorted(truth.items()))})

    at = lambda obj: lambda event: event["object"]["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]
    gone = lambda name: lambda event: event["type"] == "DELETED" and event["object"]["metadata"]["name"] == name
    step("a pod without an address", at(send("POST", "", pod("b", "decode"))))
    step("it starts", at(status("b", "10.1.0.2", False)), now={"10.1.0.2": False})
    step("it is ready", at(status("b", "10.1.0.2", True)), now={"10.1.0.2": True})
    step("one is not ready", at(status("a", "10.1.0.1", False)), now={"10.1.0.1": False})
    step("it is again", at(status("a", "10.1.0.1", True)), now={"10.1.0.1": True})
    other = cluster.request("PATCH", f"{PODS}/a", {"metadata": {"labels": {"app": "other"}}}, "application/merge-patch+json")
    step("it is no longer selected", gone("a"), now={"10.1.0.1": None})
    back = cluster.request("PATCH", f"{PODS}/a", {"metadata": {"labels": {"app": "vllm"}}}, "application/merge-patch+json")
    assert other["metadata"]["uid"] == back["metadata"]["uid"]
    step("it is selected again", at(back), now={"10.1.0.1": True})
    send("DELETE", "b", {"gracePeriodSeconds": 30})
    deleting = lambda event: event["object"]["metadata"].get("deletionTimestamp") is not None
    step("one is to be deleted, and its containers still run", deleting, now={"10.1.0.2": False})
    send("DELETE", "b", {"gracePeriodSeconds": 0})
    step("it is gone", gone("b"), now={"10.1.0.2": None})
    send("POST", "", pod("b", "prefill"))
    step("another of that name has that address", at(status("b", "10.1.0.2", True)), now={"10.1.0.2": True})
    step("a pod has ended", at(status("a", "10.1.0.1", False, "Succeeded")), now={"10.1.0.1": None})
    step("a bookmark", lambda event: event["type"] == "BOOKMARK")
    write("pods.json", {"list": json.loads(listed), "steps": steps})
    # What the server has forgotten: watched from the first version there was, and listed on from a page of it.
    compact(cluster)
    old = Watch(cluster, PODS + selector, 1)
    lines = old.take(lambda event: event["type"] == "ERROR")
    write("gone.json", {"lines": lines})


def compact(cluster):
    """Has etcd forget all versions but the last."""
    call = lambda path, body: json.loads(urllib.request.urlopen(urllib.request.Request(
        f"{cluster.etcd_url}{path}", data=json.dumps(body).encode())).read())
    revision = call("/v3/kv/range", {"key": "YQ=="})["header"]["revision"]
    call("/v3/kv/compaction", {"revision": revision, "physical": True})


def record_pools(cluster, crd):
    subprocess.run(["kubectl", "apply", "-f", crd, f"--server=https://127.0.0.1:{cluster.port}",
                    "--token=admin-token", f"--certificate-authority={cluster.ca}"],
                   check=True, capture_output=True, env={**os.environ, "KUBECONFIG": "/dev/null"})
    for _ in range(100):
        try:
            cluster.request("GET", POOLS)
            break
        except urllib.error.HTTPError:
            time.sleep(0.1)
    path = POOLS + "?fieldSelector=metadata.name%3Dllama"
    spec = lambda labels, ports: {
        "selector": {"matchLabels": labels}, "targetPorts": [{"number": p} for p in ports],
        "endpointPickerRef": {"name": "none", "port": {"number": 9002}}}
    body = {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
            "metadata": {"name": "llama"}, "spec": spec({"app": "vllm"}, [8000, 8001])}
    listed = cluster.request("GET", path)
    watch = Watch(cluster, path, listed["metadata"]["resourceVersion"])
    cluster.request("POST", POOLS, body)
    lines = watch.take(lambda event: event["type"] == "ADDED")
    cluster.request("PATCH", f"{POOLS}/llama", {"spec": {"targetPorts": [{"number": 8000}]}},
                    "application/merge-patch+json")
    lines += watch.take(lambda event: event["type"] == "MODIFIED")
    cluster.request("DELETE", f"{POOLS}/llama")
    lines += watch.take(lambda event: event["type"] == "DELETED")
    write("pools.json", {"list": listed, "lines": lines})


def record_slices(cluster):
    path = SLICES + "?labelSelector=kubernetes.io%2Fservice-name%3Dllama"
    endpoint = lambda ip, name, **conditions: {
        "addresses": [ip], "conditions": conditions,
        "targetRef": {"kind": "Pod", "name": name, "uid": f"uid-{name}"}}
    body = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "llama-1", "labels": {"kubernetes.io/service-name": "llama"}},
            "ports": [{"name": "http", "port": 8000}],
            "endpoints": [endpoint("10.1.0.1", "a", ready=True, serving=True, terminating=False),
                          endpoint("10.1.0.2", "b", ready=False, serving=False, terminating=False),
                          endpoint("10.1.0.3", "c", ready=False, serving=True, terminating=True),
                          endpoint("10.1.0.4", "d")]}
    cluster.request("POST", SLICES, body)
    write("slices.json", {"list": cluster.request("GET", path), "ready": {
        "10.1.0.1": True, "10.1.0.2": False, "10.1.0.3": False, "10.1.0.4": True}})


def write(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


with Cluster() as cluster:
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    record_slices(cluster)
    if len(sys.argv) > 1:
        record_pools(cluster, sys.argv[1])
    record_pods(cluster)
