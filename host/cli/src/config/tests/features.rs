//! Labels, attributes, objectives and what modules read of them.

use routing::{Needs, SessionSource};

use super::{MODEL, POOLS, accepted, refused_beside_pools, refused_pool};
use crate::config::Config;

fn with_endpoint(more: &str) -> Config {
    accepted(&format!(
        "pools: [{{name: a, models: [{MODEL}], endpoints: [{{address: '127.0.0.1:8000', {more}}}]}}]"
    ))
}

#[test]
fn labels_are_kubernetes_labels_and_attributes_are_numbers() {
    let config = with_endpoint(
        "labels: {llm-d.ai/role: prefill, empty: '', z9: A.b_c-d}, attributes: {cost: 2, x/y: -0.5}",
    );
    let endpoint = &config.pools[0].endpoints[0];
    assert_eq!(endpoint.labels["llm-d.ai/role"], "prefill");
    assert_eq!((endpoint.labels.len(), endpoint.labels["empty"].as_str()), (3, ""));
    assert_eq!((endpoint.attributes["cost"], endpoint.attributes["x/y"]), (2.0, -0.5));
    let key = format!("{}/{}", "p".repeat(253), "k".repeat(63));
    with_endpoint(&format!("labels: {{? {key} : {}}}", "v".repeat(63)));

    let check = |more: &str, expected: &str| {
        refused_pool(
            MODEL,
            &format!("{{address: '127.0.0.1:8000', {more}}}"),
            &format!("c.yaml: pools[0].endpoints[0].{expected}"),
        );
    };
    let name = "names of labels as Kubernetes has them, like \"llm-d.ai/role\"";
    for key in ["-a", "a-", "a b", "/a", "UP/a", "a/b/c", "a/"] {
        check(
            &format!("labels: {{'{key}': v}}"),
            &format!("labels: {key:?} is not accepted: expected {name}"),
        );
    }
    let value = "at most 63 of [A-Za-z0-9-_.], first and last a letter or digit";
    for text in ["-a", "a b", "ü", &"v".repeat(64)] {
        check(
            &format!("labels: {{k: '{text}'}}"),
            &format!("labels.k: {text:?} is not accepted: expected {value}"),
        );
    }
    let many: Vec<String> = (0..17).map(|i| format!("k{i}: v")).collect();
    check(
        &format!("labels: {{{}}}", many.join(", ")),
        "labels: 17 is not accepted: expected at most 16 of them",
    );
    check(
        "attributes: {cost: 1.0e300}",
        "attributes.cost: 1e300 is not accepted: expected a finite number of 32 bits",
    );
    check(
        "attributes: {waiting-queue-size: 1}",
        "attributes: \"waiting-queue-size\" is not accepted: expected another name: every endpoint has this one, from its metrics",
    );
}

#[test]
fn objectives_are_named_once_per_pool() {
    let config = accepted(&format!(
        "objectives: [{{name: chat, priority: 5}}, {{name: chat, pool: a}}, {{name: batch, priority: -10}}]{POOLS}"
    ));
    let seen: Vec<_> = config
        .objectives
        .iter()
        .map(|o| (o.name.as_str(), o.priority, o.pool.as_deref()))
        .collect();
    assert_eq!(seen, [("chat", 5, None), ("chat", 0, Some("a")), ("batch", -10, None)]);
    let check = |list: &str, expected: &str| {
        refused_beside_pools(&format!("objectives: [{list}]"), &format!("c.yaml: {expected}"));
    };
    check(
        "{name: x, pool: b}",
        "objectives[0].pool: \"b\" is not accepted: expected one of the pools: a",
    );
    check(
        "{name: x}, {name: x}",
        "objectives[1].name: \"x of pool *\" is not accepted: expected each one once; it was named before",
    );
    check(
        "{name: x, priority: 2147483648}",
        "objectives[0].priority: 2147483648 is not accepted: expected -2147483648..=2147483647",
    );
}

#[test]
fn what_modules_read_is_listed() {
    // The scorers of a configuration without any read none of these.
    let needs =
        |text: &str| accepted(&format!("routing: {{features: {text}}}{POOLS}")).routing.needs;
    assert_eq!(needs("{}"), Needs::default());
    let all = needs("{headers: [x-a], labels: [zone], attributes: [cost, waiting], rates: true}");
    assert_eq!((all.headers, all.labels), (vec!["x-a".to_owned()], vec!["zone".to_owned()]));
    assert!(all.rates && !all.request_control);
    let session = |text: &str| needs(&format!("{{session: {text}}}")).session;
    let header = "x-session-token".to_owned();
    assert_eq!(session("{}"), Some(SessionSource::EncodedEndpoint { header }));
    let headers = vec!["x-user".to_owned()];
    assert_eq!(
        session(
            "{strategy: session_id, sessionIdConfig: {sources: [{header: X-User}], \
             evictionTtlSeconds: 1.5}}"
        ),
        Some(SessionSource::SessionId { headers, ttl_seconds: 1.5 })
    );
    let check = |text: &str, expected: &str| {
        refused_beside_pools(
            &format!("routing: {{features: {text}}}"),
            &format!("c.yaml: routing.features.{expected}"),
        );
    };
    check(
        "{headers: [X-A]}",
        "headers: \"X-A\" is not accepted: expected a header's name in lower case, at most 128 bytes",
    );
    check(
        "{labels: [a, a]}",
        "labels: \"a\" is not accepted: expected each one once; it was named before",
    );
    let session = |text: &str, expected: &str| check(&format!("{{session: {text}}}"), expected);
    session(
        "{strategy: cookie}",
        "session.strategy: \"cookie\" is not accepted: expected \"encoded_endpoint_header\" or \"session_id\"",
    );
    session(
        "{sessionIdConfig: {evictionTtlSeconds: 0}}",
        "session.sessionIdConfig.evictionTtlSeconds: 0 is not accepted: expected 1 to 86400",
    );
    session(
        "{headerName: x}",
        "session.headerName: a value is not accepted: expected one of strategy, encodedEndpointHeaderConfig, sessionIdConfig",
    );
    let headers: Vec<String> = (0..16).map(|i| format!("x-{i}")).collect();
    refused_beside_pools(
        &format!(
            "routing: {{features: {{headers: [{}]}}, scorers: [{{type: session-affinity}}]}}",
            headers.join(", ")
        ),
        "c.yaml: routing.features.headers: 17 is not accepted: expected at most 16 with those that \
         plugins read",
    );
    refused_beside_pools(
        "routing: {features: {session: {strategy: session_id}}, scorers: [{type: session-affinity}]}",
        "c.yaml: routing.features.session: \"another way\" is not accepted: expected sessions to be \
         found as the plugins find them, or no such key",
    );
}
