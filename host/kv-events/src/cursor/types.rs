//! What goes into a cursor and comes out of it.

use bytes::Bytes;
use tokio::time::Instant;

/// One batch of a publisher, not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Number of the batch within the publisher's run.
    pub sequence: u64,
    /// MessagePack.
    pub payload: Bytes,
    /// Length of the payload if it was too long to be kept, of which `payload` is the beginning.
    pub cut_from: Option<u64>,
    /// When it was received.
    pub received_at: Instant,
}

/// How current the knowledge about a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Not connected yet.
    Connecting,
    /// Connected; batches are missing and asked for.
    Resyncing,
    /// Every batch since the last reset was delivered.
    Live {
        /// The start of the history was not available.
        partial: bool,
    },
    /// The connection is gone. What is known may be out of date.
    Lost,
}

/// Why everything known of a source is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// The engine restarted with an empty cache.
    Restart,
    /// Batches are missing and cannot be had any more.
    Gap,
}

/// A batch of a publisher's run, by which another process can take the run up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Number of the batch within the run.
    pub sequence: u64,
    /// Tells its payload from that of a batch of the same number of another run.
    pub fingerprint: u64,
}

/// Where a source is taken up whose batches another process has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The last batch that was applied.
    pub position: Position,
    /// Something before it is missing.
    pub partial: bool,
}

/// What the owner of a [`Cursor`](super::Cursor) must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass the batch on.
    Deliver(Message),
    /// Pass on that everything delivered so far is void.
    Reset(ResetReason),
    /// Pass on a change of state.
    State(SourceState),
    /// Ask the publisher for its batches from `from` on, and drop a replay in progress.
    Replay {
        /// First sequence number to ask for.
        from: u64,
    },
    /// Rebuild the subscription: it is dead although nothing says so.
    Reconnect,
}
