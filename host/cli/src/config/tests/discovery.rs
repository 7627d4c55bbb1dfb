//! `pools[].discovery`.

use std::collections::BTreeMap;

use ::discovery::Found;

use super::super::discovery::{EndpointsOf, Source};
use super::*;

fn pool(discovery: &str) -> String {
    format!("pools: [{{name: a, models: [{MODEL}], discovery: {discovery}}}]")
}

fn found(discovery: &str) -> Discovery {
    accepted(&pool(discovery)).pools.remove(0).discovery.unwrap()
}

#[track_caller]
fn refused_discovery(discovery: &str, key: &str, value: &str, expected: &str) {
    let of = if key.is_empty() { String::new() } else { format!(".{key}") };
    let message =
        format!("c.yaml: pools[0].discovery{of}: {value} is not accepted: expected {expected}");
    refused(&pool(discovery), &message);
}

#[test]
fn each_source_is_accepted_with_its_defaults() {
    let of = |discovery: &str| match found(discovery).source {
        Source::Kubernetes(kubernetes) => kubernetes.of,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        of("{kubernetes: {inferencePool: llama}}"),
        EndpointsOf::InferencePool("llama".into())
    );
    let labels = BTreeMap::from([("app".to_owned(), "vllm".to_owned())]);
    assert_eq!(
        of("{kubernetes: {selector: {app: vllm}, targetPorts: [8000, 8001]}}"),
        EndpointsOf::Pods(labels, vec![8000, 8001])
    );
    assert_eq!(of("{kubernetes: {service: llama}}"), EndpointsOf::Service("llama".into(), vec![]));
    let Source::Dns(dns) = found("{dns: {name: engines.local, port: 8000}}").source else {
        panic!()
    };
    assert_eq!((dns.max_interval.as_secs(), dns.server), (30, None));
    let Source::File(file) = found("{file: {path: e.yaml}}").source else { panic!() };
    assert_eq!((file.path.to_str(), file.interval.as_millis()), (Some("/etc/epp/e.yaml"), 1000));
}

#[test]
fn what_is_not_accepted_is_named() {
    refused_discovery("{}", "", "nothing", "kubernetes, dns or file");
    let both = "{file: {path: a}, dns: {name: a, port: 1}}";
    refused_discovery(both, "", "several", "one of kubernetes, dns and file");
    let kubernetes = |inner: &str, key: &str, value: &str, expected: &str| {
        let key =
            if key.is_empty() { "kubernetes".to_owned() } else { format!("kubernetes.{key}") };
        refused_discovery(&format!("{{kubernetes: {{{inner}}}}}"), &key, value, expected);
    };
    kubernetes("", "", "none or several", "one of inferencePool, selector and service");
    kubernetes(
        "inferencePool: a, service: b",
        "",
        "none or several",
        "one of inferencePool, selector and service",
    );
    kubernetes(
        "inferencePool: a, targetPorts: [1]",
        "targetPorts",
        "[1]",
        "nothing: the InferencePool has its own",
    );
    kubernetes("selector: {}, targetPorts: [1]", "selector", "{}", "at least one label");
    kubernetes(
        "selector: {a: b}",
        "targetPorts",
        "[]",
        "at least one port: nothing else says where pods listen",
    );
    kubernetes("selector: {a: b}, targetPorts: [0]", "targetPorts[0]", "0", "1..=65535");
    kubernetes(
        "selector: {a: b}, targetPorts: [5, 5]",
        "targetPorts[1]",
        "5",
        "at most 8, each once",
    );
    let nine = "selector: {a: b}, targetPorts: [1, 2, 3, 4, 5, 6, 7, 8, 9]";
    kubernetes(nine, "targetPorts[8]", "9", "at most 8, each once");
    let names = "1..=253 of [a-z0-9-.], first and last a letter or digit";
    kubernetes("service: A", "service", "\"A\"", names);
    kubernetes("service: a, namespace: ../x", "namespace", "\"../x\"", names);
    let servers = "https://HOST:PORT, or http:// and a loopback address as of `kubectl proxy`";
    for url in ["http://10.0.0.1:80", "http://localhost:8001", "ftp://a", "https://a/b"] {
        let inner = format!("service: a, apiServer: '{url}'");
        kubernetes(&inner, "apiServer", &format!("{url:?}"), servers);
    }
    let inner = "service: a, apiServer: 'https://10.0.0.1:443'";
    kubernetes(inner, "caFile", "nothing", "the certificates that apiServer's is signed by");
    let dns = |inner: &str, key: &str, value: &str, expected: &str| {
        refused_discovery(&format!("{{dns: {{{inner}}}}}"), &format!("dns.{key}"), value, expected);
    };
    let whole = "a whole name of at most 253 bytes, as no search list is used";
    dns("name: 'a b', port: 1", "name", "\"a b\"", whole);
    dns("name: a", "port", "nothing", "the port that engines listen on");
    dns("name: a, record: srv, port: 1", "port", "1", "nothing: SRV records have ports");
    dns("name: a, record: mx", "record", "\"mx\"", "address or srv");
    dns("name: a, port: 1, maxIntervalSeconds: 0", "maxIntervalSeconds", "0", "1..=3600");
    refused_discovery("{file: {path: a, intervalMs: 9}}", "file.intervalMs", "9", "10..=60000");
    let template = |inner: &str, key: &str, value: &str, expected: &str| {
        let discovery = format!("{{file: {{path: a}}, endpoint: {{{inner}}}}}");
        refused_discovery(&discovery, &format!("endpoint.{key}"), value, expected);
    };
    template("kvEventsPort: 65529", "kvEventsPort", "65529", "1..=65528");
    template("metricsPath: metrics", "metricsPath", "\"metrics\"", "a path like /metrics");
    template("engine: tgi", "engine", "\"tgi\"", "vllm, sglang or tensorrt-llm");
    template("model: n", "model", "\"n\"", "one of the pool's models: m");
    refused_discovery(
        "{file: {path: a}, endpoint: {replayPort: 5657}}",
        "endpoint.replayPort",
        "5657",
        "nothing, or kvEventsPort beside it or kvEventsListen: there are no events to replay",
    );
    let beside = format!(
        "pools: [{{name: a, models: [{MODEL}], endpoints: [{ENDPOINT}], discovery: {{file: {{path: a}}}}}}]"
    );
    refused(
        &beside,
        "c.yaml: pools[0].endpoints: 1 is not accepted: expected no endpoints beside discovery",
    );
}

#[test]
fn a_gateway_that_is_not_told_is_warned_of() {
    let text = pool("{file: {path: a}}");
    let expected = "gateway gw-0 has no resources, so that its Envoy is not told of the endpoints \
                    that are discovered of pool a";
    assert_eq!(accepted(&text).warnings, [expected]);
    let told = "\ngateways: [{name: g, feed: 'unix:run/feed.sock', resources: r}]";
    assert_eq!(accepted(&format!("{text}{told}")).warnings, Vec::<String>::new());
}

#[test]
fn a_found_endpoint_has_what_labels_and_ranks_say() {
    let template =
        found("{kubernetes: {inferencePool: a}, endpoint: {kvEventsPort: 5557, replayPort: 5657}}")
            .template;
    let of = |socket: &str, rank: u16, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let found = Found { rank, labels, ..Found::default() };
        template.endpoint(socket.parse().unwrap(), &found, &["tier".to_owned()])
    };
    let plain =
        of("10.0.0.1:8001", 1, &[("llm-d.ai/role", "decode"), ("tier", "gold"), ("app", "x")]);
    assert_eq!(plain.address, "10.0.0.1:8001");
    assert_eq!(plain.engine, EngineKind::Vllm);
    assert_eq!(plain.kv_events.as_deref(), Some("tcp://10.0.0.1:5558"));
    assert_eq!(plain.replay.as_deref(), Some("tcp://10.0.0.1:5658"));
    assert_eq!(plain.metrics, "http://10.0.0.1:8001/metrics");
    assert_eq!(plain.labels.keys().collect::<Vec<_>>(), ["llm-d.ai/role", "tier"]);
    assert_eq!(of("[fd00::1]:8000", 0, &[]).kv_events.as_deref(), Some("tcp://[fd00::1]:5557"));
    let typed = |kind: &str| of("10.0.0.1:8000", 0, &[("llm-d.ai/engine-type", kind)]);
    assert_eq!(typed("sglang").engine, EngineKind::Sglang);
    assert_eq!(typed("another").engine, EngineKind::Vllm);
    let trtllm = typed("trtllm-serve");
    assert_eq!((trtllm.engine, trtllm.replay), (EngineKind::Trtllm, None));
    assert_eq!(trtllm.kv_events.as_deref(), Some("http://10.0.0.1:8000/kv_cache_events"));
    // More labels than an endpoint may have: those that are read stay.
    let many: Vec<(String, String)> =
        (0..40).map(|i| (format!("llm-d.ai/l{i:02}"), "v".to_owned())).collect();
    let mut many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    many.push(("tier", "gold"));
    let kept = of("10.0.0.1:8000", 0, &many).labels;
    assert_eq!((kept.len(), kept["tier"].as_str()), (16, "gold"));
}

#[test]
fn a_file_of_endpoints_is_checked_as_the_configuration_is() {
    let models = accepted(POOLS).pools.remove(0).models;
    let list = |text: &str| {
        super::super::listed(Path::new("e.yaml"), text, &models).map_err(|error| error.to_string())
    };
    let endpoints = list("endpoints: [{address: '10.0.0.1:8000', labels: {tier: gold}}]").unwrap();
    assert_eq!((endpoints[0].model.as_str(), endpoints[0].labels["tier"].as_str()), ("m", "gold"));
    assert_eq!(list("endpoints: []"), Ok(vec![]));
    assert_eq!(
        list("endpoints: [{address: '10.0.0.1'}]").unwrap_err(),
        "e.yaml: endpoints[0].address: \"10.0.0.1\" is not accepted: expected ip:port or [ipv6]:port, no host name"
    );
    assert!(list("endpoint: []").unwrap_err().starts_with("e.yaml:1:1: "));
}
