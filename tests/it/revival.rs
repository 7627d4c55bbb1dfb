//! VMs that die under `fail_open` are revived while the gateway serves, and streams go on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::{Answer, Client, EngineOptions, Stand, StandOptions, root, wait_until};
use tokio::task::JoinHandle;

use crate::support::{
    BOTH, COMPLETIONS, Protocol, completion, counters, fallbacks, line, passed, picked, prose,
    served,
};

const PATIENCE: Duration = Duration::from_secs(30);
const STREAMS: usize = 12;
/// Twenty milliseconds each.
const TOKENS: usize = 1_500;
/// Requests in a row, each on a connection of its own, that reach both workers: that one gets none of
/// them is a matter of one in 2^31.
const BOTH_WORKERS: usize = 32;

/// A stand of two workers with these scorers, whose daemon may write the gateway's files.
async fn stand(scorers: &str, resources: bool) -> Stand {
    let flags = ["--inter-token-ms=20", "--max-model-len=100000"].map(str::to_owned).to_vec();
    let resources = if resources { ", resources: envoy" } else { "" };
    let options = StandOptions {
        engines: vec![EngineOptions { flags }; 3],
        workers: 2,
        more_config: format!(
            "gateways:\n- {{name: gw-0, feed: \"unix:feed.sock\"{resources}}}\nrouting:\n  \
             scorers:\n  - {{type: prefix-cache, weight: 3}}\n{scorers}"
        ),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await.unwrap();
    use_router(&stand, "trapping-router");
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand
}

/// Makes `router.wasm` of the stand be this module, from the next rendering on.
fn use_router(stand: &Stand, module: &str) {
    let (built, folder) = (root().join("target/wasm"), stand.folder.path().join("modules"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(built.join(format!("{module}.wasm")), folder.join("router.wasm")).unwrap();
    std::fs::copy(built.join("feeder.wasm"), folder.join("feeder.wasm")).unwrap();
    let text = std::fs::read_to_string(stand.config_file()).unwrap();
    let text = text.replace(
        &format!("modules: {}", built.display()),
        &format!("modules: {}", folder.display()),
    );
    std::fs::write(stand.config_file(), text).unwrap();
}

fn scorer(does: &str) -> String {
    let file = root().join("target/wasm/unruly-scorer.wasm");
    format!(
        "  - {{type: module, name: {does}, weight: 100, module: {}, parameters: {{does: {does}}}}}\n",
        file.display()
    )
}

/// A request on a connection of its own.
async fn ask(stand: &Stand, topic: &str) -> Answer {
    trap(stand, "nowhere", topic).await
}

/// The same, that ends the VM where it says.
async fn trap(stand: &Stand, place: &str, topic: &str) -> Answer {
    let body = completion(&prose(topic, 400));
    let more: [(&str, &[u8]); 1] = [("x-trap", place.as_bytes())];
    let answer = Protocol::H1.send(stand, COMPLETIONS, &more, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    passed(stand, &answer, &body);
    answer
}

/// What `/readyz` says of these VMs.
async fn vms(stand: &Stand, filter: &str) -> Value {
    let gateway = stand.readyz().await.unwrap()["gateways"][0].clone();
    let all = gateway["vms"].as_array().unwrap();
    all.iter().find(|vms| vms["filter"] == filter).unwrap().clone()
}

async fn until_vms(stand: &Stand, filter: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let waited = wait_until(what, PATIENCE, async || {
        let vms = vms(stand, filter).await;
        is(&vms).then_some(vms)
    });
    match waited.await {
        Ok(vms) => vms,
        Err(error) => panic!("{error}: {}", stand.readyz().await.unwrap()["gateways"]),
    }
}

fn revivals(vms: &Value) -> u64 {
    vms["revivals"].as_u64().unwrap()
}

/// Numbers of the router VMs that have a row.
async fn rows(stand: &Stand) -> Vec<String> {
    let gateway = stand.readyz().await.unwrap()["gateways"][0].clone();
    let rows = gateway["rows"].as_array().unwrap();
    rows.iter().map(|row| row["vm"].as_str().unwrap().to_owned()).collect()
}

/// Streams, each on a connection of its own.
async fn streams(stand: &Stand) -> Vec<JoinHandle<Answer>> {
    let streams = (0..STREAMS).map(|i| {
        let client = Client::new(stand.gateway);
        let prompt = prose(&format!("stream {i}"), 500);
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "stream": true});
        // Thirty seconds of tokens are more than the client waits for a whole answer.
        tokio::spawn(async move { client.post_slowly(COMPLETIONS, &body).await.unwrap() })
    });
    let streams: Vec<_> = streams.collect();
    until_in_flight(stand, STREAMS, "all streams are in flight").await;
    streams
}

async fn until_in_flight(stand: &Stand, requests: usize, what: &str) {
    wait_until(what, PATIENCE, async || (in_flight(stand).await == requests as u64).then_some(()))
        .await
        .unwrap();
}

/// Requests that the load matrix has.
async fn in_flight(stand: &Stand) -> u64 {
    stand.readyz().await.unwrap()["gateways"][0]["in_flight_requests"].as_u64().unwrap()
}

/// All streams came whole, and nothing is in flight when they have ended.
async fn end(stand: &Stand, streams: Vec<JoinHandle<Answer>>) {
    for stream in streams {
        let answer = stream.await.unwrap();
        assert_eq!(answer.status, 200);
        let text = String::from_utf8_lossy(&answer.body);
        assert!(text.ends_with("data: [DONE]\n\n"), "a cut stream");
        let pieces = text.matches("\"text\":").count();
        assert!(pieces >= TOKENS, "{pieces} pieces of a stream of {TOKENS} tokens");
    }
    until_in_flight(stand, 0, "nothing is in flight").await;
}

async fn doctor(stand: &Stand) -> String {
    let mut command = tokio::process::Command::new(testbed::wasm_epp().unwrap());
    let output = command.arg("doctor").arg("--config").arg(stand.config_file()).output().await;
    String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_router_vm_is_revived_and_no_stream_is_cut() {
    let stand = stand("", true).await;
    for i in 0..BOTH_WORKERS {
        ask(&stand, &format!("warm {i}")).await;
    }
    assert_eq!(rows(&stand).await.len(), 2, "both workers have a VM");
    let streams = streams(&stand).await;
    for (i, place) in ["headers", "body", "response"].into_iter().enumerate() {
        let before = rows(&stand).await;
        let died = Instant::now();
        trap(&stand, place, &format!("the last of {place}")).await;
        // One worker decides nothing until it is revived.
        let (mut undecided, mut last, mut in_a_row) = (0, died, 0);
        while in_a_row < BOTH_WORKERS || undecided == 0 {
            let counted = picked(&stand).await;
            ask(&stand, &format!("{place} {undecided} {in_a_row}")).await;
            if picked(&stand).await > counted {
                in_a_row += 1;
            } else {
                (undecided, last, in_a_row) = (undecided + 1, Instant::now(), 0);
            }
            assert!(died.elapsed() < PATIENCE, "{}", vms(&stand, "router").await);
        }
        assert_eq!(revivals(&vms(&stand, "router").await), i as u64 + 1);
        let lasted = last - died;
        eprintln!("{place}: {undecided} requests undecided, the last {lasted:?} after the trap");
        assert!(lasted < Duration::from_secs(15), "{lasted:?}");
        wait_until("one of the VMs is new", PATIENCE, async || {
            let after = rows(&stand).await;
            let is_kept = after.iter().any(|vm| before.contains(vm));
            (is_kept && after.iter().any(|vm| !before.contains(vm))).then_some(())
        })
        .await
        .unwrap();
    }
    let log = std::fs::read_to_string(stand.daemon_log()).unwrap();
    assert_eq!(log.matches("their filters are configured anew").count(), 3, "{log}");
    let said = doctor(&stand).await;
    assert!(said.contains("(VMs of router died and were revived 3 times, last "), "{said}");
    end(&stand, streams).await;
    assert_eq!(revivals(&vms(&stand, "router").await), 3, "nothing else was taken for dead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_of_its_first_request_is_noticed() {
    let stand = stand("", true).await;
    assert!(rows(&stand).await.is_empty());
    for i in 0..BOTH_WORKERS {
        trap(&stand, "body", &format!("first {i}")).await;
    }
    assert_eq!(picked(&stand).await, 0);
    until_vms(&stand, "router", "the VMs are revived", |vms| revivals(vms) == 1).await;
    wait_until("all requests are decided", PATIENCE, async || {
        let before = picked(&stand).await;
        for i in 0..BOTH_WORKERS {
            ask(&stand, &format!("second {i}")).await;
        }
        (picked(&stand).await - before == BOTH_WORKERS as u64).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_replaced_on_purpose_is_not_taken_for_dead() {
    let stand = stand("", true).await;
    let all = async |topic: &str| {
        for i in 0..BOTH_WORKERS {
            ask(&stand, &format!("{topic} {i}")).await;
        }
        rows(&stand).await
    };
    let first = all("before").await;
    assert_eq!(first.len(), 2);
    let streams = streams(&stand).await;

    // Another configuration of the same module: the VMs stay.
    let configs = async || {
        let gateway = stand.readyz().await.unwrap()["gateways"][0].clone();
        let rows = gateway["rows"].as_array().unwrap().clone();
        rows.into_iter().map(|row| row["config"].to_string()).collect::<Vec<_>>()
    };
    let before = configs().await;
    let text = std::fs::read_to_string(stand.config_file()).unwrap();
    std::fs::write(stand.config_file(), text.replace("weight: 3", "weight: 4")).unwrap();
    stand.render().unwrap();
    wait_until("both VMs say the new configuration", PATIENCE, async || {
        let now = configs().await;
        (now.len() == 2 && now.iter().all(|config| !before.contains(config))).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(all("weights").await, first);
    until_in_flight(&stand, STREAMS, "the streams are in the VMs that stayed").await;

    // Another module: new VMs, and the old ones until their last stream has ended.
    use_router(&stand, "router");
    stand.render().unwrap();
    wait_until("two more VMs have rows", PATIENCE, async || {
        let now = all("another module").await;
        (now.iter().filter(|vm| !first.contains(vm)).count() == 2).then_some(())
    })
    .await
    .unwrap();
    let now = rows(&stand).await;
    assert!(first.iter().any(|vm| now.contains(vm)), "the old ones have streams: {now:?}");
    until_in_flight(&stand, STREAMS, "the streams are in the old VMs").await;
    end(&stand, streams).await;
    wait_until("the old VMs have no rows", PATIENCE, async || {
        let now = rows(&stand).await;
        (!now.iter().any(|vm| first.contains(vm))).then_some(())
    })
    .await
    .unwrap();
    // Had they only stopped, they would be taken for dead three seconds later.
    let gone = Instant::now();
    wait_until("five seconds have passed", PATIENCE, async || {
        (gone.elapsed() > Duration::from_secs(5)).then_some(())
    })
    .await
    .unwrap();
    let vms = vms(&stand, "router").await;
    assert_eq!((revivals(&vms), &vms["dead"]), (0, &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scorer_that_traps_is_revived_and_one_that_always_does_is_given_up() {
    let both = scorer("trap-on-demand") + &scorer("trap");
    let stand = stand(&both, true).await;
    let says = async |name: &str, answer: &Answer| {
        line(&stand, answer).await.record["modules"][name].is_object()
    };
    let streams = streams(&stand).await;
    for i in 0..BOTH_WORKERS {
        assert!(says("trap-on-demand", &ask(&stand, &format!("warm {i}")).await).await);
    }
    let filter = "scorer-trap-on-demand";
    for round in 1..=2 {
        let died = Instant::now();
        trap(&stand, "scorer", "the last").await;
        // Its absence is seen in requests.
        let mut silent = 0;
        let mut asked = 0;
        while revivals(&vms(&stand, filter).await) < round {
            let answer = ask(&stand, "while it is dead").await;
            silent += usize::from(!says("trap-on-demand", &answer).await);
            asked += 1;
            assert!(died.elapsed() < PATIENCE, "{}", vms(&stand, filter).await);
        }
        let revived = died.elapsed();
        assert!(silent >= 3, "{silent} of {asked} without scores");
        wait_until("both workers have its scores", PATIENCE, async || {
            for i in 0..BOTH_WORKERS {
                if !says("trap-on-demand", &ask(&stand, &format!("again {i}")).await).await {
                    return None;
                }
            }
            Some(())
        })
        .await
        .unwrap();
        eprintln!("scorer: files anew after {revived:?}, both score after {:?}", died.elapsed());
        assert!(revived < Duration::from_secs(8), "{revived:?}");
    }

    // The other one has been dying all the time.
    let started = Instant::now();
    let mut number = 0;
    // Each worker counts its own requests, so one of them is known to be without scores first.
    let is_given_up_in_both = |vms: &Value| vms["given_up"] == true && vms["dead"] == 2;
    while !is_given_up_in_both(&vms(&stand, "scorer-trap").await) {
        for protocol in BOTH {
            let body = completion(&prose(&format!("dying {number}"), 300));
            served(&stand, &protocol.post(&stand, COMPLETIONS, &body).await, &body);
            number += 1;
        }
        assert!(
            started.elapsed() < Duration::from_secs(90),
            "{}",
            vms(&stand, "scorer-trap").await
        );
    }
    let given_up = vms(&stand, "scorer-trap").await;
    assert_eq!(revivals(&given_up), 5, "{given_up}");
    assert!(given_up["next_revival_in_ms"].as_u64().unwrap() > 400_000, "{given_up}");
    let said = doctor(&stand).await;
    assert!(said.contains("revived 5 times and given up for "), "{said}");
    let expected = "scorer-trap has not scored in 2 of its workers since it was loaded";
    assert!(said.contains(expected), "{said}");
    assert_eq!(revivals(&vms(&stand, filter).await), 2);
    assert_eq!(revivals(&vms(&stand, "router").await), 0);
    assert_eq!(fallbacks(&stand).await.len(), 0, "every request was routed");
    let absent = counters(&stand, "wasm_epp_scores_absent_").await;
    assert!(absent["trap"] >= number, "{absent:?}");
    end(&stand, streams).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_files_the_doctor_says_what_to_do_and_it_helps() {
    let stand = stand("", false).await;
    for i in 0..BOTH_WORKERS {
        ask(&stand, &format!("warm {i}")).await;
    }
    trap(&stand, "body", "the last").await;
    until_vms(&stand, "router", "a VM is dead", |vms| vms["dead"] == 1).await;
    let said = doctor(&stand).await;
    let command = "`wasm-epp revive --resources DIR router` does it";
    assert!(said.contains("the VM of router is dead in 1 of its workers; not revived"), "{said}");
    assert!(said.contains(command), "{said}");
    let mut revive = tokio::process::Command::new(testbed::wasm_epp().unwrap());
    revive.arg("revive").arg("--resources").arg(stand.rendered()).arg("router");
    assert!(revive.status().await.unwrap().success());
    wait_until("both workers decide", PATIENCE, async || {
        let before = picked(&stand).await;
        for i in 0..BOTH_WORKERS {
            ask(&stand, &format!("again {i}")).await;
        }
        (picked(&stand).await - before == BOTH_WORKERS as u64).then_some(())
    })
    .await
    .unwrap();
    let vms = until_vms(&stand, "router", "no VM is dead", |vms| vms["dead"] == 0).await;
    assert_eq!(revivals(&vms), 0);
}
