//! A tiny server in place of an engine: it answers what it is told to, its metrics are given.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Answers GET with its metrics page and anything else with 200 and a line of JSON, always the same
/// unless told otherwise. Ends when dropped, with its connections.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    answer: Answer,
    task: JoinHandle<()>,
}

type Answer = Arc<Mutex<Bytes>>;

impl Backend {
    /// Starts one on a free loopback port.
    pub async fn start(metrics: impl Into<Bytes>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answer: Answer =
            Arc::new(Mutex::new(Bytes::from_static(b"{\"object\":\"constant\"}\n")));
        let answers = Arc::clone(&answer);
        let task = tokio::spawn(accept(listener, address.to_string(), metrics.into(), answers));
        Ok(Self { address, answer, task })
    }

    /// Answers with this line of JSON from now on.
    pub fn answer_with(&self, json: impl Into<Bytes>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = json.into();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, name: String, metrics: Bytes, answers: Answer) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (name, metrics, answers) = (name.clone(), metrics.clone(), Arc::clone(&answers));
        let service = service_fn(move |request| {
            let json = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            answer(request, name.clone(), metrics.clone(), json)
        });
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
    json: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_get = request.method() == Method::GET;
    // Read whole: an answer before the end of the request would make the proxy reset it.
    let _ = request.into_body().collect().await;
    let (kind, body) =
        if is_get { ("text/plain; version=0.0.4", metrics) } else { ("application/json", json) };
    let response = Response::builder()
        .header("content-type", kind)
        .header(BACKEND_HEADER, name)
        .body(Full::new(body));
    Ok(response.unwrap_or_default())
}
