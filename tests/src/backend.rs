//! A tiny server in place of an engine: its answers are constant, its metrics are given.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// Header of each answer with the address of the backend that gave it.
pub const BACKEND_HEADER: &str = "x-backend";

/// Answers GET with its metrics page and anything else with 200 and a line of JSON. Ends when
/// dropped, with its connections.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Backend {
    /// Starts one on a free loopback port.
    pub async fn start(metrics: impl Into<Bytes>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(accept(listener, address.to_string(), metrics.into()));
        Ok(Self { address, task })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, name: String, metrics: Bytes) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (name, metrics) = (name.clone(), metrics.clone());
        let service = service_fn(move |request| answer(request, name.clone(), metrics.clone()));
        connections.spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            // A connection that breaks is its client's to notice.
            drop(served);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<Incoming>,
    name: String,
    metrics: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_get = request.method() == Method::GET;
    // Read whole: an answer before the end of the request would make the proxy reset it.
    let _ = request.into_body().collect().await;
    let (kind, body) = if is_get {
        ("text/plain; version=0.0.4", metrics)
    } else {
        ("application/json", Bytes::from_static(b"{\"object\":\"constant\"}\n"))
    };
    let response = Response::builder()
        .header("content-type", kind)
        .header(BACKEND_HEADER, name)
        .body(Full::new(body));
    Ok(response.unwrap_or_default())
}
