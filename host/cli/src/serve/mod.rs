//! The daemon: follows engines' KV events and metrics, feeds gateways.
//!
//! One task per engine and purpose, one per gateway; what they share is a `Scope` per
//! (pool, model). Tasks never wait for a gateway while they hold a scope.

mod accuracy;
pub(crate) mod admin;
mod apply;
mod canonicality;
pub(crate) mod carried;
mod crosscheck;
mod details;
mod eds;
pub(crate) mod gateway;
pub(crate) mod in_flight;
#[cfg(feature = "kubernetes")]
mod in_pod;
mod lag;
mod members;
pub(crate) mod page;
mod reach;
mod revival;
mod roster;
pub(crate) mod scope;
mod seed;
mod snapshot;
pub(crate) mod spec;
mod verify;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feed_push::{Pusher, PusherConfig, Target};
use tokio::sync::{Notify, watch as watch_channel};
use tokio::task::JoinSet;

use crate::config::{Config, FeedAddress};
use gateway::GatewayFeed;
use in_flight::{InFlight, POLL};
use members::Members;
use scope::Scope;
pub use snapshot::PeerAddress;

/// What the daemon's tasks share.
pub(crate) struct Daemon {
    pub(crate) scopes: Vec<Arc<Scope>>,
    pub(crate) gateways: Vec<GatewayHandle>,
    /// Of the listener for engines that connect, if there is one.
    pub(crate) listener: Option<Arc<watch::ListenerCounts>>,
    pub(crate) snapshots: Arc<snapshot::Record>,
    /// Engines whose events come by a carrier.
    pub(crate) carried: carried::Carried,
    /// Discovered pools by name.
    pub(crate) discovered: Vec<(String, Arc<members::Shared>)>,
}

/// One gateway as the status pages see it.
pub(crate) struct GatewayHandle {
    pub(crate) name: String,
    pub(crate) status: Arc<std::sync::Mutex<feed_push::GatewayStatus>>,
    pub(crate) lag: lag::SharedLag,
    /// Whether its files are here.
    pub(crate) can_revive: bool,
    pub(crate) vms: revival::SharedVms,
    /// Endpoints that its proxy does not know.
    pub(crate) unknown: crosscheck::Unknown,
}

/// Longest wait for the last pushes when stopping.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop (SIGTERM, SIGINT). It starts from what `peers` know, if
/// they answer, then from its own snapshot, then from what engines replay.
///
/// # Errors
/// When a model folder or seed cannot be read, the admin address cannot be bound, or a task dies.
pub async fn run(config: Config, peers: Vec<PeerAddress>) -> anyhow::Result<()> {
    let wakers: Vec<Arc<Notify>> = config.gateways.iter().map(|_| Arc::default()).collect();
    let scopes = scope::load(&config, &wakers)?;
    let snapshots = Arc::new(snapshot::Record::default());
    let mut tasks = JoinSet::new();
    let members = Members::start_all(&config, &scopes, &mut tasks).await?;
    // Before anything is followed or fed: sources go on from what is restored.
    tokio::task::block_in_place(|| snapshot::restore_all(&config, &scopes, &peers, &snapshots));
    let in_flight = Arc::new(InFlight::new(&wakers));
    // A lone gateway knows what it has in flight, and its heartbeats tell the status pages.
    let poll = if in_flight.is_shared() { POLL } else { Duration::MAX };
    let (stop, stopped) = watch_channel::channel(false);
    let (aside, set_aside) = watch_channel::channel(false);
    let mut pushers = JoinSet::new();
    let (mut gateways, mut revivals) = (Vec::new(), Vec::new());
    for (number, (gateway, changed)) in config.gateways.iter().zip(&wakers).enumerate() {
        let feed = GatewayFeed::new(number, &scopes, &in_flight);
        let lag = feed.lag();
        let pusher = Pusher::new(
            PusherConfig {
                name: gateway.name.clone(),
                target: target(&gateway.feed),
                changed: Arc::clone(changed),
                poll,
                aside: set_aside.clone(),
                stop: stopped.clone(),
            },
            feed,
        );
        let (name, status) = (gateway.name.clone(), pusher.status());
        let revival = revival::Revival::new(gateway, &config.routing, &status);
        let (can_revive, vms) = (gateway.resources.is_some(), revival.vms());
        revivals.push(revival);
        let unknown = crosscheck::Unknown::default();
        if let Some(check) = crosscheck::Check::new(&config, gateway, &scopes, &unknown) {
            tasks.spawn(check.run());
        }
        gateways.push(GatewayHandle { name, status, lag, can_revive, vms, unknown });
        pushers.spawn(pusher.run());
    }
    for scope in &scopes {
        scope.start_checks();
    }
    let listener = config.kv_events_listen.as_ref().map(|_| Arc::default());
    tasks.spawn(reach::watch(scopes.clone(), config.metrics.down_after_failures, aside));
    let carried = match &config.carrier {
        Some(carrier) => carried::start(carrier, &scopes, &mut tasks)?,
        None => carried::Carried::default(),
    };
    let discovered = members.iter().map(Members::shared).collect();
    let daemon = Arc::new(Daemon { scopes, gateways, listener, snapshots, carried, discovered });
    revivals.into_iter().for_each(|revival| {
        tasks.spawn(revival.run());
    });
    for scope in &daemon.scopes {
        watch::start(scope, &config.metrics, config.carrier.is_some(), &mut tasks);
    }
    members.into_iter().for_each(|members| {
        tasks.spawn(members.run());
    });
    if let (Some(endpoint), Some(counts)) = (&config.kv_events_listen, &daemon.listener) {
        watch::listen(&daemon.scopes, endpoint, counts, &mut tasks).await?;
    }
    let disk = config.snapshot.as_ref().map(|kept| {
        let disk = snapshot::Disk::new(&config.data_dir, &daemon.scopes, &daemon.snapshots);
        tasks.spawn(Arc::clone(&disk).run(kept.interval));
        disk
    });
    let listener = tokio::net::TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("admin: bind {}", config.admin))?;
    tracing::info!(address = %listener.local_addr()?, "admin is listening");
    let app = admin::app(Arc::clone(&daemon));
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "admin ended");
        }
    });

    let outcome = tokio::select! {
        signal = stop_signal() => signal.map(|name| tracing::info!(signal = name, "stopping")),
        Some(ended) = tasks.join_next() => Err(died(ended)),
        Some(ended) = pushers.join_next() => Err(died(ended)),
    };
    stop.send_replace(true);
    let drain = async { while pushers.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, drain).await.is_err() {
        tracing::warn!("a gateway did not take the last push in time");
    }
    tasks.shutdown().await;
    if let Some(disk) = disk {
        disk.write_apart().await;
    }
    outcome
}

pub(crate) fn died(ended: Result<(), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("a task of the daemon ended by itself"),
        Err(error) => anyhow::Error::new(error).context("a task of the daemon died"),
    }
}

fn target(feed: &FeedAddress) -> Target {
    match feed {
        FeedAddress::Unix(path) => Target::Unix(path.clone()),
        FeedAddress::Http(address) => Target::Tcp(address.to_string()),
        FeedAddress::Https(address) => Target::Tls(address.target()),
    }
}

pub(crate) async fn stop_signal() -> anyhow::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
