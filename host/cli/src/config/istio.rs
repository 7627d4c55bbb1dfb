//! What `render --gateway istio` needs to know of the cluster.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::Deserialize;

use super::Pool;
use super::check::{filled, unique, within};
use super::error::Refused;

/// Where the gateway's pods have the modules, unless the configuration says otherwise.
pub const MODULES_PATH: &str = "/var/lib/wasm-epp/modules";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawIstio {
    namespace: String,
    selector: BTreeMap<String, String>,
    port: i64,
    service_port: Option<i64>,
    modules_path: Option<String>,
    pools: Vec<RawIstioPool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawIstioPool {
    pool: String,
    service: String,
    port: i64,
    pool_cluster: Option<String>,
    virtual_host: Option<String>,
    route: Option<String>,
}

/// The gateway whose configuration is patched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Istio {
    /// Namespace of the gateway's pods, in which the patches take effect.
    pub namespace: String,
    /// Labels of the gateway's pods; at least one.
    pub selector: BTreeMap<String, String>,
    /// Port of the inference listener in the pod.
    pub port: u16,
    /// Port of the gateway's service that leads to it, by which routes are found.
    pub service_port: u16,
    /// Folder of the modules in the pod, absolute.
    pub modules_path: PathBuf,
    /// One for each pool, in the order of `pools`.
    pub pools: Vec<IstioPool>,
}

/// A pool's cluster and routes as Istio names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioPool {
    /// Name of the pool.
    pub pool: String,
    /// Host name of the service, fully qualified.
    pub service: String,
    /// Port of the service.
    pub port: u16,
    /// Who made the cluster.
    pub kind: PoolCluster,
    /// Only routes of this virtual host (`HOST:PORT`); of all if none.
    pub virtual_host: Option<String>,
    /// Only routes of this name; all that lead to a cluster if none.
    pub route: Option<String>,
}

impl IstioPool {
    /// Name of the cluster that Istio makes of the service's port.
    pub fn cluster(&self) -> String {
        format!("outbound|{}||{}", self.port, self.service)
    }
}

/// What Istio made a pool's cluster of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolCluster {
    /// A service: the cluster is given our policy of balancing.
    Service,
    /// An InferencePool: the cluster follows the metadata that an endpoint picker would set.
    InferencePool,
}

impl PoolCluster {
    const NAMES: [(&'static str, PoolCluster); 2] =
        [("service", Self::Service), ("inference-pool", Self::InferencePool)];
}

pub(super) fn check(raw: RawIstio, pools: &[Pool]) -> Result<Istio, Refused> {
    let port = within("istio.port", raw.port, 1, 65_535)?;
    let service_port = match raw.service_port {
        None => port,
        Some(port) => within("istio.servicePort", port, 1, 65_535)?,
    };
    Ok(Istio {
        namespace: dns_label("istio.namespace", raw.namespace)?,
        selector: selector("istio.selector", raw.selector)?,
        port,
        service_port,
        modules_path: absolute(
            "istio.modulesPath",
            raw.modules_path.unwrap_or_else(|| MODULES_PATH.to_owned()),
        )?,
        pools: all_pools(raw.pools, pools)?,
    })
}

fn all_pools(raw: Vec<RawIstioPool>, pools: &[Pool]) -> Result<Vec<IstioPool>, Refused> {
    let mut seen = HashSet::new();
    let mut named = BTreeMap::new();
    for (i, raw) in raw.into_iter().enumerate() {
        let key = format!("istio.pools[{i}]");
        unique(&format!("{key}.pool"), &raw.pool, &mut seen)?;
        if !pools.iter().any(|pool| pool.name == raw.pool) {
            return Err(Refused::new(format!("{key}.pool"), raw.pool, "the name of a pool"));
        }
        let pool = pool(&key, raw)?;
        named.insert(pool.pool.clone(), pool);
    }
    pools
        .iter()
        .map(|pool| {
            // A pool that had no routes would be fed and never asked.
            if let Some(prefix) = &pool.route_prefix {
                let expected = "nothing with istio: the paths of a pool are those of its HTTPRoute";
                return Err(Refused::new(
                    format!("routePrefix of {}", pool.name),
                    prefix,
                    expected,
                ));
            }
            named.remove(&pool.name).ok_or_else(|| Refused {
                key: "istio.pools".into(),
                value: format!("nothing for the pool {}", pool.name),
                expected: "an entry for each pool".into(),
            })
        })
        .collect()
}

fn pool(key: &str, raw: RawIstioPool) -> Result<IstioPool, Refused> {
    let kind = match raw.pool_cluster.as_deref() {
        None => PoolCluster::Service,
        Some(name) => match PoolCluster::NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, kind)) => *kind,
            None => {
                let expected = "service or inference-pool";
                return Err(Refused::new(format!("{key}.poolCluster"), name, expected));
            }
        },
    };
    let part = |name: &str, value: Option<String>| {
        value.map(|value| filled(&format!("{key}.{name}"), value)).transpose()
    };
    Ok(IstioPool {
        service: host_name(&format!("{key}.service"), raw.service)?,
        port: within(&format!("{key}.port"), raw.port, 1, 65_535)?,
        kind,
        virtual_host: part("virtualHost", raw.virtual_host)?,
        route: part("route", raw.route)?,
        pool: raw.pool,
    })
}

/// Labels that choose pods. None would choose all of the namespace.
fn selector(
    key: &str,
    labels: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Refused> {
    if labels.is_empty() {
        return Err(Refused::new(key, "nothing", "at least one label of the gateway's pods"));
    }
    for (label, value) in &labels {
        filled(key, label.clone())?;
        filled(&format!("{key}.{label}"), value.clone())?;
    }
    Ok(labels)
}

/// A folder in a pod.
pub(super) fn absolute(key: &str, text: String) -> Result<PathBuf, Refused> {
    let path = PathBuf::from(filled(key, text.clone())?);
    if !path.is_absolute() {
        return Err(Refused::new(key, text, "an absolute path, in the gateway's pod"));
    }
    Ok(path)
}

/// A name as Kubernetes has them for namespaces and services (RFC 1123).
pub(super) fn dns_label(key: &str, text: String) -> Result<String, Refused> {
    if is_label(&text) {
        return Ok(text);
    }
    Err(Refused::new(key, text, "1..=63 characters of [a-z0-9-], none but [a-z0-9] at the ends"))
}

fn host_name(key: &str, text: String) -> Result<String, Refused> {
    if text.len() <= 253 && text.contains('.') && text.split('.').all(is_label) {
        return Ok(text);
    }
    let expected = "a fully qualified name like NAME.NAMESPACE.svc.cluster.local";
    Err(Refused::new(key, text, expected))
}

fn is_label(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
