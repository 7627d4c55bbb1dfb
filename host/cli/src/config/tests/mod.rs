//! The file as a whole; single values are in `values`.

mod discovery;
mod features;
mod gateways;
mod traffic;
mod values;

use std::path::Path;

use super::*;

const POOLS: &str = "
pools:
- name: a
  models: [{name: m, folder: f}]
  endpoints: [{address: '127.0.0.1:8000'}]
";

fn parsed(text: &str) -> Result<Config, ConfigError> {
    parse(text, Path::new("c.yaml"), Path::new("/etc/epp"))
}

#[track_caller]
fn accepted(text: &str) -> Config {
    parsed(text).unwrap_or_else(|error| panic!("{error}\nfor:\n{text}"))
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    match parsed(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => assert_eq!(error.to_string(), expected, "for:\n{text}"),
    }
}

/// Checks `lines` beside a good `pools`.
#[track_caller]
fn refused_beside_pools(lines: &str, expected: &str) {
    refused(&format!("{lines}{POOLS}"), expected);
}

/// Checks a pool of the given models, endpoints and further lines.
#[track_caller]
fn refused_pool(models: &str, endpoints: &str, expected: &str) {
    refused(
        &format!("pools: [{{name: a, models: [{models}], endpoints: [{endpoints}]}}]"),
        expected,
    );
}

const MODEL: &str = "{name: m, folder: f}";
const ENDPOINT: &str = "{address: '127.0.0.1:8000'}";

#[test]
fn only_pools_is_required() {
    let config = accepted(POOLS);
    assert_eq!(config.data_dir, Path::new("/etc/epp/data"));
    assert_eq!(config.admin.to_string(), "127.0.0.1:9400");
    assert_eq!(config.gateways[0].name, "gw-0");
    assert_eq!(config.gateways[0].feed.to_string(), "unix:/etc/epp/run/feed.sock");
    let folder = ModelSource::Folder { path: "/etc/epp/f".into(), revision: None };
    assert_eq!(config.pools[0].models[0].source, folder);
    assert_eq!(config.pools[0].models[0].max_strides, 1_000_000);
    let endpoint = &config.pools[0].endpoints[0];
    assert_eq!((endpoint.model.as_str(), endpoint.topic.as_str()), ("m", ""));
    assert_eq!(endpoint.metrics, "http://127.0.0.1:8000/metrics");
    assert_eq!((config.metrics.interval_ms, config.metrics.timeout_ms), (100, 1_000));
    assert_eq!(config.metrics.down_after_failures, 3);
    let [profile] = config.routing.spec.profiles.as_slice() else { panic!("one profile") };
    let weights: Vec<(&str, f64)> =
        profile.scorers.iter().map(|s| (s.r#type.as_str(), s.weight.unwrap())).collect();
    let expected =
        [("prefix-cache", 3.0), ("queue", 2.0), ("kv-cache-utilization", 2.0), ("no-hit-lru", 2.0)];
    assert_eq!(weights, expected);
    assert_eq!((config.routing.max_state_age_ms, config.routing.retries), (5_000, 2));
    assert_eq!(config.routing.max_body_bytes, 15_728_640);
    assert_eq!(config.envoy.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.envoy.admin.to_string(), "127.0.0.1:9901");
    assert_eq!((config.envoy.feed_mode, config.envoy.log_level.as_str()), (0o660, "info"));
    assert_eq!(config.envoy.modules, Path::new("/etc/epp/target/wasm"));
    assert!(config.warnings.is_empty() && config.snapshot.is_none());
}

#[test]
fn snapshots_are_off_unless_asked_for() {
    let interval = |lines: &str| {
        accepted(&format!("{lines}{POOLS}")).snapshot.map(|snapshot| snapshot.interval.as_secs())
    };
    assert_eq!(interval(""), None);
    assert_eq!(interval("snapshot:"), None);
    assert_eq!(interval("snapshot: {}"), Some(60));
    assert_eq!(interval("snapshot: {intervalSeconds: 1}"), Some(1));
    refused_beside_pools(
        "snapshot: {every: 3}",
        "c.yaml:1:12: unknown field `every`, expected one of intervalSeconds\n  snapshot: {every: 3}",
    );
}

#[test]
fn the_documented_file_is_accepted() {
    let config = accepted(
        "
dataDir: /var/lib/epp
admin: 127.0.0.1:9400
gateways:
- {name: gw-0, feed: 'unix:run/feed.sock', resources: run/gw-0}
- {name: gw-1, feed: 'http://127.0.0.1:9500'}
pools:
- name: pool-a
  models:
  - {name: tiny, aliases: [t, small], folder: models/tiny, maxStrides: 5000}
  - {name: big, folder: /models/big}
  endpoints:
  - address: 127.0.0.1:8000
    model: tiny
    kvEvents: tcp://127.0.0.1:5557
    replay: tcp://127.0.0.1:5657
    topic: kv
    metrics: http://127.0.0.1:8001/m
  - {address: '[::1]:8000', model: big, kvEvents: ipc:///run/kv}
- {name: pool-b, routePrefix: /b, models: [{name: tiny, folder: f}], endpoints: [{address: '127.0.0.1:8000'}]}
metrics: {intervalMs: 50, timeoutMs: 500, downAfterFailures: 2}
routing:
  scorers: [{type: queue, weight: 0.5}, {type: no-hit-lru}]
  maxStateAgeMs: 1000
  maxBodyBytes: 1000
  retries: 0
  servedHeader: false
envoy: {listen: '0.0.0.0:80', admin: '[::1]:9901', feed: 'http://127.0.0.1:9500', feedMode: 0600, modules: /m, logLevel: debug}
",
    );
    assert_eq!(config.pools[0].endpoints[1].metrics, "http://[::1]:8000/metrics");
    assert_eq!(config.pools[0].model("small").map(|m| m.name.as_str()), Some("tiny"));
    assert!(config.pools[0].model("large").is_none());
    assert_eq!(config.pools[1].route_prefix.as_deref(), Some("/b"));
    let second = &config.routing.spec.profiles[0].scorers[1];
    assert_eq!((second.r#type.as_str(), second.weight), ("no-hit-lru", Some(1.0)));
    assert!(!config.routing.has_served_header);
    assert_eq!(config.envoy.feed_mode, 0o600);
    assert_eq!(config.gateways[1].resources, None);
    let resources = config.gateways[0].resources.as_deref();
    assert!(resources.is_some_and(|path| path.is_absolute() && path.ends_with("run/gw-0")));
    assert!(config.warnings.is_empty());
}

#[test]
fn a_name_that_leads_to_an_earlier_pool_is_a_warning() {
    let pool = |name: &str, more: &str| {
        format!(
            "- {{name: {name}, {more}, endpoints: [{{address: '127.0.0.1:8000', model: tiny}}]}}\n"
        )
    };
    let models = "models: [{name: tiny, aliases: [t], adapters: [sql], folder: f}]";
    let others = "models: [{name: tiny, folder: f}, {name: other, aliases: [sql], folder: f}]";
    let config = accepted(&format!(
        "pools:\n{}{}{}",
        pool("a", models),
        pool("b", &format!("routePrefix: /b, {models}")),
        pool("c", others),
    ));
    assert_eq!(
        config.warnings,
        ["tiny", "sql"].map(|name| format!(
            "pools[2] is never asked for {name:?}, which the earlier pool a has too; a routePrefix would lead to it"
        ))
    );
}

#[test]
fn each_side_of_a_feed_over_a_network_has_its_files() {
    let text = format!(
        "gateways: [{{name: g, feed: 'https://[fd00::1]:9500'}}]\n\
         feedTls: {{ca: a, certificate: /b, key: c/d, serverName: gw.test}}\n\
         envoy: {{feed: 'https://[::]:9500', feedTls: {{ca: e, certificate: f, key: g}}}}\n{POOLS}"
    );
    let config = accepted(&text);
    let at = |feed: &FeedAddress| match feed {
        FeedAddress::Https(address) => address.as_ref().clone(),
        other => panic!("{other}"),
    };
    let daemons = at(&config.gateways[0].feed);
    assert_eq!((daemons.host.as_str(), daemons.port), ("fd00::1", 9500));
    let files =
        |tls: &FeedTls| [&tls.ca, &tls.certificate, &tls.key].map(|p| p.display().to_string());
    assert_eq!(files(&daemons.tls), ["/etc/epp/a", "/b", "/etc/epp/c/d"]);
    assert_eq!(daemons.tls.peer_name.as_deref(), Some("gw.test"));
    let gateways = at(&config.envoy.feed);
    assert_eq!((gateways.host.as_str(), gateways.port), ("::", 9500));
    assert_eq!(files(&gateways.tls), ["/etc/epp/e", "/etc/epp/f", "/etc/epp/g"]);
    assert_eq!(gateways.tls.peer_name, None);
    assert_eq!(config.gateways[0].feed.to_string(), "https://[fd00::1]:9500");
    assert_eq!(config.gateways[0].feed.probe().to_string(), "https://[fd00::1]:9501");
    // The gateway's admin interface is not where its feed listens.
    assert_eq!(config.gateways[0].admin, None);
    assert_eq!(config.warnings, Vec::<String>::new());
    for (key, instead) in [("serverName", "clientName"), ("ca", "cert")] {
        let error = parsed(&text.replace(key, instead)).expect_err("refused").to_string();
        assert!(error.contains(&format!("unknown field `{instead}`")), "{error}");
    }
}

#[test]
fn a_gateway_is_known_by_its_admin_interface_its_folder_and_its_probes() {
    let check =
        |gateways: &str, feed: &str, admin: Option<&str>, folder: Option<&str>, probe: &str| {
            let text =
                format!("envoy: {{admin: '127.0.0.1:7', feed: '{feed}'}}\n{gateways}{POOLS}");
            let gateway = accepted(&text).gateways.remove(0);
            assert_eq!(gateway.admin.map(|admin| admin.to_string()).as_deref(), admin);
            assert_eq!(gateway.resources.as_deref(), folder.map(Path::new));
            assert_eq!(gateway.feed.probe().to_string(), probe);
        };
    let own = Some("127.0.0.1:7");
    check("", "unix:run/feed.sock", own, None, "unix:/etc/epp/run/feed-probe.sock");
    check("", "http://[::1]:9500", own, None, "http://[::1]:9501");
    let one = |more: &str| format!("gateways: [{{name: g, feed: 'unix:/r/f'{more}}}]\n");
    let folder = one(", resources: out");
    check(&folder, "unix:/r/f", own, Some("/etc/epp/out"), "unix:/r/f-probe");
    // Another gateway's admin interface is not this file's to guess.
    check(&folder, "unix:/r/g", None, Some("/etc/epp/out"), "unix:/r/f-probe");
    check(
        &one(", admin: '10.0.0.1:99'"),
        "unix:/r/f",
        Some("10.0.0.1:99"),
        None,
        "unix:/r/f-probe",
    );
}

#[test]
fn a_feed_nobody_posts_to_is_a_warning() {
    let config = accepted(&format!(
        "envoy: {{feed: 'unix:/run/other'}}\ngateways: [{{name: g, feed: 'unix:/run/one'}}]\n{POOLS}"
    ));
    assert_eq!(
        config.warnings,
        ["envoy.feed is unix:/run/other, to which no entry of gateways posts"]
    );
}

#[test]
fn a_scorer_module_is_found_beside_the_file_and_its_parameters_are_kept() {
    let config = accepted(&format!(
        "routing:\n  scorers:\n  - {{type: queue}}\n  - {{type: module, name: mine-2, module: m/mine.wasm, weight: 1.5, shadow: true,\n     parameters: {{share: 0.5, names: [a, '7'], deep: {{n: 7}}}}}}\n{POOLS}"
    ));
    let parameters = serde_json::json!({"share": 0.5, "names": ["a", "7"], "deep": {"n": 7}});
    assert_eq!(
        config.routing.modules,
        [PluginModule {
            name: "mine-2".into(),
            file: "/etc/epp/m/mine.wasm".into(),
            parameters: parameters.as_object().cloned().unwrap(),
        }]
    );
    let scorers = &config.routing.spec.profiles[0].scorers;
    assert_eq!((scorers.len(), scorers[1].weight, scorers[1].shadow), (2, Some(1.5), Some(true)));
    assert!(scorers[1].parameters.is_empty(), "they are the module's");
    assert_eq!(config.routing.module_places, 4);
}

#[test]
fn an_empty_section_is_the_default_one() {
    assert_eq!(accepted(POOLS).meter, None, "off unless it is named");
    let meter = Some(Meter { share_ratio: 0.1, include_usage: false });
    assert_eq!(accepted(&format!("meter:{POOLS}")).meter, meter);
    let meter = Some(Meter { share_ratio: 1.0, include_usage: true });
    let written = format!("meter: {{share: 1, includeUsage: true}}{POOLS}");
    assert_eq!(accepted(&written).meter, meter);
    let config = accepted(&format!("metrics:\nrouting:\nenvoy:{POOLS}"));
    assert_eq!((config.metrics.interval_ms, config.routing.retries), (100, 2));
}

#[test]
fn the_shape_is_checked_with_line_and_column() {
    refused_beside_pools(
        "routing:\n  retires: 3",
        "c.yaml:2:3: unknown field `retires`, expected one of scorers, filters, picker, profiles, profileHandler, maxStateAgeMs, maxBodyBytes, retries, modulePlaces, servedHeader, approximatePrefix, refuse, conformance, features\n  retires: 3",
    );
    refused("admin: x", "c.yaml:1:1: missing field `pools`\n  admin: x");
    refused_beside_pools(
        "metrics: {intervalMs: 1.5}",
        "c.yaml:1:23: expected a whole number\n  metrics: {intervalMs: 1.5}",
    );
    refused_beside_pools(
        "metrics: {timeoutMs: 1, timeoutMs: 2}",
        "c.yaml:1:25: duplicate mapping key: timeoutMs\n  metrics: {timeoutMs: 1, timeoutMs: 2}",
    );
    refused_beside_pools(
        "routing: {scorers: [{type: queue, weight: heavy}]}",
        "c.yaml:1:43: expected a number\n  routing: {scorers: [{type: queue, weight: heavy}]}",
    );
    refused_beside_pools("admin: [1]", "c.yaml:1:8: expected text\n  admin: [1]");
    refused("pools: ~", "c.yaml:1:8: expected a list\n  pools: ~");
    refused("- a", "c.yaml:1:1: expected keys and values\n  - a");
    refused("", "c.yaml:1:1: the file is empty, or ends too early");
    let long = format!("admin: [{}]", "x".repeat(200));
    refused_beside_pools(&long, &format!("c.yaml:1:8: expected text\n  {} ...", &long[..100]));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load("/nowhere/c.yaml").expect_err("missing");
    assert_eq!(
        error.to_string(),
        "/nowhere/c.yaml: reading the configuration: No such file or directory (os error 2)"
    );
}
