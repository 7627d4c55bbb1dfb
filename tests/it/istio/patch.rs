//! What Istio does with EnvoyFilters, after pilot/pkg/networking/core/envoyfilter/{listener,rc,cluster}_patch.go
//! and pkg/proto/merge: on JSON instead of messages.

use serde_json::{Map, Value};

/// The configuration of a gateway that patches are applied to.
pub(super) struct Gateway {
    pub(super) listeners: Vec<Value>,
    pub(super) routes: Vec<Value>,
    pub(super) clusters: Vec<Value>,
    /// Filters that the server of configuration would hand out.
    pub(super) extensions: Vec<Value>,
}

/// Fields that are maps in the messages: an entry is replaced, never merged.
const MAPS: [&str; 2] = ["typed_per_filter_config", "typed_extension_protocol_options"];

/// Merges as messages merge: what is set replaces, lists grow, messages merge. A message packed into an
/// `Any` is two plain fields to a merge around it, and so replaced.
fn merge(into: &mut Value, from: &Value) {
    let (Value::Object(into), Value::Object(from)) = (&mut *into, from) else {
        *into = from.clone();
        return;
    };
    for (key, value) in from {
        match into.get_mut(key) {
            None => {
                into.insert(key.clone(), value.clone());
            }
            Some(Value::Array(list)) => {
                list.extend(value.as_array().into_iter().flatten().cloned())
            }
            Some(old) if MAPS.contains(&key.as_str()) => {
                let old: &mut Map<String, Value> = old.as_object_mut().expect("a map");
                old.extend(value.as_object().expect("a map").clone());
            }
            Some(old) if value.get("@type").is_some() => *old = value.clone(),
            Some(old) => merge(old, value),
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// Whether a wanted value is absent or is this one.
fn is_or_any(wanted: Option<&Value>, have: &Value) -> bool {
    wanted.is_none_or(|wanted| wanted == have)
}

/// Applies the patches of a gateway's EnvoyFilters. Panics at what it does not know, and at a patch that
/// matches nothing where `must_match`.
pub(super) fn apply(gateway: &mut Gateway, filters: &[Value], must_match: bool) {
    let mut sorted: Vec<&Value> = filters.iter().collect();
    let priority = |filter: &&Value| filter["spec"]["priority"].as_i64().unwrap_or(0);
    sorted.sort_by_key(|filter| (priority(filter), filter["metadata"]["name"].to_string()));
    let patches: Vec<&Value> = sorted
        .iter()
        .flat_map(|filter| filter["spec"]["configPatches"].as_array().expect("patches"))
        .collect();
    let of = |kind: &str| -> Vec<&Value> {
        patches.iter().copied().filter(|patch| patch["applyTo"] == kind).collect()
    };
    for patch in &patches {
        assert!(["GATEWAY", "ANY"].contains(&text(patch, "/match/context").unwrap_or("ANY")));
        let known = [
            "LISTENER",
            "NETWORK_FILTER",
            "HTTP_FILTER",
            "HTTP_ROUTE",
            "CLUSTER",
            "EXTENSION_CONFIG",
        ];
        assert!(known.contains(&text(patch, "/applyTo").expect("applyTo")), "{patch}");
    }
    let mut used = 0;
    for listener in &mut gateway.listeners {
        let address = listener["address"].clone();
        for chain in listener["filter_chains"].as_array_mut().expect("chains") {
            for patch in of("NETWORK_FILTER") {
                used += usize::from(network_filter(&address, chain, patch));
            }
            for patch in of("HTTP_FILTER") {
                used += usize::from(http_filter(&address, chain, patch));
            }
        }
    }
    for configuration in &mut gateway.routes {
        for patch in of("HTTP_ROUTE") {
            used += usize::from(route_merge(configuration, patch));
        }
        for patch in of("HTTP_ROUTE") {
            used += usize::from(route_insert(configuration, patch));
        }
    }
    for patch in of("CLUSTER") {
        assert_eq!(patch["patch"]["operation"], "MERGE");
        for cluster in &mut gateway.clusters {
            if is_or_any(patch.pointer("/match/cluster/name"), &cluster["name"]) {
                merge(cluster, &patch["patch"]["value"]);
                used += 1;
            }
        }
    }
    for (kind, list) in
        [("LISTENER", &mut gateway.listeners), ("EXTENSION_CONFIG", &mut gateway.extensions)]
    {
        for patch in of(kind) {
            assert_eq!(patch["patch"]["operation"], "ADD");
            list.push(patch["patch"]["value"].clone());
            used += 1;
        }
    }
    assert!(!must_match || used == patches.len(), "{used} of {} patches matched", patches.len());
}

fn is_listener(address: &Value, patch: &Value) -> bool {
    let port = address.pointer("/socket_address/port_value").unwrap_or(&Value::Null);
    is_or_any(patch.pointer("/match/listener/portNumber"), port)
}

fn network_filter(address: &Value, chain: &mut Value, patch: &Value) -> bool {
    assert_eq!(patch["patch"]["operation"], "MERGE");
    let name = patch.pointer("/match/listener/filterChain/filter/name");
    let mut used = false;
    for filter in chain["filters"].as_array_mut().expect("filters") {
        if is_listener(address, patch) && is_or_any(name, &filter["name"]) {
            // Here the packed message itself is merged (MergeAnyWithAny).
            let Value::Object(value) = &patch["patch"]["value"]["typed_config"] else { panic!() };
            assert_eq!(value["@type"], filter["typed_config"]["@type"]);
            merge_packed(&mut filter["typed_config"], &patch["patch"]["value"]["typed_config"]);
            used = true;
        }
    }
    used
}

fn merge_packed(into: &mut Value, from: &Value) {
    let mut from = from.clone();
    from.as_object_mut().expect("a message").remove("@type");
    merge(into, &from);
}

fn http_filter(address: &Value, chain: &mut Value, patch: &Value) -> bool {
    let manager = patch.pointer("/match/listener/filterChain/filter/name");
    let anchor =
        text(patch, "/match/listener/filterChain/filter/subFilter/name").expect("subFilter");
    let mut used = false;
    for filter in chain["filters"].as_array_mut().expect("filters") {
        if !is_listener(address, patch) || !is_or_any(manager, &filter["name"]) {
            continue;
        }
        let list = filter["typed_config"]["http_filters"].as_array_mut().expect("filters");
        let Some(place) = list.iter().position(|filter| filter["name"] == anchor) else { continue };
        let place = match text(patch, "/patch/operation").expect("operation") {
            "INSERT_BEFORE" => place,
            "INSERT_AFTER" => place + 1,
            other => panic!("operation {other}"),
        };
        list.insert(place, patch["patch"]["value"].clone());
        used = true;
    }
    used
}

fn hosts<'a>(configuration: &'a mut Value, patch: &Value) -> Vec<&'a mut Value> {
    let of = "/match/routeConfiguration";
    // The name of a gateway's configuration is http.PORT.
    let port = text(configuration, "/name").and_then(|name| name.rsplit('.').next()?.parse().ok());
    let port: u64 = port.expect("a port");
    let wanted = patch.pointer(&format!("{of}/vhost/name")).cloned();
    if !is_or_any(patch.pointer(&format!("{of}/portNumber")), &Value::from(port)) {
        return Vec::new();
    }
    let hosts = configuration["virtual_hosts"].as_array_mut().expect("virtual hosts").iter_mut();
    hosts.filter(|host| is_or_any(wanted.as_ref(), &host["name"])).collect()
}

fn route_merge(configuration: &mut Value, patch: &Value) -> bool {
    if patch["patch"]["operation"] != "MERGE" {
        return false;
    }
    let wanted = patch.pointer("/match/routeConfiguration/vhost/route").cloned();
    let mut used = false;
    for host in hosts(configuration, patch) {
        for route in host["routes"].as_array_mut().expect("routes") {
            let wanted = wanted.as_ref();
            let is_action = match wanted.and_then(|wanted| wanted["action"].as_str()) {
                None | Some("ANY") => true,
                Some("ROUTE") => route.get("route").is_some(),
                other => panic!("action {other:?}"),
            };
            if is_action && is_or_any(wanted.and_then(|wanted| wanted.get("name")), &route["name"])
            {
                merge(route, &patch["patch"]["value"]);
                used = true;
            }
        }
    }
    used
}

fn route_insert(configuration: &mut Value, patch: &Value) -> bool {
    if patch["patch"]["operation"] != "INSERT_FIRST" {
        return false;
    }
    let mut used = false;
    for host in hosts(configuration, patch) {
        let routes = host["routes"].as_array_mut().expect("routes");
        routes.insert(0, patch["patch"]["value"].clone());
        used = true;
    }
    used
}
