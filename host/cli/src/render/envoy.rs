//! `envoy.yaml`, for Envoy 1.40.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::{POOL_HEADER, feed_tls};
use crate::config::{BUFFER_LIMIT_BYTES, Config, FeedAddress, Meter, Pool};

/// Buffer of a connection where nothing needs a whole body.
const CONNECTION_BUFFER_BYTES: u64 = 1024 * 1024;

/// Longest silence in a stream. Ends streams parked by a dead VM, so it cannot be off; above the
/// longest prefill behind a full queue.
pub(super) const STREAM_IDLE: &str = "900s";

/// Envoy's own limits of 1024 requests and 3 retries per cluster are below one busy pool; the
/// engines' queues are the limit that scorers know about.
const CIRCUIT_BREAKER: u64 = 1_000_000;

/// The header that carries the picked endpoints to the load balancer.
pub(crate) const DESTINATION: &str = "x-gateway-destination-endpoint";

/// The header by which intake chooses the route of a pool.
pub(super) const POOL: &str = "x-wasm-epp-pool";

/// The header by which intake puts the restorer into a stream.
pub(crate) const REWRITTEN: &str = "x-wasm-epp-rewritten";

/// Headers by which a client could choose an engine or a pool, or be told apart from the gateway.
pub(crate) const CLIENT_MAY_NOT_SEND: [&str; 7] = [
    DESTINATION,
    POOL,
    REWRITTEN,
    // Says to engines what intake did; that a client asks for it by name is not supported.
    "x-llm-d-model-name-rewrite",
    "x-gateway-destination-endpoint-served",
    "x-gateway-destination-endpoint-subset",
    "x-prefiller-host-port",
];

/// First lines of the file.
pub(super) fn header(config: &Config) -> String {
    format!(
        "# Written by `wasm-epp render` from {}; changes are lost at the next run.\n\
         # Start: envoy -c envoy.yaml --log-level {}\n\
         # The wasm filters are in ecds/ and can be swapped while Envoy runs.\n\
         # Everything else in this file takes effect at the next start.\n",
        config.file.file_name().map_or("a file".into(), |name| name.to_string_lossy()),
        config.envoy.log_level,
    )
}

/// Where the wasm filters come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A watched folder with a file per filter.
    Folder(&'a Path),
    /// The server that the rest of the proxy's configuration is from.
    Ads,
}

impl Source<'_> {
    /// Name of the filter `name` in a chain. In somebody else's proxy it says whose it is.
    pub(super) fn filter(&self, name: &str) -> String {
        match self {
            Self::Folder(_) => name.to_owned(),
            Self::Ads => format!("wasm-epp.{name}"),
        }
    }

    fn config_source(&self, name: &str) -> Value {
        match self {
            Self::Folder(folder) => json!({
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": folder.join(format!("{name}.yaml")),
                    "watched_directory": {"path": folder},
                },
            }),
            Self::Ads => json!({"resource_api_version": "V3", "ads": {}}),
        }
    }
}

/// The bootstrap. `ecds` is the folder of the file-watched filters.
pub(super) fn bootstrap(config: &Config, dir: &Path) -> Value {
    let ecds = dir.join("ecds");
    let source = &Source::Folder(&ecds);
    let node = config
        .gateways
        .iter()
        .find(|gateway| gateway.feed == config.envoy.feed)
        .map_or("wasm-epp", |gateway| &gateway.name);
    let mut bootstrap = json!({
        // File-watched filters need a node.
        "node": {"id": node, "cluster": "wasm-epp"},
        "admin": {"address": socket_address(config.envoy.admin)},
        // A module that never returns holds its worker for ever: only ending the process helps.
        "watchdogs": {"worker_watchdog": {
            "miss_timeout": "0.2s", "megamiss_timeout": "1s", "kill_timeout": "10s",
        }},
        "static_resources": {
            "listeners": [
                inference_listener(config, source),
                feed_listener(config, source),
                probe_listener(config, source),
            ],
            "clusters": config.pools.iter().map(|pool| cluster(pool, dir)).collect::<Vec<_>>(),
        },
    });
    if config.meter.is_some() {
        // Lets the admin interface change the metered share.
        bootstrap["layered_runtime"] = json!({"layers": [{"name": "admin", "admin_layer": {}}]});
    }
    bootstrap
}

fn inference_listener(config: &Config, source: &Source<'_>) -> Value {
    // Enabled by routes: intake by the pools', so that a route of somebody else's does not pay for
    // it, the meter by those of the sampled share, so that the others do not.
    let disabled = |name| {
        let mut filter = discovered(name, source);
        filter["disabled"] = json!(true);
        filter
    };
    let mut filters: Vec<Value> =
        std::iter::once(disabled("intake")).chain(places(config, source)).collect();
    filters.push(discovered("picker", source));
    filters.extend(config.meter.map(|_| disabled("meter")));
    if !config.model_rewrites.is_empty() {
        filters.push(restorer(source));
    }
    filters.push(router());
    let manager = json!({
        "@type": network("http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "inference",
        "codec_type": "AUTO",
        "http_protocol_options": {"enable_trailers": true},
        "preserve_external_request_id": true,
        "always_set_request_id_in_response": true,
        "normalize_path": true,
        "request_headers_timeout": "30s",
        "stream_idle_timeout": STREAM_IDLE,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "early_header_mutation_extensions": [early_strip()],
        "route_config": {
            "name": "pools",
            "virtual_hosts": [
                {"name": "pools", "domains": ["*"], "routes": routes(config)},
            ],
        },
        "http_filters": filters,
    });
    json!({
        "name": "inference",
        "address": socket_address(config.envoy.listen),
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    })
}

/// Takes off what a client may not send, before any filter or route sees it.
pub(super) fn early_strip() -> Value {
    let remove: Vec<Value> =
        CLIENT_MAY_NOT_SEND.iter().map(|name| json!({"remove": name})).collect();
    json!({
        "name": "strip_client_routing_headers",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": remove,
        },
    })
}

fn places(config: &Config, source: &Source<'_>) -> impl Iterator<Item = Value> {
    (0..config.routing.module_places).map(|n| discovered(&super::ecds::place(n), source))
}

/// Paths of a pool's own first, the longest prefix before others, so that `/a/b` is not taken by
/// `/a`. Then the routes that intake chooses by a request's model. The rest is the first pool's.
fn routes(config: &Config) -> Vec<Value> {
    let retries = config.routing.retries;
    let mut prefixed: Vec<(&Pool, &str)> = config
        .pools
        .iter()
        .filter_map(|pool| Some((pool, pool.route_prefix.as_deref()?)))
        .collect();
    prefixed.sort_by_key(|(_, prefix)| std::cmp::Reverse(prefix.len()));
    let prefixed = prefixed.into_iter().map(|(pool, prefix)| {
        let mut route = route(pool, &pool.name, &format!("{prefix}/"), retries);
        route["route"]["prefix_rewrite"] = json!("/");
        route
    });
    let by_model = config.pools.iter().skip(1).map(|pool| {
        let mut route = route(pool, &format!("{}-by-model", pool.name), "/", retries);
        route["match"]["headers"] = json!([{"name": POOL, "string_match": {"exact": pool.name}}]);
        route
    });
    let rest = config.pools.iter().take(1).map(|pool| route(pool, &pool.name, "/", retries));
    let with_twin = |route: Value| {
        let metered = config.meter.map(|meter| metered(&route, meter));
        metered.into_iter().chain([route])
    };
    prefixed.chain(by_model).chain(rest).flat_map(with_twin).collect()
}

/// The twin of a route that takes its share of the requests and meters them. The share can be
/// changed in a running Envoy by its runtime key.
fn metered(route: &Value, meter: Meter) -> Value {
    let mut twin = route.clone();
    twin["name"] = json!(format!("{}-metered", route["name"].as_str().unwrap_or_default()));
    twin["match"]["runtime_fraction"] = json!({
        "default_value": {
            "numerator": (meter.share_ratio * 1e6).round() as u32,
            "denominator": "MILLION",
        },
        "runtime_key": METER_SHARE_KEY,
    });
    twin["typed_per_filter_config"]["meter"] = enabled();
    twin
}

/// Runtime key of the metered share, in millionths.
const METER_SHARE_KEY: &str = "wasm_epp.meter_share";

/// A filter that is disabled elsewhere is in force on this route.
pub(super) fn enabled() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
        "config": {},
        "disabled": false,
    })
}

/// What a route to engines does, without its cluster.
pub(super) fn route_action(retries: u32) -> Value {
    json!({
        // A stream of tokens has no length: only silence ends it.
        "timeout": "0s",
        "idle_timeout": STREAM_IDLE,
        "retry_policy": {
            // reset, as reset-before-request leaves the client a 503 when an engine dies after
            // it took the request.
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [503],
            "num_retries": retries,
            "retry_host_predicate": [{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                },
            }],
            "host_selection_retry_max_attempts": 5,
        },
    })
}

fn route(pool: &Pool, name: &str, prefix: &str, retries: u32) -> Value {
    let mut action = route_action(retries);
    action["cluster"] = json!(pool.name);
    json!({
        "name": name,
        "match": {"prefix": prefix},
        // Room for the whole body while it is scored, and for sending it again.
        "request_body_buffer_limit": BUFFER_LIMIT_BYTES,
        "route": action,
        "typed_per_filter_config": {"intake": enabled()},
    })
}

/// The endpoints of a pool, as its cluster has them from a file.
pub(super) fn assignment(pool: &str, endpoints: &[SocketAddr]) -> Value {
    let mut value = load_assignment(pool, endpoints.iter().copied());
    value["@type"] = json!("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    value
}

fn load_assignment(pool: &str, endpoints: impl Iterator<Item = SocketAddr>) -> Value {
    let endpoints: Vec<Value> =
        endpoints.map(|socket| json!({"endpoint": {"address": socket_address(socket)}})).collect();
    json!({"cluster_name": pool, "endpoints": [{"lb_endpoints": endpoints}]})
}

fn cluster(pool: &Pool, dir: &Path) -> Value {
    let mut cluster = json!({
        "name": pool.name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [{
            "max_connections": CIRCUIT_BREAKER, "max_pending_requests": CIRCUIT_BREAKER,
            "max_requests": CIRCUIT_BREAKER, "max_retries": CIRCUIT_BREAKER,
        }]},
        "outlier_detection": {
            "consecutive_5xx": 5, "interval": "5s", "base_ejection_time": "15s",
            "max_ejection_percent": 50,
        },
        "load_balancing_policy": balancing(),
        "typed_extension_protocol_options": upstream_protocol(),
    });
    if pool.discovery.is_none() {
        let endpoints = pool.endpoints.iter().map(|endpoint| endpoint.socket);
        cluster["load_assignment"] = load_assignment(&pool.name, endpoints);
        return cluster;
    }
    // The daemon writes the file whenever they are others.
    let file = dir.join(super::assignment_name(&pool.name));
    cluster["type"] = json!("EDS");
    cluster["eds_cluster_config"] = json!({"eds_config": {
        "resource_api_version": "V3",
        "path_config_source": {"path": file, "watched_directory": {"path": file.parent()}},
    }});
    cluster
}

/// The endpoints that the picker names, in order, then the least busy one.
pub(super) fn balancing() -> Value {
    let policy = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    json!({"policies": [{"typed_extension_config": {
        "name": "envoy.load_balancing_policies.override_host",
        "typed_config": {
            "@type": format!("{policy}.override_host.v3.OverrideHost"),
            "override_host_sources": [{"header": DESTINATION}],
            "selected_host_key": {
                "key": "envoy.lb",
                "path": [{"key": "x-gateway-destination-endpoint-served"}],
            },
            "fallback_policy": {"policies": [{"typed_extension_config": {
                "name": "envoy.load_balancing_policies.least_request",
                "typed_config": {"@type": format!("{policy}.least_request.v3.LeastRequest")},
            }}]},
        },
    }}]})
}

/// HTTP/1 to engines, without the headers between the gateway's own parts.
pub(super) fn upstream_protocol() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {}},
            // After the load balancer has read the header: engines have no use for these.
            "http_filters": [
                {
                    "name": "strip_routing_headers",
                    "typed_config": {
                        "@type": http("header_mutation.v3.HeaderMutation"),
                        "mutations": {
                            "request_mutations": [
                                {"remove": DESTINATION}, {"remove": POOL},
                                {"remove": REWRITTEN},
                            ],
                        },
                    },
                },
                {
                    "name": "codec",
                    "typed_config": {"@type": http("upstream_codec.v3.UpstreamCodec")},
                },
            ],
        },
    })
}

fn private_address(config: &Config, address: &FeedAddress) -> Value {
    match address {
        FeedAddress::Unix(path) => {
            json!({"pipe": {"path": path, "mode": config.envoy.feed_mode}})
        }
        FeedAddress::Http(address) => socket_address(*address),
        FeedAddress::Https(address) => json!({
            "socket_address": {"address": address.host, "port_value": address.port},
        }),
    }
}

/// Answers with the decision that a request would get, and sends it nowhere. It has the inference
/// listener's filters: the very configurations, VMs and state of the worker that took the connection.
pub(super) fn probe_listener(config: &Config, source: &Source<'_>) -> Value {
    let route = |pool: &Pool| {
        json!({
            "name": format!("{}{}", feed::PROBE_ROUTE_PREFIX, pool.name),
            "match": {
                "prefix": "/",
                "headers": [{"name": POOL_HEADER, "string_match": {"exact": pool.name}}],
            },
            "request_body_buffer_limit": BUFFER_LIMIT_BYTES,
            "direct_response": {
                "status": 200,
                "body_format": {"text_format_source": {
                    "inline_string": format!("%FILTER_STATE(wasm.{}:PLAIN)%", feed::EXPLANATION_PROPERTY),
                }},
            },
        })
    };
    let mut filters = vec![discovered("intake", source)];
    filters.extend(places(config, source));
    filters.extend([discovered("picker", source), router()]);
    let manager = json!({
        "@type": network("http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "probe",
        "codec_type": "AUTO",
        "route_config": {
            "name": "probe",
            "virtual_hosts": [{
                "name": "probe",
                "domains": ["*"],
                "routes": config.pools.iter().map(route).collect::<Vec<_>>(),
            }],
        },
        "http_filters": filters,
    });
    json!({
        "name": "probe",
        "address": private_address(config, &config.envoy.feed.probe()),
        "per_connection_buffer_limit_bytes": BUFFER_LIMIT_BYTES,
        // As many connections as workers reach every worker.
        "connection_balance_config": {"exact_balance": {}},
        "filter_chains": [feed_tls::chain(config, source, manager)],
    })
}

pub(super) fn feed_listener(config: &Config, source: &Source<'_>) -> Value {
    let address = private_address(config, &config.envoy.feed);
    let manager = json!({
        "@type": network("http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "feed",
        "codec_type": "AUTO",
        "route_config": {
            "name": "feed",
            "virtual_hosts": [{
                "name": "feed",
                "domains": ["*"],
                // Reached when the feeder is skipped or missing: that must never look like an ack.
                "routes": [{
                    "match": {"prefix": "/"},
                    "request_body_buffer_limit": BUFFER_LIMIT_BYTES,
                    "direct_response": {"status": 503},
                }],
            }],
        },
        "http_filters": [discovered("feeder", source), router()],
    });
    json!({
        "name": "feed",
        "address": address,
        "per_connection_buffer_limit_bytes": BUFFER_LIMIT_BYTES,
        "filter_chains": [feed_tls::chain(config, source, manager)],
    })
}

/// A filter from the watched folder. Until a resource is accepted, and when none is, an empty
/// header mutation stands in for it: without one Envoy answers 500 to everything.
pub(super) fn discovered(name: &str, source: &Source<'_>) -> Value {
    json!({
        "name": source.filter(name),
        "config_discovery": {
            "config_source": source.config_source(name),
            "type_urls": [http("wasm.v3.Wasm"), http(STAND_IN)],
            "default_config": stand_in(),
        },
    })
}

/// The filter of answers, which is made for a stream only when its headers pass here and bear
/// intake's mark: no other stream pays for its callbacks. (A route could not enable it: which filters
/// a stream has is settled by its first route, before its body is read.)
pub(super) fn restorer(source: &Source<'_>) -> Value {
    let mut dynamic = discovered(super::ecds::RESTORER, source);
    let marked = json!({"single_predicate": {
        "input": {
            "name": "mark",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                "header_name": REWRITTEN,
            },
        },
        "value_match": {"exact": "1"},
    }});
    let name = source.filter(super::ecds::RESTORER);
    json!({
        "name": name,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": {
                "name": "composite",
                "typed_config": {"@type": http("composite.v3.Composite")},
            },
            "xds_matcher": {"matcher_list": {"matchers": [{
                "predicate": marked,
                "on_match": {"action": {
                    "name": name,
                    "typed_config": {
                        "@type": http("composite.v3.ExecuteFilterAction"),
                        "dynamic_config": {
                            "name": name,
                            "config_discovery": dynamic["config_discovery"].take(),
                        },
                    },
                }},
            }]}},
        },
    })
}

const STAND_IN: &str = "header_mutation.v3.HeaderMutation";

/// A filter that does nothing.
pub(super) fn stand_in() -> Value {
    json!({"@type": http(STAND_IN), "mutations": {}})
}

fn router() -> Value {
    json!({"name": "router", "typed_config": {"@type": http("router.v3.Router")}})
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

pub(super) fn http(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.filters.http.{name}")
}

pub(super) fn network(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.filters.network.{name}")
}
