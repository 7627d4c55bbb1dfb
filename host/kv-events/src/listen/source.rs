//! One topic of a listener: its cursor, fed by whichever connection carries it.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::{Directory, ListenUpdate};
use crate::cursor::{Cursor, Message, SourceState};
use crate::raw::RawUpdate;
use crate::session::{Closed, End, Live, Updates, pass_on, session};
use crate::source::{Counters, Timing};
use crate::topic::Topic;

/// What a source learns from connections, by number. The first and the last come in the order in
/// which the listener decided.
pub(super) enum Event {
    /// A connection speaks for the topic. The signal ends it.
    Connected(u64, Arc<Notify>),
    Message(u64, Message),
    Disconnected(u64),
}

struct Tagged {
    topic: Topic,
    updates: mpsc::Sender<ListenUpdate>,
}

impl Updates for Tagged {
    async fn send(&self, update: RawUpdate) -> Result<(), Closed> {
        let update = ListenUpdate { topic: self.topic.clone(), update: update.decode() };
        self.updates.send(update).await.map_err(|_| Closed)
    }
}

/// Runs a source until it is dropped from the table, or nobody listens.
pub(super) async fn run(
    topic: Topic,
    events: mpsc::Receiver<Event>,
    timing: Timing,
    counters: Arc<Counters>,
    directory: Arc<dyn Directory>,
    updates: mpsc::Sender<ListenUpdate>,
) {
    let updates = Tagged { topic, updates };
    // An error means that nobody listens.
    let _ = follow(events, timing, &counters, &*directory, &updates).await;
}

async fn follow(
    events: mpsc::Receiver<Event>,
    timing: Timing,
    counters: &Counters,
    directory: &dyn Directory,
    updates: &Tagged,
) -> Result<(), Closed> {
    let mut cursor = match directory.resume(&updates.topic) {
        Some(resume) => Cursor::resume(false, resume),
        None => Cursor::new(false),
    };
    let mut feed = Feed { events, speaker: None };
    updates.send(RawUpdate::State(SourceState::Connecting)).await?;
    while let Some(leave) = feed.connected().await {
        let endpoint = directory.replay(&updates.topic);
        cursor.set_replay(endpoint.is_some());
        let counted = (&mut cursor, counters);
        let ended = session(&mut feed, endpoint.as_deref(), timing, counted, updates).await?;
        if ended.0 == End::Dead {
            leave.notify_one();
            feed.speaker = None;
        }
        cursor.disconnected();
        pass_on(&mut cursor, counters, updates).await?;
    }
    cursor.retire();
    pass_on(&mut cursor, counters, updates).await
}

/// The messages of the connection that speaks for the topic.
struct Feed {
    events: mpsc::Receiver<Event>,
    speaker: Option<(u64, Arc<Notify>)>,
}

impl Feed {
    /// Waits for a connection, unless one waits already. `None` when the source is dropped.
    async fn connected(&mut self) -> Option<Arc<Notify>> {
        loop {
            if let Some((_, leave)) = &self.speaker {
                return Some(leave.clone());
            }
            let event = self.events.recv().await?;
            self.meet(&event);
        }
    }

    /// Takes note of connections that come and go; true if the speaker changed.
    fn meet(&mut self, event: &Event) -> bool {
        match event {
            Event::Connected(id, leave) => {
                self.speaker = Some((*id, leave.clone()));
                true
            }
            Event::Disconnected(id) if self.speaks(*id) => {
                self.speaker = None;
                true
            }
            _ => false,
        }
    }

    fn speaks(&self, id: u64) -> bool {
        matches!(self.speaker, Some((speaker, _)) if speaker == id)
    }
}

impl Live for Feed {
    async fn next(&mut self) -> Option<Message> {
        loop {
            let event = match self.events.recv().await {
                Some(event) => event,
                None => {
                    self.speaker = None;
                    return None;
                }
            };
            if self.meet(&event) {
                return None;
            }
            if let Event::Message(id, message) = event
                && self.speaks(id)
            {
                return Some(message);
            }
        }
    }
}
