//! One kind of objects, listed and watched.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::client::{Client, ClientError};
use super::objects::{Bookmark, Event, EventKind, List, Object, Status};
use super::store::Store;
use crate::backoff::Backoff;
use crate::view::Publisher;

/// Objects per page of a list.
const PAGE: u32 = 500;
/// Longest event. An object is at most 1.5 MiB, as etcd has it.
const MAX_LINE_BYTES: usize = 4 << 20;
/// What a watch is asked to last at most. The server ends it then, and the next goes on from there.
const WATCH_SECONDS: u32 = 240;
/// A watch without a byte for so long is taken for broken: bookmarks come once a minute. Where they do not,
/// the next watch goes on from the last event all the same.
const SILENCE: Duration = Duration::from_secs(120);

/// Waits between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// After the first failure.
    pub first_wait: Duration,
    /// At most.
    pub longest_wait: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { first_wait: Duration::from_millis(250), longest_wait: Duration::from_secs(30) }
    }
}

/// What is listed and watched.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    /// Up to the kind, like `/api/v1/namespaces/NAMESPACE/pods`.
    pub(super) path: String,
    /// `labelSelector=...` or `fieldSelector=...`, encoded.
    pub(super) selector: String,
}

/// Why a watch ended.
enum Ended {
    /// By itself, or the connection broke: the next one goes on from the same place.
    Resume,
    /// The server has forgotten that place.
    Gone,
}

/// Follows a resource.
pub(super) struct Reflector<T> {
    client: Arc<Client>,
    resource: Resource,
    timing: Timing,
    store: Store<T>,
    /// Where the next watch goes on.
    version: String,
}

impl<T: Object> Reflector<T> {
    pub(super) fn new(client: Arc<Client>, resource: Resource, timing: Timing) -> Self {
        Self { client, resource, timing, store: Store::default(), version: String::new() }
    }

    /// Calls `changed` whenever objects may be others, and tells `publisher` what goes wrong. Never ends.
    pub(super) async fn run(mut self, publisher: &Publisher, mut changed: impl FnMut(&Store<T>)) {
        let mut backoff = Backoff::new(self.timing.first_wait, self.timing.longest_wait);
        loop {
            if let Err(error) = self.list().await {
                wait(&mut backoff, publisher, &error).await;
                continue;
            }
            publisher.listed();
            publisher.recovered();
            changed(&self.store);
            loop {
                let started = tokio::time::Instant::now();
                let ended = self.watch(publisher, &mut backoff, &mut changed).await;
                if started.elapsed() > self.timing.longest_wait {
                    backoff.reset();
                }
                match ended {
                    Ok(Ended::Resume) => {
                        // A server that ends every watch at once is not asked in a loop.
                        tokio::time::sleep(backoff.next_wait()).await;
                    }
                    Ok(Ended::Gone) => break,
                    Err(error) if error.is_gone() => break,
                    Err(error) => wait(&mut backoff, publisher, &error).await,
                }
            }
            tracing::info!(path = self.resource.path, "watch cannot go on: listing anew");
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// All objects, and the version to watch from.
    async fn list(&mut self) -> Result<(), ClientError> {
        let mut all = Vec::new();
        let mut next = String::new();
        let version = loop {
            let Resource { path, selector } = &self.resource;
            let bytes = self.client.get(&format!("{path}?{selector}&limit={PAGE}{next}")).await?;
            let page: List<T> =
                serde_json::from_slice(&bytes).map_err(|error| self.client.broken(error))?;
            all.extend(page.items);
            match page.metadata.r#continue.filter(|token| !token.is_empty()) {
                Some(token) => next = format!("&continue={}", encoded(&token)),
                None => break page.metadata.resource_version,
            }
        };
        self.store.replace(all);
        self.version = version;
        Ok(())
    }

    /// Events from the version on, until the watch ends.
    async fn watch(
        &mut self,
        publisher: &Publisher,
        backoff: &mut Backoff,
        changed: &mut impl FnMut(&Store<T>),
    ) -> Result<Ended, ClientError> {
        let Resource { path, selector } = &self.resource;
        let query = format!(
            "{path}?{selector}&watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}\
             &resourceVersion={}",
            encoded(&self.version)
        );
        let mut body = self.client.open(&query).await?.into_body();
        publisher.recovered();
        let mut rest = Vec::new();
        loop {
            let piece = match tokio::time::timeout(SILENCE, next_piece(&mut body)).await {
                Ok(Ok(Some(piece))) => piece,
                // What is cut off is not an event; it comes again.
                Ok(Ok(None)) | Err(_) => return Ok(Ended::Resume),
                Ok(Err(error)) => return Err(self.client.broken(error)),
            };
            rest.extend_from_slice(&piece);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if rest.len() - whole > MAX_LINE_BYTES {
                let why = format!("an event of more than {MAX_LINE_BYTES} bytes");
                return Err(self.client.broken(why));
            }
            let lines: Vec<u8> = rest.drain(..whole).collect();
            let mut outcome = Ok(ControlFlow::Continue(()));
            let mut is_news = false;
            for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                outcome = self.event(line);
                match outcome {
                    Ok(ControlFlow::Continue(())) => (is_news, _) = (true, backoff.reset()),
                    _ => break,
                }
            }
            if is_news {
                changed(&self.store);
            }
            if let ControlFlow::Break(ended) = outcome? {
                return Ok(ended);
            }
        }
    }

    /// One event: into the store, or why the watch ends.
    fn event(&mut self, line: &[u8]) -> Result<ControlFlow<Ended>, ClientError> {
        let broken = |error: serde_json::Error| self.client.broken(error);
        let kind: EventKind = serde_json::from_slice(line).map_err(broken)?;
        let object = || serde_json::from_slice::<Event<T>>(line).map(|event| event.object);
        let version = match kind.r#type.as_str() {
            "ADDED" | "MODIFIED" => {
                let object = object().map_err(broken)?;
                let version = object.metadata().resource_version.clone();
                self.store.put(object);
                version
            }
            "DELETED" => {
                let object = object().map_err(broken)?;
                self.store.delete(&object);
                object.metadata().resource_version.clone()
            }
            "BOOKMARK" => {
                let event: Event<Bookmark> = serde_json::from_slice(line).map_err(broken)?;
                event.object.metadata.resource_version
            }
            "ERROR" => {
                let event: Event<Status> = serde_json::from_slice(line).map_err(broken)?;
                let Status { code, reason, message } = event.object;
                if code == 410 || reason == "Expired" || reason == "Gone" {
                    return Ok(ControlFlow::Break(Ended::Gone));
                }
                return Err(self.client.broken(format!("watch: {code} {reason}: {message}")));
            }
            other => return Err(self.client.broken(format!("watch: event of type {other:?}"))),
        };
        if !version.is_empty() {
            self.version = version;
        }
        Ok(ControlFlow::Continue(()))
    }
}

async fn next_piece(body: &mut Incoming) -> Result<Option<bytes::Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn wait(backoff: &mut Backoff, publisher: &Publisher, error: &ClientError) {
    let wait = backoff.next_wait();
    tracing::warn!(%error, ?wait, "discovery in Kubernetes");
    publisher.failed(error.to_string());
    tokio::time::sleep(wait).await;
}

/// A value of a query.
pub(super) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
