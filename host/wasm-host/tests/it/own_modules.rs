//! Modules as a gateway loads them, made by the Rust SDK for WASI.

use crate::support::{built, engine};
use std::time::Duration;
use wasm_host::{
    ChainConfig, Host, HostOptions, LogLevel, Module, PluginConfig, Request, Response,
};

fn plugin(name: &str, module: &Module, configuration: &str) -> PluginConfig {
    let mut config = PluginConfig::new(name, module);
    config.root_id = name.to_owned();
    config.vm_id = "wasm-epp".to_owned();
    config.configuration = configuration.as_bytes().to_vec();
    config.allow_on_headers_stop_iteration = true;
    config
}

/// Chunks of a chat request, so that the filters see the body in pieces.
fn chat() -> Request {
    let pieces = [r#"{"model":"m","messages":[{"role":"#, r#""user","content":"hello"}]}"#];
    let mut request = Request::post("/v1/chat/completions", "");
    request.headers.set("content-length", pieces.concat().len().to_string());
    request.headers.add("content-type", "application/json");
    request.chunks = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
    request
}

#[test]
fn a_module_that_waits_for_the_body_lets_it_pass_whole() {
    let Some(noop) = built("noop.wasm") else { return };
    let mut host = Host::new(engine(), HostOptions::default());
    let noop = host.add_plugin(plugin("noop", &noop, "")).unwrap();
    let chain = host.add_chain(ChainConfig::new([noop])).unwrap();
    let outcome = host.exchange(chain, 0, chat(), |_| Response::new(200, "ok")).unwrap();
    assert_eq!(outcome.upstream.body, chat().chunks.concat());
    assert_eq!(outcome.upstream.chunks.len(), 1, "it was held until its end");
    assert_eq!((outcome.downstream.status(), outcome.downstream.text()), (Some(200), "ok".into()));
    let callbacks: Vec<_> = host.calls().map(|call| call.callback).collect();
    let last = &callbacks[callbacks.len() - 3..];
    assert_eq!(last, ["proxy_on_log", "proxy_on_done", "proxy_on_delete"]);
}

/// Both filters of the router in one machine per worker, and the feeder beside them.
#[test]
fn the_router_without_state_leaves_the_choice_to_the_cluster() {
    let (Some(router), Some(feeder)) = (built("router.wasm"), built("feeder.wasm")) else { return };
    let options = HostOptions { workers: 2, ..HostOptions::default() };
    let mut host = Host::new(engine(), options);
    let intake = r#"{"maxBodyBytes": 1000000, "maxStateAgeMs": 5000,
                     "pools": [{"name": "pool", "models": [{"name": "m"}]}]}"#;
    let picker = r#"{"destinations": 2, "servedHeader": true,
                     "scorers": [{"type": "queue", "weight": 1}]}"#;
    let intake = host.add_plugin(plugin("intake", &router, intake)).unwrap();
    let picker = host.add_plugin(plugin("picker", &router, picker)).unwrap();
    let feeder = host.add_plugin(plugin("feeder", &feeder, "")).unwrap();
    let requests = host.add_chain(ChainConfig::new([intake, picker])).unwrap();
    let batches = host.add_chain(ChainConfig::new([feeder])).unwrap();

    for worker in 0..2 {
        let stream = host.open(requests, worker).unwrap();
        host.set_attribute(stream, &["xds", "cluster_name"], "pool").unwrap();
        host.send_request(stream, chat()).unwrap();
        let outcome = host.outcome(stream).unwrap();
        assert_eq!(outcome.upstream.body, chat().chunks.concat());
        assert!(outcome.upstream.end_of_stream && outcome.paused.is_empty());
        let headers = outcome.upstream.headers.unwrap();
        assert_eq!(headers.get("x-gateway-destination-endpoint"), None, "there is no state");
        host.send_response(stream, Response::new(200, "ok")).unwrap();
        let outcome = host.close(stream).unwrap();
        assert_eq!(outcome.downstream.text(), "ok");
    }
    // Why, in the gateway's own counters.
    let counters = host.metrics();
    let names: Vec<_> =
        counters.iter().map(|(_, name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert!(!names.is_empty(), "{names:?}");

    // A batch that is none is refused by the guest itself, and what it ticks does no harm.
    let refused = host
        .exchange(batches, 0, Request::post("/feed", "nonsense"), |_| panic!("the filter answers"));
    let refused = refused.unwrap();
    assert!(refused.local_reply && refused.downstream.status() >= Some(400));
    assert!(host.advance(Duration::from_secs(3)).unwrap() >= 6, "pickers tick once a second");
    let errors: Vec<_> =
        host.logs().into_iter().filter(|line| line.level >= LogLevel::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// The same request costs the same, whatever else the machine does.
#[test]
fn fuel_is_the_same_in_every_run() {
    let Some(router) = built("router.wasm") else { return };
    let run = || {
        let mut host = Host::new(engine(), HostOptions::default());
        let configuration = r#"{"maxBodyBytes": 1000000, "maxStateAgeMs": 5000,
                                "pools": [{"name": "pool", "models": [{"name": "m"}]}]}"#;
        let intake = host.add_plugin(plugin("intake", &router, configuration)).unwrap();
        let chain = host.add_chain(ChainConfig::new([intake])).unwrap();
        host.exchange(chain, 0, chat(), |_| Response::new(200, "ok")).unwrap();
        host.take_calls()
    };
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    let body = first.iter().filter(|call| call.callback == "proxy_on_request_body");
    assert!(body.map(|call| call.fuel).sum::<u64>() > 1000);
}
