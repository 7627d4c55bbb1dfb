//! What the conformance suite of the Gateway API Inference Extension (v1.6.0, `conformance/tests`) expects of an
//! endpoint picker, where Envoy is the gateway: the same pods, headers, bodies, numbers of requests and cases as
//! `gateway_following_epp_routing.go`, `gateway_following_epp_routing_dp.go`,
//! `gateway_destination_endpoint_served.go` and `epp_unavailable_fail_open.go`. Its pods are echo servers that
//! know no `/metrics` and no model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Answer, PoolOptions, Stand, StandOptions, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::wire;

const SELECTION: &str = "test-epp-endpoint-selection";
const RESULT: &str = "x-conformance-test-served-endpoint";
/// The suite's paths are no paths of any API of engines.
const PATH: &str = "/primary-gateway-test";
const DP_PATH: &str = "/dp/primary-gateway-dp-test";
const PODS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 7, 1), Ipv4Addr::new(127, 0, 7, 2), Ipv4Addr::new(127, 0, 7, 3)];

/// The suite's `totalRequests` and `concurrentRequests`.
const REQUESTS: usize = 100;
const AT_ONCE: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn the_picker_of_the_conformance_suite() {
    let mut others = Vec::new();
    for ip in PODS {
        others.push(echo(ip).await);
    }
    let mut ranks = Vec::new();
    for ip in PODS {
        for _ in 0..3 {
            ranks.push(echo(ip).await);
        }
    }
    let dp = PoolOptions {
        name: "dp".into(),
        model: "conformance-fake-model".into(),
        route_prefix: Some("/dp".into()),
        others: ranks,
        ..PoolOptions::default()
    };
    let options = StandOptions {
        engines: Vec::new(),
        model: "conformance-fake-model".into(),
        others,
        more_pools: vec![dp],
        more_config: "routing: {conformance: true}\n".into(),
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await.unwrap();
    traffic_follows_the_selection(&stand).await;
    an_answer_names_the_pod_that_served(&stand).await;
    ranks_are_chosen_by_port_or_left_free(&stand).await;
    a_selection_of_nobody_is_none(&stand).await;
    a_known_path_follows_it_too(&stand).await;
    requests_are_served_without_a_daemon(stand).await;
}

/// As `echo-basic`: says in JSON where a request came to and with which headers.
async fn echo(ip: Ipv4Addr) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                loop {
                    let text = String::from_utf8_lossy(&seen).to_lowercase();
                    if let Some((head, body)) = text.split_once("\r\n\r\n") {
                        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                        if body.len() >= length.map_or(0, |l| l.parse().unwrap()) {
                            break;
                        }
                    }
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&seen);
                let headers: BTreeMap<&str, &str> =
                    text.lines().filter_map(|line| line.split_once(": ")).collect();
                let (pod, port) = (address.ip().to_string(), address.port().to_string());
                let body = json!({"pod": pod, "httpPort": port, "headers": headers}).to_string();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                // A client that has gone needs no answer.
                let _ = stream.write_all((head + &body).as_bytes()).await;
            });
        }
    });
    address
}

/// What the suite posts.
fn body() -> Vec<u8> {
    json!({
        "model": "conformance-fake-model",
        "prompt": "Write as if you were a critic: San Francisco",
    })
    .to_string()
    .into_bytes()
}

async fn post(gateway: SocketAddr, path: &str, selection: Option<&str>) -> (Answer, Value) {
    let body = body();
    let length = body.len().to_string();
    let mut headers: Vec<(&str, &[u8])> = vec![("content-length", length.as_bytes())];
    headers.extend(selection.map(|selection| (SELECTION, selection.as_bytes())));
    let answer = wire::h1(gateway, "POST", path, &headers, &[&body]).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let echoed: Value = serde_json::from_slice(&answer.body).unwrap();
    // The suite compares the headers that arrive with those it sent.
    assert_eq!(echoed["headers"][SELECTION].as_str(), selection, "{echoed}");
    (answer, echoed)
}

/// Where so many requests come to: (pod, port).
async fn spread(stand: &Stand, path: &'static str, selection: &str) -> BTreeSet<(String, String)> {
    let gateway = stand.gateway;
    let mut seen = BTreeSet::new();
    for _ in 0..REQUESTS / AT_ONCE {
        let mut set = JoinSet::new();
        for _ in 0..AT_ONCE {
            let selection = selection.to_owned();
            set.spawn(async move { post(gateway, path, Some(&selection)).await });
        }
        for (answer, echoed) in set.join_all().await {
            let text = |key: &str| echoed[key].as_str().unwrap().to_owned();
            let (pod, port) = (text("pod"), text("httpPort"));
            assert_eq!(answer.header(RESULT), format!("{pod}:{port}"));
            seen.insert((pod, port));
        }
    }
    seen
}

fn pods(seen: &BTreeSet<(String, String)>) -> BTreeSet<&str> {
    seen.iter().map(|(pod, _)| pod.as_str()).collect()
}

async fn traffic_follows_the_selection(stand: &Stand) {
    let ips = PODS.map(|ip| ip.to_string());
    let [a, b, c] = ips.each_ref().map(String::as_str);
    for chosen in [vec![c], vec![a, b], vec![a, b, c]] {
        let seen = spread(stand, PATH, &chosen.join(",")).await;
        // A hundred draws leave one of three out once in 4e17 runs.
        assert_eq!(pods(&seen), chosen.iter().copied().collect(), "{chosen:?}");
    }
}

async fn an_answer_names_the_pod_that_served(stand: &Stand) {
    for ip in PODS.map(|ip| ip.to_string()) {
        let (answer, echoed) = post(stand.gateway, PATH, Some(&ip)).await;
        assert_eq!(echoed["pod"], ip);
        assert_eq!(answer.header(RESULT), format!("{ip}:{}", echoed["httpPort"].as_str().unwrap()));
    }
}

async fn ranks_are_chosen_by_port_or_left_free(stand: &Stand) {
    let text = std::fs::read_to_string(stand.config_file()).unwrap();
    let (_, dp) = text.split_once("- name: dp").unwrap();
    let address = |line: &str| line.split_once("address: ")?.1.split(',').next()?.parse().ok();
    let ranks: Vec<SocketAddr> = dp.lines().filter_map(address).collect();
    assert_eq!(ranks.len(), 9);
    let all = |pod: usize| ranks.iter().filter(move |rank| rank.ip() == PODS[pod]).copied();
    let ip = |pod: usize| PODS[pod].to_string();
    let rank = |pod: usize, rank: usize| all(pod).nth(rank).unwrap();
    let check = async |selection: Vec<String>, allowed: Vec<SocketAddr>| {
        let seen = spread(stand, DP_PATH, &selection.join(",")).await;
        let text = |rank: SocketAddr| (rank.ip().to_string(), rank.port().to_string());
        let allowed: BTreeSet<_> = allowed.into_iter().map(text).collect();
        assert!(seen.is_subset(&allowed), "{selection:?}: {seen:?}");
        // Of nine ranks one is left out once in 10^4 runs, all ranks of a pod once in 10^17.
        assert_eq!(pods(&seen), pods(&allowed), "{selection:?}");
    };
    check(vec![ip(1)], all(1).collect()).await;
    let one = rank(2, 1);
    check(vec![ip(0), one.to_string()], all(0).chain([one]).collect()).await;
    let two = [rank(1, 0), rank(1, 2)];
    let selection = vec![ip(0), two[0].to_string(), two[1].to_string(), ip(2)];
    check(selection, all(0).chain(two).chain(all(2)).collect()).await;
}

async fn a_selection_of_nobody_is_none(stand: &Stand) {
    let dp = post(stand.gateway, DP_PATH, Some(&PODS[0].to_string())).await.1;
    let elsewhere = format!("{}:{}", PODS[0], dp["httpPort"].as_str().unwrap());
    for selection in ["256.256.256.256", "10.255.255.1", "nonsense", elsewhere.as_str()] {
        post(stand.gateway, PATH, Some(selection)).await;
    }
    post(stand.gateway, PATH, None).await;
}

async fn a_known_path_follows_it_too(stand: &Stand) {
    for ip in PODS.map(|ip| ip.to_string()) {
        assert_eq!(pods(&spread(stand, "/v1/completions", &ip).await), [ip.as_str()].into());
    }
}

/// The suite takes the picker's endpoints away; here the daemon goes. As long as its state is young the
/// selection is followed, then Envoy's policy serves.
async fn requests_are_served_without_a_daemon(mut stand: Stand) {
    stand.daemon = None;
    let chosen = PODS[0].to_string();
    wait_until("the state is too old", Duration::from_secs(30), async || {
        let (answer, echoed) = post(stand.gateway, PATH, Some(&chosen)).await;
        let served = format!("{}:{}", echoed["pod"].as_str()?, echoed["httpPort"].as_str()?);
        assert_eq!(answer.header(RESULT), served);
        (echoed["pod"] != chosen).then_some(())
    })
    .await
    .unwrap();
}
