//! The pools of a listener: which of them serves a request's model.

use feed::{Directory, DirectoryEntry};
use hostcalls::Host;
use serde::Deserialize;

use crate::probe;

/// Header by which a route of a pool is chosen. Set by intake alone: the proxy takes a client's own
/// off before its filters run, and intake's before the request leaves.
pub const POOL_HEADER: &str = "x-wasm-epp-pool";

/// A pool, and the names by which its models may be asked for.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolConfig {
    /// Its name, which is its cluster's too unless `cluster` says otherwise.
    pub name: String,
    /// Its cluster, where somebody else names clusters.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Its models; only needed where there are several pools.
    #[serde(default)]
    pub models: Vec<ModelNames>,
}

/// The names of one model.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelNames {
    /// The canonical one.
    pub name: String,
    /// Others that requests may use.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// LoRA adapters that are known without events.
    #[serde(default)]
    pub adapters: Vec<String>,
}

/// Pools in the order of the configuration file.
pub struct Pools {
    names: Vec<String>,
    /// Clusters of the pools, in the same order.
    clusters: Vec<String>,
    /// Pool of the routes whose requests go by their model; those of other routes stay.
    by_model: Option<String>,
    /// The names that the configuration gives: they hold also when no daemon has fed the gateway.
    configured: Directory,
}

impl Pools {
    /// Pools of a listener; `by_model` is that of the routes whose requests go by their model.
    pub fn new(pools: Vec<PoolConfig>, by_model: Option<String>) -> Self {
        let names = pools.iter().map(|pool| pool.name.clone()).collect();
        let cluster = |pool: &PoolConfig| pool.cluster.as_ref().unwrap_or(&pool.name).clone();
        let clusters = pools.iter().map(cluster).collect();
        let entries = pools.into_iter().flat_map(|PoolConfig { name: pool, models, .. }| {
            models.into_iter().map(move |model| DirectoryEntry {
                pool: pool.clone(),
                model: model.name,
                aliases: model.aliases,
                adapters: model.adapters,
                ..DirectoryEntry::default()
            })
        });
        let configured = Directory { entries: entries.collect(), ..Directory::default() };
        Self { names, clusters, by_model, configured }
    }

    /// The pool of the request's route, and whether the request is a probe.
    pub fn of_route(&self, host: &impl Host) -> Option<(&str, bool)> {
        let cluster = host.property(&["xds", "cluster_name"]).ok().flatten();
        let (said, list, is_probe) = match cluster {
            Some(name) => (name, &self.clusters, false),
            None => (probe::pool(host)?.into_bytes(), &self.names, true),
        };
        let place = list.iter().position(|name| name.as_bytes() == said)?;
        Some((self.names.get(place)?, is_probe))
    }

    /// Whether requests of this pool's route may belong to another pool.
    pub fn goes_by_model(&self, own: &str) -> bool {
        self.by_model.as_deref() == Some(own)
    }

    /// The pool that `model` is asked of, for a request of the route of `own`: that one if it serves
    /// the model or nobody does, else the first that does. `pushed` is what the daemon said last: it
    /// also knows the adapters that engines have loaded.
    pub fn of_model<'a>(&'a self, own: &'a str, model: &str, pushed: &Directory) -> &'a str {
        let serves = |pool: &str| {
            let knows = |directory: &Directory| directory.find(pool, model).is_some();
            knows(pushed) || knows(&self.configured)
        };
        if !self.goes_by_model(own) || serves(own) {
            return own;
        }
        let mut others = self.names.iter().filter(|name| *name != own);
        others.find(|name| serves(name)).map_or(own, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(by_model: Option<&str>) -> Pools {
        let json = r#"[
            {"name": "a", "models": [{"name": "m", "aliases": ["m-latest"], "adapters": ["sql"]}]},
            {"name": "b", "models": [{"name": "n", "adapters": ["both", "sql"]},
                                     {"name": "o", "adapters": ["both"]}]},
            {"name": "c", "models": [{"name": "n"}, {"name": "m"}, {"name": "p"}]}
        ]"#;
        Pools::new(serde_json::from_str(json).unwrap(), by_model.map(str::to_owned))
    }

    #[test]
    fn a_model_is_asked_of_the_routes_own_pool_else_of_the_first_that_serves_it() {
        let pools = pools(Some("a"));
        let check = |model: &str, expected: &str| {
            assert_eq!(pools.of_model("a", model, &Directory::default()), expected, "{model}");
        };
        check("m", "a");
        check("m-latest", "a");
        check("sql", "a");
        check("m:sql", "a");
        check("n", "b");
        check("n:sql", "b");
        check("p", "c");
        check("nobody's", "a");
        check("", "a");
        // Which of the two models of b is meant is not said, so b does not serve it.
        check("both", "a");
        check("o:both", "b");
    }

    #[test]
    fn requests_of_another_route_stay_where_they_are() {
        for by_model in [Some("a"), None] {
            assert_eq!(pools(by_model).of_model("b", "m", &Directory::default()), "b");
            assert_eq!(pools(by_model).of_model("c", "nobody's", &Directory::default()), "c");
        }
        assert_eq!(pools(None).of_model("a", "n", &Directory::default()), "a");
    }

    #[test]
    fn the_daemon_adds_names_and_takes_none() {
        let entry = |pool: &str, model: &str, adapters: &[&str]| DirectoryEntry {
            pool: pool.into(),
            model: model.into(),
            adapters: adapters.iter().map(|name| (*name).to_owned()).collect(),
            ..DirectoryEntry::default()
        };
        let entries = vec![entry("b", "n", &["poems"]), entry("x", "elsewhere", &[])];
        let pushed = Directory { entries, ..Directory::default() };
        let pools = pools(Some("a"));
        let check = |model: &str, expected: &str| {
            assert_eq!(pools.of_model("a", model, &pushed), expected, "{model}");
        };
        check("poems", "b");
        check("n:poems", "b");
        check("p", "c");
        check("m", "a");
        check("elsewhere", "a");
    }
}
