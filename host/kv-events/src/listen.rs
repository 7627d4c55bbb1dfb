//! Listening for publishers that connect: llm-d's simulator, engines configured with the
//! address of a central subscriber, and publishers that speak for several pods.
//!
//! Publishers are told apart by topic, and each topic has a cursor of its own. A topic belongs to
//! the newest connection that carried it: an engine that comes back while its old connection
//! still looks alive is not mixed up with itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::cursor::Resume;
use crate::follow::failed;
use crate::message;
use crate::source::{Count, Counters, SourceUpdate, Timing};
use crate::topic::Topic;
use crate::zmtp::{Accepted, Connection, Endpoint, Listener, Role, ZmtpError};

mod source;

use source::Event;

/// Where to listen, and for how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// `tcp://HOST:PORT` (`tcp://*:5557`) or `ipc://PATH`.
    pub endpoint: String,
    /// Prefix of the topics to subscribe to.
    pub topic: String,
    /// Most topics that are followed. When more come, those longest without a connection go.
    pub max_sources: usize,
    /// Most connections at a time. Each may hold one message of up to 16 MiB.
    pub max_connections: usize,
}

impl ListenConfig {
    /// Listens at `endpoint` with ample limits.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            topic: "kv@".to_owned(),
            max_sources: 1024,
            max_connections: 1024,
        }
    }
}

/// What happened at one of the publishers.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenUpdate {
    /// Which.
    pub topic: Topic,
    /// What.
    pub update: SourceUpdate,
}

/// What a listener's owner knows of publishers.
pub trait Directory: Send + Sync {
    /// The replay endpoint, if it has one. Asked at every connection.
    fn replay(&self, topic: &Topic) -> Option<String>;

    /// Where to take it up. Asked when the topic is met for the first time, and again after it was
    /// dropped and is met anew: a place is given once.
    fn resume(&self, topic: &Topic) -> Option<Resume>;
}

/// Gives the counters of a publisher, if it has its own. Asked when the publisher is first heard.
pub type CountersOf = dyn Fn(&Topic) -> Option<Arc<Counters>> + Send + Sync;

/// A bound socket. Publishers can connect; [`run`](Self::run) listens to them.
pub struct EventListener {
    listener: Listener,
    endpoint: String,
    config: ListenConfig,
    counters_of: Option<Arc<CountersOf>>,
}

/// Messages of a source that wait for the one before.
const READ_AHEAD: usize = 8;
/// Pause after the system refused a connection, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds and listens until the receiver of `updates` is dropped.
pub async fn listen(
    config: ListenConfig,
    timing: Timing,
    counters: Arc<Counters>,
    directory: Arc<dyn Directory>,
    updates: mpsc::Sender<ListenUpdate>,
) -> Result<(), ZmtpError> {
    EventListener::bind(config).await?.run(timing, counters, directory, updates).await;
    Ok(())
}

impl EventListener {
    /// Binds the socket.
    pub async fn bind(config: ListenConfig) -> Result<Self, ZmtpError> {
        let listener = Listener::bind(&Endpoint::parse(&config.endpoint)?).await?;
        Ok(Self { endpoint: listener.endpoint()?, listener, config, counters_of: None })
    }

    /// Where publishers can connect, with the port that was taken.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Counts what is a publisher's own (gaps, restarts, replays, superseded messages) apart; the
    /// rest, and what is of publishers without counters, goes to those of the listener.
    pub fn counting(mut self, counters_of: Arc<CountersOf>) -> Self {
        self.counters_of = Some(counters_of);
        self
    }

    /// Listens until the receiver of `updates` is dropped.
    ///
    /// Waits when `updates` is full, which lets the messages queue up at the publishers.
    pub async fn run(
        self,
        timing: Timing,
        counters: Arc<Counters>,
        directory: Arc<dyn Directory>,
        updates: mpsc::Sender<ListenUpdate>,
    ) {
        let hub = Arc::new(Hub {
            table: Mutex::default(),
            max_sources: self.config.max_sources,
            topic: self.config.topic,
            endpoint: self.endpoint,
            timing,
            counters,
            counters_of: self.counters_of,
            directory,
            updates: updates.clone(),
        });
        let mut connections = JoinSet::new();
        let mut last_id = 0;
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(_) if connections.len() >= self.config.max_connections => {
                        hub.counters.add(Count::ConnectionRefused);
                    }
                    Ok(accepted) => {
                        last_id += 1;
                        connections.spawn(serve(hub.clone(), last_id, accepted));
                    }
                    Err(error) => {
                        tracing::warn!(endpoint = hub.endpoint, %error, "cannot accept");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = updates.closed() => return,
            }
        }
    }
}

/// Reads one connection to its end.
async fn serve(hub: Arc<Hub>, id: u64, accepted: Accepted) {
    let timing = hub.timing;
    match accepted.greet(Role::Sub, timing.connect, timing.silence).await {
        Ok(mut connection) => {
            connection.subscribe(&hub.topic);
            let leave = Arc::new(Notify::new());
            if let Err(error) = read(&hub, id, &mut connection, &leave).await {
                failed(&hub.counters, &hub.endpoint, &error);
            }
            drop(connection);
            hub.left(id).await;
        }
        Err(error) => failed(&hub.counters, &hub.endpoint, &error),
    }
}

async fn read(
    hub: &Hub,
    id: u64,
    connection: &mut Connection,
    leave: &Arc<Notify>,
) -> Result<(), ZmtpError> {
    loop {
        let frames = tokio::select! {
            frames = connection.recv() => frames?,
            () = leave.notified() => return Err(ZmtpError::Silent),
        };
        let Some(message) = message::live(&frames, Instant::now()) else {
            hub.counters.add(Count::NotABatch);
            continue;
        };
        let Some(topic) = message::topic(&frames).and_then(|frame| Topic::parse(frame)) else {
            hub.counters.add(Count::UnknownTopic);
            continue;
        };
        if let Some(source) = hub.source(topic, id, leave).await {
            // A source that is gone has nobody listening.
            let _ = source.send(Event::Message(id, message)).await;
        }
    }
}

/// What the connections of a listener share.
struct Hub {
    table: Mutex<Table>,
    max_sources: usize,
    topic: String,
    endpoint: String,
    timing: Timing,
    counters: Arc<Counters>,
    counters_of: Option<Arc<CountersOf>>,
    directory: Arc<dyn Directory>,
    updates: mpsc::Sender<ListenUpdate>,
}

#[derive(Default)]
struct Table {
    sources: HashMap<Topic, Source>,
    /// Counts departures, to tell the oldest.
    departures: u64,
}

struct Source {
    events: mpsc::Sender<Event>,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
    holder: Holder,
}

/// The connection a topic belongs to.
#[derive(Clone, Copy)]
enum Holder {
    Connection(u64),
    /// None, since this departure.
    None(u64),
}

impl Hub {
    /// The source of `topic`, if connection `id` may speak for it.
    async fn source(
        &self,
        topic: Topic,
        id: u64,
        leave: &Arc<Notify>,
    ) -> Option<mpsc::Sender<Event>> {
        let mut table = self.table.lock().await;
        if !table.sources.contains_key(&topic) {
            if table.sources.len() >= self.max_sources && !self.evict(&mut table).await {
                self.counters.add(Count::SourceRefused);
                return None;
            }
            let source = self.start(topic.clone());
            table.sources.insert(topic.clone(), source);
        }
        let source = table.sources.get_mut(&topic)?;
        let events = source.events.clone();
        match source.holder {
            Holder::Connection(holder) if holder == id => return Some(events),
            Holder::Connection(holder) if holder > id => {
                source.counters.add(Count::Superseded);
                return None;
            }
            _ => source.holder = Holder::Connection(id),
        }
        // With the table held, so that the source learns of its holders in order.
        events.send(Event::Connected(id, leave.clone())).await.ok()?;
        Some(events)
    }

    fn start(&self, topic: Topic) -> Source {
        let (events, received) = mpsc::channel(READ_AHEAD);
        let own = self.counters_of.as_ref().and_then(|of| of(&topic));
        let counters = own.unwrap_or_else(|| self.counters.clone());
        let (timing, updates) = (self.timing, self.updates.clone());
        let directory = self.directory.clone();
        let counting = counters.clone();
        let task = tokio::spawn(source::run(topic, received, timing, counting, directory, updates));
        Source { events, counters, task, holder: Holder::None(u64::MAX) }
    }

    /// Makes room by dropping the source that is longest without a connection.
    async fn evict(&self, table: &mut Table) -> bool {
        let oldest = table.sources.iter().filter_map(|(topic, source)| match source.holder {
            Holder::None(since) => Some((since, topic)),
            Holder::Connection(_) => None,
        });
        let Some(topic) = oldest.min().map(|(_, topic)| topic.clone()) else { return false };
        if let Some(Source { events, task, .. }) = table.sources.remove(&topic) {
            drop(events);
            // It has a last word, which must come before anything of a successor.
            let _ = task.await;
            self.counters.add(Count::SourceEvicted);
        }
        true
    }

    /// Connection `id` is gone.
    async fn left(&self, id: u64) {
        let mut table = self.table.lock().await;
        table.departures += 1;
        let since = table.departures;
        for source in table.sources.values_mut() {
            if matches!(source.holder, Holder::Connection(holder) if holder == id) {
                source.holder = Holder::None(since);
                let _ = source.events.send(Event::Disconnected(id)).await;
            }
        }
    }
}
