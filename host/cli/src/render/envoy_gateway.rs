//! Policies for a gateway of Envoy Gateway's.
//!
//! Balancing, retries and timeouts have policies of their own there; the rest are JSON patches of the
//! configuration that it made. The filters are files in a folder that the proxy watches, as with Envoy by
//! itself, since its server hands out none.

use std::path::Path;

use serde_json::{Value, json};

use super::envoy::{self, DESTINATION, STREAM_IDLE, Source};
use super::{Output, RenderError, Rendered, ecds};
use crate::config::{BUFFER_LIMIT_BYTES, Config, EnvoyGateway, RoutedPool};

const MANAGER: &str =
    "$..filters[?(@.name=='envoy.filters.network.http_connection_manager')].typed_config";
const ROUTER: &str = "$..http_filters[?(@.name=='envoy.filters.http.router')]";
const EXTENSION_POLICY: &str = "wasm-epp-scorers";

const HEADER: &str = "\
# Written by `wasm-epp render --gateway envoy-gateway`; changes are lost at the next run.
";

/// Writes the resources for the Gateway that the section `envoyGateway` names into `out`, and what its pods
/// need in `resourcesPath` under `ecds/` and `modules/`.
///
/// # Errors
/// When the section is missing, asks for what Envoy Gateway cannot do, a module is missing, or `out` cannot
/// be written.
pub fn render(config: &Config, out: &Path) -> Result<Rendered, RenderError> {
    let gateway =
        config.envoy_gateway.as_ref().ok_or(RenderError::NoSection { section: "envoyGateway" })?;
    if config.meter.is_some_and(|meter| meter.share_ratio < 1.0) {
        return Err(RenderError::Unsupported {
            key: "meter.share".into(),
            gateway: "envoy-gateway",
            reason: "routes are Envoy Gateway's, and a patch cannot double one: meter all (1) or \
                     nothing"
                .into(),
        });
    }
    let mut output = Output::create(out)?;
    let pods = gateway.resources_path.join("modules");
    let modules = super::modules_of_pods(config, &mut output, &pods)?;
    let clusters = gateway.pools.iter().map(|p| (p.pool.clone(), cluster(gateway, p))).collect();
    // A module that comes as an image has no place as well.
    let mut in_places = config.clone();
    let mut kept = modules.scorers.iter();
    let mut scorers = Vec::new();
    in_places.routing.modules.retain(|module| {
        let file = kept.next();
        let stays = !gateway.scorer_images.contains_key(&module.name);
        scorers.extend(file.filter(|_| stays).cloned());
        stays
    });
    let modules = super::ModulePaths { scorers, ..modules };
    for (name, text) in super::filters_with(&in_places, &modules, output.dir(), &clusters)? {
        output.write(&format!("ecds/{name}.yaml"), text.as_bytes())?;
    }
    super::feed_tls::write(config, &mut output, "sds")?;
    let mut files = vec![
        ("patch-policy.yaml".to_owned(), vec![patch_policy(config, gateway)]),
        ("backend-traffic-policy.yaml".to_owned(), vec![traffic_policy(config, gateway)]),
    ];
    if !gateway.scorer_images.is_empty() {
        files.push(("extension-policy.yaml".to_owned(), vec![extension_policy(config, gateway)]));
    }
    super::write_resources(&mut output, HEADER, &files)?;
    Ok(output.finish())
}

/// Name of the cluster that Envoy Gateway makes of a rule.
fn cluster(gateway: &EnvoyGateway, pool: &RoutedPool) -> String {
    format!("httproute/{}/{}/rule/{}", gateway.namespace, pool.http_route, pool.rule)
}

fn metadata(gateway: &EnvoyGateway, name: &str) -> Value {
    json!({"name": name, "namespace": gateway.namespace})
}

/// The HTTPRoutes of the pools, each once.
fn http_routes(gateway: &EnvoyGateway) -> Vec<Value> {
    let mut names: Vec<&str> = gateway.pools.iter().map(|pool| &*pool.http_route).collect();
    names.sort_unstable();
    names.dedup();
    let reference = |name: &str| json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": name});
    names.into_iter().map(reference).collect()
}

fn traffic_policy(config: &Config, gateway: &EnvoyGateway) -> Value {
    json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "BackendTrafficPolicy",
        "metadata": metadata(gateway, "wasm-epp"),
        "spec": {
            "targetRefs": http_routes(gateway),
            "loadBalancer": {
                "type": "LeastRequest",
                "endpointOverride": {"extractFrom": [{"header": DESTINATION}]},
            },
            "retry": {
                "numRetries": config.routing.retries,
                "retryOn": {
                    "triggers": [
                        "connect-failure", "refused-stream", "reset", "retriable-status-codes",
                    ],
                    "httpStatusCodes": [503],
                },
            },
            "timeout": {
                "tcp": {"connectTimeout": "1s"},
                "http": {"requestTimeout": "0s", "streamIdleTimeout": STREAM_IDLE},
            },
            "circuitBreaker": {
                "maxConnections": UNLIMITED, "maxPendingRequests": UNLIMITED,
                "maxParallelRequests": UNLIMITED, "maxParallelRetries": UNLIMITED,
            },
            "healthCheck": {"passive": {
                "consecutive5XxErrors": 5, "interval": "5s", "baseEjectionTime": "15s",
                "maxEjectionPercent": 50,
            }},
        },
    })
}

const UNLIMITED: u32 = 1_000_000;

/// Modules that come as images. Of the ways in which Envoy Gateway loads modules only its `failOpen` is
/// ours: it is the field of Envoy's that spares streams.
fn extension_policy(config: &Config, gateway: &EnvoyGateway) -> Value {
    let modules = config.routing.modules.iter().filter_map(|module| {
        let image = gateway.scorer_images.get(&module.name)?;
        Some(json!({
            "name": format!("scorer-{}", module.name),
            "rootID": format!("scorer-{}", module.name),
            "failOpen": true,
            "code": {"type": "Image", "image": {"url": image}},
            "config": {"name": module.name, "parameters": module.parameters},
        }))
    });
    json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyExtensionPolicy",
        "metadata": metadata(gateway, EXTENSION_POLICY),
        "spec": {
            "targetRefs": http_routes(gateway),
            "wasm": modules.collect::<Vec<_>>(),
        },
    })
}

fn patch_policy(config: &Config, gateway: &EnvoyGateway) -> Value {
    let ecds = gateway.resources_path.join("ecds");
    let source = Source::Folder(&ecds);
    let listener = format!("{}/{}/{}", gateway.namespace, gateway.gateway, gateway.section);
    let mut patches = Vec::new();
    let mut patch = |kind: &str, name: &str, operation: Value| {
        let kind = format!("type.googleapis.com/envoy.config.{kind}");
        patches.push(json!({"type": kind, "name": name, "operation": operation}));
    };
    let manager = [
        ("/early_header_mutation_extensions", json!([envoy::early_strip()])),
        ("/always_set_request_id_in_response", json!(true)),
        ("/stream_idle_timeout", json!(STREAM_IDLE)),
        ("/http_protocol_options/enable_trailers", json!(true)),
    ];
    for (path, value) in manager {
        let operation = json!({"op": "add", "jsonPath": MANAGER, "path": path, "value": value});
        patch("listener.v3.Listener", &listener, operation);
    }
    for (before, filter) in chain(config, gateway, &source) {
        let operation = json!({"op": "add", "jsonPath": before, "value": filter});
        patch("listener.v3.Listener", &listener, operation);
    }
    for pool in &gateway.pools {
        let cluster = cluster(gateway, pool);
        let routes = format!("$..routes[?(@.route.cluster=='{cluster}')]");
        let mut enabled = vec!["intake"];
        enabled.extend(config.meter.map(|_| "meter"));
        for name in enabled {
            let path = format!("/typed_per_filter_config/{name}");
            let operation = json!({
                "op": "add", "jsonPath": routes, "path": path, "value": envoy::enabled(),
            });
            patch("route.v3.RouteConfiguration", &listener, operation);
        }
        let operation = json!({
            "op": "add", "jsonPath": routes, "path": "/request_body_buffer_limit",
            "value": BUFFER_LIMIT_BYTES,
        });
        patch("route.v3.RouteConfiguration", &listener, operation);
        let operation = json!({
            "op": "add", "path": "/typed_extension_protocol_options",
            "value": envoy::upstream_protocol(),
        });
        patch("cluster.v3.Cluster", &cluster, operation);
    }
    for route in by_model(config, gateway) {
        let operation = json!({
            "op": "add", "jsonPath": "$.virtual_hosts[*].routes", "path": "/0", "value": route,
        });
        patch("route.v3.RouteConfiguration", &listener, operation);
    }
    for listener in [envoy::feed_listener(config, &source), envoy::probe_listener(config, &source)]
    {
        let mut listener = listener;
        let name = format!("wasm-epp/{}", listener["name"].as_str().unwrap_or_default());
        listener["name"] = json!(name);
        let operation = json!({"op": "add", "path": "", "value": listener});
        patch("listener.v3.Listener", &name, operation);
    }
    json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyPatchPolicy",
        "metadata": metadata(gateway, "wasm-epp"),
        "spec": {
            "targetRef": {
                "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway.gateway,
            },
            "type": "JSONPatch",
            "jsonPatches": patches,
        },
    })
}

/// The filters with what each stands before when it is added, in the order of adding.
fn chain(config: &Config, gateway: &EnvoyGateway, source: &Source<'_>) -> Vec<(String, Value)> {
    let disabled = |name| {
        let mut filter = envoy::discovered(name, source);
        filter["disabled"] = json!(true);
        filter
    };
    // Modules that come as images are in the chain already, the first of them as its number 0.
    let before = if gateway.scorer_images.is_empty() {
        ROUTER.to_owned()
    } else {
        let (namespace, policy) = (&gateway.namespace, EXTENSION_POLICY);
        let name = format!("envoyextensionpolicy/{namespace}/{policy}/wasm/0");
        format!("$..http_filters[?(@.name=='envoy.filters.http.wasm/{name}')]")
    };
    let mut filters = vec![(before, disabled("intake"))];
    let mut last: Vec<Value> = (0..config.routing.module_places)
        .map(|number| envoy::discovered(&ecds::place(number), source))
        .collect();
    last.push(envoy::discovered("picker", source));
    last.extend(config.meter.map(|_| disabled("meter")));
    if !config.model_rewrites.is_empty() {
        last.push(envoy::restorer(source));
    }
    filters.extend(last.into_iter().map(|filter| (ROUTER.to_owned(), filter)));
    filters
}

/// The routes that intake chooses by a request's model.
fn by_model(config: &Config, gateway: &EnvoyGateway) -> Vec<Value> {
    let routes = gateway.pools.iter().skip(1).map(|pool| {
        let mut action = envoy::route_action(config.routing.retries);
        action["cluster"] = json!(cluster(gateway, pool));
        let mut filters = json!({"intake": envoy::enabled()});
        if config.meter.is_some() {
            filters["meter"] = envoy::enabled();
        }
        json!({
            "name": format!("wasm-epp-{}-by-model", pool.pool),
            "match": {
                "prefix": "/",
                "headers": [{"name": envoy::POOL, "string_match": {"exact": pool.pool}}],
            },
            "request_body_buffer_limit": BUFFER_LIMIT_BYTES,
            "route": action,
            "typed_per_filter_config": filters,
        })
    });
    routes.collect()
}
