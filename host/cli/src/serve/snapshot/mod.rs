//! Snapshots: what a daemon knows, for its successor or for a peer.
//!
//! Taken scope by scope, each under its lock and so between two batches of events; sealed and written
//! without it. What is restored counts as known only up to the batch it ends with: the sources go on
//! from there, and what does not follow on it voids it.

mod disk;
mod peer;
mod restore;
mod send;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use model::TokenTable;
use sha2::{Digest, Sha256};
use snapshot::{Engine as EngineRecord, Position as Place, Sealed, begin_content, push_index};

use super::scope::Scope;
use crate::config::{Config, EngineKind};

pub(crate) use disk::Disk;
pub use peer::PeerAddress;
pub(crate) use restore::Origin;
pub(crate) use send::serve;

/// What was done with snapshots, for the status pages.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Written to disk.
    pub(crate) written: AtomicU64,
    /// Not written to disk, though it was time.
    pub(crate) failed: AtomicU64,
    /// Given to peers, whole.
    pub(crate) served: AtomicU64,
    /// Snapshots, or sections of them, that were not taken.
    pub(crate) refused: AtomicU64,
    /// Size of the last one.
    pub(crate) bytes: AtomicU64,
    /// Longest time that events of a scope had to wait for the last one.
    pub(crate) pause_us: AtomicU64,
    /// What went wrong last.
    error: Mutex<Option<String>>,
    /// One is taken at a time, as each takes memory.
    turn: Mutex<()>,
}

impl Record {
    pub(crate) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, why: String) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    fn fail(&self, why: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a snapshot and gives it to `write`, piece by piece.
fn take(
    scopes: &[Arc<Scope>],
    record: &Record,
    mut write: impl FnMut(Vec<u8>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let start = snapshot::begin(scopes.len() as u32);
    let mut bytes = start.len() as u64;
    let mut longest = Duration::ZERO;
    write(start.clone())?;
    for (number, scope) in (0..).zip(scopes) {
        let (content, pause) = content_of(scope);
        longest = longest.max(pause);
        let name = (scope.pool.as_str(), scope.model.name.as_str());
        let sealed = Sealed::new(&start, number, name, &scope.seed, content);
        for piece in sealed.context("draw a salt")? {
            bytes += piece.len() as u64;
            write(piece)?;
        }
    }
    record.bytes.store(bytes, Ordering::Relaxed);
    record.pause_us.store(longest.as_micros() as u64, Ordering::Relaxed);
    Ok(())
}

/// A scope's content, and how long its lock was held.
fn content_of(scope: &Scope) -> (Vec<u8>, Duration) {
    let now_ms = scope.started.elapsed().as_millis() as u64;
    let live = scope.live();
    let started = Instant::now();
    let listed = scope.roster.listed();
    let of_slot = |slot: u16| match listed.binary_search_by_key(&slot, |(slot, _)| *slot) {
        Ok(at) => (listed[at].1.address.as_str(), listed[at].1.engine, true),
        Err(_) => ("", EngineKind::Vllm, false),
    };
    let engines: Vec<EngineRecord> = (0u16..)
        .zip(&live.engines)
        .map(|(slot, engine)| (of_slot(slot), engine))
        .map(|((address, kind, is_listed), engine)| EngineRecord {
            // Blocks go by slot, so that every slot is there; nobody restores one without an address.
            address: address.to_owned(),
            kind: kind_number(kind),
            is_partial: engine.is_partial,
            is_cleared: engine.is_cleared,
            doubts: engine.doubts.bits(),
            rank: engine.rank,
            full_group: engine.groups.full,
            windowed_groups: engine.groups.windowed.iter().copied().collect(),
            first_batch_at: engine.first_batch_at,
            block_size_tokens: engine.block_size_tokens,
            process_start: engine.process_start,
            position: engine.position.filter(|_| is_listed && can_resume(kind)).map(|position| {
                Place { sequence: position.sequence, fingerprint: position.fingerprint }
            }),
        })
        .collect();
    let mut content = begin_content(&scope.tokens_digest, &engines, live.indexes.len() as u8);
    for (_, index) in &live.indexes {
        push_index(&mut content, |out| index.export(now_ms, out));
    }
    drop(live);
    (content, started.elapsed())
}

fn kind_number(kind: EngineKind) -> u8 {
    match kind {
        EngineKind::Vllm => 0,
        EngineKind::Sglang => 1,
        EngineKind::Trtllm => 2,
    }
}

/// TensorRT-LLM hands each event out once: what came after the snapshot went to the process that is
/// gone.
fn can_resume(kind: EngineKind) -> bool {
    kind != EngineKind::Trtllm
}

/// Tells token tables apart.
pub(crate) fn digest_of(tokens: &TokenTable) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for id in 0..tokens.len() as u32 {
        match tokens.bytes(id) {
            Some(bytes) => {
                hasher.update((bytes.len() as u32).to_le_bytes());
                hasher.update(bytes);
            }
            None => hasher.update(u32::MAX.to_le_bytes()),
        }
    }
    hasher.finalize().into()
}

/// Takes what peers know, in order, and what the disk has of the rest.
pub(crate) fn restore_all(
    config: &Config,
    scopes: &[Arc<Scope>],
    peers: &[PeerAddress],
    record: &Record,
) {
    let has_listener = config.kv_events_listen.is_some();
    let from = |origin: Origin, bytes: anyhow::Result<Option<Box<dyn std::io::Read>>>| {
        let started = Instant::now();
        let restored = bytes.and_then(|bytes| match bytes {
            Some(bytes) => restore::restore(scopes, bytes, &origin, has_listener, record),
            None => Ok(restore::Total::default()),
        });
        match restored {
            Ok(total) if total.engines > 0 => tracing::info!(
                from = %origin,
                engines = total.engines,
                blocks = total.blocks,
                ms = started.elapsed().as_millis() as u64,
                "restored from a snapshot"
            ),
            Ok(_) => tracing::info!(from = %origin, "no snapshot to restore from"),
            Err(error) => {
                let why = format!("snapshot of {origin} {error:#}");
                tracing::warn!("{why}: going on without it");
                record.refuse(why);
            }
        }
    };
    for peer in peers {
        from(Origin::Peer(peer.clone()), peer::fetch(peer).map(Some));
    }
    if config.snapshot.is_some() {
        from(Origin::Disk, disk::open(&config.data_dir));
    }
}
