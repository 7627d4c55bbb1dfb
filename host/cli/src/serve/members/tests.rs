//! Who comes and who leaves, against naive twins; and slots that are used again, as gateways see them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use feed::{Batch, BatchBuilder, BatchHeader, Key, Table, find_stride};
use feed_push::StateSource;
use kv_events::{BlockStored, Encoding, EngineKey, EventBatch, KvEvent, SourceUpdate};
use prefix::{KeyChain, Listed, Namespace, StrideKey, bucket_of, fingerprint_of};
use proptest::prelude::*;

use super::super::apply;
use super::super::gateway::GatewayFeed;
use super::super::in_flight::InFlight;
use super::super::scope::{self, Scope};
use super::*;
use crate::config::EngineKind;

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.to_owned(),
        socket: address.parse().unwrap(),
        model: "tiny".into(),
        engine: EngineKind::Vllm,
        kv_events: None,
        replay: None,
        topic: String::new(),
        metrics: format!("http://{address}/metrics"),
        labels: BTreeMap::new(),
        attributes: BTreeMap::new(),
    }
}

/// What discovery may tell of one of four addresses: who is there, its label, whether it is ready.
type Told = Vec<Option<(u8, u8, bool)>>;

fn told() -> impl Strategy<Value = Told> {
    prop::collection::vec(prop::option::weighted(0.7, (0..3u8, 0..2u8, any::<bool>())), 4)
}

fn wanted(told: &Told) -> Wanted {
    let members = told.iter().enumerate().filter_map(|(i, told)| {
        let (id, label, is_ready) = (*told)?;
        let mut endpoint = endpoint(&format!("10.0.0.{i}:8000"));
        endpoint.labels.insert("l".into(), label.to_string());
        Some((endpoint.address.clone(), Member { id: id.to_string(), endpoint, is_ready }))
    });
    members.collect()
}

proptest! {
    /// The twin: an endpoint is held from when it was first ready until it is not told of any more or is another.
    #[test]
    fn plans_lead_to_what_is_told(history in prop::collection::vec(told(), 1..20)) {
        let mut held: Wanted = Wanted::new();
        let mut twin: BTreeMap<String, (String, String, bool)> = BTreeMap::new();
        for told in history {
            let wanted = wanted(&told);
            let plan = plan(held.iter(), &wanted);
            let was = held.clone();
            for address in &plan.leave {
                prop_assert!(held.remove(address).is_some(), "{} was not there", address);
            }
            for address in &plan.change {
                prop_assert!(held[address] != wanted[address]);
                prop_assert_eq!(&held[address].id, &wanted[address].id);
                held.insert(address.clone(), wanted[address].clone());
            }
            for address in &plan.come {
                prop_assert!(held.insert(address.clone(), wanted[address].clone()).is_none());
            }
            let mut next = BTreeMap::new();
            for (address, member) in &wanted {
                let stays = twin.get(address).is_some_and(|(id, _, _)| *id == member.id);
                if stays || member.is_ready {
                    let label = member.endpoint.labels["l"].clone();
                    next.insert(address.clone(), (member.id.clone(), label, member.is_ready));
                }
            }
            twin = next;
            let now: BTreeMap<_, _> = held
                .iter()
                .map(|(a, m)| (a.clone(), (m.id.clone(), m.endpoint.labels["l"].clone(), m.is_ready)))
                .collect();
            prop_assert_eq!(&now, &twin);
            // Nobody is sent away to come back as the same.
            for address in &plan.leave {
                let is_other = wanted.get(address).is_none_or(|now| now.id != was[address].id);
                prop_assert!(is_other);
            }
        }
    }
}

/// A scope whose endpoints are discovered.
fn scope_of(gateways: usize) -> (tempfile::TempDir, Arc<Scope>) {
    let folder = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-model");
    let text = format!(
        "dataDir: data\npools:\n- name: pool\n  models: [{{name: tiny, folder: '{model}', maxStrides: 4096}}]\n  \
         discovery: {{file: {{path: endpoints.yaml}}}}\n"
    );
    let file = folder.path().join("wasm-epp.yaml");
    std::fs::write(&file, text).unwrap();
    let config = crate::config::load(&file).unwrap();
    let wakers: Vec<_> = (0..gateways).map(|_| Arc::default()).collect();
    let scope = scope::load(&config, &wakers).unwrap().remove(0);
    (folder, scope)
}

/// A gateway's shared data, and the daemon's side of it.
struct Gateway {
    feed: GatewayFeed,
    values: HashMap<Vec<u8>, Vec<u8>>,
}

impl Gateway {
    fn new(number: usize, scope: &Arc<Scope>) -> Self {
        let feed = GatewayFeed::new(number, &[Arc::clone(scope)], &Arc::new(InFlight::new(&[])));
        let mut gateway = Self { feed, values: HashMap::new() };
        gateway.feed.begin_snapshot();
        gateway
    }

    fn push(&mut self, most: u32, arrives: bool, is_acked: bool) {
        let mut batch = BatchBuilder::new(BatchHeader { epoch: 2, ..BatchHeader::default() });
        self.feed.fill(2, &mut batch, usize::MAX, most);
        if arrives {
            let bytes = batch.finish();
            for (key, value) in Batch::decode(&bytes).unwrap().entries {
                self.values.insert(key.encode().as_ref().to_vec(), value.to_vec());
            }
        }
        if arrives && is_acked { self.feed.applied() } else { self.feed.unknown() }
    }

    fn drain(&mut self) {
        (0..400).for_each(|_| self.push(7, true, true));
    }

    fn value(&self, key: Key) -> Option<&Vec<u8>> {
        self.values.get(key.encode().as_ref())
    }

    /// Who is said to hold a stride, by address.
    fn holders(&self, key: StrideKey, buckets: u32) -> BTreeSet<String> {
        let Some(table) = self.value(Key::Table(false, 0)) else { return BTreeSet::new() };
        let table = Table::decode(table).unwrap();
        let bucket = self.value(Key::Bucket(0, bucket_of(key, buckets)));
        let Some(found) = bucket.and_then(|b| find_stride(b, fingerprint_of(key)).unwrap()) else {
            return BTreeSet::new();
        };
        let slots: Vec<u16> = found.read().holders.iter().map(|holder| holder.slot).collect();
        let entries = table.endpoints.iter().filter(|entry| slots.contains(&entry.slot));
        entries.map(|entry| entry.address.clone()).collect()
    }
}

/// An endpoint with a text that only it has.
struct Tenant {
    address: String,
    slot: u16,
    keys: Vec<StrideKey>,
    tokens: Vec<u32>,
    number: u64,
    has_stored: bool,
    is_listed: bool,
    is_retired: bool,
}

impl Tenant {
    fn new(scope: &Scope, number: u64) -> Option<Self> {
        let address = format!("10.0.{}.{}:8000", number / 250, number % 250 + 1);
        let slot = scope.add(endpoint(&address))?;
        let len = scope.tokens.len() as u64;
        let with_bytes = |id: &u32| scope.tokens.bytes(*id).is_some_and(|bytes| !bytes.is_empty());
        let ids = (0..).map(|i: u64| ((number * 7_919 + i * i * 31 + i * number) % len) as u32);
        let tokens: Vec<u32> = ids.filter(with_bytes).take(128).collect();
        let text: Vec<u8> =
            tokens.iter().flat_map(|id| scope.tokens.bytes(*id).unwrap().to_vec()).collect();
        let root = Namespace { model: "tiny", lora: None, salt: None }.root(&scope.seed);
        let keys = KeyChain::keys_of(root, &scope.seed, &text);
        assert!(keys.len() > 1);
        Some(Self {
            address,
            slot,
            keys,
            tokens,
            number,
            has_stored: false,
            is_listed: true,
            is_retired: false,
        })
    }

    fn store(&mut self, scope: &Scope) {
        self.has_stored = true;
        let batch = EventBatch {
            ts: 0.0,
            events: vec![KvEvent::Stored(BlockStored {
                block_hashes: (0..8).map(|i| EngineKey(self.number << 8 | i)).collect(),
                parent_block_hash: None,
                token_ids: self.tokens.clone(),
                block_size: 16,
                lora_name: None,
                lora_id: None,
                medium: None,
                extra_keys: Vec::new(),
                group_idx: None,
                kv_cache_spec_kind: None,
                sliding_window: None,
                cache_salt: None,
            })],
            data_parallel_rank: None,
            encoding: Encoding::default(),
        };
        let update = SourceUpdate::Batch {
            sequence: 0,
            fingerprint: 0,
            batch,
            received_at: tokio::time::Instant::now(),
        };
        apply::apply(scope, self.slot, update);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Come,
    Store(usize),
    Unlist(usize),
    Retire(usize),
    Push { gateway: usize, most: u32, arrives: bool, is_acked: bool },
    Snapshot(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Come),
        4 => any::<prop::sample::Index>().prop_map(|i| Step::Store(i.index(8))),
        2 => any::<prop::sample::Index>().prop_map(|i| Step::Unlist(i.index(8))),
        2 => any::<prop::sample::Index>().prop_map(|i| Step::Retire(i.index(8))),
        12 => (0..2usize, 1..12u32, prop::bool::weighted(0.85), prop::bool::weighted(0.9))
            .prop_map(|(gateway, most, arrives, is_acked)| Step::Push { gateway, most, arrives, is_acked }),
        1 => (0..2usize).prop_map(Step::Snapshot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is lost on the way: no gateway ever reads that an endpoint holds what one before it in its slot
    /// held; and in the end each is listed under exactly what it holds.
    #[test]
    fn no_gateway_takes_an_endpoint_for_the_one_before(steps in prop::collection::vec(step(), 20..160)) {
        let (_folder, scope) = scope_of(2);
        let buckets = scope.model_value(2).bucket_count;
        let mut gateways = [Gateway::new(0, &scope), Gateway::new(1, &scope)];
        let mut tenants: Vec<Tenant> = Vec::new();
        for step in steps {
            let alive: Vec<usize> =
                (0..tenants.len()).filter(|i| !tenants[*i].is_retired).collect();
            let pick = |i: usize| alive.get(i).copied();
            match step {
                Step::Come if alive.len() < 6 => {
                    tenants.extend(Tenant::new(&scope, tenants.len() as u64));
                }
                // Also of one that is leaving: its tasks may still bring something.
                Step::Store(i) => pick(i).into_iter().for_each(|i| tenants[i].store(&scope)),
                Step::Unlist(i) => {
                    if let Some(i) = pick(i).filter(|i| tenants[*i].is_listed) {
                        scope.unlist(tenants[i].slot);
                        tenants[i].is_listed = false;
                    }
                }
                Step::Retire(i) => {
                    if let Some(i) = pick(i).filter(|i| !tenants[*i].is_listed) {
                        scope.retire(tenants[i].slot);
                        tenants[i].is_retired = true;
                    }
                }
                Step::Push { gateway, most, arrives, is_acked } => {
                    gateways[gateway].push(most, arrives, is_acked);
                }
                Step::Snapshot(gateway) => gateways[gateway].feed.begin_snapshot(),
                Step::Come => {}
            }
            for gateway in &gateways {
                for tenant in &tenants {
                    for key in &tenant.keys {
                        let holders = gateway.holders(*key, buckets);
                        let others = holders.iter().find(|address| **address != tenant.address);
                        prop_assert!(others.is_none(), "{:?} has {}'s", others, tenant.address);
                    }
                }
            }
        }
        for gateway in &mut gateways {
            gateway.drain();
            for tenant in &tenants {
                let expected = tenant.has_stored && tenant.is_listed;
                let expected: BTreeSet<String> =
                    expected.then(|| tenant.address.clone()).into_iter().collect();
                for key in &tenant.keys {
                    prop_assert_eq!(gateway.holders(*key, buckets), expected.clone());
                }
            }
        }
    }
}

#[test]
fn a_slot_is_used_again_when_every_gateway_has_acked_that_it_is_empty() {
    let (_folder, scope) = scope_of(2);
    let mut gateways = [Gateway::new(0, &scope), Gateway::new(1, &scope)];
    let mut first = Tenant::new(&scope, 0).unwrap();
    first.store(&scope);
    gateways.iter_mut().for_each(Gateway::drain);
    scope.unlist(first.slot);
    gateways.iter_mut().for_each(Gateway::drain);
    assert_eq!(scope.roster.only(|_| true), None);
    assert_eq!(Tenant::new(&scope, 1).unwrap().slot, 1, "not emptied yet");
    scope.retire(first.slot);
    assert_eq!(Tenant::new(&scope, 2).unwrap().slot, 2, "acked by none");
    gateways[0].drain();
    assert_eq!(Tenant::new(&scope, 3).unwrap().slot, 3, "acked by one");
    gateways[1].drain();
    scope.live().engines[0].rank = Some(7);
    assert_eq!(Tenant::new(&scope, 4).unwrap().slot, 0, "acked by both");
    assert_eq!(scope.live().indexes[0].1.held_blocks(0), 0);
}

#[tokio::test]
async fn a_task_that_was_under_way_cannot_reach_the_next_endpoint() {
    let (_folder, scope) = scope_of(1);
    let metrics = Metrics { interval_ms: 60_000, timeout_ms: 10, down_after_failures: 1 };
    let (sender, wanted) = watch_channel::channel(Wanted::new());
    let mut members = Members {
        pool: "pool".into(),
        scopes: vec![Arc::clone(&scope)],
        metrics: metrics.clone(),
        held: BTreeMap::new(),
        leaving: HashMap::new(),
        tasks: JoinSet::new(),
        wanted,
        shared: Arc::default(),
        eds: eds::Writer::new(&[], "pool"),
        follows: true,
    };
    let member =
        |id: &str| Member { id: id.into(), endpoint: endpoint("127.0.0.1:9"), is_ready: true };
    let tell = |id: &str| {
        sender.send_replace([("127.0.0.1:9".to_owned(), member(id))].into());
    };
    tell("one");
    members.reconcile();
    let slot = scope.roster.only(|_| true).unwrap();
    // As a task would that has taken its slot's lock when it is told to end.
    scope.update(slot, |engine| engine.counters.scrapes = 7);
    tell("two");
    members.reconcile();
    let next = scope.roster.only(|_| true).unwrap();
    assert_ne!(next, slot, "its tasks have not ended");
    assert_eq!(scope.live().engines[usize::from(slot)].counters.scrapes, 7);
    let leaving = members.leaving.len();
    assert!(leaving >= 2, "{leaving}");
    for _ in 0..leaving {
        let ended = members.tasks.join_next_with_id().await.unwrap();
        assert!(members.ended(ended));
    }
    assert_eq!(scope.live().engines[usize::from(slot)].counters.scrapes, 0, "emptied");
    assert_eq!(scope.live().retirements, 1);
    // One that ends although it was not told to is a failure of the daemon.
    let held = &members.held["127.0.0.1:9"];
    held.handles[0].abort();
    let ended = members.tasks.join_next_with_id().await.unwrap();
    assert!(!members.ended(ended));
}

#[tokio::test]
async fn a_file_that_is_not_accepted_changes_nothing() {
    let (_folder, scope) = scope_of(1);
    let (text, read) = watch_channel::channel(Err(String::new()));
    let (sender, mut wanted) = watch_channel::channel(Wanted::new());
    let shared = Arc::<Shared>::default();
    let models = vec![scope.model.clone()];
    let task = tokio::spawn(of_file("e.yaml".into(), models, read, sender, Arc::clone(&shared)));
    let list = |address: &str| Ok(format!("endpoints: [{{address: '{address}'}}]"));
    let _ = text.send_replace(list("10.0.0.1:8000"));
    wanted.changed().await.unwrap();
    assert_eq!(wanted.borrow().keys().collect::<Vec<_>>(), ["10.0.0.1:8000"]);
    let _ = text.send_replace(list("10.0.0.1"));
    while shared.record().error.is_none() {
        tokio::task::yield_now().await;
    }
    assert!(shared.record().error.as_ref().unwrap().contains("endpoints[0].address"));
    assert_eq!(wanted.borrow().len(), 1);
    let _ = text.send_replace(list("10.0.0.2:8000"));
    wanted.wait_for(|wanted| wanted.contains_key("10.0.0.2:8000")).await.unwrap();
    drop(text);
    task.await.unwrap();
    let record = shared.record();
    assert_eq!((record.failures, record.lists, record.found), (1, 2, 1));
    assert!(record.is_known && record.error.is_none());
}
