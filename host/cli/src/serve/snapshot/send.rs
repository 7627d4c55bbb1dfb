//! The answer to a peer.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::channel::Channel;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::take;
use crate::serve::Daemon;

/// For a whole answer; peers give up then too.
const LIMIT: Duration = Duration::from_secs(60);
/// Pieces that wait for a slow reader.
const READ_AHEAD: usize = 4;

/// A snapshot, sealed and in pieces. One at a time: a second asker is told to come back.
pub(crate) async fn serve(daemon: Arc<Daemon>) -> Response {
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(READ_AHEAD);
    let (begun, has_begun) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let until = Instant::now() + LIMIT;
    tokio::task::spawn_blocking(move || {
        let record = &daemon.snapshots;
        let turn = record.turn.try_lock();
        let is_free = !matches!(turn, Err(TryLockError::WouldBlock));
        // Who asked may be gone.
        let _ = begun.send(is_free);
        if !is_free {
            return;
        }
        let sent = take(&daemon.scopes, record, |piece| {
            runtime.block_on(timeout_at(until, sender.send_data(piece.into())))??;
            Ok(())
        });
        match sent {
            Ok(()) => {
                record.served.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::debug!(error = %format!("{error:#}"), "a peer did not take a snapshot");
                sender.abort(io::Error::other("not whole"));
            }
        }
    });
    match has_begun.await {
        Ok(true) => {
            let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
            (StatusCode::OK, headers, Body::new(body)).into_response()
        }
        _ => {
            let text = "another snapshot is being taken\n";
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], text).into_response()
        }
    }
}
