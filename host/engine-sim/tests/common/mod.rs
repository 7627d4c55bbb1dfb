//! A client, and a reader of events that shares nothing with the engine.
#![allow(dead_code, unreachable_pub, reason = "shared by test files that each use some of it")]
#![allow(clippy::unwrap_used, reason = "only tests call this")]

use std::future::Future;
use std::time::Duration;

use engine_sim::{RunningSim, SimConfig};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

/// Longest any awaited event may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no {what} in time"))
}

pub struct Sim {
    pub running: RunningSim,
    client: Client<HttpConnector, Full<Bytes>>,
}

pub type Reply = http::Response<Bytes>;

impl Sim {
    pub async fn start(config: SimConfig) -> Sim {
        Sim::with_client(config, false).await
    }

    /// An engine whose event publisher connects.
    pub async fn start_connecting(config: SimConfig) -> Sim {
        Sim::over(engine_sim::start_with(config, true).await.unwrap(), false)
    }

    pub async fn with_client(config: SimConfig, http2: bool) -> Sim {
        Sim::over(engine_sim::start(config).await.unwrap(), http2)
    }

    fn over(running: RunningSim, http2: bool) -> Sim {
        let mut builder = Client::builder(TokioExecutor::new());
        // A hidden retry would make a reset invisible.
        builder.http2_only(http2).retry_canceled_requests(false);
        Sim { running, client: builder.build_http() }
    }

    pub async fn send(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<hyper::body::Incoming>, hyper_util::client::legacy::Error> {
        patiently("response", self.client.request(request)).await
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> http::Request<Full<Bytes>> {
        http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.running.http))
            .header("content-type", "application/json")
            .body(Full::from(body.to_owned()))
            .unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        let response = self.send(self.request("POST", path, &body.to_string())).await.unwrap();
        whole(response).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        whole(self.send(self.request("GET", path, "")).await.unwrap()).await
    }

    /// The value of a series of `/metrics`, by the start of its line.
    pub async fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").await;
        let page = String::from_utf8(page.body().to_vec()).unwrap();
        let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")));
        let line = line.unwrap_or_else(|| panic!("no series {name} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Asks for `name` until it has `value`.
    pub async fn wait_for_metric(&self, name: &str, value: f64) {
        let reached = async { while self.metric(name).await != value {} };
        patiently(name, reached).await;
    }

    pub async fn subscribe(&self) -> SubSocket {
        let mut socket = SubSocket::new();
        socket.connect(self.running.kv_events.as_ref().unwrap()).await.unwrap();
        socket.subscribe("").await.unwrap();
        socket
    }

    /// All frames of a replay from `start`, the end marker included.
    pub async fn replay(&self, start: u64) -> Vec<Vec<Vec<u8>>> {
        let mut socket = DealerSocket::new();
        socket.connect(self.running.replay.as_ref().unwrap()).await.unwrap();
        let mut request = ZmqMessage::from(Vec::new());
        request.push_back(start.to_be_bytes().to_vec().into());
        socket.send(request).await.unwrap();
        let mut replies = Vec::new();
        loop {
            let reply = patiently("replay message", socket.recv()).await.unwrap();
            let frames: Vec<Vec<u8>> = reply.into_vec().iter().map(|f| f.to_vec()).collect();
            let last = frames[frames.len() - 2] == [0xff; 8];
            replies.push(frames);
            if last {
                return replies;
            }
        }
    }
}

pub async fn whole(response: http::Response<hyper::body::Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    let body = patiently("body", body.collect()).await.unwrap().to_bytes();
    http::Response::from_parts(parts, body)
}

pub fn json(reply: &Reply) -> Value {
    serde_json::from_slice(reply.body()).unwrap()
}

pub fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    reply.headers().get(name).map(|value| value.to_str().unwrap())
}

pub fn sub_frames(message: ZmqMessage) -> Vec<Vec<u8>> {
    message.into_vec().iter().map(|frame| frame.to_vec()).collect()
}

pub fn decode(payload: &[u8]) -> rmpv::Value {
    let mut rest = payload;
    let value = rmpv::decode::read_value(&mut rest).unwrap();
    assert!(rest.is_empty(), "bytes after the payload");
    value
}

/// A field of an event in map form, nil where it is left out.
pub fn field(event: &rmpv::Value, name: &str) -> rmpv::Value {
    let pairs = event.as_map().expect("an event in map form");
    pairs
        .iter()
        .find(|(key, _)| key.as_str() == Some(name))
        .map_or(rmpv::Value::Nil, |(_, value)| value.clone())
}
