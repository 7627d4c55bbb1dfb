//! The way from one daemon to one gateway's feed listener: it can be cut, and notes what was applied.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use feed::{Ack, AckStatus, Batch};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// What the batches that passed did to one gateway, by its process.
#[derive(Default)]
pub(super) struct Writes {
    /// Of each process: writers by epoch, and the highest epoch that an ack had when a batch left.
    processes: BTreeMap<u64, Process>,
    /// What must not happen and did.
    wrong: Vec<String>,
}

#[derive(Default)]
struct Process {
    writers: BTreeMap<u64, usize>,
    /// Epoch and sequence of every batch that was applied.
    applied: std::collections::BTreeSet<(u64, u64)>,
    highest: u64,
}

impl Writes {
    /// The newest process's writer of the highest epoch, once it wrote.
    pub(super) fn writer(&self, instance: u64) -> Option<(u64, usize)> {
        let process = self.processes.get(&instance)?;
        process.writers.last_key_value().map(|(epoch, writer)| (*epoch, *writer))
    }

    pub(super) fn assert_single_writer(&self) {
        assert_eq!(self.wrong, [""; 0]);
        assert!(!self.processes.is_empty());
    }

    fn highest(&self, instance: u64) -> u64 {
        self.processes.get(&instance).map_or(0, |process| process.highest)
    }

    /// Batch and ack of `writer`; `floor` is the highest epoch an ack had told of when the batch left.
    fn note(&mut self, writer: usize, batch: &[u8], ack: &[u8], floor: u64) {
        let (Ok(batch), Ok(ack)) = (Batch::decode(batch), Ack::decode(ack)) else { return };
        let process = self.processes.entry(ack.head.instance).or_default();
        process.highest = process.highest.max(ack.head.epoch);
        if ack.status != AckStatus::Applied {
            return;
        }
        let (epoch, sequence) = (batch.header.epoch, batch.header.sequence);
        if epoch < floor {
            self.wrong.push(format!("daemon {writer} wrote epoch {epoch} after {floor}"));
        }
        if *process.writers.entry(epoch).or_insert(writer) != writer {
            self.wrong.push(format!("two daemons wrote epoch {epoch}"));
        }
        if !process.applied.insert((epoch, sequence)) {
            self.wrong.push(format!("batch {sequence} of epoch {epoch} was applied twice"));
        }
    }
}

/// The way of one daemon to one gateway.
pub(super) struct Link {
    path: PathBuf,
    to: PathBuf,
    daemon: usize,
    writes: Arc<Mutex<Writes>>,
    /// `None` while cut.
    listener: Option<tokio::task::JoinHandle<()>>,
}

impl Link {
    pub(super) fn new(
        path: PathBuf,
        to: PathBuf,
        daemon: usize,
        writes: &Arc<Mutex<Writes>>,
    ) -> Self {
        let mut link = Self { path, to, daemon, writes: Arc::clone(writes), listener: None };
        link.mend();
        link
    }

    /// Ends what is under way, and lets nothing pass.
    pub(super) fn cut(&mut self) {
        if let Some(listener) = self.listener.take() {
            // With it go the connections, which are its tasks.
            listener.abort();
            // The folder may be gone already.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    pub(super) fn mend(&mut self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let (to, daemon, writes) = (self.to.clone(), self.daemon, Arc::clone(&self.writes));
        self.listener = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(relay(stream, to.clone(), daemon, Arc::clone(&writes)));
            }
        }));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Carries requests over a connection of its own to the feed listener, until either ends.
async fn relay(stream: UnixStream, to: PathBuf, daemon: usize, writes: Arc<Mutex<Writes>>) {
    let Some(sender) = connect(&to).await else { return };
    let sender = Arc::new(tokio::sync::Mutex::new(sender));
    let service = service_fn(move |request: Request<Incoming>| {
        let (sender, writes) = (Arc::clone(&sender), Arc::clone(&writes));
        async move {
            Ok::<_, Infallible>(carry(request, &sender, daemon, &writes).await.unwrap_or_else(
                || {
                    let gone = Response::builder().status(StatusCode::BAD_GATEWAY);
                    gone.body(Full::default()).unwrap()
                },
            ))
        }
    });
    let server = hyper::server::conn::http1::Builder::new();
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn connect(to: &Path) -> Option<Sender> {
    let stream = UnixStream::connect(to).await.ok()?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

async fn carry(
    request: Request<Incoming>,
    sender: &tokio::sync::Mutex<Sender>,
    daemon: usize,
    writes: &Mutex<Writes>,
) -> Option<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let batch = body.collect().await.ok()?.to_bytes();
    let instance = Batch::decode(&batch).map_or(0, |batch| batch.header.instance);
    let floor = writes.lock().unwrap().highest(instance);
    let request = Request::from_parts(parts, Full::new(batch.clone()));
    let response = sender.lock().await.send_request(request).await.ok()?;
    let (parts, body) = response.into_parts();
    let ack = body.collect().await.ok()?.to_bytes();
    writes.lock().unwrap().note(daemon, &batch, &ack, floor);
    Some(Response::from_parts(parts, Full::new(ack)))
}
