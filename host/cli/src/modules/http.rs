//! One HTTP/1.1 connection to a gateway's admin interface or its probe listener.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::FeedAddress;

/// Longer than Envoy's main thread takes to load the largest module, during which the admin interface
/// is silent.
const LIMIT: Duration = Duration::from_secs(10);
/// Statistics of a thousand clusters take about 1 MB, explanations 0.1 MB.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection.
    #[error("connect: {0}")]
    Connect(#[source] std::io::Error),
    /// No connection by TLS.
    #[error("{}", chain(.0.as_ref()))]
    Tls(#[from] Box<feed_push::TlsError>),
    /// The connection broke.
    #[error("{}", chain(.0))]
    Http(#[from] hyper::Error),
    /// The answer broke off or is too long.
    #[error("reading the answer: {0}")]
    Body(String),
    /// The request cannot be written.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// Nothing within the limit.
    #[error("no answer within {} s", LIMIT.as_secs())]
    Timeout,
    /// Another answer than 200.
    #[error("it answers {0}")]
    Status(StatusCode),
}

/// An error with what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(super) async fn open(address: &FeedAddress) -> Result<Self, HttpError> {
        timeout(LIMIT, Self::connect(address)).await.map_err(|_| HttpError::Timeout)?
    }

    async fn connect(address: &FeedAddress) -> Result<Self, HttpError> {
        let path: &PathBuf = match address {
            FeedAddress::Unix(path) => path,
            FeedAddress::Http(address) => {
                let stream = TcpStream::connect(address).await.map_err(HttpError::Connect)?;
                stream.set_nodelay(true).map_err(HttpError::Connect)?;
                return Self::start(TokioIo::new(stream)).await;
            }
            FeedAddress::Https(address) => {
                let stream = address.target().connect().await.map_err(Box::new)?;
                return Self::start(TokioIo::new(stream)).await;
            }
        };
        let stream = UnixStream::connect(path).await.map_err(HttpError::Connect)?;
        Self::start(TokioIo::new(stream)).await
    }

    async fn start<T>(io: T) -> Result<Self, HttpError>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(io).await?;
        let driver = tokio::spawn(async move {
            // Its error reaches the sender too.
            let _ = connection.await;
        });
        Ok(Self { sender, driver })
    }

    pub(super) async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Bytes, HttpError> {
        timeout(LIMIT, self.exchange(request)).await.map_err(|_| HttpError::Timeout)?
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Bytes, HttpError> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| HttpError::Body(error.to_string()))?.to_bytes();
        if status == StatusCode::OK { Ok(body) } else { Err(HttpError::Status(status)) }
    }
}
