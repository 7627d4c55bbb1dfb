//! Following one engine for everybody.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kv_events::{Counters, Position, RawUpdate, Resume, SourceConfig, Timing, follow_raw};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{CarrierError, Client, FIELD, REPLY};
use crate::reader::EntryId;
use crate::record::Record;
use crate::resp::Value;
use crate::{CarrierConfig, EngineName};

/// Updates that wait between the engine's socket and the carrier's; beyond it the engine's own queue
/// fills.
const QUEUE: usize = 256;
/// Entries sent and not yet taken. They are kept, to be sent again over another connection.
const WINDOW: usize = 256;
/// The same in bytes of payloads; one entry may always wait.
const WINDOW_BYTES: usize = 8 << 20;
/// Pauses between two attempts at the server.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Signs of life per lease.
const BEATS: u32 = 3;
/// Entries read at a time to find where a stream has stopped.
const PAGE: usize = 16;

/// Takes the lease, or renews it: it is free or ours.
const LEASE: &str = "local holder = redis.call('get', KEYS[1]) \
    if holder == false or holder == ARGV[1] then \
    redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) return 1 end return 0";

/// What happens at one engine's publisher.
#[derive(Debug, Default)]
pub struct PublishCounters {
    is_holder: AtomicBool,
    terms: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
}

/// The values of [`PublishCounters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// It is the engine's follower now, and not another process.
    pub is_holder: bool,
    /// Times that it became that.
    pub terms: u64,
    /// Entries that the server has taken.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Connections to the carrier that were not made or broke.
    pub failures: u64,
}

impl PublishCounters {
    /// The values now.
    pub fn values(&self) -> Published {
        Published {
            is_holder: self.is_holder.load(Ordering::Relaxed),
            terms: self.terms.load(Ordering::Relaxed),
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

/// Follows an engine, whenever nobody else does, and writes what it says into its stream. Ends only
/// by being dropped. `source.resume` is not used: the stream says where to go on.
pub async fn publish(
    config: Arc<CarrierConfig>,
    source: SourceConfig,
    timing: Timing,
    engine_counters: Arc<Counters>,
    counters: Arc<PublishCounters>,
) -> Infallible {
    let engine = EngineName { endpoint: source.endpoint.clone(), topic: source.topic.clone() };
    let mut publisher = Publisher {
        stream: config.stream(&engine),
        lease_key: config.lease_key(&engine),
        token: token(),
        max_entries: config.max_entries.to_string(),
        config,
        source,
        timing,
        engine_counters,
        counters,
    };
    let mut backoff = MIN_BACKOFF;
    loop {
        match publisher.term().await {
            Ok(()) => backoff = MIN_BACKOFF,
            Err(error) => {
                publisher.failed(&error);
                sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }
}

/// A term after that of the last entry, and after any that the server may have forgotten: a reader
/// could have seen those. So it is the time, in milliseconds since the Unix epoch.
fn next_term(last: Option<EntryId>) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let after = last.map_or(0, |id| id.term).saturating_add(1);
    after.max(u64::try_from(now.as_millis()).unwrap_or(0))
}

/// What tells this publisher from all others.
fn token() -> String {
    let mut bytes = [0; 16];
    // Without randomness there is none to be had for anything else either.
    let _ = getrandom::fill(&mut bytes);
    let id = std::process::id();
    bytes.iter().fold(format!("{id}-"), |text, byte| format!("{text}{byte:02x}"))
}

struct Publisher {
    config: Arc<CarrierConfig>,
    source: SourceConfig,
    timing: Timing,
    engine_counters: Arc<Counters>,
    counters: Arc<PublishCounters>,
    stream: String,
    lease_key: String,
    token: String,
    max_entries: String,
}

/// What a reply is to.
enum Sent {
    Entry,
    Lease,
}

/// How a connection ended.
enum End {
    /// Another follower writes, or the lease is another's.
    Replaced,
    Broken(CarrierError),
}

impl From<CarrierError> for End {
    fn from(error: CarrierError) -> Self {
        Self::Broken(error)
    }
}

/// Where the stream has stopped.
struct Stopped {
    last: Option<EntryId>,
    resume: Option<Resume>,
}

impl Publisher {
    fn failed(&self, error: &CarrierError) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let (engine, server) = (&self.source.endpoint, &self.config.address.server);
        tracing::warn!(engine, server, error = error.in_full(), "cannot write to the carrier");
    }

    /// Waits for the lease, follows the engine, and writes until another follower does.
    async fn term(&mut self) -> Result<(), CarrierError> {
        let mut client = Client::connect(&self.config.address).await?;
        while !self.lease(&mut client).await? {
            sleep(self.config.lease / BEATS).await;
        }
        let stopped = self.stopped(&mut client).await?;
        let term = next_term(stopped.last);
        let continues = stopped.resume.map(|resume| resume.position);
        let is_partial = stopped.resume.is_some_and(|resume| resume.partial);
        let (mut outbox, first) = (Outbox::new(term), Record::Term { continues, is_partial });
        outbox.push(first.encode());
        let source = SourceConfig { resume: stopped.resume, ..self.source.clone() };
        let (sender, mut updates) = mpsc::channel(QUEUE);
        let counters = Arc::clone(&self.engine_counters);
        let follower = tokio::spawn(follow_raw(source, self.timing, counters, sender));
        let _ended = Ended(follower.abort_handle(), Arc::clone(&self.counters));
        self.counters.is_holder.store(true, Ordering::Relaxed);
        self.counters.terms.fetch_add(1, Ordering::Relaxed);
        let engine = &self.source.endpoint;
        tracing::info!(engine, term, sequence = continues.map(|at| at.sequence), "following");
        loop {
            let End::Broken(error) = self.write(&mut client, &mut outbox, &mut updates).await
            else {
                break;
            };
            self.failed(&error);
            match self.connect_again(&mut outbox).await {
                Some(again) => client = again,
                None => break,
            }
        }
        tracing::warn!(engine, term, "another process follows, or the carrier has lost entries");
        Ok(())
    }

    async fn lease(&self, client: &mut Client) -> Result<bool, CarrierError> {
        let milliseconds = self.config.lease.as_millis().to_string();
        let arguments = [
            LEASE.as_bytes(),
            b"1",
            self.lease_key.as_bytes(),
            self.token.as_bytes(),
            milliseconds.as_bytes(),
        ];
        Ok(client.ask("EVAL", &arguments).await? == Value::Integer(1))
    }

    /// From the end of the stream back to what says where the engine was.
    async fn stopped(&self, client: &mut Client) -> Result<Stopped, CarrierError> {
        let (mut last, mut at) = (None, None);
        loop {
            let page = client.backwards(&self.stream, at, PAGE).await?;
            if page.is_empty() {
                return Ok(Stopped { last, resume: None });
            }
            for (id, bytes) in page {
                last = last.or(Some(id));
                at = Some(id);
                let resume = |position: Position, partial| {
                    Ok(Stopped { last, resume: Some(Resume { position, partial }) })
                };
                // What is not understood begins anew, as for readers.
                let Some(record) = bytes.and_then(|bytes| Record::decode(&bytes).ok()) else {
                    return Ok(Stopped { last, resume: None });
                };
                match record {
                    Record::State { .. } => {}
                    Record::Batch { is_partial, .. } => {
                        if let Some(position) = record.position() {
                            return resume(position, is_partial);
                        }
                    }
                    Record::Term { continues: Some(position), is_partial } => {
                        return resume(position, is_partial);
                    }
                    Record::Term { continues: None, .. } | Record::Reset(_) => {
                        return Ok(Stopped { last, resume: None });
                    }
                }
            }
        }
    }

    /// A connection over which the term goes on, however long it takes; `None` if it does not.
    async fn connect_again(&self, outbox: &mut Outbox) -> Option<Client> {
        let mut backoff = MIN_BACKOFF;
        loop {
            sleep(backoff).await;
            match self.go_on(outbox).await {
                Ok(client) => return client,
                Err(error) => self.failed(&error),
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// The term goes on over another connection if nobody has replaced us, and the server has all but
    /// what can be sent again.
    async fn go_on(&self, outbox: &mut Outbox) -> Result<Option<Client>, CarrierError> {
        let mut client = Client::connect(&self.config.address).await?;
        if !self.lease(&mut client).await? {
            return Ok(None);
        }
        let page = client.backwards(&self.stream, None, 1).await?;
        Ok(outbox.taken(page.first().map(|(id, _)| *id)).then_some(client))
    }

    /// Writes what the engine says until the connection breaks or the term ends.
    async fn write(
        &self,
        client: &mut Client,
        outbox: &mut Outbox,
        updates: &mut mpsc::Receiver<RawUpdate>,
    ) -> End {
        let mut sent = VecDeque::new();
        let resent = outbox.waiting.iter().map(|(number, bytes)| (*number, bytes.clone()));
        for (number, bytes) in resent.collect::<Vec<_>>() {
            self.send(client, outbox.term, number, &bytes);
            sent.push_back(Sent::Entry);
        }
        let beat = self.config.lease / BEATS;
        let (mut beat_at, mut reply_by) = (Instant::now() + beat, Instant::now() + REPLY);
        loop {
            // Room first: what is taken from the engine is kept until the server has it.
            while outbox.has_room() {
                match updates.try_recv() {
                    Ok(update) => {
                        let bytes = Record::of(update).encode();
                        let number = outbox.push(bytes.clone());
                        self.send(client, outbox.term, number, &bytes);
                        sent.push_back(Sent::Entry);
                    }
                    Err(_) => break,
                }
            }
            if let Err(error) = client.flush().await {
                return error.into();
            }
            tokio::select! {
                reply = client.reply() => match reply {
                    Ok(reply) => {
                        reply_by = Instant::now() + REPLY;
                        if let Err(end) = self.replied(sent.pop_front(), reply, outbox) {
                            return end;
                        }
                    }
                    Err(error) => return error.into(),
                },
                Some(update) = updates.recv(), if outbox.has_room() => {
                    if sent.is_empty() {
                        reply_by = Instant::now() + REPLY;
                    }
                    let bytes = Record::of(update).encode();
                    let number = outbox.push(bytes.clone());
                    self.send(client, outbox.term, number, &bytes);
                    sent.push_back(Sent::Entry);
                }
                () = sleep_until(beat_at) => {
                    beat_at = Instant::now() + beat;
                    if sent.is_empty() {
                        reply_by = Instant::now() + REPLY;
                    }
                    let milliseconds = self.config.lease.as_millis().to_string();
                    client.push(&[
                        b"EVAL", LEASE.as_bytes(), b"1", self.lease_key.as_bytes(),
                        self.token.as_bytes(), milliseconds.as_bytes(),
                    ]);
                    sent.push_back(Sent::Lease);
                }
                () = sleep_until(reply_by), if !sent.is_empty() => {
                    return CarrierError::Silent.into();
                }
            }
        }
    }

    fn send(&self, client: &mut Client, term: u64, number: u64, bytes: &Bytes) {
        let id = EntryId { term, number }.to_string();
        let (stream, most) = (self.stream.as_bytes(), self.max_entries.as_bytes());
        client.push(&[b"XADD", stream, b"MAXLEN", b"~", most, id.as_bytes(), FIELD, bytes]);
    }

    fn replied(&self, to: Option<Sent>, reply: Value, outbox: &mut Outbox) -> Result<(), End> {
        match (to, reply) {
            (Some(Sent::Entry), Value::Text(_)) => {
                if let Some((_, bytes)) = outbox.pop() {
                    self.counters.records.fetch_add(1, Ordering::Relaxed);
                    self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                Ok(())
            }
            (Some(Sent::Lease), Value::Integer(1)) => Ok(()),
            (Some(Sent::Lease), Value::Integer(_)) => Err(End::Replaced),
            // An entry of a later term stands there.
            (Some(Sent::Entry), Value::Error(text)) if text.contains("equal or smaller") => {
                Err(End::Replaced)
            }
            (Some(Sent::Entry), Value::Error(message)) => {
                Err(CarrierError::Refused { command: "XADD", message }.into())
            }
            (Some(Sent::Lease), Value::Error(message)) => {
                Err(CarrierError::Refused { command: "EVAL", message }.into())
            }
            _ => Err(CarrierError::Unexpected { command: "XADD" }.into()),
        }
    }
}

/// Stops following when a term ends, however it does.
struct Ended(tokio::task::AbortHandle, Arc<PublishCounters>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
        self.1.is_holder.store(false, Ordering::Relaxed);
    }
}

/// Entries of a term that the server may not have.
struct Outbox {
    term: u64,
    next: u64,
    waiting: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Outbox {
    fn new(term: u64) -> Self {
        Self { term, next: 0, waiting: VecDeque::new(), bytes: 0 }
    }

    fn has_room(&self) -> bool {
        self.waiting.is_empty() || (self.waiting.len() < WINDOW && self.bytes < WINDOW_BYTES)
    }

    fn push(&mut self, bytes: Bytes) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += bytes.len();
        self.waiting.push_back((number, bytes));
        number
    }

    fn pop(&mut self) -> Option<(u64, Bytes)> {
        let (number, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes.len();
        Some((number, bytes))
    }

    /// Forgets what the server has. False if the rest would not follow on its last entry.
    fn taken(&mut self, last: Option<EntryId>) -> bool {
        let next = match last {
            Some(id) if id.term == self.term => id.number.saturating_add(1),
            // Nothing of this term: all of it must be here.
            Some(id) if id.term > self.term => return false,
            _ => 0,
        };
        while self.waiting.front().is_some_and(|(number, _)| *number < next) {
            self.pop();
        }
        self.waiting.front().map_or(self.next, |(number, _)| *number) == next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(acked: u64, pushed: u64, last: Option<(u64, u64)>, expected: Option<&[u64]>) {
        let mut outbox = Outbox::new(5);
        (0..pushed).for_each(|n| assert_eq!(outbox.push(Bytes::from_static(b"12")), n));
        (0..acked).for_each(|_| assert!(outbox.pop().is_some()));
        let goes_on = outbox.taken(last.map(|(term, number)| EntryId { term, number }));
        let left: Vec<u64> = outbox.waiting.iter().map(|(number, _)| *number).collect();
        assert_eq!(goes_on.then_some(left.as_slice()), expected, "{acked} {pushed} {last:?}");
        assert_eq!(outbox.bytes, 2 * left.len());
    }

    #[test]
    fn what_the_server_may_lack_is_sent_again_if_it_follows() {
        check(2, 5, Some((5, 1)), Some(&[2, 3, 4]));
        check(2, 5, Some((5, 3)), Some(&[4]));
        check(2, 5, Some((5, 4)), Some(&[]));
        check(5, 5, Some((5, 4)), Some(&[]));
        check(0, 3, Some((4, 9)), Some(&[0, 1, 2]));
        check(0, 3, None, Some(&[0, 1, 2]));
        // The server has lost what it had taken.
        check(2, 5, Some((5, 0)), None);
        check(5, 5, Some((5, 3)), None);
        check(2, 5, Some((4, 9)), None);
        check(1, 1, None, None);
        // Another follower writes.
        check(2, 5, Some((6, 0)), None);
    }
}
