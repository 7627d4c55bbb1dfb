//! Which pool a request is routed to, by the rules of the rendered gateway.

use std::net::SocketAddr;

use wasm_host::{HeaderMap, Value};

use crate::config::Config;
use crate::render::POOL_HEADER;

/// Endpoints that requests are balanced over.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    /// Its name, which guests read as `xds.cluster_name`.
    pub(super) name: String,
    /// `ip:port` as a list of destinations names them, and the same parsed.
    pub(super) hosts: Vec<(String, SocketAddr)>,
    /// Further attempts after a failed one.
    pub(super) retries: u32,
}

/// One rule.
#[derive(Clone, Debug)]
struct Route {
    name: String,
    /// What paths begin with; what is put in its place.
    prefix: String,
    rewrite: Option<&'static str>,
    /// Value that the header of the pool must have.
    pool: Option<String>,
    cluster: usize,
}

/// The rules in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    routes: Vec<Route>,
    clusters: Vec<Cluster>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Routed<'r> {
    pub(super) cluster: &'r Cluster,
    prefix: &'r str,
    rewrite: Option<&'static str>,
}

impl Routed<'_> {
    /// The path that the endpoint gets.
    pub(super) fn path(&self, path: &str) -> String {
        match (self.rewrite, path.strip_prefix(self.prefix)) {
            (Some(rewrite), Some(rest)) => format!("{rewrite}{rest}"),
            _ => path.to_owned(),
        }
    }
}

impl Routes {
    /// Those that `render` writes: paths of a pool's own, the longest first, those that intake chooses
    /// by model, and the first pool for the rest.
    pub(super) fn of_config(config: &Config) -> Self {
        let clusters = config.pools.iter().map(|pool| Cluster {
            name: pool.name.clone(),
            hosts: pool.endpoints.iter().map(|e| (e.address.clone(), e.socket)).collect(),
            retries: config.routing.retries,
        });
        let pools = || config.pools.iter().enumerate();
        let mut prefixed: Vec<Route> = pools()
            .filter_map(|(cluster, pool)| {
                Some(Route {
                    name: pool.name.clone(),
                    prefix: format!("{}/", pool.route_prefix.as_deref()?),
                    rewrite: Some("/"),
                    pool: None,
                    cluster,
                })
            })
            .collect();
        prefixed.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
        let plain = |name: String, pool, cluster| Route {
            name,
            prefix: "/".to_owned(),
            rewrite: None,
            pool,
            cluster,
        };
        let by_model = pools().skip(1).map(|(cluster, pool)| {
            plain(format!("{}-by-model", pool.name), Some(pool.name.clone()), cluster)
        });
        let rest = pools().take(1).map(|(cluster, pool)| plain(pool.name.clone(), None, cluster));
        Self {
            routes: prefixed.into_iter().chain(by_model).chain(rest).collect(),
            clusters: clusters.collect(),
        }
    }

    /// One cluster for everything; none without hosts.
    pub(super) fn to_hosts(name: &str, hosts: Vec<(String, SocketAddr)>, retries: u32) -> Self {
        if hosts.is_empty() {
            return Self::default();
        }
        let route = Route {
            name: name.to_owned(),
            prefix: "/".to_owned(),
            rewrite: None,
            pool: None,
            cluster: 0,
        };
        let cluster = Cluster { name: name.to_owned(), hosts, retries };
        Self { routes: vec![route], clusters: vec![cluster] }
    }

    fn find(&self, headers: &HeaderMap) -> Option<&Route> {
        let path = headers.get_str(":path").unwrap_or("/");
        let pool = headers.get_str(POOL_HEADER);
        self.routes.iter().find(|route| {
            path.starts_with(&route.prefix)
                && (route.pool.is_none() || route.pool.as_deref() == pool)
        })
    }

    /// Where a request with these headers goes.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<Routed<'_>> {
        let route = self.find(headers)?;
        let cluster = self.clusters.get(route.cluster)?;
        Some(Routed { cluster, prefix: &route.prefix, rewrite: route.rewrite })
    }

    /// The same as guests read it.
    pub(super) fn attributes(&self, headers: &HeaderMap) -> Value {
        let mut attributes = Value::map();
        if let Some(route) = self.find(headers)
            && let Some(cluster) = self.clusters.get(route.cluster)
        {
            attributes.put(&["xds", "route_name"], route.name.as_str().into());
            attributes.put(&["xds", "cluster_name"], cluster.name.as_str().into());
        }
        attributes
    }

    /// The route of a probe: it has a name, and no cluster.
    pub(super) fn of_probe(&self, headers: &HeaderMap) -> Value {
        let mut attributes = Value::map();
        if let Some(pool) = headers.get_str(POOL_HEADER)
            && self.clusters.iter().any(|cluster| cluster.name == pool)
        {
            let name = format!("{}{pool}", feed::PROBE_ROUTE_PREFIX);
            attributes.put(&["xds", "route_name"], name.into());
        }
        attributes
    }

    /// Whether there is anywhere to go.
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}
