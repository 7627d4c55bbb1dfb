//! Patches for a gateway of Istio's: what `envoy.yaml` says of our own Envoy, said of one that somebody
//! else configures.
//!
//! Istio applies the patches of an EnvoyFilter to the configuration it made, merges before additions, in the
//! order in which they stand; each filter but the first is placed by the name of one of ours, so that what
//! others put into the chain does not come between.

mod plugins;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::envoy::{self, DESTINATION, POOL, REWRITTEN, STREAM_IDLE, Source};
use super::{Output, RenderError, Rendered, ecds};
use crate::config::{BUFFER_LIMIT_BYTES, Config, Istio, IstioPool, PoolCluster};

/// The filters come over the stream that Istio's own configuration comes by.
const ADS: Source<'static> = Source::Ads;

const MANAGER: &str = "envoy.filters.network.http_connection_manager";
const ROUTER_FILTER: &str = "envoy.filters.http.router";

/// In what kind of resource scorer modules come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scorers {
    /// EnvoyFilter: one that traps loses its scores, and no request or stream.
    EnvoyFilter,
    /// WasmPlugin: one that traps costs the worker's streams. For modules that are trusted never to.
    WasmPlugin,
    /// TrafficExtension, Istio's name for the same from 1.30 on.
    TrafficExtension,
}

/// Writes the resources for the gateway that the section `istio` names into `out`, and under `modules/` what
/// its pods need in `modulesPath`.
///
/// # Errors
/// When the section is missing, asks for what Istio cannot do, a module is missing, or `out` cannot be
/// written.
pub fn render(config: &Config, scorers: Scorers, out: &Path) -> Result<Rendered, RenderError> {
    let istio = config.istio.as_ref().ok_or(RenderError::NoSection { section: "istio" })?;
    if config.meter.is_some_and(|meter| meter.share_ratio < 1.0) {
        return Err(RenderError::Unsupported {
            key: "meter.share".into(),
            gateway: "istio",
            reason: "routes are Istio's, and a patch cannot double one: meter all (1) or nothing"
                .into(),
        });
    }
    let mut output = Output::create_in(out, &["modules"])?;
    let modules = super::modules_of_pods(config, &mut output, &istio.modules_path)?;
    super::feed_tls::write(config, &mut output, "modules")?;
    let clusters = istio.pools.iter().map(|pool| (pool.pool.clone(), pool.cluster())).collect();
    let filters = ecds::filters(config, &modules, &BTreeMap::new(), &clusters);
    let files = resources(config, istio, scorers, filters);
    super::write_resources(&mut output, HEADER, &files)?;
    Ok(output.finish())
}

const HEADER: &str = "\
# Written by `wasm-epp render --gateway istio`; changes are lost at the next run.
";

fn resources(
    config: &Config,
    istio: &Istio,
    scorers: Scorers,
    filters: Vec<(String, Value)>,
) -> Vec<(String, Vec<Value>)> {
    let (places, own): (Vec<_>, Vec<_>) =
        filters.into_iter().partition(|(name, _)| super::place_number(name).is_some());
    let extensions = own.into_iter().map(|(name, filter)| extension(&name, filter)).collect();
    let mut files = vec![
        (
            "extensions.yaml".to_owned(),
            vec![envoy_filter(istio, "wasm-epp-extensions", extensions)],
        ),
        (
            "gateway.yaml".to_owned(),
            vec![envoy_filter(istio, "wasm-epp-gateway", patches(config, istio, scorers))],
        ),
    ];
    let rules: Vec<Value> = istio
        .pools
        .iter()
        .filter(|pool| pool.kind == PoolCluster::Service)
        .map(|pool| destination_rule(istio, pool))
        .collect();
    if !rules.is_empty() {
        files.push(("destination-rules.yaml".to_owned(), rules));
    }
    let places = match scorers {
        // A resource for each, so that one is exchanged without a word about the others.
        Scorers::EnvoyFilter => places
            .into_iter()
            .map(|(name, filter)| {
                envoy_filter(istio, &format!("wasm-epp-{name}"), vec![extension(&name, filter)])
            })
            .collect(),
        Scorers::WasmPlugin | Scorers::TrafficExtension => {
            plugins::resources(istio, scorers, &places)
        }
    };
    if !places.is_empty() {
        files.push(("scorers.yaml".to_owned(), places));
    }
    files
}

fn envoy_filter(istio: &Istio, name: &str, patches: Vec<Value>) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": name, "namespace": istio.namespace},
        "spec": {
            "workloadSelector": {"labels": istio.selector},
            "configPatches": patches,
        },
    })
}

/// A filter as the server of configuration hands it out.
fn extension(name: &str, filter: Value) -> Value {
    json!({
        "applyTo": "EXTENSION_CONFIG",
        "match": {"context": "GATEWAY"},
        "patch": {
            "operation": "ADD",
            "value": {"name": ADS.filter(name), "typed_config": filter},
        },
    })
}

/// All that is merged into the gateway's own configuration.
fn patches(config: &Config, istio: &Istio, scorers: Scorers) -> Vec<Value> {
    let mut patches = vec![connection_manager(istio)];
    patches.extend(chain(config, istio, scorers));
    patches.extend(istio.pools.iter().map(|pool| routes(config, istio, pool)));
    patches.extend(by_model(config, istio));
    patches
        .extend(istio.pools.iter().filter(|pool| pool.kind == PoolCluster::Service).map(balancing));
    // Modules that come as plugins are in Istio's own listeners only, and nobody hands out places then.
    let mut probed = config.clone();
    if scorers != Scorers::EnvoyFilter {
        probed.routing.module_places = 0;
    }
    for listener in [envoy::feed_listener(config, &ADS), envoy::probe_listener(&probed, &ADS)] {
        let mut listener = listener;
        // Its name is one among those of all who patch the gateway.
        let name = format!("wasm-epp-{}", listener["name"].as_str().unwrap_or_default());
        listener["name"] = json!(name);
        patches.push(json!({
            "applyTo": "LISTENER",
            "match": {"context": "GATEWAY"},
            "patch": {"operation": "ADD", "value": listener},
        }));
    }
    patches
}

fn listener_match(istio: &Istio, filter: Value) -> Value {
    json!({
        "context": "GATEWAY",
        "listener": {"portNumber": istio.port, "filterChain": {"filter": filter}},
    })
}

fn connection_manager(istio: &Istio) -> Value {
    json!({
        "applyTo": "NETWORK_FILTER",
        "match": listener_match(istio, json!({"name": MANAGER})),
        "patch": {
            "operation": "MERGE",
            "value": {
                "name": MANAGER,
                "typed_config": {
                    "@type": envoy::network("http_connection_manager.v3.HttpConnectionManager"),
                    "http_protocol_options": {"enable_trailers": true},
                    // By it the gateway's line about a request is found.
                    "always_set_request_id_in_response": true,
                    "stream_idle_timeout": STREAM_IDLE,
                    "early_header_mutation_extensions": [envoy::early_strip()],
                },
            },
        },
    })
}

/// The filters in order: intake, places, picker, and what follows the picker.
fn chain(config: &Config, istio: &Istio, scorers: Scorers) -> Vec<Value> {
    let at = |operation: &str, anchor: &str, filter: &Value| {
        let sub_filter = json!({"name": MANAGER, "subFilter": {"name": anchor}});
        json!({
            "applyTo": "HTTP_FILTER",
            "match": listener_match(istio, sub_filter),
            "patch": {"operation": operation, "value": filter},
        })
    };
    let disabled = |name| {
        let mut filter = envoy::discovered(name, &ADS);
        filter["disabled"] = json!(true);
        filter
    };
    let picker = ADS.filter("picker");
    let mut patches = vec![at("INSERT_BEFORE", ROUTER_FILTER, &envoy::discovered("picker", &ADS))];
    let intake = disabled("intake");
    let anchors = plugins::anchors(config, istio, scorers);
    if anchors.is_empty() {
        patches.push(at("INSERT_BEFORE", &picker, &intake));
    }
    // Of the names that Istio's releases give the first plugin, one is there.
    patches.extend(anchors.iter().map(|anchor| at("INSERT_BEFORE", anchor, &intake)));
    if scorers == Scorers::EnvoyFilter {
        let places = (0..config.routing.module_places).map(ecds::place);
        patches.extend(
            places.map(|name| at("INSERT_BEFORE", &picker, &envoy::discovered(&name, &ADS))),
        );
    }
    // Each right behind the picker, so the last comes first.
    if !config.model_rewrites.is_empty() {
        patches.push(at("INSERT_AFTER", &picker, &envoy::restorer(&ADS)));
    }
    if config.meter.is_some() {
        patches.push(at("INSERT_AFTER", &picker, &disabled("meter")));
    }
    if istio.pools.iter().any(|pool| pool.kind == PoolCluster::InferencePool) {
        patches.push(at("INSERT_AFTER", &picker, &destination_to_metadata()));
    }
    patches
}

/// Says the picked endpoints where the cluster of an InferencePool looks for them. Disabled but on the
/// routes of such pools: the clusters of others look at the header.
fn destination_to_metadata() -> Value {
    json!({
        "name": ADS.filter("destination"),
        "disabled": true,
        "typed_config": {
            "@type": envoy::http("header_to_metadata.v3.Config"),
            "request_rules": [{
                "header": DESTINATION,
                "on_header_present": {
                    "metadata_namespace": "envoy.lb", "key": DESTINATION, "type": "STRING",
                },
                "remove": true,
            }],
        },
    })
}

fn route_match(istio: &Istio, pool: &IstioPool, has_route: bool) -> Value {
    let mut host = json!({});
    if let Some(name) = &pool.virtual_host {
        host["name"] = json!(name);
    }
    if has_route {
        host["route"] = json!({"action": "ROUTE"});
        if let Some(name) = &pool.route {
            host["route"]["name"] = json!(name);
        }
    }
    json!({
        "context": "GATEWAY",
        "routeConfiguration": {"portNumber": istio.service_port, "vhost": host},
    })
}

fn routes(config: &Config, istio: &Istio, pool: &IstioPool) -> Value {
    json!({
        "applyTo": "HTTP_ROUTE",
        "match": route_match(istio, pool, true),
        "patch": {"operation": "MERGE", "value": route(config, pool)},
    })
}

fn route(config: &Config, pool: &IstioPool) -> Value {
    let mut filters = json!({ADS.filter("intake"): envoy::enabled()});
    if config.meter.is_some() {
        filters[ADS.filter("meter")] = envoy::enabled();
    }
    let mut route = json!({
        "request_body_buffer_limit": BUFFER_LIMIT_BYTES,
        "route": envoy::route_action(config.routing.retries),
    });
    if pool.kind == PoolCluster::InferencePool {
        filters[ADS.filter("destination")] = envoy::enabled();
        // Istio has the pool's picker asked; the reference that its API requires leads to nobody.
        filters["envoy.filters.http.ext_proc"] = json!({
            "@type": envoy::http("ext_proc.v3.ExtProcPerRoute"),
            "disabled": true,
        });
        // Before the endpoint is chosen, which goes by metadata here.
        route["request_headers_to_remove"] = json!([POOL, REWRITTEN]);
    }
    route["typed_per_filter_config"] = filters;
    route
}

/// The routes that intake chooses by a request's model, ahead of all others where the first pool's are.
fn by_model(config: &Config, istio: &Istio) -> Vec<Value> {
    let Some(first) = istio.pools.first() else { return Vec::new() };
    let added = istio.pools.iter().skip(1).map(|pool| {
        let mut value = route(config, pool);
        value["name"] = json!(format!("wasm-epp-{}-by-model", pool.pool));
        value["match"] = json!({
            "prefix": "/",
            "headers": [{"name": POOL, "string_match": {"exact": pool.pool}}],
        });
        value["route"]["cluster"] = json!(pool.cluster());
        json!({
            "applyTo": "HTTP_ROUTE",
            "match": route_match(istio, first, false),
            "patch": {"operation": "INSERT_FIRST", "value": value},
        })
    });
    added.collect()
}

fn balancing(pool: &IstioPool) -> Value {
    json!({
        "applyTo": "CLUSTER",
        "match": {"context": "GATEWAY", "cluster": {"name": pool.cluster()}},
        "patch": {
            "operation": "MERGE",
            "value": {
                "load_balancing_policy": envoy::balancing(),
                "typed_extension_protocol_options": envoy::upstream_protocol(),
            },
        },
    })
}

/// Istio weighs localities unless told not to, which the policy of the picked endpoint does not go with.
fn destination_rule(istio: &Istio, pool: &IstioPool) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": format!("wasm-epp-{}", resource_name(&pool.pool)), "namespace": istio.namespace},
        "spec": {
            "host": pool.service,
            "exportTo": ["."],
            "trafficPolicy": {
                "loadBalancer": {"localityLbSetting": {"enabled": false}},
                "connectionPool": {
                    // The engines' queues are the limit that scorers know about.
                    "tcp": {"connectTimeout": "1s", "maxConnections": UNLIMITED},
                    "http": {
                        "http1MaxPendingRequests": UNLIMITED, "http2MaxRequests": UNLIMITED,
                        "maxRetries": UNLIMITED,
                    },
                },
                "outlierDetection": {
                    "consecutive5xxErrors": 5, "interval": "5s", "baseEjectionTime": "15s",
                    "maxEjectionPercent": 50,
                },
            },
        },
    })
}

const UNLIMITED: u32 = 1_000_000;

/// A pool's name as a part of a resource's: lower case, and hyphens for the rest.
pub(super) fn resource_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(plain).collect::<String>().trim_matches('-').to_owned()
}
