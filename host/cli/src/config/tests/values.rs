//! Every value that is refused, with the sentence a user sees.

use super::{ENDPOINT, MODEL, accepted, refused, refused_beside_pools, refused_pool};

#[test]
fn numbers_are_refused_outside_their_range() {
    let check = |key: &str, section: &str, value: &str, range: &str| {
        let name = key.rsplit('.').next().unwrap_or(key);
        refused_beside_pools(
            &format!("{section}: {{{name}: {value}}}"),
            &format!("c.yaml: {key}: {value} is not accepted: expected {range}"),
        );
    };
    check("metrics.intervalMs", "metrics", "9", "10..=60000");
    check("metrics.timeoutMs", "metrics", "60001", "10..=60000");
    check("metrics.downAfterFailures", "metrics", "0", "1..=1000");
    check("snapshot.intervalSeconds", "snapshot", "0", "1..=86400");
    check("snapshot.intervalSeconds", "snapshot", "86401", "1..=86400");
    check("routing.maxStateAgeMs", "routing", "-1", "100..=3600000");
    check("routing.maxBodyBytes", "routing", "16777216", "1..=16777215");
    check("routing.retries", "routing", "11", "0..=10");
    refused_pool(
        "{name: m, folder: f, maxStrides: 3}",
        ENDPOINT,
        "c.yaml: pools[0].models[0].maxStrides: 3 is not accepted: expected 1024..=1000000000",
    );
}

#[test]
fn a_carrier_has_a_server_and_engines_to_follow() {
    let refused_carrier = |section: &str, listener: &str, sentence: &str| {
        let endpoint = "{address: '127.0.0.1:8000', kvEvents: 'tcp://127.0.0.1:5557'}";
        refused(
            &format!(
                "carrier: {section}\n{listener}pools: [{{name: p, models: [{MODEL}], endpoints: \
                 [{endpoint}]}}]"
            ),
            &format!("c.yaml: carrier.{sentence}"),
        );
    };
    let server = "HOST:PORT of a Valkey or Redis server, a port in 1..=65535";
    for (section, found) in
        [("", ""), ("{server: valkey}", "valkey"), ("{server: 'redis://v:6379'}", "redis://v:6379")]
    {
        let sentence = format!("server: {found:?} is not accepted: expected {server}");
        refused_carrier(section, "", &sentence);
    }
    for (more, sentence) in [
        ("maxEntries: 9999", "maxEntries: 9999 is not accepted: expected 10000..=100000000"),
        ("leaseMs: 499", "leaseMs: 499 is not accepted: expected 500..=60000"),
        ("leaseMs: 60001", "leaseMs: 60001 is not accepted: expected 500..=60000"),
        (
            "username: epp",
            "username: \"epp\" is not accepted: expected nothing, or passwordFile beside it",
        ),
        (
            "name: ''",
            "name: \"\" is not accepted: expected at least one character and no control characters",
        ),
    ] {
        refused_carrier(&format!("{{server: 'v:6379', {more}}}"), "", sentence);
    }
    refused_carrier(
        "{server: 'v:6379'}",
        "kvEventsListen: 'tcp://127.0.0.1:5557'\n",
        "server: \"v:6379\" is not accepted: expected nothing beside kvEventsListen: engines that \
         connect are not followed",
    );
    refused_beside_pools(
        "carrier: {server: 'v:6379'}",
        "c.yaml: carrier.server: \"v:6379\" is not accepted: expected an endpoint with kvEvents of \
         vllm or sglang: no other is carried",
    );
    let config = accepted(
        "carrier: {server: 'v:6379'}\npools: [{name: p, models: [{name: m, folder: m}], endpoints: \
         [{address: '127.0.0.1:8000', kvEvents: 'tcp://127.0.0.1:5557'}]}]",
    );
    let carrier = config.carrier.expect("a carrier");
    assert_eq!((carrier.name.as_str(), carrier.max_entries), ("wasm-epp", 65_536));
    assert_eq!((carrier.lease.as_millis(), carrier.password_file), (5_000, None));
}

#[test]
fn endpoints_are_in_the_form_envoy_compares() {
    let check = |address: &str, expected: &str| {
        refused_pool(
            MODEL,
            &format!("{{address: '{address}'}}"),
            &format!(
                "c.yaml: pools[0].endpoints[0].address: {address:?} is not accepted: expected {expected}"
            ),
        );
    };
    let form = "ip:port or [ipv6]:port, no host name";
    for wrong in [
        "localhost:8000",
        "127.0.0.1",
        "::1:8000",
        "http://127.0.0.1:1",
        "127.0.0.1:65536",
        "127.00.0.1:80",
        " 127.0.0.1:80",
    ] {
        check(wrong, form);
    }
    let canonical =
        |text: &str| format!("the canonical form {text:?}, which is what Envoy compares");
    check("127.0.0.1:08000", &canonical("127.0.0.1:8000"));
    check("[0:0::1]:8000", &canonical("[::1]:8000"));
    check("[FD00::A]:8000", &canonical("[fd00::a]:8000"));
    check("[fe80::1%3]:8000", "an address without a zone");
    check("127.0.0.1:0", "a port in 1..=65535");
    check("0.0.0.0:8000", "the address of one engine");
    check("224.0.0.1:8000", "the address of one engine");
}

#[test]
fn admin_and_feed_are_on_loopback() {
    refused_beside_pools(
        "envoy: {admin: '0.0.0.0:9901'}",
        "c.yaml: envoy.admin: \"0.0.0.0:9901\" is not accepted: expected a loopback address (127.0.0.0/8 or [::1]): Envoy's admin interface can end the process",
    );
    refused_beside_pools(
        "gateways: [{name: g, feed: 'http://10.0.0.1:9500'}]",
        "c.yaml: gateways[0].feed: \"10.0.0.1:9500\" is not accepted: expected a loopback address (127.0.0.0/8 or [::1]): whoever posts to the feed decides the routing; over a network by https://",
    );
    let feed = |text: &str, expected: &str| {
        refused_beside_pools(
            &format!("envoy: {{feed: '{text}'}}"),
            &format!("c.yaml: envoy.feed: {text:?} is not accepted: expected {expected}"),
        );
    };
    feed("/run/feed.sock", "unix:PATH, http://127.0.0.1:PORT or https://HOST:PORT");
    feed("unix:", "unix: and the path of a socket");
    for port in ["0", "65535"] {
        let expected = "a port in 1..=65534, and the next one free for probes";
        feed(&format!("http://127.0.0.1:{port}"), expected);
    }
    let long = "x".repeat(93);
    feed(
        &format!("unix:{long}"),
        &format!("a path of at most 101 bytes (here 102: /etc/epp/{long})"),
    );
}

const TLS: &str = "{ca: a.pem, certificate: c/c.pem, key: c/k.pem";

#[test]
fn a_feed_over_a_network_is_by_mutual_tls() {
    let feed = |feed: &str, more: &str, key: &str, value: &str, expected: &str| {
        let text = format!("gateways: [{{name: g, feed: '{feed}'}}]\n{more}");
        let said = format!("c.yaml: {key}: {value} is not accepted: expected {expected}");
        refused_beside_pools(&text, &said);
    };
    let at = "https://gw.test:9500";
    let both = "feedTls too: both sides show a certificate";
    feed(at, "", "gateways[0].feed", &format!("{at:?}"), both);
    let tls = format!("feedTls: {TLS}}}");
    for wrong in [
        "https://gw.test",
        "https://:9500",
        "https://gw_test:9500",
        "https://-gw.test:9500",
        "https://gw..test:9500",
        "https://10.0.0.256:9500",
        "https://fd00::1:9500",
        "https://[10.0.0.1]:9500",
        "https://gw.test:9500/feed:1",
        "https://user@gw.test:9500",
    ] {
        let form = "https://HOST:PORT with a DNS name, an IPv4 address or [an IPv6 address]";
        feed(wrong, &tls, "gateways[0].feed", &format!("{wrong:?}"), form);
    }
    for port in ["0", "65535", "65536", "x"] {
        let wrong = format!("https://gw.test:{port}");
        let expected = "a port in 1..=65534, and the next one free for probes";
        feed(&wrong, &tls, "gateways[0].feed", &format!("{wrong:?}"), expected);
    }
    // Without files for it, or with files for nothing.
    let unused = "nothing, as the feed of any gateway is not https://HOST:PORT";
    feed("unix:/a", &tls, "feedTls.ca", "\"/etc/epp/a.pem\"", unused);
    let listener = format!("envoy: {{feedTls: {TLS}}}}}");
    let unused = "nothing, as envoy.feed is not https://HOST:PORT";
    feed("unix:/a", &listener, "envoy.feedTls.ca", "\"/etc/epp/a.pem\"", unused);
    let own = "https://0.0.0.0:9500";
    let both = "envoy.feedTls too: both sides show a certificate";
    let bare = format!("envoy: {{feed: '{own}'}}");
    feed("unix:/a", &bare, "envoy.feed", &format!("{own:?}"), both);
    let named = format!("envoy: {{feed: '{at}', feedTls: {TLS}}}}}");
    let expected = "the IP address to listen at, like https://0.0.0.0:9500";
    feed("unix:/a", &named, "envoy.feed", &format!("{at:?}"), expected);
    for (section, key) in
        [("feedTls", "serverName"), ("envoy: {feed: 'https://0.0.0.0:1', feedTls", "clientName")]
    {
        for name in ["*.test", "", "10.0.0.1", "a b"] {
            let end = if key == "clientName" { "}" } else { "" };
            let text = format!("{section}: {TLS}, {key}: '{name}'}}{end}");
            let expected = "a DNS name that stands in the certificate, no pattern";
            let path = if key == "clientName" { "envoy.feedTls" } else { "feedTls" };
            feed(at, &text, &format!("{path}.{key}"), &format!("{name:?}"), expected);
        }
    }
    // Where it listens is not where it is found.
    let alone = format!("envoy: {{feed: '{own}', feedTls: {TLS}}}}}");
    refused_beside_pools(
        &alone,
        &format!(
            "c.yaml: gateways: nothing is not accepted: expected the gateways that listen at envoy.feed, {own}"
        ),
    );
    let twice = "gateways: [{name: g, feed: 'https://a:1'}, {name: h, feed: 'https://a:2'}]\n";
    refused_beside_pools(
        &format!("{twice}{tls}"),
        "c.yaml: gateways[1].feed: \"https://a:2\" is not accepted: expected an address of which neither it nor its probes' is another gateway's",
    );
}

#[test]
fn a_feed_socket_is_not_for_everybody() {
    for mode in ["0666", "0777", "0060", "660", "00660", "rw", "0700"] {
        refused_beside_pools(
            &format!("envoy: {{feedMode: '{mode}'}}"),
            &format!(
                "c.yaml: envoy.feedMode: {mode:?} is not accepted: expected \"0600\", \"0640\", \"0620\" or \"0660\""
            ),
        );
    }
}

#[test]
fn names_are_unique() {
    let once = "expected each one once; it was named before";
    refused_pool(
        MODEL,
        &format!("{ENDPOINT}, {ENDPOINT}"),
        &format!(
            "c.yaml: pools[0].endpoints[1].address: \"127.0.0.1:8000\" is not accepted: {once}"
        ),
    );
    refused_pool(
        "{name: m, folder: f}, {name: n, aliases: [m], folder: f}",
        ENDPOINT,
        &format!("c.yaml: pools[0].models[1].aliases[0]: \"m\" is not accepted: {once}"),
    );
    refused_pool(
        "{name: m, aliases: [m], folder: f}",
        ENDPOINT,
        &format!("c.yaml: pools[0].models[0].aliases[0]: \"m\" is not accepted: {once}"),
    );
    refused_pool(
        "{name: m}",
        ENDPOINT,
        "c.yaml: pools[0].models[0].folder: nothing is not accepted: expected a model folder or a Hugging Face cache, or hub: ORG/NAME",
    );
    refused_pool(
        "{name: m, folder: f, hub: a/b}",
        ENDPOINT,
        "c.yaml: pools[0].models[0].hub: \"a/b\" is not accepted: expected nothing beside folder",
    );
    let hub = |repository: &str, expected: &str| {
        refused_pool(
            &format!("{{name: m, hub: {repository}}}"),
            ENDPOINT,
            &format!(
                "c.yaml: pools[0].models[0].hub: {repository:?} is not accepted: expected {expected}"
            ),
        );
    };
    if cfg!(feature = "hub") {
        for repository in ["a", "a/", "a/../b", "a/b/c", "a/b c"] {
            hub(repository, "a repository: ORG/NAME");
        }
    } else {
        hub("a/b", "a folder instead: this build has no hub support (cargo feature `hub`)");
    }
    refused_pool(
        "{name: m, aliases: [x], adapters: [a, x], folder: f}",
        ENDPOINT,
        &format!("c.yaml: pools[0].models[0].adapters[1]: \"x\" is not accepted: {once}"),
    );
    let many: Vec<String> = (0..257).map(|i| format!("a{i}")).collect();
    refused_pool(
        &format!("{{name: m, adapters: [{}], folder: f}}", many.join(", ")),
        ENDPOINT,
        "c.yaml: pools[0].models[0].adapters: 257 is not accepted: expected at most 256",
    );
    refused_beside_pools(
        "gateways: [{name: g, feed: 'unix:/a'}, {name: g, feed: 'unix:/b'}]",
        &format!("c.yaml: gateways[1].name: \"g\" is not accepted: {once}"),
    );
    refused_beside_pools(
        "gateways: [{name: g, feed: 'unix:/a'}, {name: h, feed: 'unix:/./a'}]",
        "c.yaml: gateways[1].feed: \"unix:/./a\" is not accepted: expected each feed once",
    );
    let nobodys = "an address of which neither it nor its probes' is another gateway's";
    for (first, second) in [
        ("unix:/a.sock", "unix:/a-probe.sock"),
        ("unix:/a-probe", "unix:/a"),
        ("http://127.0.0.1:9500", "http://127.0.0.1:9501"),
    ] {
        refused_beside_pools(
            &format!("gateways: [{{name: g, feed: '{first}'}}, {{name: h, feed: '{second}'}}]"),
            &format!("c.yaml: gateways[1].feed: {second:?} is not accepted: expected {nobodys}"),
        );
    }
    refused_beside_pools(
        "gateways: [{name: g, feed: 'unix:/a', resources: e}, {name: h, feed: 'unix:/b', resources: e}]",
        &format!("c.yaml: gateways[1].resources: \"e\" is not accepted: {once}"),
    );
    refused_beside_pools(
        "gateways: [{name: g, feed: 'unix:/a', admin: '10.0.0.1'}]",
        "c.yaml: gateways[0].admin: \"10.0.0.1\" is not accepted: expected ip:port or [ipv6]:port, no host name",
    );
    refused_beside_pools(
        "routing: {scorers: [{type: queue}, {type: queue}]}",
        &format!("c.yaml: routing.scorers[1].type: \"queue\" is not accepted: {once}"),
    );
    let pool = |name: &str, prefix: &str| {
        format!("{{name: {name}, {prefix}models: [{MODEL}], endpoints: [{ENDPOINT}]}}")
    };
    refused(
        &format!("pools: [{}, {}]", pool("a", ""), pool("a", "routePrefix: /b, ")),
        &format!("c.yaml: pools[1].name: \"a\" is not accepted: {once}"),
    );
    refused(
        &format!(
            "pools: [{}, {}, {}]",
            pool("a", ""),
            pool("b", "routePrefix: /b, "),
            pool("c", "routePrefix: /b, ")
        ),
        &format!("c.yaml: pools[2].routePrefix: \"/b\" is not accepted: {once}"),
    );
}

#[test]
fn the_first_pool_has_no_prefix_and_others_may() {
    let pool = |name: &str, prefix: &str| {
        format!("{{name: {name}, {prefix}models: [{MODEL}], endpoints: [{ENDPOINT}]}}")
    };
    refused(
        &format!("pools: [{}]", pool("a", "routePrefix: /a, ")),
        "c.yaml: pools[0].routePrefix: \"/a\" is not accepted: expected nothing: the first pool serves every path that no other pool has",
    );
    for prefix in ["b", "/", "/b/", "//b", "/b?x", "/b c", "/b%20"] {
        refused(
            &format!(
                "pools: [{}, {}]",
                pool("a", ""),
                pool("b", &format!("routePrefix: '{prefix}', "))
            ),
            &format!(
                "c.yaml: pools[1].routePrefix: {prefix:?} is not accepted: expected a path like \"/pool-b\": a slash first, none last, of [A-Za-z0-9-_.~/]"
            ),
        );
    }
}

#[test]
fn models_and_scorers_are_known() {
    refused_pool(
        MODEL,
        "{address: '127.0.0.1:8000', model: x}",
        "c.yaml: pools[0].endpoints[0].model: \"x\" is not accepted: expected one of the pool's models: m",
    );
    refused_pool(
        "{name: m, folder: f}, {name: n, folder: f}",
        ENDPOINT,
        "c.yaml: pools[0].endpoints[0].model: nothing is not accepted: expected one of the pool's models: m, n",
    );
    refused_beside_pools(
        "routing: {scorers: [{type: prefix}]}",
        "c.yaml: routing.scorers[0].type: \"prefix\" is not accepted: expected one of prefix-cache, queue, running-requests, kv-cache-utilization, load-aware, active-request, token-load, no-hit-lru, lora-affinity, session-affinity, context-length-aware, endpoint-attribute, header-label-affinity, topology-affinity, latency, lmetric, module; is prefix-cache meant?",
    );
    for (written, read) in [("-1", "-1.0"), ("1001", "1001.0"), (".nan", "NaN"), (".inf", "inf")] {
        refused_beside_pools(
            &format!("routing: {{scorers: [{{type: queue, weight: {written}}}]}}"),
            &format!(
                "c.yaml: routing.scorers[0].weight: {read} is not accepted: expected a number from 0 to 1000"
            ),
        );
    }
    for (written, read) in [("-0.1", "-0.1"), ("1.01", "1.01"), (".nan", "NaN")] {
        refused_beside_pools(
            &format!("meter: {{share: {written}}}"),
            &format!("c.yaml: meter.share: {read} is not accepted: expected a number from 0 to 1"),
        );
    }
    refused_beside_pools(
        "envoy: {logLevel: warn}",
        "c.yaml: envoy.logLevel: \"warn\" is not accepted: expected one of trace, debug, info, warning, error, critical, off",
    );
}

#[test]
fn scorer_modules_are_named_once_and_have_a_place() {
    let check = |list: &str, expected: &str| {
        refused_beside_pools(
            &format!("routing: {{scorers: [{list}]}}"),
            &format!("c.yaml: routing.scorers{expected}"),
        );
    };
    let value = "nothing is not accepted: expected a value, as every plugin of type module has one";
    check("{type: module, module: m.wasm}", &format!("[0].name: {value}"));
    check("{type: module, name: a}", &format!("[0].module: {value}"));
    let form = "is not accepted: expected 1..=64 characters of [a-z0-9-]";
    check("{type: module, name: A.b, module: m}", &format!("[0].name: \"A.b\" {form}"));
    check(
        "{type: module, name: a, module: m}, {type: module, name: a, module: n}",
        "[1].name: \"a\" is not accepted: expected file and parameters that a has where it was named before",
    );
    for (key, value) in [("module", "m"), ("shadow", "false")] {
        check(
            &format!("{{type: queue, {key}: {value}}}"),
            &format!(
                "[0].{key}: a value is not accepted: expected none, as only plugins of type module have it"
            ),
        );
    }
    check(
        "{type: module, name: a, module: m}, {type: module, name: a}",
        "[1].name: \"a\" is not accepted: expected each one once; it was named before",
    );
    let many: Vec<String> =
        (0..5).map(|i| format!("{{type: module, name: m{i}, module: m}}")).collect();
    check(
        &many.join(", "),
        "[4]: module is not accepted: expected no more modules than routing.modulePlaces",
    );
    refused_beside_pools(
        "routing: {modulePlaces: 17}",
        "c.yaml: routing.modulePlaces: 17 is not accepted: expected 0..=16",
    );
}

#[test]
fn plugins_belong_to_one_profile_and_profiles_have_a_handler() {
    let profiles = "profiles: [{name: a, scorers: [{type: queue}]}, {name: b}]";
    refused_beside_pools(
        &format!("routing: {{scorers: [], {profiles}}}"),
        "c.yaml: routing.scorers: a value is not accepted: expected nothing beside routing.profiles: it belongs to one of them",
    );
    refused_beside_pools(
        &format!("routing: {{{profiles}}}"),
        "c.yaml: routing.profileHandler: nothing is not accepted: expected type header or disagg, for several profiles",
    );
    refused_beside_pools(
        "routing: {profiles: [{name: a, filters: [{type: role, parameters: {role: x}}]}]}",
        "c.yaml: routing.profiles[0].filters[0].parameters.role of role: \"x\" is not accepted: expected one of \"decode\", \"prefill\", \"encode\"",
    );
    refused_beside_pools(
        "routing: {filters: [{type: queue, module: m}]}",
        "c.yaml: routing.filters[0].module: a value is not accepted: expected none, as only plugins of type module have it",
    );
    refused_beside_pools(
        "routing: {profiles: []}",
        "c.yaml: routing.profiles: 0 is not accepted: expected 1 to 16 profiles",
    );
}

#[test]
fn nothing_is_empty() {
    refused_pool(
        "",
        ENDPOINT,
        "c.yaml: pools[0].models: [] is not accepted: expected at least one model",
    );
    refused_pool(
        MODEL,
        "",
        "c.yaml: pools[0].endpoints: [] is not accepted: expected at least one endpoint, or discovery beside it",
    );
    refused("pools: []", "c.yaml: pools: [] is not accepted: expected at least one pool");
    refused_beside_pools(
        "gateways: [{name: g, feed: 'unix:/a', resources: ''}]",
        "c.yaml: gateways[0].resources: \"\" is not accepted: expected at least one character and no control characters",
    );
    refused_beside_pools(
        "gateways: []",
        "c.yaml: gateways: [] is not accepted: expected at least one, or leave the key out",
    );
    refused_pool(
        "{name: '', folder: f}",
        ENDPOINT,
        "c.yaml: pools[0].models[0].name: \"\" is not accepted: expected at least one character and no control characters",
    );
    refused_beside_pools(
        "gateways: [{name: 'a b', feed: 'unix:/a'}]",
        "c.yaml: gateways[0].name: \"a b\" is not accepted: expected 1..=128 characters of [A-Za-z0-9-_.]",
    );
    refused_beside_pools(
        "dataDir: ''",
        "c.yaml: dataDir: \"\" is not accepted: expected at least one character and no control characters",
    );
}

#[test]
fn engine_sockets_and_urls_are_of_a_known_kind() {
    let check = |key: &str, value: &str, expected: &str| {
        refused_pool(
            MODEL,
            &format!("{{address: '127.0.0.1:8000', {key}: '{value}'}}"),
            &format!(
                "c.yaml: pools[0].endpoints[0].{key}: {value:?} is not accepted: expected {expected}"
            ),
        );
    };
    for wrong in
        ["127.0.0.1:5557", "tcp://127.0.0.1", "tcp://*:5557", "tcp://a:0", "udp://a:1", "ipc://"]
    {
        check("kvEvents", wrong, "tcp://HOST:PORT or ipc://PATH");
    }
    check(
        "replay",
        "tcp://127.0.0.1:5657",
        "nothing, or kvEvents beside it or kvEventsListen: there are no events to replay",
    );
    accepted(
        "kvEventsListen: 'tcp://127.0.0.1:5557'\npools: [{name: p, models: [{name: m, folder: m}], \
         endpoints: [{address: '127.0.0.1:8000', replay: 'tcp://127.0.0.1:5657'}]}]",
    );
    for wrong in ["https://127.0.0.1/metrics", "127.0.0.1:8000/metrics", "http://", "/metrics"] {
        check("metrics", wrong, "http://HOST:PORT/PATH");
    }
}
