//! Followers against what a real kube-apiserver said (`recorded/record.py`), over a real socket.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::script::{Piece, Script, until};
use discovery::kubernetes::{EndpointsOf, KubernetesConfig, PodsConfig, Server, Timing, follow};
use discovery::{Publisher, View};
use serde_json::{Value, json};
use tokio::sync::watch;

fn recorded(name: &str) -> Value {
    let path = format!("{}/tests/recorded/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn lines(of: &Value) -> Vec<String> {
    of["lines"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

async fn start(script: &Script, of: EndpointsOf) -> watch::Receiver<View> {
    let url = format!("http://{}", script.serve().await);
    let config = KubernetesConfig {
        server: Server { url, ca_file: None, token_file: None },
        namespace: "inference".into(),
        of,
        timing: Timing {
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_millis(20),
        },
    };
    let (publisher, views) = Publisher::new();
    tokio::spawn(follow(config, publisher));
    views
}

fn vllm() -> EndpointsOf {
    let labels = BTreeMap::from([("app".to_owned(), "vllm".to_owned())]);
    EndpointsOf::Pods(PodsConfig { labels, ports: vec![8000] })
}

/// Ready or not by IP.
fn ready(view: &View) -> BTreeMap<String, bool> {
    view.endpoints.iter().map(|(at, found)| (at.ip().to_string(), found.is_ready)).collect()
}

fn truth(of: &Value) -> BTreeMap<String, bool> {
    serde_json::from_value(of["ready"].clone()).unwrap()
}

/// Resource version of the last line.
fn version(lines: &[String]) -> String {
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    last["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

/// How the same lines come over the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    /// A chunk per step.
    Whole,
    /// A chunk per byte.
    Bytes,
    /// Each event twice.
    Twice,
    /// The connection breaks in the middle of every line, and the next has it whole.
    Broken,
    /// The server ends the watch after every step.
    Ended,
}

#[tokio::test]
async fn recorded_lives_of_pods_are_followed_however_they_come() {
    let record = recorded("pods.json");
    for wire in [Wire::Whole, Wire::Bytes, Wire::Twice, Wire::Broken, Wire::Ended] {
        let script = Script::default();
        script.list(record["list"].to_string());
        let mut watch = script.watch();
        let mut views = start(&script, vllm()).await;
        let mut resumed_at =
            vec![record["list"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned()];
        let mut last = None;
        for step in record["steps"].as_array().unwrap() {
            let lines = lines(step);
            let text = lines.concat().into_bytes();
            match wire {
                Wire::Whole => watch.send(Piece::Bytes(text)).unwrap(),
                Wire::Bytes => {
                    text.chunks(1).for_each(|b| watch.send(Piece::Bytes(b.to_vec())).unwrap());
                }
                Wire::Twice => {
                    for line in &lines {
                        watch.send(Piece::Bytes(line.repeat(2).into_bytes())).unwrap();
                    }
                }
                Wire::Broken | Wire::Ended => {
                    let next = script.watch();
                    if wire == Wire::Broken {
                        watch.send(Piece::Bytes(text[..text.len() / 2].to_vec())).unwrap();
                        // A line that got through whole is where the next watch goes on.
                        let got = lines[..lines.len() - 1].iter().rev();
                        let mut got = got.filter(|line| {
                            let end = lines.concat().find(line.as_str()).unwrap() + line.len();
                            end <= text.len() / 2
                        });
                        if let Some(line) = got.next() {
                            last = Some(version(std::slice::from_ref(line)));
                        }
                        watch.send(Piece::Cut).unwrap();
                        resumed_at.push(last.clone().unwrap_or_else(|| resumed_at[0].clone()));
                        next.send(Piece::Bytes(text)).unwrap();
                    } else {
                        watch.send(Piece::Bytes(text)).unwrap();
                        watch.send(Piece::End).unwrap();
                        resumed_at.push(version(&lines));
                    }
                    watch = next;
                }
            }
            last = Some(version(&lines));
            let what = format!("{wire:?}: {}", step["what"]);
            let expected = truth(step);
            until(&mut views, &what, |view| view.is_known && ready(view) == expected).await;
        }
        // The last step may still be on its way to the server.
        let asked = loop {
            let asked = script.asked();
            if asked.len() > resumed_at.len() {
                break asked;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(
            views.borrow().lists,
            1,
            "{wire:?}: nothing was lost that would have to be listed"
        );
        let list = "/api/v1/namespaces/inference/pods?labelSelector=app%3Dvllm&limit=500";
        assert_eq!(asked[0], list);
        let expected: Vec<String> = resumed_at
            .iter()
            .map(|version| {
                format!(
                    "/api/v1/namespaces/inference/pods?labelSelector=app%3Dvllm&watch=1\
                 &allowWatchBookmarks=true&timeoutSeconds=240&resourceVersion={version}"
                )
            })
            .collect();
        assert_eq!(asked[1..], expected, "{wire:?}");
    }
}

#[tokio::test]
async fn what_the_server_has_forgotten_is_listed_anew() {
    let record = recorded("pods.json");
    let steps = record["steps"].as_array().unwrap();
    let gone = lines(&recorded("gone.json"))[0].clone();
    // By an event in a watch, and as the answer to one.
    for is_event in [true, false] {
        let script = Script::default();
        script.list(record["list"].to_string());
        let watch = script.watch();
        let mut views = start(&script, vllm()).await;
        // The pod that was listed is gone meanwhile, and another is there.
        let mut later = record["list"].clone();
        let event: Value = serde_json::from_str(&lines(&steps[2])[0]).unwrap();
        later["items"] = json!([event["object"]]);
        later["metadata"]["resourceVersion"] = json!("900");
        if is_event {
            script.list(later.to_string());
            watch.send(Piece::Bytes(gone.clone().into_bytes())).unwrap();
        } else {
            let status: Value = serde_json::from_str(&gone).unwrap();
            script.status(410, &status["object"].to_string()).list(later.to_string());
            watch.send(Piece::End).unwrap();
        }
        let next = script.watch();
        let expected = BTreeMap::from([("10.1.0.2".to_owned(), true)]);
        let view = until(&mut views, "listed anew", |view| ready(view) == expected).await;
        assert_eq!(view.lists, 2);
        // And it goes on from there.
        next.send(Piece::Bytes(lines(&steps[5]).concat().replace("10.1.0.1", "10.1.0.9").into()))
            .unwrap();
        next.send(Piece::Bytes(lines(&steps[6]).concat().into())).unwrap();
        until(&mut views, "goes on", |view| ready(view).len() == 2).await;
        assert!(script.asked().last().unwrap().ends_with("resourceVersion=900"));
    }
}

#[tokio::test]
async fn pages_of_a_list_are_one_list_and_a_forgotten_page_starts_it_again() {
    let record = recorded("pods.json");
    let event: Value = serde_json::from_str(&lines(&record["steps"][2])[0]).unwrap();
    let page = |items: Value, version: &str, next: &str| json!({"metadata": {"resourceVersion": version, "continue": next}, "items": items});
    let first = page(record["list"]["items"].clone(), "50", "a/b==");
    let second = page(json!([event["object"]]), "50", "");
    let script = Script::default();
    script.list(first.to_string()).status(410, r#"{"code":410,"reason":"Expired"}"#);
    script.list(first.to_string()).list(second.to_string());
    let _watch = script.watch();
    let mut views = start(&script, vllm()).await;
    let view = until(&mut views, "both pages", |view| view.is_known).await;
    assert_eq!(ready(&view).into_keys().collect::<Vec<_>>(), ["10.1.0.1", "10.1.0.2"]);
    assert_eq!((view.lists, view.failures, view.error), (1, 1, None));
    let asked = script.asked();
    assert!(asked[1].ends_with("&limit=500&continue=a%2Fb%3D%3D"), "{asked:?}");
    assert_eq!(asked[3], asked[1]);
}

#[tokio::test]
async fn a_server_that_refuses_or_babbles_takes_no_endpoint_away() {
    let record = recorded("pods.json");
    let script = Script::default();
    script.status(403, r#"{"code":403,"message":"pods is forbidden: User \"epp\" cannot list"}"#);
    let mut views = start(&script, vllm()).await;
    let view = until(&mut views, "an error", |view| view.error.is_some()).await;
    assert!(!view.is_known, "no answer is not no endpoints");
    let error = view.error.unwrap();
    assert!(error.contains("403") && error.contains("pods is forbidden"), "{error}");

    script.list("not json");
    script.list(record["list"].to_string());
    let watch = script.watch();
    until(&mut views, "listed", |view| view.is_known && view.error.is_none()).await;
    script.status(500, "oops");
    let next = script.watch();
    watch.send(Piece::Bytes(b"{\"type\":\"ADDED\",\"object\":7}\n".to_vec())).unwrap();
    let steps = record["steps"].as_array().unwrap();
    for step in &steps[..3] {
        next.send(Piece::Bytes(lines(step).concat().into())).unwrap();
    }
    let view = until(&mut views, "it goes on", |view| ready(view).len() == 2).await;
    assert!(view.failures >= 3 && view.lists == 1, "{view:?}");
    assert_eq!(ready(&view), truth(&steps[2]));
}

#[tokio::test]
async fn an_inference_pool_says_which_pods_and_ports_while_it_is_there() {
    let (record, pods) = (recorded("pools.json"), recorded("pods.json"));
    let script = Script::default();
    script.list(record["list"].to_string());
    let pool = script.watch();
    let mut views = start(&script, EndpointsOf::InferencePool("llama".into())).await;
    let view = until(&mut views, "no pool", |view| view.is_known).await;
    assert!(view.endpoints.is_empty());
    let events = lines(&record);
    let addresses =
        |view: &View| view.endpoints.keys().map(ToString::to_string).collect::<Vec<_>>();

    script.list(pods["list"].to_string());
    let _first = script.watch();
    pool.send(Piece::Bytes(events[0].clone().into())).unwrap();
    let view = until(&mut views, "two ports", |view| view.endpoints.len() == 2).await;
    assert_eq!(addresses(&view), ["10.1.0.1:8000", "10.1.0.1:8001"]);
    assert_eq!(view.endpoints.values().map(|found| found.rank).collect::<Vec<_>>(), [0, 1]);

    script.list(pods["list"].to_string());
    let _second = script.watch();
    pool.send(Piece::Bytes(events[1].clone().into())).unwrap();
    let view = until(&mut views, "one port", |view| view.endpoints.len() == 1).await;
    assert_eq!(addresses(&view), ["10.1.0.1:8000"]);

    pool.send(Piece::Bytes(events[2].clone().into())).unwrap();
    until(&mut views, "the pool is gone", |view| view.endpoints.is_empty()).await;
    let asked = script.asked();
    assert!(asked[0].starts_with(
        "/apis/inference.networking.k8s.io/v1/namespaces/inference/inferencepools?fieldSelector=metadata.name%3Dllama&limit"
    ));
    let of_pods = |path: &&String| {
        path.starts_with("/api/v1/namespaces/inference/pods?labelSelector=app%3Dvllm&")
    };
    assert_eq!(asked.iter().filter(of_pods).count(), 4);
}

#[tokio::test]
async fn endpoint_slices_tell_of_a_service_where_pods_may_not_be_read() {
    let record = recorded("slices.json");
    let script = Script::default();
    script.list(record["list"].to_string());
    let _watch = script.watch();
    let of = EndpointsOf::Service { name: "llama".into(), ports: Vec::new() };
    let mut views = start(&script, of).await;
    let view = until(&mut views, "listed", |view| view.is_known).await;
    assert_eq!(ready(&view), truth(&record));
    assert!(view.endpoints.keys().all(|address| address.port() == 8000));
    let ids: Vec<_> = view.endpoints.values().map(|found| found.id.as_str()).collect();
    assert_eq!(ids, ["uid-a", "uid-b", "uid-c", "uid-d"]);
    assert!(script.asked()[0].starts_with(
        "/apis/discovery.k8s.io/v1/namespaces/inference/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dllama&"
    ));
}
