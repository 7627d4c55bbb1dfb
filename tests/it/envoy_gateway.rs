//! What `render --gateway envoy-gateway` writes, patched into a gateway's configuration as Envoy Gateway
//! would and run.

use std::fmt::Write as _;
use std::process::Command;

use serde_json::{Value, json};
use testbed::{EngineOptions, Stand, StandOptions, root, wasm_epp};

use crate::istio::{
    documents, endpoints, fate, holders_are_found, the_module_decides, validate, write,
};

/// Paths below `$..KEY[?(@.A.B=='VALUE')].REST` and `$.KEY[*].REST`, which is all that is written.
fn pointers(document: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(path) = path.strip_prefix("$..") {
        let (key, rest) = path.split_once("[?(@.").expect(path);
        let (test, rest) = rest.split_once("')]").expect(path);
        let (field, value) = test.split_once("=='").expect(path);
        let field = format!("/{}", field.replace('.', "/"));
        let is = |item: &Value| item.pointer(&field).is_some_and(|have| have == value);
        walk(document, "", key, &is, &mut found);
        found.iter_mut().for_each(|pointer| pointer.push_str(&rest.replace('.', "/")));
    } else {
        let (key, rest) = path.strip_prefix("$.").and_then(|p| p.split_once("[*]")).expect(path);
        let list = document[key].as_array().expect("a list");
        found.extend((0..list.len()).map(|i| format!("/{key}/{i}{}", rest.replace('.', "/"))));
    }
    found
}

fn walk(value: &Value, at: &str, key: &str, is: &dyn Fn(&Value) -> bool, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let here = format!("{at}/{}", escaped(name));
                if name == key {
                    let items = value.as_array().into_iter().flatten().enumerate();
                    found.extend(
                        items.filter(|(_, item)| is(item)).map(|(i, _)| format!("{here}/{i}")),
                    );
                }
                walk(value, &here, key, is, found);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                walk(value, &format!("{at}/{i}"), key, is, found);
            }
        }
        _ => {}
    }
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// `add` of RFC 6902 at a pointer, with the parents that are missing (EnsurePathExistsOnAdd).
fn add(document: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').expect("not the document itself");
    let mut at = document;
    for part in parent.split('/').skip(1) {
        let name = part.replace("~1", "/").replace("~0", "~");
        at = match at {
            Value::Array(list) => &mut list[name.parse::<usize>().unwrap()],
            Value::Object(map) => map.entry(name).or_insert_with(|| json!({})),
            other => panic!("{pointer} goes through {other}"),
        };
    }
    let last = last.replace("~1", "/").replace("~0", "~");
    match at {
        Value::Array(list) => list.insert(last.parse().unwrap(), value),
        Value::Object(map) => drop(map.insert(last, value)),
        other => panic!("{pointer} ends at {other}"),
    }
}

/// Applies the patches of a policy to the resources, each of which has a name.
fn apply(policy: &Value, resources: &mut Vec<(&'static str, Value)>) {
    for patch in policy["spec"]["jsonPatches"].as_array().unwrap() {
        let kind = patch["type"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        let operation = &patch["operation"];
        assert_eq!(operation["op"], "add");
        let text = |key: &str| operation[key].as_str().unwrap_or_default();
        let value = &operation["value"];
        if text("path").is_empty() && text("jsonPath").is_empty() {
            assert_eq!((kind.as_str(), &value["name"]), ("Listener", &patch["name"]));
            resources.push(("Listener", value.clone()));
            continue;
        }
        let mut of = resources.iter_mut();
        let found = of.find(|(have, of)| *have == kind && of["name"] == patch["name"]);
        let (_, resource) = found.unwrap_or_else(|| panic!("no {kind} {}", patch["name"]));
        let places = match text("jsonPath") {
            "" => vec![String::new()],
            path => pointers(resource, path),
        };
        assert!(!places.is_empty(), "nothing at {}", text("jsonPath"));
        for place in places {
            add(resource, &format!("{place}{}", text("path")), value.clone());
        }
    }
}

/// A module in the configuration: name, file, parameters, and whether it comes as an image.
type Module<'a> = (&'a str, &'a str, Value, bool);

async fn start(modules: &[Module<'_>]) -> Stand {
    let flags = ["--inter-token-ms=10", "--max-model-len=100000"].map(str::to_owned).to_vec();
    let mut stand = Stand::prepare(StandOptions {
        engines: vec![EngineOptions { flags }; 3],
        ..StandOptions::default()
    })
    .await
    .unwrap();
    let out = stand.rendered();
    let mut text = std::fs::read_to_string(stand.config_file()).unwrap();
    let images = modules.iter().filter(|module| module.3).map(|module| module.0);
    let images: serde_json::Map<String, Value> =
        images.map(|name| (name.to_owned(), json!("registry.example/scorer:1"))).collect();
    let _ = write!(
        text,
        "envoyGateway:\n  namespace: default\n  gateway: inference\n  section: http\n  \
         resourcesPath: {}\n  scorerImages: {}\n  pools: [{{pool: pool, httpRoute: vllm}}]\n\
         routing:\n  modulePlaces: 2\n  scorers:\n  - {{type: prefix-cache, weight: 3}}\n",
        out.display(),
        Value::from(images),
    );
    for (name, file, parameters, _) in modules {
        let file = root().join("target/wasm").join(file);
        let _ = writeln!(
            text,
            "  - {{type: module, name: {name}, module: {}, parameters: {parameters}, weight: 100}}",
            file.display()
        );
    }
    let text = text.replace("ENGINE_1", &stand.engines[1].http.to_string());
    std::fs::write(stand.config_file(), text).unwrap();
    let output = Command::new(wasm_epp().unwrap())
        .args(["render", "--gateway", "envoy-gateway", "--config"])
        .arg(stand.config_file())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "wasm-epp render: {errors}");
    merge(&stand, &documents(&out), modules);
    validate(&stand.rendered().join("envoy.yaml"));
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();
    stand
}

fn merge(stand: &Stand, policies: &[Value], modules: &[Module<'_>]) {
    let folder = stand.rendered();
    let of = |kind: &str| policies.iter().find(|policy| policy["kind"] == kind);
    let traffic = &of("BackendTrafficPolicy").unwrap()["spec"];
    let header = &traffic["loadBalancer"]["endpointOverride"]["extractFrom"][0]["header"];
    let base = root().join("tests/golden/gateways/envoy-gateway.yaml");
    let base = std::fs::read_to_string(base)
        .unwrap()
        .replace("PORT", &stand.gateway.port().to_string())
        .replace("FOLDER", &folder.display().to_string())
        .replace("HEADER", header.as_str().unwrap());
    let base: Value = serde_saphyr::from_str(&base).unwrap();
    let mut resources = vec![
        ("Listener", base["listener"].clone()),
        ("RouteConfiguration", base["route_configuration"].clone()),
        ("Cluster", base["cluster"].clone()),
    ];
    if let Some(policy) = of("EnvoyExtensionPolicy") {
        extensions(policy, &mut resources, modules);
    }
    apply(of("EnvoyPatchPolicy").unwrap(), &mut resources);

    let take = |kind: &str| {
        let of = resources.iter().filter(|(have, _)| *have == kind);
        of.map(|(_, resource)| resource.clone()).collect::<Vec<_>>()
    };
    let mut routes = take("RouteConfiguration").remove(0);
    routes["@type"] = json!("type.googleapis.com/envoy.config.route.v3.RouteConfiguration");
    write(&folder.join("rds.yaml"), &json!({"resources": [routes]}));
    write(&folder.join("eds.yaml"), &endpoints(stand, "httproute/default/vllm/rule/0"));
    let (ip, port) = (stand.envoy_admin.ip().to_string(), stand.envoy_admin.port());
    let bootstrap = json!({
        "node": {"id": "envoy-default-inference", "cluster": "default/inference"},
        "admin": {"address": {"socket_address": {"address": ip, "port_value": port}}},
        "static_resources": {"listeners": take("Listener"), "clusters": take("Cluster")},
    });
    write(&folder.join("envoy.yaml"), &bootstrap);
}

/// What Envoy Gateway makes of a policy's modules (internal/xds/translator/wasm.go), with a file in place of
/// what it would fetch: disabled filters ahead of the router, enabled on the routes.
fn extensions(policy: &Value, resources: &mut [(&'static str, Value)], modules: &[Module<'_>]) {
    let of = policy["metadata"]["name"].as_str().unwrap();
    for (i, wasm) in policy["spec"]["wasm"].as_array().unwrap().iter().enumerate() {
        let id = format!("envoyextensionpolicy/default/{of}/wasm/{i}");
        let name = format!("envoy.filters.http.wasm/{id}");
        let module = wasm["config"]["name"].as_str().unwrap();
        let (_, file, ..) = modules.iter().find(|(name, ..)| *name == module).unwrap();
        let mut config = json!({
            "configuration": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": wasm["config"].to_string(),
            },
            "name": wasm["name"],
            "root_id": wasm["rootID"],
            "vm_config": {
                "code": {"local": {"filename": root().join("target/wasm").join(file)}},
                "runtime": "envoy.wasm.runtime.v8",
                "vm_id": id,
            },
        });
        if wasm["failOpen"] == true {
            config["fail_open"] = json!(true);
        }
        let chain = &mut resources[0].1["default_filter_chain"]["filters"][0]["typed_config"];
        let filters = chain["http_filters"].as_array_mut().unwrap();
        let filter = json!({
            "name": name,
            "disabled": true,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": config,
            },
        });
        filters.insert(filters.len() - 1, filter);
        let routes = &mut resources[1].1["virtual_hosts"][0]["routes"];
        routes[1]["typed_per_filter_config"][&name] = json!({
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
            "config": {},
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patched_gateway_routes_to_who_holds_the_prompt_or_where_a_module_says() {
    holders_are_found(&start(&[]).await).await;
    for is_image in [false, true] {
        let best = json!({"best": "ENGINE_1"});
        let stand = start(&[("steady", "steady-scorer.wasm", best, is_image)]).await;
        the_module_decides(&stand, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_comes_as_an_image_may_trap() {
    let parameters = json!({"does": "trap-on-demand"});
    let stand = start(&[("trap-on-demand", "unruly-scorer.wasm", parameters, true)]).await;
    // As the table in envoy/envoy-gateway/README.md says.
    assert_eq!(fate(&stand).await, (200, true, 200));
}
