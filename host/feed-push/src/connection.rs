//! One HTTP/1.1 connection to a feed listener, over a Unix socket, TCP or TLS.

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

use crate::tls::{TlsError, TlsTarget, refusal};

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
    /// Mutual TLS.
    Tls(TlsTarget),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(target) => target.fmt(f),
        }
    }
}

/// Why a post has no ack. Whether its batch was applied is not known.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection.
    #[error("connect to the feed listener")]
    Connect(#[source] std::io::Error),
    /// No connection by TLS.
    #[error(transparent)]
    Tls(TlsError),
    /// The listener does not take the daemon's certificate.
    #[error("the feed listener refused feedTls.certificate: TLS alert {0}")]
    Certificate(String),
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
    /// Ends with the connection, and with what ended it.
    driver: Option<tokio::task::JoinHandle<hyper::Result<()>>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
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
            Target::Tls(target) => {
                let stream = target.connect().await.map_err(ConnectError::Tls)?;
                Self::start(TokioIo::new(stream)).await
            }
        }
    }

    async fn start<T>(io: T) -> Result<Self, ConnectError>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(io).await.map_err(ConnectError::Http)?;
        Ok(Self { sender, driver: Some(tokio::spawn(connection)) })
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<http::Response<hyper::body::Incoming>, ConnectError> {
        let mut err = match self.sender.send_request(request).await {
            Ok(response) => return Ok(response),
            Err(err) => err,
        };
        // A request that came after the end only knows that there is no connection.
        if err.is_canceled()
            && let Some(driver) = self.driver.take()
            && let Ok(Err(first)) = driver.await
        {
            err = first;
        }
        Err(match refusal(&err) {
            Some(alert) => ConnectError::Certificate(format!("{alert:?}")),
            None => ConnectError::Http(err),
        })
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
        let response = self.send(request).await?;
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
        let response = self.send(request).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// As a listener that refuses a certificate ends a connection: by what comes before any answer is asked for.
    #[tokio::test]
    async fn a_post_after_the_end_says_what_the_end_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feed");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let limit = Duration::from_secs(30);
        let mut connection = Connection::open(&Target::Unix(path), limit).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"no answer").await.unwrap();
        while !connection.driver.as_ref().unwrap().is_finished() {
            tokio::task::yield_now().await;
        }
        match connection.post(Vec::new(), limit).await.unwrap_err() {
            ConnectError::Http(err) => assert!(!err.is_canceled(), "{err:?}"),
            other => panic!("{other:?}"),
        }
    }
}
