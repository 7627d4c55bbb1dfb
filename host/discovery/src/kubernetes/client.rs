//! GET requests to an API server: one connection each, as there are few and a watch keeps its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::objects::Status;

/// For a connection, with TLS.
const CONNECT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer that is no watch.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest page of a list. An object is at most 1.5 MiB, as etcd has it, and mostly ten KiB.
const MAX_LIST_BYTES: usize = 64 << 20;
/// Longest refusal that is read.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// Where the API server is, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `https://HOST:PORT`; `http://` for a proxy on this machine.
    pub url: String,
    /// PEM certificates that the server's is signed by; needed for `https`.
    pub ca_file: Option<PathBuf>,
    /// File of a bearer token, read for each request: Kubernetes renews it.
    pub token_file: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL, or what it needs, is not right.
    #[error("API server {url}: {why}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A file cannot be read, or has not in it what it should.
    #[error("reading {file}: {why}", file = file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No connection, or it broke.
    #[error("API server {url}: {why}")]
    Connection {
        /// As configured.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The server refuses.
    #[error("API server {url} answers {code} to {path}: {message}")]
    Refused {
        /// As configured.
        url: String,
        /// The path that was asked for.
        path: String,
        /// HTTP's status.
        code: u16,
        /// What the server says.
        message: String,
    },
}

impl ClientError {
    /// The state that was asked to go on from is forgotten.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Asks one server.
pub(super) struct Client {
    server: Server,
    host: String,
    port: u16,
    is_tls: bool,
}

impl Client {
    pub(super) fn new(server: Server) -> Result<Self, ClientError> {
        let wrong = |why: &str| ClientError::Url { url: server.url.clone(), why: why.to_owned() };
        let uri: Uri = server.url.parse().map_err(|_| wrong("not a url"))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("expected https://HOST:PORT")),
        };
        let host = uri.host().ok_or_else(|| wrong("expected a host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self { host, port, is_tls, server })
    }

    /// The whole answer to a GET.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        let response = self.open(path).await?;
        let body = Limited::new(response.into_body(), MAX_LIST_BYTES).collect();
        match tokio::time::timeout(SILENCE, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.broken(error)),
            Err(_) => Err(self.broken(format!("no whole answer within {SILENCE:?}"))),
        }
    }

    /// The head of the answer to a GET, if it is 200.
    pub(super) async fn open(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let asked = tokio::time::timeout(SILENCE, self.ask(path)).await;
        let response =
            asked.map_err(|_| self.broken(format!("no answer within {SILENCE:?}")))??;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_STATUS_BYTES).collect();
        let status: Status = match tokio::time::timeout(SILENCE, body).await {
            Ok(Ok(body)) => serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
            _ => Status::default(),
        };
        Err(ClientError::Refused {
            url: self.server.url.clone(),
            path: path.split('?').next().unwrap_or_default().to_owned(),
            code,
            message: status.message,
        })
    }

    async fn ask(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let stream = tokio::time::timeout(CONNECT, self.connect())
            .await
            .map_err(|_| self.broken(format!("no connection within {CONNECT:?}")))??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        // Ends with the answer, or when that is dropped.
        tokio::spawn(connection);
        let mut request = Request::get(path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "wasm-epp");
        if let Some(file) = &self.server.token_file {
            request = request.header(header::AUTHORIZATION, token(file).await?);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| self.broken(error))?;
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| self.broken(error))?;
        // Watches are long and mostly silent; events are small.
        tcp.set_nodelay(true).map_err(|error| self.broken(error))?;
        if !self.is_tls {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(self.host.clone()).map_err(|error| self.broken(error))?;
        let connector = TlsConnector::from(Arc::new(self.tls().await?));
        let tls = connector.connect(name, tcp).await.map_err(|error| self.broken(error))?;
        Ok(Box::new(tls))
    }

    /// Read for each connection: certificates are renewed too.
    async fn tls(&self) -> Result<ClientConfig, ClientError> {
        let Some(file) = &self.server.ca_file else {
            let why = "https needs caFile".to_owned();
            return Err(ClientError::Url { url: self.server.url.clone(), why });
        };
        let failed = |why: String| ClientError::File { file: file.clone(), why };
        let pem = tokio::fs::read(file).await.map_err(|error| failed(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(failed("no certificate in it".to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| self.broken(error))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }

    pub(super) fn broken(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Connection { url: self.server.url.clone(), why: why.to_string() }
    }
}

async fn token(file: &PathBuf) -> Result<header::HeaderValue, ClientError> {
    let failed = |why: String| ClientError::File { file: file.clone(), why };
    let text = tokio::fs::read_to_string(file).await.map_err(|error| failed(error.to_string()))?;
    let mut value = header::HeaderValue::from_str(&format!("Bearer {}", text.trim()))
        .map_err(|_| failed("not a token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
