//! What `render --gateway envoy-gateway` needs to know of the cluster.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::Deserialize;

use super::PluginModule;
use super::Pool;
use super::check::{filled, unique, within};
use super::error::Refused;
use super::istio::{absolute, dns_label};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawEnvoyGateway {
    namespace: String,
    gateway: String,
    section: String,
    resources_path: Option<String>,
    #[serde(default)]
    scorer_images: BTreeMap<String, String>,
    pools: Vec<RawRoutedPool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRoutedPool {
    pool: String,
    http_route: String,
    #[serde(default)]
    rule: i64,
}

/// The Gateway whose configuration is patched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvoyGateway {
    /// Namespace of the Gateway and of its HTTPRoutes.
    pub namespace: String,
    /// Name of the Gateway.
    pub gateway: String,
    /// Name of its listener for inference.
    pub section: String,
    /// Where the proxy's pod has what `render` wrote: `ecds/` and `modules/`. Absolute.
    pub resources_path: PathBuf,
    /// Images of scorer modules by the plugin's name; these come by EnvoyExtensionPolicy.
    pub scorer_images: BTreeMap<String, String>,
    /// One for each pool, in the order of `pools`.
    pub pools: Vec<RoutedPool>,
}

/// A pool and the rule that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedPool {
    /// Name of the pool.
    pub pool: String,
    /// Name of the HTTPRoute.
    pub http_route: String,
    /// Number of the rule in it, from 0.
    pub rule: u16,
}

/// Where daemon and gateway share a folder, unless the configuration says otherwise.
const RESOURCES_PATH: &str = "/var/lib/wasm-epp";

fn images(
    images: BTreeMap<String, String>,
    modules: &[PluginModule],
) -> Result<BTreeMap<String, String>, Refused> {
    for (name, image) in &images {
        let key = format!("envoyGateway.scorerImages.{name}");
        if !modules.iter().any(|module| module.name == *name) {
            return Err(Refused::new(key, image, "nothing: no plugin is a module of this name"));
        }
        filled(&key, image.clone())?;
    }
    Ok(images)
}

pub(super) fn check(
    raw: RawEnvoyGateway,
    pools: &[Pool],
    modules: &[PluginModule],
) -> Result<EnvoyGateway, Refused> {
    let mut seen = HashSet::new();
    let mut named = BTreeMap::new();
    for (i, raw) in raw.pools.into_iter().enumerate() {
        let key = format!("envoyGateway.pools[{i}]");
        unique(&format!("{key}.pool"), &raw.pool, &mut seen)?;
        if !pools.iter().any(|pool| pool.name == raw.pool) {
            return Err(Refused::new(format!("{key}.pool"), raw.pool, "the name of a pool"));
        }
        let routed = RoutedPool {
            http_route: dns_label(&format!("{key}.httpRoute"), raw.http_route)?,
            rule: within(&format!("{key}.rule"), raw.rule, 0, 15)?,
            pool: raw.pool,
        };
        named.insert(routed.pool.clone(), routed);
    }
    let one_each = |pool: &Pool| {
        if let Some(prefix) = &pool.route_prefix {
            let expected =
                "nothing with envoyGateway: the paths of a pool are those of its HTTPRoute";
            return Err(Refused::new(format!("routePrefix of {}", pool.name), prefix, expected));
        }
        named.remove(&pool.name).ok_or_else(|| Refused {
            key: "envoyGateway.pools".into(),
            value: format!("nothing for the pool {}", pool.name),
            expected: "an entry for each pool".into(),
        })
    };
    Ok(EnvoyGateway {
        namespace: dns_label("envoyGateway.namespace", raw.namespace)?,
        gateway: dns_label("envoyGateway.gateway", raw.gateway)?,
        section: dns_label("envoyGateway.section", raw.section)?,
        resources_path: absolute(
            "envoyGateway.resourcesPath",
            raw.resources_path.unwrap_or_else(|| RESOURCES_PATH.to_owned()),
        )?,
        scorer_images: images(raw.scorer_images, modules)?,
        pools: pools.iter().map(one_each).collect::<Result<_, _>>()?,
    })
}
