//! Connections that can be cut off from inside a request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A request's handle on its connection.
#[derive(Clone)]
pub(crate) struct Cut(Arc<watch::Sender<bool>>);

impl Cut {
    pub(crate) fn new() -> Cut {
        Cut(Arc::new(watch::Sender::new(false)))
    }

    /// Cuts the connection off and never returns: no response is written.
    pub(crate) async fn cut(&self) -> ! {
        self.0.send_replace(true);
        loop {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until [`Cut::cut`] is called.
    pub(crate) async fn wait(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.0.subscribe().wait_for(|cut| *cut).await;
    }
}

/// A stream that is reset instead of closed when its connection was cut.
pub(crate) struct Resettable {
    pub(crate) stream: TcpStream,
    pub(crate) cut: Cut,
}

impl Drop for Resettable {
    fn drop(&mut self) {
        if *self.cut.0.borrow()
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::warn!(%error, "a cut connection will be closed, not reset");
        }
    }
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
