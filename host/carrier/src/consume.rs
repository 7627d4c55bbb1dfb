//! Being fed with what followers have written.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_events::{Resume, SourceUpdate};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::client::{CarrierError, Client, Entry, REPLY, entries};
use crate::reader::{EntryId, Reader, Seek, Step};
use crate::record::Record;
use crate::resp::Value;
use crate::{CarrierConfig, EngineName};

/// Entries asked for per stream and reply. With all streams of a connection full and batches of
/// 2 KB a reply has 8 MB.
const COUNT: usize = 64;
/// Streams per connection: a server is asked for so many at once, and wakes up for each of them.
const STREAMS: usize = 64;
/// How long a read waits for news, and how often leases are looked at.
const WAIT: Duration = Duration::from_secs(1);
/// Pauses between two attempts at the server.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// One engine to be fed with.
#[derive(Debug)]
pub struct Feed {
    /// Which.
    pub engine: EngineName,
    /// Where to take it up; `None` to start from the first entry that the stream has.
    pub resume: Option<Resume>,
    /// Where its updates go. When it is full everything of the connection waits.
    pub updates: mpsc::Sender<SourceUpdate>,
    /// What is counted of it.
    pub counters: Arc<ConsumeCounters>,
}

/// What happens at the reader of one stream.
#[derive(Debug, Default)]
pub struct ConsumeCounters {
    records: AtomicU64,
    holes: AtomicU64,
    malformed: AtomicU64,
    failures: AtomicU64,
    is_connected: AtomicBool,
    has_follower: AtomicBool,
}

/// The values of [`ConsumeCounters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consumed {
    /// Entries read.
    pub records: u64,
    /// Times that an entry did not follow on the one before, or a place was not found: what the
    /// stream has is read again from its beginning.
    pub holes: u64,
    /// Entries that are not understood; each is a hole too.
    pub malformed: u64,
    /// Connections that were not made or broke.
    pub failures: u64,
    /// There is a connection to the carrier.
    pub is_connected: bool,
    /// Somebody follows the engine.
    pub has_follower: bool,
}

impl ConsumeCounters {
    /// The values now.
    pub fn values(&self) -> Consumed {
        Consumed {
            records: self.records.load(Ordering::Relaxed),
            holes: self.holes.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            is_connected: self.is_connected.load(Ordering::Relaxed),
            has_follower: self.has_follower.load(Ordering::Relaxed),
        }
    }
}

/// Reads streams, as many per connection as is good, until it is dropped.
pub async fn consume(config: Arc<CarrierConfig>, feeds: Vec<Feed>) {
    let mut connections = tokio::task::JoinSet::new();
    let mut feeds = feeds.into_iter().peekable();
    while feeds.peek().is_some() {
        let streams = feeds.by_ref().take(STREAMS).map(|feed| Stream::new(&config, feed));
        connections.spawn(run(Arc::clone(&config), streams.collect()));
    }
    while connections.join_next().await.is_some() {}
}

/// Nobody takes the updates any more.
struct Closed;

enum End {
    Closed,
    Broken(CarrierError),
}

impl From<CarrierError> for End {
    fn from(error: CarrierError) -> Self {
        Self::Broken(error)
    }
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

struct Stream {
    key: String,
    lease_key: String,
    reader: Reader,
    updates: mpsc::Sender<SourceUpdate>,
    counters: Arc<ConsumeCounters>,
}

impl Stream {
    fn new(config: &CarrierConfig, feed: Feed) -> Self {
        Self {
            key: config.stream(&feed.engine),
            lease_key: config.lease_key(&feed.engine),
            reader: Reader::new(feed.resume),
            updates: feed.updates,
            counters: feed.counters,
        }
    }

    async fn pass_on(&mut self) -> Result<(), Closed> {
        self.counters.holes.store(self.reader.holes(), Ordering::Relaxed);
        while let Some(update) = self.reader.next_update() {
            self.updates.send(update.decode()).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    fn set_connected(&mut self, is_connected: bool) {
        self.counters.is_connected.store(is_connected, Ordering::Relaxed);
        self.reader.set_connected(is_connected);
    }

    fn record(&self, bytes: Option<Bytes>) -> Option<Record> {
        let record = bytes.map(|bytes| Record::decode(&bytes));
        if let Some(Ok(record)) = record {
            return Some(record);
        }
        self.counters.malformed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(stream = self.key, ?record, "entry of the carrier not understood");
        None
    }

    /// Finds the place to go on from, from the end of the stream backwards.
    async fn seek(&mut self, client: &mut Client) -> Result<(), CarrierError> {
        let mut at: Option<EntryId> = None;
        while self.reader.is_sought() {
            let page = client.backwards(&self.key, at, COUNT).await?;
            if page.is_empty() {
                self.reader.not_found();
            }
            for (id, bytes) in page {
                at = Some(id);
                let found = match self.record(bytes) {
                    Some(record) => self.reader.earlier(id, &record),
                    None => self.reader.not_found(),
                };
                if found == Seek::Done {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, page: Vec<Entry>) -> Result<(), Closed> {
        let (is_last, received_at) = (page.len() < COUNT, Instant::now());
        for (id, bytes) in page {
            self.counters.records.fetch_add(1, Ordering::Relaxed);
            let record = self.record(bytes);
            let step = self.reader.entry(id, record, received_at);
            self.pass_on().await?;
            if step == Step::Again {
                return Ok(());
            }
        }
        if is_last {
            self.reader.at_end();
        }
        self.pass_on().await
    }
}

async fn run(config: Arc<CarrierConfig>, mut streams: Vec<Stream>) {
    let mut backoff = MIN_BACKOFF;
    loop {
        let ended = match Client::connect(&config.address).await {
            Ok(client) => {
                let (end, has_read) = read(client, &mut streams).await;
                if has_read {
                    backoff = MIN_BACKOFF;
                }
                end
            }
            Err(error) => End::Broken(error),
        };
        let End::Broken(error) = ended else { return };
        let (server, error) = (&config.address.server, error.in_full());
        tracing::warn!(server, error, "cannot read from the carrier");
        for stream in &mut streams {
            stream.counters.failures.fetch_add(1, Ordering::Relaxed);
            stream.set_connected(false);
            if stream.pass_on().await.is_err() {
                return;
            }
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

async fn read(mut client: Client, streams: &mut [Stream]) -> (End, bool) {
    let mut has_read = false;
    let Err(end) = read_on(&mut client, streams, &mut has_read).await;
    (end, has_read)
}

async fn read_on(
    client: &mut Client,
    streams: &mut [Stream],
    has_read: &mut bool,
) -> Result<Infallible, End> {
    look_at_leases(client, streams).await?;
    for stream in streams.iter_mut() {
        stream.set_connected(true);
        stream.pass_on().await?;
    }
    let mut looked_at = Instant::now();
    let (count, wait) = (COUNT.to_string(), WAIT.as_millis().to_string());
    let numbers: HashMap<Bytes, usize> =
        streams.iter().map(|stream| stream.key.clone().into()).zip(0..).collect();
    loop {
        for stream in streams.iter_mut() {
            stream.seek(client).await?;
            stream.pass_on().await?;
        }
        let after: Vec<String> =
            streams.iter().map(|stream| stream.reader.after().to_string()).collect();
        let mut parts: Vec<&[u8]> =
            vec![b"XREAD", b"COUNT", count.as_bytes(), b"BLOCK", wait.as_bytes(), b"STREAMS"];
        parts.extend(streams.iter().map(|stream| stream.key.as_bytes()));
        parts.extend(after.iter().map(String::as_bytes));
        client.push(&parts);
        client.flush().await?;
        let unexpected = CarrierError::Unexpected { command: "XREAD" };
        let mut pages: Vec<Vec<Entry>> = streams.iter().map(|_| Vec::new()).collect();
        match client.reply_within(REPLY + WAIT).await? {
            Value::Nil => {}
            Value::Array(of_streams) => {
                for of_stream in of_streams {
                    let (number, page) = page(of_stream, &numbers)
                        .ok_or(End::Broken(CarrierError::Unexpected { command: "XREAD" }))?;
                    pages[number] = page;
                }
            }
            Value::Error(message) => {
                return Err(CarrierError::Refused { command: "XREAD", message }.into());
            }
            _ => return Err(unexpected.into()),
        }
        *has_read = true;
        for (stream, page) in streams.iter_mut().zip(pages) {
            stream.take(page).await?;
        }
        if looked_at.elapsed() >= WAIT {
            look_at_leases(client, streams).await?;
            looked_at = Instant::now();
        }
    }
}

/// The entries of one stream of a reply, with its number.
fn page(value: Value, numbers: &HashMap<Bytes, usize>) -> Option<(usize, Vec<Entry>)> {
    let Value::Array(parts) = value else { return None };
    let [Value::Text(key), list] = <[Value; 2]>::try_from(parts).ok()? else { return None };
    Some((*numbers.get(&key)?, entries(list)?))
}

async fn look_at_leases(client: &mut Client, streams: &mut [Stream]) -> Result<(), End> {
    let keys: Vec<&[u8]> = streams.iter().map(|stream| stream.lease_key.as_bytes()).collect();
    let Value::Array(leases) = client.ask("MGET", &keys).await? else {
        return Err(CarrierError::Unexpected { command: "MGET" }.into());
    };
    if leases.len() != streams.len() {
        return Err(CarrierError::Unexpected { command: "MGET" }.into());
    }
    for (stream, lease) in streams.iter_mut().zip(leases) {
        let has_follower = lease != Value::Nil;
        stream.counters.has_follower.store(has_follower, Ordering::Relaxed);
        stream.reader.set_follower(has_follower);
        stream.pass_on().await?;
    }
    Ok(())
}
