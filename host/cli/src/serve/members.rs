//! Endpoints that come and go: what discovery finds becomes slots of scopes and tasks that follow them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use discovery::{Publisher, View};
use tokio::sync::watch as watch_channel;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::eds;
use super::scope::Scope;
use super::watch;
use crate::config::{Config, Discovery, Endpoint, Metrics, Source, listed};

/// How long a daemon that starts waits for the first answer, so that what it restores has a place.
const FIRST: Duration = Duration::from_secs(5);

/// One pool's discovery as the status pages see it.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) is_known: bool,
    pub(crate) error: Option<String>,
    pub(crate) found: usize,
    pub(crate) ready: usize,
    pub(crate) failures: u64,
    pub(crate) lists: u64,
}

/// Shared by a pool's members and the pages.
#[derive(Default)]
pub(crate) struct Shared {
    record: Mutex<Record>,
    pub(crate) came: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Shared {
    pub(crate) fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, as one with what is wanted of it: whoever sees the one sees the other.
    fn tell(&self, record: Record, wanted: &watch_channel::Sender<Wanted>, now: Wanted) {
        let mut held = self.record();
        *held = record;
        wanted.send_replace(now);
    }
}

/// What there should be, by address.
pub(crate) type Wanted = BTreeMap<String, Member>;

/// An endpoint as discovery tells of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) is_ready: bool,
}

struct Held {
    scope: usize,
    slot: u16,
    member: Member,
    handles: Vec<AbortHandle>,
}

/// What is to be done so that what is held is what is wanted.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Addresses that leave.
    pub(crate) leave: Vec<String>,
    /// Addresses that come; all are ready.
    pub(crate) come: Vec<String>,
    /// Addresses whose endpoint stays, and is told of otherwise.
    pub(crate) change: Vec<String>,
}

/// Who leaves, who comes, and who is told of otherwise. An endpoint that was never ready is not there yet: what
/// starts has nothing to follow. One that is ready no more stays, as it may be again, with all it holds.
pub(crate) fn plan<'h>(
    held: impl Iterator<Item = (&'h String, &'h Member)>,
    wanted: &Wanted,
) -> Plan {
    let held: BTreeMap<&String, &Member> = held.collect();
    let mut plan = Plan::default();
    for (address, member) in &held {
        match wanted.get(*address) {
            Some(now) if is_same(member, now) => {
                if *member != now {
                    plan.change.push((*address).clone());
                }
            }
            _ => plan.leave.push((*address).clone()),
        }
    }
    for (address, member) in wanted.iter().filter(|(_, member)| member.is_ready) {
        if !held.get(address).is_some_and(|held| is_same(held, member)) {
            plan.come.push(address.clone());
        }
    }
    plan
}

/// Whether one endpoint is the other, perhaps with other labels.
fn is_same(a: &Member, b: &Member) -> bool {
    let followed = |member: &Member| Endpoint {
        labels: BTreeMap::new(),
        attributes: BTreeMap::new(),
        ..member.endpoint.clone()
    };
    a.id == b.id && followed(a) == followed(b)
}

/// The endpoints of a discovered pool.
pub(crate) struct Members {
    pool: String,
    /// The pool's, one per model.
    scopes: Vec<Arc<Scope>>,
    metrics: Metrics,
    held: BTreeMap<String, Held>,
    /// Tasks that are ending, with how many of them their slot still waits for.
    leaving: HashMap<Id, Arc<Leaving>>,
    tasks: JoinSet<()>,
    wanted: watch_channel::Receiver<Wanted>,
    shared: Arc<Shared>,
    eds: eds::Writer,
    /// Whether endpoints that come are followed, as they are once everything is restored.
    follows: bool,
}

struct Leaving {
    scope: usize,
    slot: u16,
    tasks: AtomicU64,
}

impl Members {
    /// Starts discovering for every pool that is discovered, and takes in what is known within a moment.
    pub(crate) async fn start_all(
        config: &Config,
        scopes: &[Arc<Scope>],
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        for (number, pool) in config.pools.iter().enumerate() {
            let Some(found) = &pool.discovery else { continue };
            let of_pool = scopes.iter().filter(|scope| scope.pool == pool.name);
            let shared = Arc::<Shared>::default();
            let wanted = discover(config, number, found, &shared, tasks)
                .with_context(|| format!("pools[{number}].discovery"))?;
            all.push(Self {
                pool: pool.name.clone(),
                scopes: of_pool.cloned().collect(),
                metrics: config.metrics.clone(),
                held: BTreeMap::new(),
                leaving: HashMap::new(),
                tasks: JoinSet::new(),
                wanted,
                shared,
                eds: eds::Writer::new(&config.gateways, &pool.name),
                follows: false,
            });
        }
        let until = tokio::time::Instant::now() + FIRST;
        for members in &mut all {
            let is_told = async {
                // Without a teller there is nothing to wait for; the task that died says so.
                while !members.shared.record().is_known && members.wanted.changed().await.is_ok() {}
            };
            if tokio::time::timeout_at(until, is_told).await.is_err() {
                tracing::warn!(pool = members.pool, "no endpoints are known yet");
            }
            members.reconcile();
        }
        Ok(all)
    }

    pub(crate) fn shared(&self) -> (String, Arc<Shared>) {
        (self.pool.clone(), Arc::clone(&self.shared))
    }

    /// Follows what there is, and what comes. Ends only with a task that dies.
    pub(crate) async fn run(mut self) {
        self.follows = true;
        for held in self.held.values_mut() {
            let scope = &self.scopes[held.scope];
            held.handles = watch::follow(scope, held.slot, &self.metrics, false, &mut self.tasks);
        }
        self.reconcile();
        loop {
            tokio::select! {
                told = self.wanted.changed() => match told {
                    Ok(()) => self.reconcile(),
                    Err(_) => return,
                },
                Some(ended) = self.tasks.join_next_with_id() => {
                    if !self.ended(ended) {
                        return;
                    }
                }
            }
        }
    }

    fn reconcile(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let plan = plan(self.held.iter().map(|(address, held)| (address, &held.member)), &wanted);
        for address in &plan.leave {
            self.leave(address);
        }
        for address in &plan.change {
            if let (Some(held), Some(now)) = (self.held.get_mut(address), wanted.get(address)) {
                let scope = &self.scopes[held.scope];
                if held.member.endpoint != now.endpoint {
                    scope.relabel(held.slot, now.endpoint.clone());
                }
                if held.member.is_ready != now.is_ready {
                    tracing::info!(
                        pool = self.pool,
                        endpoint = address,
                        ready = now.is_ready,
                        "endpoint"
                    );
                    scope.update(held.slot, |engine| engine.is_withdrawn = !now.is_ready);
                }
                held.member = now.clone();
            }
        }
        for address in plan.come {
            if let Some(member) = wanted.get(&address) {
                self.come(address, member.clone());
            }
        }
        // The proxy is told after the gateway's filters could be, and of what is ready only.
        let ready = self.held.values().filter(|held| held.member.is_ready);
        self.eds.write(ready.map(|held| held.member.endpoint.socket).collect());
    }

    fn come(&mut self, address: String, member: Member) {
        let found = self.scopes.iter().position(|s| s.model.name == member.endpoint.model);
        let Some((number, scope)) = found.and_then(|n| Some((n, self.scopes.get(n)?))) else {
            return;
        };
        let Some(slot) = scope.add(member.endpoint.clone()) else {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            tracing::error!(pool = self.pool, endpoint = address, "no room for one more endpoint");
            return;
        };
        tracing::info!(pool = self.pool, endpoint = address, id = member.id, "endpoint has come");
        self.shared.came.fetch_add(1, Ordering::Relaxed);
        let handles = if self.follows {
            watch::follow(scope, slot, &self.metrics, false, &mut self.tasks)
        } else {
            Vec::new()
        };
        self.held.insert(address, Held { scope: number, slot, member, handles });
    }

    fn leave(&mut self, address: &str) {
        let Some(held) = self.held.remove(address) else { return };
        tracing::info!(
            pool = self.pool,
            endpoint = address,
            id = held.member.id,
            "endpoint has left"
        );
        self.shared.left.fetch_add(1, Ordering::Relaxed);
        let scope = &self.scopes[held.scope];
        scope.unlist(held.slot);
        if held.handles.is_empty() {
            scope.retire(held.slot);
            return;
        }
        let tasks = AtomicU64::new(held.handles.len() as u64);
        let leaving = Arc::new(Leaving { scope: held.scope, slot: held.slot, tasks });
        for handle in &held.handles {
            self.leaving.insert(handle.id(), Arc::clone(&leaving));
            handle.abort();
        }
    }

    /// A task has ended; whether it was to. The slot is emptied after the last of its tasks: one that was under
    /// way when it was told to end still finished what it did.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) -> bool {
        let (id, error) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error).filter(|error| !error.is_cancelled())),
        };
        let Some(leaving) = self.leaving.remove(&id) else {
            tracing::error!(pool = self.pool, ?error, "a task of an endpoint ended by itself");
            return false;
        };
        if leaving.tasks.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.scopes[leaving.scope].retire(leaving.slot);
        }
        true
    }
}

/// Starts a pool's discovery.
fn discover(
    config: &Config,
    number: usize,
    found: &Discovery,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<watch_channel::Receiver<Wanted>> {
    let (wanted, receiver) = watch_channel::channel(Wanted::new());
    match &found.source {
        Source::File(file) => {
            let (sender, text) = watch_channel::channel(Err(String::new()));
            tasks.spawn(discovery::follow_file(file.clone(), sender));
            let models = config.pools[number].models.clone();
            tasks.spawn(of_file(file.path.clone(), models, text, wanted, Arc::clone(shared)));
        }
        Source::Dns(dns) => {
            let (publisher, views) = Publisher::new();
            tasks.spawn(discovery::dns::follow(dns.clone(), publisher));
            tasks.spawn(of_views(config, found, views, wanted, Arc::clone(shared)));
        }
        Source::Kubernetes(kubernetes) => {
            let (publisher, views) = Publisher::new();
            in_kubernetes(kubernetes, publisher, tasks)?;
            tasks.spawn(of_views(config, found, views, wanted, Arc::clone(shared)));
        }
    }
    Ok(receiver)
}

#[cfg(not(feature = "kubernetes"))]
fn in_kubernetes(
    kubernetes: &crate::config::Kubernetes,
    _publisher: Publisher,
    _tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    anyhow::bail!("{}: this build cannot ask an API server", kubernetes.key)
}

#[cfg(feature = "kubernetes")]
fn in_kubernetes(
    kubernetes: &crate::config::Kubernetes,
    publisher: Publisher,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let config = super::in_pod::resolve(kubernetes)?;
    tasks.spawn(async move {
        if let Err(error) = discovery::kubernetes::follow(config, publisher).await {
            tracing::error!(%error, "discovery in Kubernetes");
        }
    });
    Ok(())
}

/// Translates what is found into endpoints.
fn of_views(
    config: &Config,
    found: &Discovery,
    mut views: watch_channel::Receiver<View>,
    wanted: watch_channel::Sender<Wanted>,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> + use<> {
    let (template, labels) = (found.template.clone(), config.routing.needs.labels.clone());
    async move {
        loop {
            let view = views.borrow_and_update().clone();
            let now = view.endpoints.iter().map(|(socket, found)| {
                let endpoint = template.endpoint(*socket, found, &labels);
                let member = Member { id: found.id.clone(), endpoint, is_ready: found.is_ready };
                (member.endpoint.address.clone(), member)
            });
            let now: Wanted = now.collect();
            let record = Record {
                is_known: view.is_known,
                error: view.error,
                found: now.len(),
                ready: now.values().filter(|member| member.is_ready).count(),
                failures: view.failures,
                lists: view.lists,
            };
            shared.tell(record, &wanted, now);
            if views.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Translates a file into endpoints; one that is not accepted changes nothing.
async fn of_file(
    path: std::path::PathBuf,
    models: Vec<crate::config::Model>,
    mut text: watch_channel::Receiver<Result<String, String>>,
    wanted: watch_channel::Sender<Wanted>,
    shared: Arc<Shared>,
) {
    while text.changed().await.is_ok() {
        let read = text.borrow_and_update().clone();
        let endpoints =
            read.and_then(|text| listed(&path, &text, &models).map_err(|error| error.to_string()));
        match endpoints {
            Ok(endpoints) => {
                let members = endpoints.into_iter().map(|endpoint| {
                    let member = Member { id: String::new(), endpoint, is_ready: true };
                    (member.endpoint.address.clone(), member)
                });
                let now: Wanted = members.collect();
                let (failures, lists) = {
                    let record = shared.record();
                    (record.failures, record.lists + 1)
                };
                let record = Record {
                    is_known: true,
                    error: None,
                    found: now.len(),
                    ready: now.len(),
                    failures,
                    lists,
                };
                shared.tell(record, &wanted, now);
            }
            Err(error) => {
                tracing::warn!(error, "discovery in a file: the endpoints stay as they are");
                let mut record = shared.record();
                record.failures += 1;
                record.error = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests;
