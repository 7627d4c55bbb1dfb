//! Listeners: the public one, and the daemon's and operator's private ones.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::super::error::RunError;
use super::{Kind, Shared, stream};
use crate::config::FeedAddress;

/// As in the rendered listener.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// Before a listener that could not accept (no file handles) is asked again.
const PAUSE: Duration = Duration::from_millis(50);

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A bound listener. Its Unix socket goes with it.
pub(super) struct Listener {
    kind: Kind,
    socket: Socket,
}

impl Listener {
    pub(super) async fn tcp(kind: Kind, address: SocketAddr) -> Result<Self, RunError> {
        let socket =
            TcpListener::bind(address).await.map_err(|source| refused(&address, source))?;
        Ok(Self { kind, socket: Socket::Tcp(socket) })
    }

    /// Binds a private address. A socket that a process left behind is taken over, one that is served is
    /// not.
    pub(super) async fn private(
        kind: Kind,
        address: &FeedAddress,
        mode: u32,
    ) -> Result<Self, RunError> {
        let path = match address {
            FeedAddress::Http(address) => return Self::tcp(kind, *address).await,
            FeedAddress::Unix(path) => path,
            FeedAddress::Https(_) => {
                let reason = "only Envoy serves the feed by TLS: name a unix:PATH for this";
                let source = std::io::Error::new(std::io::ErrorKind::Unsupported, reason);
                return Err(refused(address, source));
            }
        };
        let bound = bind(path, mode).await.map_err(|source| refused(address, source))?;
        Ok(Self { kind, socket: Socket::Unix(bound, path.clone()) })
    }

    pub(super) fn purpose(&self) -> &'static str {
        match self.kind {
            Kind::Inference => "requests",
            Kind::Feed => "the daemon",
            Kind::Probe => "probes",
        }
    }

    pub(super) fn address(&self) -> String {
        match &self.socket {
            Socket::Tcp(socket) => {
                socket.local_addr().map_or_else(|e| e.to_string(), |a| format!("http://{a}"))
            }
            Socket::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Accepts for ever; each connection stays with one worker, the next one with the next.
    pub(super) async fn run(self, shared: Arc<Shared>, workers: usize) {
        for connection in 0usize.. {
            let worker = connection % workers.max(1);
            let accepted = match &self.socket {
                Socket::Tcp(socket) => socket.accept().await.map(|(stream, _)| {
                    // Only delays what is small.
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(serve(
                        TokioIo::new(stream),
                        self.kind,
                        worker,
                        Arc::clone(&shared),
                    ));
                }),
                Socket::Unix(socket, _) => socket.accept().await.map(|(stream, _)| {
                    tokio::spawn(serve(
                        TokioIo::new(stream),
                        self.kind,
                        worker,
                        Arc::clone(&shared),
                    ));
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, address = self.address(), "accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            // A socket that is gone already is as it should be.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

fn refused(address: &impl std::fmt::Display, reason: io::Error) -> RunError {
    RunError::Listen { address: address.to_string(), reason }
}

async fn serve<T>(io: TokioIo<T>, kind: Kind, worker: usize, shared: Arc<Shared>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service =
        service_fn(move |request| stream::serve(Arc::clone(&shared), kind, worker, request));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    // A connection that breaks is its client's to notice.
    let _ = builder.serve_connection(io, service).await;
}
