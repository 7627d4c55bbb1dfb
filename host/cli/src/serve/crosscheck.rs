//! Whether each gateway's proxy knows the endpoints that its filters are told of: what is picked and is in no
//! cluster is passed over by the proxy, and its own policy routes. Asked of Envoy's admin interface, where the
//! configuration names one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::time::MissedTickBehavior;

use super::scope::Scope;
use crate::config::{Config, Gateway};
use crate::modules;

/// Between two looks; what comes is a moment later in the one than in the other.
const INTERVAL: Duration = Duration::from_secs(5);

/// Ready endpoints that the gateway's cluster has not, by pool; pools whose cluster it has not are left out.
pub(crate) type Unknown = Arc<Mutex<BTreeMap<String, usize>>>;

/// One gateway's check.
pub(crate) struct Check {
    gateway: String,
    admin: SocketAddr,
    /// Names of each pool's cluster.
    clusters: BTreeMap<String, Vec<String>>,
    scopes: Vec<Arc<Scope>>,
    unknown: Unknown,
}

impl Check {
    /// Of a gateway whose admin interface is named.
    pub(crate) fn new(
        config: &Config,
        gateway: &Gateway,
        scopes: &[Arc<Scope>],
        unknown: &Unknown,
    ) -> Option<Self> {
        let of_istio = config.istio.iter().flat_map(|istio| &istio.pools);
        let of_istio: BTreeMap<&str, String> =
            of_istio.map(|pool| (pool.pool.as_str(), pool.cluster())).collect();
        let clusters = config.pools.iter().map(|pool| {
            let mut names = vec![pool.name.clone()];
            names.extend(of_istio.get(pool.name.as_str()).cloned());
            (pool.name.clone(), names)
        });
        Some(Self {
            gateway: gateway.name.clone(),
            admin: gateway.admin?,
            clusters: clusters.collect(),
            scopes: scopes.to_vec(),
            unknown: Arc::clone(unknown),
        })
    }

    /// Looks now and then.
    pub(crate) async fn run(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A gateway that is not there is told of elsewhere.
            let page = modules::clusters(self.admin).await.ok();
            let page = page.and_then(|page| serde_json::from_slice::<Value>(&page).ok());
            self.compare(page.as_ref());
        }
    }

    fn compare(&self, page: Option<&Value>) {
        let mut now = BTreeMap::new();
        for (pool, names) in &self.clusters {
            let Some(hosts) = page.and_then(|page| hosts(page, names)) else { continue };
            let mut count = 0;
            for scope in self.scopes.iter().filter(|scope| scope.pool == *pool) {
                let listed = scope.roster.listed();
                let live = scope.live();
                let is_ready = |slot: u16| {
                    live.engines.get(usize::from(slot)).is_some_and(|engine| engine.is_ready())
                };
                let unknown = listed.iter().filter(|(slot, endpoint)| {
                    is_ready(*slot) && !hosts.contains(&endpoint.socket)
                });
                count += unknown.count();
            }
            now.insert(pool.clone(), count);
        }
        let mut held = self.unknown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (pool, count) in now.iter().filter(|(_, count)| **count > 0) {
            if held.get(pool) != Some(count) {
                let gateway = &self.gateway;
                tracing::warn!(
                    gateway,
                    pool,
                    count,
                    "endpoints that the gateway's cluster has not"
                );
            }
        }
        *held = now;
    }
}

/// The hosts of the first of these clusters that there is.
fn hosts(page: &Value, names: &[String]) -> Option<BTreeSet<SocketAddr>> {
    let clusters = page["cluster_statuses"].as_array()?;
    let found = clusters.iter().find(|cluster| {
        cluster["name"].as_str().is_some_and(|name| names.iter().any(|known| known == name))
    })?;
    let hosts = found["host_statuses"].as_array().into_iter().flatten().filter_map(|host| {
        let address = &host["address"]["socket_address"];
        let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
        Some(SocketAddr::new(address["address"].as_str()?.parse().ok()?, port))
    });
    Some(hosts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of an Envoy 1.40, members left out.
    const PAGE: &str = r#"{"cluster_statuses": [
        {"name": "feed", "added_via_api": false},
        {"name": "pool", "host_statuses": [
            {"address": {"socket_address": {"address": "127.0.0.2", "port_value": 12000}},
             "health_status": {"eds_health_status": "HEALTHY"}, "weight": 1},
            {"address": {"socket_address": {"address": "fd00::1", "port_value": 80}}},
            {"address": {"pipe": {"path": "/x"}}}]},
        {"name": "empty"}]}"#;

    #[test]
    fn hosts_are_those_of_the_cluster() {
        let page: Value = serde_json::from_str(PAGE).unwrap();
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let found = hosts(&page, &names)?;
            Some(found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let expected = vec!["127.0.0.2:12000".to_owned(), "[fd00::1]:80".to_owned()];
        assert_eq!(of(&["other", "pool"]), Some(expected));
        assert_eq!((of(&["empty"]), of(&["other"])), (Some(vec![]), None));
    }
}
