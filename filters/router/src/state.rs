//! The pushed state as this VM reads it: parsed once per change, looked up per request.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use feed::{
    Directory, EndpointHash, FoundStride, Head, Key, LoadRecord, LoadTable, ModelValue, Table,
    find_stride, value_epoch,
};
use hostcalls::Host;
use prefix::{Holder, Listed, Stride, StrideKey, bucket_of, fingerprint_of};
use prompt::{ModelSpec, Renderer};

/// Why there is no state to route by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateError {
    /// No daemon has fed this gateway.
    Missing,
    /// The first snapshot is under way.
    Incomplete,
    /// The last batch is too old.
    Stale,
    /// A value is missing or cannot be read by this build.
    Malformed,
    /// The pool serves no such model.
    UnknownModel,
}

impl StateError {
    /// Counter name.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "no_state",
            Self::Incomplete => "state_incomplete",
            Self::Stale => "state_stale",
            Self::Malformed => "state_malformed",
            Self::UnknownModel => "unknown_model",
        }
    }
}

/// What of the state is valid now.
#[derive(Default)]
pub struct View {
    /// (instance, configuration version, active epoch, incoming epoch) that the caches belong to.
    tag: Option<(u64, u32, u64, u64)>,
    directory: Rc<Directory>,
    /// When the daemon last wrote.
    fed_ns: u64,
    models: BTreeMap<u16, Rc<Model>>,
    /// Loads by scope, with the number that the host gave to the value they were read from.
    loads: RefCell<BTreeMap<u16, Numbered>>,
}

/// Loads, and the number of their value.
type Numbered = (u32, Rc<[LoadRecord]>);

/// What a request's model names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// Scope of the (pool, model) pair.
    pub scope: u16,
    /// Scope of its buckets over token ids, where the pool keeps them.
    pub token_ids_scope: Option<u16>,
    /// Canonical name of the model.
    pub model: String,
    /// LoRA adapter on it.
    pub adapter: Option<String>,
    /// The adapter's place in the directory.
    pub adapter_number: Option<u16>,
}

/// A model, ready to render, hash and look up.
pub struct Model {
    /// The pushed value.
    pub value: ModelValue,
    /// The compiled template, or why it cannot be used.
    pub renderer: Result<Renderer, &'static str>,
    /// Endpoints by slot.
    pub table: Table,
    /// What a decision takes of each endpoint of the table, in its order: the hash and the address.
    pub endpoints: Vec<(EndpointHash, Arc<str>)>,
    /// While another writer's snapshot arrives: its epoch, and its slots in terms of ours.
    incoming: Option<(u64, BTreeMap<u16, u16>)>,
}

impl View {
    /// Checks the head and drops what it voids.
    pub fn refresh(
        &mut self,
        host: &impl Host,
        now_ns: u64,
        max_age_ns: u64,
    ) -> Result<(), StateError> {
        let held = host.shared(Key::Head.encode().as_ref()).map_err(|_| StateError::Malformed)?;
        let (value, _) = held.ok_or(StateError::Missing)?;
        let head = Head::decode(&value).map_err(|_| StateError::Malformed)?;
        if head.epoch == 0 {
            return Err(StateError::Missing);
        }
        let active = head.active_epoch().ok_or(StateError::Incomplete)?;
        if now_ns.saturating_sub(head.stamp_ns) > max_age_ns {
            return Err(StateError::Stale);
        }
        self.fed_ns = head.stamp_ns;
        let tag = (head.instance, head.config_version, active, head.epoch);
        if self.tag != Some(tag) {
            self.tag = None;
            self.models.clear();
            self.loads.borrow_mut().clear();
            self.directory = Rc::new(singleton(
                host,
                Key::Directory(Key::parity(active)),
                active,
                Directory::decode,
            )?);
            self.tag = Some(tag);
        }
        Ok(())
    }

    /// What the last readable directory said, of however long ago.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    fn active(&self) -> u64 {
        self.tag.map_or(0, |(_, _, active, _)| active)
    }

    /// Epoch whose slots `loads` and `Model::table` use.
    pub fn epoch(&self) -> u64 {
        self.active()
    }

    /// When the daemon last wrote, on the gateway's clock.
    pub fn fed_ns(&self) -> u64 {
        self.fed_ns
    }

    /// What `model` names in `pool`; without a name, the pool's only model.
    pub fn resolve(&self, pool: &str, model: Option<&str>) -> Result<Resolved, StateError> {
        let found = match model {
            Some(model) => self.directory.find(pool, model),
            None => {
                let mut all = self.directory.entries.iter().filter(|entry| entry.pool == pool);
                all.next().filter(|_| all.next().is_none()).map(|entry| (entry, None))
            }
        };
        let (entry, adapter) = found.ok_or(StateError::UnknownModel)?;
        Ok(Resolved {
            scope: entry.scope,
            token_ids_scope: entry.token_ids_scope,
            model: entry.model.clone(),
            adapter: adapter.map(str::to_owned),
            adapter_number: adapter.and_then(|name| {
                let place = entry.adapters.iter().position(|known| known == name)?;
                u16::try_from(place).ok()
            }),
        })
    }

    /// The model of `scope`, compiled at first use after a change.
    pub fn model(&mut self, host: &impl Host, scope: u16) -> Result<Rc<Model>, StateError> {
        if let Some(model) = self.models.get(&scope) {
            return Ok(Rc::clone(model));
        }
        let (_, _, active, newest) = self.tag.ok_or(StateError::Missing)?;
        let read = |epoch: u64| -> Result<(ModelValue, Table), StateError> {
            let odd = Key::parity(epoch);
            let value = singleton(host, Key::Model(odd, scope), epoch, ModelValue::decode)?;
            Ok((value, singleton(host, Key::Table(odd, scope), epoch, Table::decode)?))
        };
        let (value, table) = read(active)?;
        let incoming = (newest != active)
            .then(|| read(newest).ok())
            .flatten()
            // Keys and buckets mean the same only under one seed and size, and a scope only if
            // both writers number alike; the model's text settles that.
            .filter(|(other, _)| {
                other.seed == value.seed
                    && other.bucket_count == value.bucket_count
                    && other.spec_json == value.spec_json
            })
            .map(|(_, other)| (newest, translate(&other, &table)));
        let renderer = serde_json::from_slice::<ModelSpec>(&value.spec_json)
            .map_err(|_| "model_spec_unreadable")
            .and_then(|spec| Renderer::new(&spec).map_err(|err| err.reason()));
        let endpoints = table.endpoints.iter().map(|endpoint| {
            (EndpointHash::of(&endpoint.address), Arc::from(endpoint.address.as_str()))
        });
        let endpoints = endpoints.collect();
        let model = Rc::new(Model { value, renderer, table, endpoints, incoming });
        self.models.insert(scope, Rc::clone(&model));
        Ok(model)
    }

    /// Loads of the scope's endpoints, ascending by slot. Read anew when they have changed.
    pub fn loads(&self, host: &impl Host, scope: u16) -> Result<Rc<[LoadRecord]>, StateError> {
        let active = self.active();
        let key = Key::Load(Key::parity(active), scope);
        let held = host.shared(key.encode().as_ref()).map_err(|_| StateError::Malformed)?;
        let (value, number) = held.ok_or(StateError::Malformed)?;
        // The host gives no number twice, and the cache is of one epoch.
        let mut cache = self.loads.borrow_mut();
        if let Some((known, loads)) = cache.get(&scope)
            && *known == number
        {
            return Ok(Rc::clone(loads));
        }
        let loads: Rc<[LoadRecord]> = checked(&value, active, LoadTable::decode)?.records.into();
        cache.insert(scope, (number, Rc::clone(&loads)));
        Ok(loads)
    }
}

fn singleton<T>(
    host: &impl Host,
    key: Key,
    epoch: u64,
    decode: fn(&[u8]) -> Result<T, feed::WireError>,
) -> Result<T, StateError> {
    let held = host.shared(key.encode().as_ref()).map_err(|_| StateError::Malformed)?;
    let (value, _) = held.ok_or(StateError::Malformed)?;
    checked(&value, epoch, decode)
}

fn checked<T>(
    value: &[u8],
    epoch: u64,
    decode: fn(&[u8]) -> Result<T, feed::WireError>,
) -> Result<T, StateError> {
    if value_epoch(value) != Some(epoch) {
        return Err(StateError::Malformed);
    }
    decode(value).map_err(|_| StateError::Malformed)
}

fn translate(from: &Table, to: &Table) -> BTreeMap<u16, u16> {
    let by_address: BTreeMap<&str, u16> =
        to.endpoints.iter().map(|endpoint| (endpoint.address.as_str(), endpoint.slot)).collect();
    from.endpoints
        .iter()
        .filter_map(|endpoint| Some((endpoint.slot, *by_address.get(endpoint.address.as_str())?)))
        .collect()
}

/// What the index of a scope knows of one stride.
pub enum Found {
    /// As it was pushed.
    Pushed(FoundStride<Vec<u8>>),
    /// Of the writer that takes over, in terms of our slots.
    Translated(Stride),
}

impl Listed for Found {
    fn has_same_holders(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pushed(one), Self::Pushed(other)) => one.has_same_holders(other),
            (one, other) => one.read().holders == other.read().holders,
        }
    }

    fn is_unheld(&self) -> bool {
        match self {
            Self::Pushed(stride) => stride.is_unheld(),
            Self::Translated(stride) => stride.is_unheld(),
        }
    }

    fn read(&self) -> Cow<'_, Stride> {
        match self {
            Self::Pushed(stride) => stride.read(),
            Self::Translated(stride) => stride.read(),
        }
    }
}

impl Model {
    /// What the index of `scope` knows of one stride. A value that cannot be read holds nothing.
    pub fn stride(&self, host: &impl Host, scope: u16, key: StrideKey) -> Option<Found> {
        let bucket = Key::Bucket(scope, bucket_of(key, self.value.bucket_count));
        let (value, _) = host.shared(bucket.encode().as_ref()).ok().flatten()?;
        let epoch = value_epoch(&value)?;
        if epoch == self.value.epoch {
            return find_stride(value, fingerprint_of(key)).ok().flatten().map(Found::Pushed);
        }
        let (incoming, slots) = self.incoming.as_ref()?;
        if epoch != *incoming {
            return None;
        }
        let stride = find_stride(value, fingerprint_of(key)).ok().flatten()?;
        let stride = stride.read();
        let ours = |holder: &Holder| Some(Holder { slot: *slots.get(&holder.slot)?, ..*holder });
        let mut holders: Vec<Holder> = stride.holders.iter().filter_map(ours).collect();
        holders.sort_unstable();
        let ours = |(slot, tokens): &(u16, u32)| Some((*slots.get(slot)?, *tokens));
        let mut resumes: Vec<(u16, u32)> = stride.resumes.iter().filter_map(ours).collect();
        resumes.sort_unstable();
        Some(Found::Translated(Stride { tokens: stride.tokens, holders, resumes }))
    }
}
