//! Engines' KV events through a carrier: streams of Valkey or Redis, one per engine. Each engine is
//! followed once, and any number of daemons are fed.
//!
//! - [`publish()`] follows one engine and writes what it says into the engine's stream, as long as no
//!   other follower does.
//! - [`consume()`] gives what stands in streams as if the engines had been followed.
//! - [`Reader`] is the state machine of one stream's reader, without I/O; [`Record`] what stands in an
//!   entry; [`resp`] the protocol.
//!
//! Entries have the id `TERM-N`: a term is one follower's, and its entries are numbered without a
//! hole. The server takes an entry only after all others, so a follower that was replaced cannot
//! write any more (its term is lower), an entry that is sent twice is stored once, and a reader
//! sees by the ids alone whether something is missing. A lease tells followers when to replace
//! one; it decides nothing.

mod client;
mod consume;
mod publish;
mod reader;
mod record;
pub mod resp;

use std::time::Duration;

pub use client::{Address, CarrierError};
pub use consume::{ConsumeCounters, Consumed, Feed, consume};
pub use publish::{PublishCounters, Published, publish};
pub use reader::{EntryId, Reader, Seek, Step};
pub use record::{Record, RecordError, State};

/// Where the carrier is, and what is kept there.
#[derive(Clone, Debug)]
pub struct CarrierConfig {
    /// The server.
    pub address: Address,
    /// What all keys begin with.
    pub name: String,
    /// Entries kept per engine, about.
    pub max_entries: u64,
    /// Without a sign of life for so long a follower may be replaced.
    pub lease: Duration,
}

/// Whose events: all that follow the same publisher share a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EngineName {
    /// ZMQ address of its events.
    pub endpoint: String,
    /// Prefix of the topics subscribed to; empty for all.
    pub topic: String,
}

impl CarrierConfig {
    /// Key of an engine's stream.
    pub fn stream(&self, engine: &EngineName) -> String {
        format!("{}:events:{} {}", self.name, engine.endpoint, engine.topic)
    }

    /// Key of the lease on writing it.
    pub fn lease_key(&self, engine: &EngineName) -> String {
        format!("{}:lease:{} {}", self.name, engine.endpoint, engine.topic)
    }
}
