//! From a snapshot into the scopes.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use kv_events::Position;
use prefix_index::{ImportError, Index};
use routing::SourceState;
use snapshot::{Content, ContentError, SectionError, Snapshots};

use super::peer::PeerAddress;
use super::{Record, can_resume, kind_number};
use crate::serve::apply::is_number;
use crate::serve::scope::{Doubts, Restored, Scope};

/// Where a snapshot is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Disk,
    Peer(PeerAddress),
}

impl Origin {
    /// For labels of metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Peer(_) => "peer",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("the disk"),
            Self::Peer(address) => write!(f, "peer {address}"),
        }
    }
}

/// What was restored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    pub(super) engines: usize,
    pub(super) blocks: usize,
}

/// Why a section is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefusedSection {
    #[error(transparent)]
    Section(#[from] SectionError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("was made with another tokenizer")]
    OtherTokenizer,
    #[error("has no keys over token ids, which tokenIdPrompts needs")]
    KeySpaces,
    #[error("has an index that {0}")]
    Index(#[from] ImportError),
}

/// Restores every engine that is configured, has a source, and holds nothing yet. Sections that
/// cannot be taken are reported and passed over.
pub(super) fn restore(
    scopes: &[Arc<Scope>],
    bytes: impl Read,
    origin: &Origin,
    has_listener: bool,
    record: &Record,
) -> anyhow::Result<Total> {
    let mut snapshots = Snapshots::open(bytes)?;
    let find = |pool: &str, model: &str| {
        scopes.iter().find(|scope| scope.pool == pool && scope.model.name == model)
    };
    let seed_of = |pool: &str, model: &str| find(pool, model).map(|scope| scope.seed.clone());
    let mut total = Total::default();
    while let Some(section) = snapshots.next_section(seed_of)? {
        let Some(scope) = find(&section.pool, &section.model) else {
            // Peers may serve more than this one.
            tracing::info!(pool = section.pool, model = section.model, from = %origin, "not configured here, left out of the snapshot");
            continue;
        };
        let restored = section
            .content
            .map_err(RefusedSection::from)
            .and_then(|content| restore_scope(scope, &content, origin, has_listener));
        match restored {
            Ok(of_scope) => {
                total.engines += of_scope.engines;
                total.blocks += of_scope.blocks;
            }
            Err(error) => {
                let (pool, model) = (&section.pool, &section.model);
                let why = format!("snapshot of {origin}, pool {pool}, model {model}: {error}");
                tracing::warn!("{why}: going on without it");
                record.refuse(why);
            }
        }
    }
    Ok(total)
}

fn restore_scope(
    scope: &Scope,
    content: &[u8],
    origin: &Origin,
    has_listener: bool,
) -> Result<Total, RefusedSection> {
    let content = Content::read(content)?;
    if content.tokens != scope.tokens_digest {
        return Err(RefusedSection::OtherTokenizer);
    }
    let mut live = scope.live();
    if content.indexes.len() < live.indexes.len() {
        return Err(RefusedSection::KeySpaces);
    }
    let endpoints = scope.roster.listed();
    let slots: Vec<Option<u16>> = content
        .engines
        .iter()
        .map(|record| {
            let (slot, endpoint) =
                endpoints.iter().find(|(_, endpoint)| endpoint.address == record.address)?;
            let slot = *slot;
            let is_usable = record.position.is_some()
                && record.kind == kind_number(endpoint.engine)
                && can_resume(endpoint.engine)
                // Without a source nothing would ever void it.
                && (endpoint.kv_events.is_some() || has_listener)
                && live.engines[usize::from(slot)].restored.is_none();
            is_usable.then_some(slot)
        })
        .collect();
    let now_ms = scope.started.elapsed().as_millis() as u64;
    for at in 0..live.indexes.len() {
        let imported = live.indexes[at].1.import(content.indexes[at], &slots, now_ms);
        if let Err(error) = imported {
            for slot in slots.iter().flatten() {
                live.each().for_each(|index| index.clear(*slot, None));
            }
            return Err(error.into());
        }
    }
    let mut total = Total::default();
    for (record, slot) in content.engines.iter().zip(&slots) {
        let (Some(slot), Some(position)) = (slot, record.position) else { continue };
        let blocks = live.indexes.first().map_or(0, |(_, index)| index.held_blocks(*slot));
        let engine = &mut live.engines[usize::from(*slot)];
        engine.position =
            Some(Position { sequence: position.sequence, fingerprint: position.fingerprint });
        engine.is_partial = record.is_partial;
        engine.is_cleared = record.is_cleared;
        engine.doubts = Doubts::of_bits(record.doubts);
        engine.rank = record.rank;
        engine.groups.full = record.full_group;
        engine.groups.windowed = record.windowed_groups.iter().copied().collect();
        engine.first_batch_at = record.first_batch_at;
        engine.block_size_tokens = record.block_size_tokens;
        // The first scrape tells whether it is still that process.
        engine.process_start = record.process_start;
        engine.stream = SourceState::Resyncing;
        engine.restored = Some(Restored { origin: origin.clone(), blocks });
        total.engines += 1;
        total.blocks += blocks;
    }
    // Their names came with events, which are not told again.
    let index = live.indexes.first().map(|(_, index)| index);
    let adapters: Vec<String> =
        index.into_iter().flat_map(Index::adapters).map(Into::into).collect();
    adapters.iter().filter(|name| !is_number(name)).for_each(|name| live.learn_adapter(name));
    live.load_version += 1;
    drop(live);
    scope.changed();
    Ok(total)
}
