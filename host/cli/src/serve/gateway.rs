//! What one gateway has not been told yet.

use std::sync::Arc;

use feed::{
    Ack, BatchBuilder, Cell, Directory, DirectoryEntry, Key, LoadTable, MAX_ADAPTERS,
    MAX_SINGLETON_BYTES, OtherGateways,
};
use feed_push::{Fill, StateSource};
use tokio::time::Instant;

use super::in_flight::InFlight as Reservations;
use super::lag::{Carried, SharedLag};
use super::scope::{Live, Scope, record};

/// State of all scopes for one gateway.
pub(crate) struct GatewayFeed {
    scopes: Vec<ScopeFeed>,
    /// Models: sent once per snapshot.
    are_singletons_sent: bool,
    in_flight: InFlight,
    /// Position among the gateways.
    number: usize,
    lag: SharedLag,
    reservations: Arc<Reservations>,
    /// The other gateways' sums as they were sent; `None` when that is not known.
    others_sent: Option<Vec<Cell>>,
    /// Which index comes first in the next batch: where changes outrun the gateway, the first would
    /// leave no room for the others.
    turn: usize,
}

struct ScopeFeed {
    scope: Arc<Scope>,
    watcher: usize,
    load_sent: u64,
    table_sent: u64,
    adapters_sent: u64,
    retired: Retired,
    carried: Carried,
    /// Per index: buckets to be taken until all that the snapshot began with has been.
    whole_at: Vec<u64>,
}

impl ScopeFeed {
    /// All that is changed now belongs to the snapshot.
    fn await_changed(&mut self) {
        let positions =
            self.scope.live().dirty_positions(self.watcher).map(|(_, end)| end).collect();
        self.whole_at = positions;
    }

    /// Whether everything that the snapshot began with has been in a batch.
    fn is_whole(&self) -> bool {
        let live = self.scope.live();
        let mut ends = self.whole_at.iter().zip(live.dirty_positions(self.watcher));
        self.load_sent > 0 && self.table_sent > 0 && ends.all(|(end, (taken, _))| *end <= taken)
    }
}

/// Up to which retirement of a slot a gateway has been sent all that changed.
#[derive(Default)]
struct Retired {
    /// A retirement, and how many buckets the gateway will have taken, by index, when it has taken those that
    /// were changed by then.
    waits: Option<(u64, Vec<u64>)>,
    /// The last one that was waited for.
    known: u64,
    /// Everything up to this retirement is in pushes up to the one in flight.
    in_flight: Option<u64>,
}

impl Retired {
    fn begin(&mut self, retirement: u64, positions: impl Iterator<Item = (u64, u64)>) {
        if self.waits.is_none() && self.known != retirement {
            self.waits = Some((retirement, positions.map(|(_, end)| end).collect()));
        }
    }

    fn end(&mut self, positions: impl Iterator<Item = (u64, u64)>) {
        let Some((retirement, ends)) = &self.waits else { return };
        let taken: Vec<u64> = positions.map(|(taken, _)| taken).collect();
        if ends.iter().zip(&taken).all(|(end, taken)| end <= taken) {
            (self.known, self.in_flight) = (*retirement, Some(*retirement));
            self.waits = None;
        }
    }
}

#[derive(Default)]
struct InFlight {
    singletons: bool,
    directory: bool,
    /// Scope, index within it, bucket.
    buckets: Vec<(usize, usize, u32)>,
    loads: Vec<usize>,
    tables: Vec<usize>,
    others: bool,
}

impl GatewayFeed {
    /// The feed of gateway `number` of the configuration.
    pub(crate) fn new(
        number: usize,
        scopes: &[Arc<Scope>],
        reservations: &Arc<Reservations>,
    ) -> Self {
        let feed_of = |scope: &Arc<Scope>| ScopeFeed {
            watcher: scope.live().each().map(|index| index.watch()).max().unwrap_or(0),
            scope: Arc::clone(scope),
            load_sent: 0,
            table_sent: 0,
            adapters_sent: 0,
            retired: Retired::default(),
            carried: Carried::default(),
            whole_at: Vec::new(),
        };
        Self {
            scopes: scopes.iter().map(feed_of).collect(),
            are_singletons_sent: false,
            in_flight: InFlight::default(),
            number,
            lag: SharedLag::default(),
            reservations: Arc::clone(reservations),
            others_sent: None,
            turn: 0,
        }
    }

    /// The directory, whenever an adapter is new. Engines name adapters, so how many is not ours to
    /// say: as many are told as fit a singleton.
    fn push_directory(&mut self, epoch: u64, batch: &mut BatchBuilder) {
        let mut entries = Vec::new();
        for ScopeFeed { scope, adapters_sent, .. } in &mut self.scopes {
            let live = scope.live();
            *adapters_sent = live.adapters_version;
            entries.push(DirectoryEntry {
                scope: scope.number,
                pool: scope.pool.clone(),
                model: scope.model.name.clone(),
                aliases: scope.model.aliases.clone(),
                adapters: live.adapters.clone(),
                token_ids_scope: scope.token_ids_number,
            });
        }
        let mut directory = Directory { epoch, entries };
        let mut value = directory.encode();
        let mut keep = MAX_ADAPTERS;
        while value.len() > MAX_SINGLETON_BYTES && keep > 0 {
            keep /= 2;
            tracing::warn!(keep, "too many LoRA adapters for the feed");
            directory.entries.iter_mut().for_each(|entry| entry.adapters.truncate(keep));
            value = directory.encode();
        }
        batch.push(Key::Directory(Key::parity(epoch)), &value);
    }

    /// What the other gateways have in flight, if that is news.
    fn push_others(&mut self, epoch: u64, batch: &mut BatchBuilder) {
        let cells = self.reservations.others(self.number, Instant::now());
        if self.others_sent.as_ref() != Some(&cells) {
            let others = OtherGateways { epoch, cells: cells.clone() };
            batch.push(Key::OtherGateways(Key::parity(epoch)), &others.encode());
            self.others_sent = Some(cells);
            self.in_flight.others = true;
        }
    }

    /// How long events take to this gateway; shared.
    pub(crate) fn lag(&self) -> SharedLag {
        Arc::clone(&self.lag)
    }

    fn push_singletons(&self, epoch: u64, batch: &mut BatchBuilder) {
        let odd = Key::parity(epoch);
        for ScopeFeed { scope, .. } in &self.scopes {
            batch.push(Key::Model(odd, scope.number), &scope.model_value(epoch).encode());
        }
    }
}

/// Engines say how many adapters they run, so what they say of them is left out where it does not fit.
fn load_value(mut table: LoadTable) -> Vec<u8> {
    let value = table.encode();
    if value.len() <= MAX_SINGLETON_BYTES {
        return value;
    }
    table.records.iter_mut().for_each(|record| record.adapters = None);
    table.encode()
}

impl StateSource for GatewayFeed {
    fn begin_snapshot(&mut self) {
        self.others_sent = None;
        self.are_singletons_sent = false;
        for feed in &mut self.scopes {
            feed.load_sent = 0;
            feed.table_sent = 0;
            feed.adapters_sent = 0;
            feed.retired = Retired::default();
            feed.scope.live().each().for_each(|index| index.mark_all(feed.watcher));
            feed.carried.snapshot(&feed.scope.applied, self.number, &self.lag);
            feed.await_changed();
        }
    }

    fn fill(
        &mut self,
        epoch: u64,
        batch: &mut BatchBuilder,
        max_bytes: usize,
        max_entries: u32,
    ) -> Fill {
        self.in_flight = InFlight::default();
        if !self.are_singletons_sent {
            self.push_singletons(epoch, batch);
            self.are_singletons_sent = true;
            self.in_flight.singletons = true;
        }
        if self.scopes.iter().any(|feed| feed.adapters_sent != feed.scope.live().adapters_version) {
            self.push_directory(epoch, batch);
            self.in_flight.directory = true;
        }
        if self.reservations.is_shared() {
            self.push_others(epoch, batch);
        }
        let has_room =
            |batch: &BatchBuilder| batch.len_bytes() < max_bytes && batch.count() < max_entries;
        for (i, feed) in self.scopes.iter_mut().enumerate() {
            let ScopeFeed { scope, watcher, load_sent, table_sent, retired, carried, .. } = feed;
            let live = scope.live();
            carried.begin(&scope.applied, live.dirty_positions(*watcher));
            retired.begin(live.retirements, live.dirty_positions(*watcher));
            // Before the loads: a record without its endpoint says nothing, an endpoint without its record
            // is not picked.
            if *table_sent != live.table_version && has_room(batch) {
                let table = scope.table(epoch).encode();
                batch.push(Key::Table(Key::parity(epoch), scope.number), &table);
                *table_sent = live.table_version;
                self.in_flight.tables.push(i);
            }
            if *load_sent != live.load_version && has_room(batch) {
                let listed = scope.roster.listed();
                let records = listed.iter().filter_map(|(slot, _)| {
                    Some(record(*slot, live.engines.get(usize::from(*slot))?))
                });
                let table = LoadTable { epoch, records: records.collect() };
                batch.push(Key::Load(Key::parity(epoch), scope.number), &load_value(table));
                *load_sent = live.load_version;
                self.in_flight.loads.push(i);
            }
        }
        let indexes_of = |(i, feed): (usize, &ScopeFeed)| {
            (0..feed.scope.live().indexes.len()).map(move |at| (i, at))
        };
        let mut turns: Vec<(usize, usize)> =
            self.scopes.iter().enumerate().flat_map(indexes_of).collect();
        let first = self.turn % turns.len().max(1);
        turns.rotate_left(first);
        self.turn = first + 1;
        for (i, at) in turns {
            let feed = &self.scopes[i];
            let mut live = feed.scope.live();
            let Live { indexes, overflow, .. } = &mut *live;
            let (number, index) = &mut indexes[at];
            while has_room(batch)
                && let Some(bucket) = index.next_dirty(feed.watcher)
            {
                let (value, dropped) = index.encode_bucket(bucket, epoch);
                *overflow += u64::from(dropped);
                batch.push(Key::Bucket(*number, bucket), &value);
                self.in_flight.buckets.push((i, at, bucket));
            }
        }
        for feed in &mut self.scopes {
            let ScopeFeed { scope, watcher, load_sent, table_sent, retired, carried, .. } = feed;
            let live = scope.live();
            carried.end(live.dirty_positions(*watcher));
            if *table_sent == live.table_version && *load_sent == live.load_version {
                retired.end(live.dirty_positions(*watcher));
            }
        }
        let is_drained = self.scopes.iter().all(|feed| {
            let live = feed.scope.live();
            feed.load_sent == live.load_version
                && feed.table_sent == live.table_version
                && feed.adapters_sent == live.adapters_version
                && live.dirty_count(feed.watcher) == 0
        });
        match is_drained {
            true => Fill::Drained,
            false if self.scopes.iter().all(ScopeFeed::is_whole) => Fill::Newer,
            false => Fill::More,
        }
    }

    fn acked(&mut self, ack: &Ack) {
        if self.reservations.is_shared() {
            self.reservations.report(self.number, &ack.in_flight, Instant::now());
        }
    }

    fn applied(&mut self) {
        self.in_flight = InFlight::default();
        for feed in &mut self.scopes {
            feed.carried.acked(&feed.scope.applied, self.number, &self.lag);
            if let Some(retirement) = feed.retired.in_flight.take() {
                feed.scope.roster.acked(self.number, retirement);
            }
        }
    }

    fn unknown(&mut self) {
        let in_flight = std::mem::take(&mut self.in_flight);
        self.are_singletons_sent &= !in_flight.singletons;
        if in_flight.others {
            self.others_sent = None;
        }
        if in_flight.directory {
            self.scopes.iter_mut().for_each(|feed| feed.adapters_sent = 0);
        }
        for feed in &mut self.scopes {
            feed.carried.lost();
            feed.retired = Retired::default();
        }
        for i in in_flight.tables {
            self.scopes[i].table_sent = 0;
        }
        for i in in_flight.loads {
            self.scopes[i].load_sent = 0;
        }
        for (i, at, bucket) in in_flight.buckets {
            let feed = &self.scopes[i];
            feed.scope.live().indexes[at].1.mark(feed.watcher, bucket);
        }
        // They stand at the end now.
        self.scopes.iter_mut().for_each(ScopeFeed::await_changed);
    }
}

#[cfg(test)]
mod tests;
