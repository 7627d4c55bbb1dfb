//! A chain in front of engines: what Envoy does with the rendered files, on one thread of wasm.
//!
//! The modules run on a thread of their own ([`actor`]), one callback at a time for all workers; a task
//! per stream ([`stream`]) carries it between client, modules and endpoint.

mod actor;
mod balance;
mod listen;
mod message;
mod stream;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::error::RunError;
use super::layout::Layout;
use super::routes::Routes;
use super::stand::{Modules, Stand, StandOptions};
use actor::Actor;
use balance::Balancer;
use listen::Listener;
use upload::Reader;

/// As in the rendered clusters.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What all streams share.
struct Shared {
    actor: Actor,
    routes: Arc<Routes>,
    balancer: Balancer,
    client: Client<HttpConnector, Reader>,
    streams: AtomicU64,
    /// Whether clients' routing headers are taken off, as the rendered listener does.
    strips: bool,
    /// Longest request body that is kept to be sent again, in bytes.
    replay_bytes: usize,
}

/// Which listener a stream came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Inference,
    Feed,
    Probe,
}

impl Shared {
    fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }
}

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(
    layout: Layout,
    address: SocketAddr,
    options: StandOptions,
) -> Result<(), RunError> {
    if layout.routes.is_empty() {
        let expected = "upstreams: at least one ip:port to send requests to";
        return Err(RunError::value(&layout.file, "upstreams", "nothing", expected));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let start_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let options = StandOptions { start_ns: Some(start_ns), ..options };
    let layout = Arc::new(layout);
    let stand = Stand::new(Arc::clone(&layout), &mut Modules::new()?, options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|reason| RunError::Listen { address: address.to_string(), reason })?;
    runtime.block_on(serve(layout, stand, address, options))
}

async fn serve(
    layout: Arc<Layout>,
    stand: Stand,
    address: SocketAddr,
    options: StandOptions,
) -> Result<(), RunError> {
    let mut listeners = vec![Listener::tcp(Kind::Inference, address).await?];
    if let Some(config) = &layout.own {
        let private =
            [(Kind::Feed, config.envoy.feed.clone()), (Kind::Probe, config.envoy.feed.probe())];
        for (kind, address) in private {
            listeners.push(Listener::private(kind, &address, config.envoy.feed_mode).await?);
        }
    }
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    let (actor, ended) = Actor::start(stand, options.workers)?;
    let shared = Arc::new(Shared {
        actor,
        routes: Arc::clone(&layout.routes),
        balancer: Balancer::default(),
        client: Client::builder(TokioExecutor::new()).build(connector),
        streams: AtomicU64::new(1),
        strips: layout.own.is_some(),
        replay_bytes: layout.buffer_limit_bytes,
    });
    for listener in &listeners {
        println!("listening for {} on {}", listener.purpose(), listener.address());
    }
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(listener.run(Arc::clone(&shared), options.workers));
    }
    tokio::select! {
        stopped = stop_signal() => stopped
            .map_err(|reason| RunError::Listen { address: address.to_string(), reason }),
        _ = ended => Err(RunError::Ended),
    }
}

async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Seconds since 1970, for log lines.
fn seconds() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}", now.as_secs(), now.subsec_millis())
}
