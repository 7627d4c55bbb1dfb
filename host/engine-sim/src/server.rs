//! The accept loop: HTTP/1.1 and h2c on one port.

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::reset::{Cut, Resettable};

/// Serves until dropped; every connection ends with it.
pub(crate) async fn serve(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::task::yield_now().await;
                continue;
            }
        };
        // Tokens are written one by one; waiting for an ack would batch them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "setting TCP_NODELAY");
        }
        let cut = Cut::new();
        let router = router.clone().layer(Extension(cut.clone()));
        connections.spawn(async move {
            let io = TokioIo::new(Resettable { stream, cut: cut.clone() });
            let builder = Builder::new(TokioExecutor::new());
            let connection =
                builder.serve_connection_with_upgrades(io, TowerToHyperService::new(router));
            tokio::select! {
                served = connection => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "a connection ended");
                    }
                }
                () = cut.wait() => {}
            }
        });
    }
}
