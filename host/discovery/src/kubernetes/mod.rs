//! Endpoints in Kubernetes: the pods of an InferencePool or of labels, or a service's endpoint slices, in one
//! namespace. Needs `get`, `list` and `watch` on those, and nothing else.

mod client;
mod objects;
mod reconcile;
mod reflector;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

pub use client::{ClientError, Server};
pub use reflector::Timing;

use crate::view::Publisher;
use client::Client;
use objects::{EndpointSlice, InferencePool, Pod};
use reflector::{Reflector, Resource, encoded};
use store::Store;

/// Most ports of a pod, as InferencePool has it.
pub const MAX_TARGET_PORTS: usize = 8;

/// What is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Who is asked.
    pub server: Server,
    /// The namespace of everything.
    pub namespace: String,
    /// Which endpoints.
    pub of: EndpointsOf,
    /// Waits after failures.
    pub timing: Timing,
}

/// Where endpoints are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointsOf {
    /// The pods that an InferencePool (`inference.networking.k8s.io/v1`) selects, by its ports.
    InferencePool(String),
    /// The pods with these labels, each with each of the ports.
    Pods(PodsConfig),
    /// The endpoint slices of a service: for those who may not read pods. They have no labels.
    Service {
        /// Its name.
        name: String,
        /// Ports; the slices' own if there are none.
        ports: Vec<u16>,
    },
}

/// Pods by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodsConfig {
    /// All of which a pod has.
    pub labels: BTreeMap<String, String>,
    /// Each an endpoint of its own.
    pub ports: Vec<u16>,
}

/// Follows the endpoints. Never ends but for a configuration that cannot be used.
///
/// # Errors
/// When the server's URL is none.
pub async fn follow(config: KubernetesConfig, publisher: Publisher) -> Result<(), ClientError> {
    let follower = Follower {
        client: Arc::new(Client::new(config.server)?),
        namespace: config.namespace,
        timing: config.timing,
        publisher,
    };
    match config.of {
        EndpointsOf::InferencePool(name) => follower.inference_pool(&name).await,
        EndpointsOf::Pods(wanted) => follower.pods(&wanted).await,
        EndpointsOf::Service { name, ports } => follower.service(&name, &ports).await,
    }
    Ok(())
}

struct Follower {
    client: Arc<Client>,
    namespace: String,
    timing: Timing,
    publisher: Publisher,
}

impl Follower {
    fn reflector<T: objects::Object>(
        &self,
        api: &str,
        kind: &str,
        selector: String,
    ) -> Reflector<T> {
        let path = format!("{api}/namespaces/{}/{kind}", encoded(&self.namespace));
        Reflector::new(Arc::clone(&self.client), Resource { path, selector }, self.timing)
    }

    async fn pods(&self, wanted: &PodsConfig) {
        let labels: Vec<String> =
            wanted.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let selector = format!("labelSelector={}", encoded(&labels.join(",")));
        let changed = |pods: &Store<Pod>| {
            self.publisher.set(reconcile::pods(pods.iter(), &wanted.ports));
        };
        self.reflector("/api/v1", "pods", selector).run(&self.publisher, changed).await;
    }

    async fn service(&self, name: &str, ports: &[u16]) {
        let label = format!("kubernetes.io/service-name={name}");
        let selector = format!("labelSelector={}", encoded(&label));
        let changed = |slices: &Store<EndpointSlice>| {
            self.publisher.set(reconcile::slices(slices.iter(), ports));
        };
        self.reflector("/apis/discovery.k8s.io/v1", "endpointslices", selector)
            .run(&self.publisher, changed)
            .await;
    }

    /// The pods of the pool as it is now. Where there is no such pool there are no endpoints.
    async fn inference_pool(&self, name: &str) {
        let (sender, mut pools) = watch::channel(None::<Option<PodsConfig>>);
        let selector = format!("fieldSelector={}", encoded(&format!("metadata.name={name}")));
        let reflector: Reflector<InferencePool> =
            self.reflector("/apis/inference.networking.k8s.io/v1", "inferencepools", selector);
        let pool = reflector.run(&self.publisher, |found| {
            let now = found.get(name).and_then(wanted);
            sender.send_if_modified(|held| {
                let is_new = held.as_ref() != Some(&now);
                *held = Some(now);
                is_new
            });
        });
        let pods = async {
            loop {
                let now = pools.borrow_and_update().clone();
                let follow = async {
                    match &now {
                        Some(Some(wanted)) => return self.pods(wanted).await,
                        Some(None) => self.publisher.set(BTreeMap::new()),
                        None => {}
                    }
                    std::future::pending().await
                };
                tokio::select! {
                    () = follow => {}
                    _ = pools.changed() => {}
                }
            }
        };
        tokio::join!(pool, pods);
    }
}

/// Which pods a pool selects. One that selects by nothing selects nothing, as in its definition: as labels to
/// list by, that would be all pods.
fn wanted(pool: &InferencePool) -> Option<PodsConfig> {
    let labels = pool.spec.selector.match_labels.clone();
    let ports = pool.spec.target_ports.iter().map(|port| port.number).take(MAX_TARGET_PORTS);
    (!labels.is_empty()).then(|| PodsConfig { labels, ports: ports.collect() })
}
