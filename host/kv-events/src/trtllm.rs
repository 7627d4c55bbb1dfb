//! TensorRT-LLM, which publishes nothing: its events are fetched over HTTP.
//!
//! `POST /kv_cache_events` of `trtllm-serve` answers with what happened since the last such
//! request and forgets it, so there must be no other consumer, and an answer that is lost on the
//! way is lost for good; the numbers of the events tell.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::cursor::{CursorCounts, ResetReason, SourceState};
use crate::session::Closed;
use crate::source::{Count, Counters, SourceUpdate};

mod adapter;
mod list;

pub use adapter::{Adapter, Taken};

/// Longest list that is read, in bytes. A token takes some 60 of them, so this is a million
/// tokens between two polls.
pub const MAX_LIST_BYTES: usize = 64 << 20;

/// One engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrtllmConfig {
    /// `http://HOST:PORT/kv_cache_events`.
    pub url: String,
    /// Tokens of a full block (`tokens_per_block`), if known. Else it is learned: the first block
    /// that another one follows is full.
    pub block_size_tokens: Option<u32>,
    /// Between two polls. The engine keeps `event_buffer_max_size` events in the meantime.
    pub interval: Duration,
    /// For an answer, from the connection to the last byte.
    pub timeout: Duration,
}

impl TrtllmConfig {
    /// Polls `url` twice a second.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            block_size_tokens: None,
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum TrtllmError {
    /// The URL is not one, or not plain HTTP.
    #[error("not an http url: {url}")]
    Url {
        /// What was given.
        url: String,
    },
    /// No complete answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// No connection, or it broke.
    #[error("request failed")]
    Request(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer other than 200.
    #[error("answered {0}")]
    Status(StatusCode),
    /// More than [`MAX_LIST_BYTES`].
    #[error("list exceeds {MAX_LIST_BYTES} bytes")]
    TooLarge,
    /// Not a JSON list.
    #[error("answer is not a list")]
    List(#[source] serde_json::Error),
}

/// Polls an engine until the receiver of `updates` is dropped.
///
/// Waits when `updates` is full; what the engine drops meanwhile is a gap.
pub async fn follow(
    config: TrtllmConfig,
    counters: Arc<Counters>,
    updates: mpsc::Sender<SourceUpdate>,
) {
    let closed = updates.clone();
    tokio::select! {
        Err(Closed) = run(&config, &counters, &updates) => {}
        () = closed.closed() => {}
    }
}

async fn run(
    config: &TrtllmConfig,
    counters: &Counters,
    updates: &mpsc::Sender<SourceUpdate>,
) -> Result<Infallible, Closed> {
    let poller = Poller::new(config);
    let mut adapter = Adapter::new(config.block_size_tokens);
    let mut state = SourceState::Connecting;
    send(updates, SourceUpdate::State(state)).await?;
    let mut ticks = interval(config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = poller.poll().await;
        let taken = answer.and_then(|list| adapter.take(&list, Instant::now()));
        let new_state = match taken {
            Ok(taken) => {
                (0..taken.unreadable).for_each(|_| counters.add(Count::NotABatch));
                for update in taken.updates {
                    counters.add_cursor(&reset(&update));
                    send(updates, update).await?;
                }
                adapter.state()
            }
            Err(error) => {
                tracing::debug!(url = config.url, %error, "no events");
                count(counters, &error);
                if takes_events(&error) {
                    adapter.doubt();
                }
                SourceState::Lost
            }
        };
        if state != new_state {
            state = new_state;
            send(updates, SourceUpdate::State(state)).await?;
        }
    }
}

/// What a reset is counted as; everything else is nothing.
fn reset(update: &SourceUpdate) -> CursorCounts {
    let mut counts = CursorCounts::default();
    match update {
        SourceUpdate::Reset { reason: ResetReason::Gap } => counts.gaps = 1,
        SourceUpdate::Reset { reason: ResetReason::Restart } => counts.restarts = 1,
        _ => {}
    }
    counts
}

fn count(counters: &Counters, error: &TrtllmError) {
    counters.add(match error {
        TrtllmError::List(_) => Count::NotABatch,
        TrtllmError::TooLarge => Count::FrameTooLarge,
        _ => Count::ConnectionFailed,
    });
}

/// Whether the engine may have handed out events that did not arrive.
fn takes_events(error: &TrtllmError) -> bool {
    !matches!(error, TrtllmError::Url { .. } | TrtllmError::Status(_))
}

struct Poller<'a> {
    client: Client<HttpConnector, Empty<Bytes>>,
    config: &'a TrtllmConfig,
}

impl<'a> Poller<'a> {
    fn new(config: &'a TrtllmConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.timeout));
        Self { client: Client::builder(TokioExecutor::new()).build(connector), config }
    }

    async fn poll(&self) -> Result<Bytes, TrtllmError> {
        let limit = self.config.timeout;
        timeout(limit, self.fetch()).await.unwrap_or(Err(TrtllmError::Timeout(limit)))
    }

    async fn fetch(&self) -> Result<Bytes, TrtllmError> {
        let uri = match self.config.url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => uri,
            _ => return Err(TrtllmError::Url { url: self.config.url.clone() }),
        };
        let request = Request::post(uri)
            .header(http::header::ACCEPT, "application/json")
            .body(Empty::new())
            .map_err(|error| TrtllmError::Request(error.into()))?;
        let response = self.client.request(request).await;
        let response = response.map_err(|error| TrtllmError::Request(error.into()))?;
        if response.status() != StatusCode::OK {
            return Err(TrtllmError::Status(response.status()));
        }
        match Limited::new(response.into_body(), MAX_LIST_BYTES).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(TrtllmError::TooLarge),
            Err(error) => Err(TrtllmError::Request(error)),
        }
    }
}

async fn send(updates: &mpsc::Sender<SourceUpdate>, update: SourceUpdate) -> Result<(), Closed> {
    updates.send(update).await.map_err(|_| Closed)
}
