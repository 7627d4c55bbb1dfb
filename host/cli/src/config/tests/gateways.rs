//! Gateways that somebody else configures.

use std::path::Path;

use super::super::{MODULES_PATH, PoolCluster};
use super::{POOLS, accepted, parsed, refused_beside_pools};

const ISTIO: &str = "
istio:
  namespace: istio-ingress
  selector: {istio: ingressgateway}
  port: 8080
  pools: [{pool: a, service: vllm.default.svc.cluster.local, port: 8000}]
";

#[test]
fn a_gateway_of_istios_is_named_by_its_pods_and_services() {
    let istio = accepted(&format!("{POOLS}{ISTIO}")).istio.unwrap();
    assert_eq!((istio.port, istio.service_port), (8080, 8080));
    assert_eq!(istio.modules_path, Path::new(MODULES_PATH));
    assert_eq!(istio.pools[0].cluster(), "outbound|8000||vllm.default.svc.cluster.local");
    assert_eq!(istio.pools[0].kind, PoolCluster::Service);
    refused_beside_pools(
        &ISTIO.replace("istio-ingress", "Istio"),
        "c.yaml: istio.namespace: \"Istio\" is not accepted: expected 1..=63 characters of [a-z0-9-], \
         none but [a-z0-9] at the ends",
    );
}

#[test]
fn unknown_keys_and_pools_of_a_gateway_in_a_cluster_are_refused() {
    let refused = |text: &str| match parsed(&format!("{POOLS}{text}")) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error.to_string(),
    };
    for (from, to, expected) in [
        ("port: 8080", "port: 0", "istio.port"),
        ("port: 8080", "port: 8080, listener: x", "listener"),
        ("  port: 8080", "  port: 8080\n  listener: x", "listener"),
        ("{istio: ingressgateway}", "{}", "istio.selector"),
        ("  port: 8080", "  port: 8080\n  modulesPath: modules", "istio.modulesPath"),
        ("pool: a", "pool: b", "istio.pools[0].pool"),
        ("vllm.default.svc.cluster.local", "vllm", "istio.pools[0].service"),
        ("port: 8000}", "port: 8000, poolCluster: epp}", "istio.pools[0].poolCluster"),
        ("[{pool: a, service: vllm.default.svc.cluster.local, port: 8000}]", "[]", "istio.pools"),
    ] {
        let text = ISTIO.replace(from, to);
        assert_ne!(text, ISTIO, "{from}");
        let said = refused(&text);
        assert!(said.contains(expected), "{said}\nfor {to}");
    }
    let gateway = "
envoyGateway:
  namespace: llm
  gateway: inference
  section: http
  pools: [{pool: a, httpRoute: llama}]
";
    let accepted = accepted(&format!("{POOLS}{gateway}")).envoy_gateway.unwrap();
    assert_eq!(accepted.resources_path, Path::new("/var/lib/wasm-epp"));
    for (from, to, expected) in [
        ("httpRoute: llama", "httpRoute: Llama", "envoyGateway.pools[0].httpRoute"),
        ("httpRoute: llama", "httpRoute: llama, rule: 16", "envoyGateway.pools[0].rule"),
        ("section: http", "section: http\n  scorerImages: {x: y}", "envoyGateway.scorerImages.x"),
        ("section: http", "section: http\n  listener: http", "listener"),
    ] {
        let said = refused(&gateway.replace(from, to));
        assert!(said.contains(expected), "{said}\nfor {to}");
    }
}
