//! A tiny server in place of an engine: it answers what it is told to, its metrics are given; a
//! request with `"stream": true` is answered in as many pieces as it has `max_tokens`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// Header of each answer with the address of the backend that gave it.
pub const BACKEND_HEADER: &str = "x-backend";

/// Time between two pieces of a streamed answer: as an engine at 500 tokens/s, and long enough for
/// each to reach the client by itself.
const PIECE_INTERVAL: Duration = Duration::from_millis(2);

/// Answers GET with its metrics page, a request for a stream with its pieces, and anything else with
/// 200 and a line of JSON, always the same unless told otherwise. Ends when dropped, with its
/// connections.
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
        Self::start_at("127.0.0.1:0".parse()?, metrics).await
    }

    /// Starts one at an address. The unspecified one is every address of 127.0.0.0/8 at once, so that
    /// one server is as many endpoints as a test wants.
    pub async fn start_at(at: SocketAddr, metrics: impl Into<Bytes>) -> Result<Self> {
        let listener = TcpListener::bind(at).await?;
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
) -> Result<Response<Either<Full<Bytes>, Pieces>>, Infallible> {
    let is_get = request.method() == Method::GET;
    // Read whole: an answer before the end of the request would make the proxy reset it.
    let sent = request.into_body().collect().await;
    let sent = sent.map(|sent| sent.to_bytes()).unwrap_or_default();
    let (kind, body) = if is_get {
        ("text/plain; version=0.0.4", Either::Left(Full::new(metrics)))
    } else if let Some(count) = streamed(&sent) {
        let interval = tokio::time::interval(PIECE_INTERVAL);
        ("text/event-stream", Either::Right(Pieces { left: count, interval }))
    } else {
        ("application/json", Either::Left(Full::new(json)))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static(kind));
    if let Ok(name) = http::HeaderValue::from_str(&name) {
        headers.insert(BACKEND_HEADER, name);
    }
    Ok(response)
}

/// The number of pieces of a request for a stream.
fn streamed(body: &[u8]) -> Option<u64> {
    // Parsing every body of a measurement would be most of the work.
    body.windows(13).any(|window| window == b"\"stream\":true").then_some(())?;
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    body["max_tokens"].as_u64()
}

/// A body of equal events, one per interval.
struct Pieces {
    left: u64,
    interval: tokio::time::Interval,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(self.interval.poll_tick(cx));
        self.left -= 1;
        let event = b"data: {\"choices\":[{\"text\":\" token\"}]}\n\n";
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(event)))))
    }
}
