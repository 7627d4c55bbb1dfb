//! As much of a Kubernetes API server as a follower of pods needs: it lists and watches pods of one namespace over
//! plain HTTP, from memory, and says what it said before to who asks to go on from there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Default)]
struct Pods {
    version: u64,
    uids: u64,
    by_name: BTreeMap<String, Value>,
    /// Every event, with its version.
    events: Vec<(u64, String)>,
}

/// A server, until it is dropped.
pub struct ApiServer {
    /// Where it listens.
    pub address: SocketAddr,
    pods: Arc<watch::Sender<Pods>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl ApiServer {
    /// Listens on a free port of loopback.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let pods = Arc::new(watch::Sender::new(Pods::default()));
        let shared = Arc::clone(&pods);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let pods = shared.subscribe();
                tokio::spawn(async move {
                    // A client that goes away is its own business.
                    let _ = answer(stream, pods).await;
                });
            }
        });
        Ok(Self { address, pods, accepting })
    }

    /// Makes a pod, or changes the status of the one there is.
    pub fn pod(&self, name: &str, ip: &str, is_ready: bool) {
        self.pods.send_modify(|pods| {
            let held = pods.by_name.get(name);
            let kind = if held.is_some() { "MODIFIED" } else { "ADDED" };
            let uid = held.map(|pod| pod["metadata"]["uid"].clone()).unwrap_or_else(|| {
                pods.uids += 1;
                json!(format!("uid-{}", pods.uids))
            });
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "uid": uid, "labels": {"app": "vllm"}},
                "status": {"phase": "Running", "podIP": ip, "conditions": [
                    {"type": "Ready", "status": if is_ready { "True" } else { "False" }},
                ]},
            });
            pods.tell(kind, name, pod);
        });
    }

    /// Says that a pod is to be deleted; it is there until [`Self::remove`].
    pub fn delete(&self, name: &str) {
        self.pods.send_modify(|pods| {
            if let Some(mut pod) = pods.by_name.get(name).cloned() {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                pods.tell("MODIFIED", name, pod);
            }
        });
    }

    /// A pod is gone.
    pub fn remove(&self, name: &str) {
        self.pods.send_modify(|pods| {
            if let Some(pod) = pods.by_name.get(name).cloned() {
                pods.tell("DELETED", name, pod);
                pods.by_name.remove(name);
            }
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Pods {
    fn tell(&mut self, kind: &str, name: &str, mut pod: Value) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let event = json!({"type": kind, "object": pod});
        self.events.push((self.version, format!("{event}\n")));
        self.by_name.insert(name.to_owned(), pod);
    }
}

async fn answer(stream: TcpStream, mut pods: watch::Receiver<Pods>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let query = path.split_once('?').map_or("", |(_, query)| query);
    if !query.contains("watch=1") {
        let list = {
            let pods = pods.borrow();
            let items: Vec<&Value> = pods.by_name.values().collect();
            json!({"metadata": {"resourceVersion": pods.version.to_string()}, "items": items})
        };
        let body = list.to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        return Ok(stream.flush().await?);
    }
    let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    let mut said: u64 = from.and_then(|version| version.parse().ok()).unwrap_or(0);
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    loop {
        let news: Vec<(u64, String)> = {
            let pods = pods.borrow_and_update();
            pods.events.iter().filter(|(version, _)| *version > said).cloned().collect()
        };
        for (version, event) in news {
            stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
            said = version;
        }
        stream.flush().await?;
        pods.changed().await?;
    }
}
