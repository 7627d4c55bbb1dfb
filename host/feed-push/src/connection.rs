//! One HTTP/1.1 connection to a feed listener, over a Unix socket or TCP.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use feed::{ACCURACY_PATH, AccuracyReport, Ack, WireError};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Acks hold at most 64 rows.
const MAX_ACK_BYTES: usize = 64 << 10;
/// Reports are no longer.
const MAX_REPORT_BYTES: usize = 1 << 20;

/// Where a feed listener is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

/// Why a post has no ack. Whether its batch was applied is not known.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection.
    #[error("connect to the feed listener")]
    Connect(#[source] std::io::Error),
    /// The connection broke.
    #[error("post to the feed listener")]
    Http(#[source] hyper::Error),
    /// The listener answered without the feeder: it is not loaded, dead, or another service.
    #[error("feed listener answered {0} without an ack")]
    NoFeeder(StatusCode),
    /// The feeder is of another format: nothing was applied, as it does not read ours either.
    #[error(
        "the gateway's feeder speaks feed format {feeder} and this daemon {}: run both of one version",
        feed::FORMAT_VERSION
    )]
    Format {
        /// Format of the feeder.
        feeder: u8,
    },
    /// The answer cannot be read.
    #[error("ack is not readable: {0}")]
    Ack(String),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(crate) async fn open(target: &Target, limit: Duration) -> Result<Self, ConnectError> {
        timeout(limit, Self::connect(target)).await.map_err(|_| ConnectError::Timeout(limit))?
    }

    async fn connect(target: &Target) -> Result<Self, ConnectError> {
        match target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(ConnectError::Connect)?;
                Self::start(TokioIo::new(stream)).await
            }
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(ConnectError::Connect)?;
                stream.set_nodelay(true).map_err(ConnectError::Connect)?;
                Self::start(TokioIo::new(stream)).await
            }
        }
    }

    async fn start<T>(io: T) -> Result<Self, ConnectError>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(io).await.map_err(ConnectError::Http)?;
        let driver = tokio::spawn(async move {
            // Its error reaches the sender too.
            let _ = connection.await;
        });
        Ok(Self { sender, driver })
    }

    pub(crate) async fn post(
        &mut self,
        batch: Vec<u8>,
        limit: Duration,
    ) -> Result<Ack, ConnectError> {
        timeout(limit, self.exchange(batch)).await.map_err(|_| ConnectError::Timeout(limit))?
    }

    /// How right the gateway's predictions were. Empty of a feeder that cannot say.
    pub(crate) async fn accuracy(
        &mut self,
        limit: Duration,
    ) -> Result<AccuracyReport, ConnectError> {
        timeout(limit, self.ask_accuracy()).await.map_err(|_| ConnectError::Timeout(limit))?
    }

    async fn ask_accuracy(&mut self) -> Result<AccuracyReport, ConnectError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = http::Uri::from_static(ACCURACY_PATH);
        request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("feed"));
        let response = self.sender.send_request(request).await.map_err(ConnectError::Http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REPORT_BYTES).collect().await;
        let body = body.map_err(|err| ConnectError::Ack(err.to_string()))?.to_bytes();
        if status != StatusCode::OK {
            return Ok(AccuracyReport::default());
        }
        AccuracyReport::decode(&body).map_err(|err| ConnectError::Ack(err.to_string()))
    }

    async fn exchange(&mut self, batch: Vec<u8>) -> Result<Ack, ConnectError> {
        let mut request = Request::new(Full::new(Bytes::from(batch)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("/feed");
        request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("feed"));
        let response = self.sender.send_request(request).await.map_err(ConnectError::Http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ACK_BYTES).collect().await;
        let body = body.map_err(|err| ConnectError::Ack(err.to_string()))?.to_bytes();
        match Ack::decode(&body) {
            Err(WireError::Version(feeder)) => Err(ConnectError::Format { feeder }),
            Ok(ack) if ack.status.http_status() == u32::from(status.as_u16()) => Ok(ack),
            _ if !status.is_success() => Err(ConnectError::NoFeeder(status)),
            Ok(_) => Err(ConnectError::Ack("status and body disagree".into())),
            Err(err) => Err(ConnectError::Ack(err.to_string())),
        }
    }
}
