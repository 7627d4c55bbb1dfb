//! A gateway that starts with a bad module serves without it, and heals when it gets a good one.

use std::path::PathBuf;
use std::time::Duration;

use testbed::{Stand, StandOptions, wait_until};

use crate::support::{
    BOTH, COMPLETIONS, Protocol, completion, fallbacks, line, passed, picked, prose, question,
    served,
};

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The module's file is not there.
    Missing,
    /// It ends in the middle.
    Truncated,
    /// It does not take its configuration.
    Refusing,
}
use Fault::{Missing, Refusing, Truncated};

/// Each filter with each fault, in few starts. The feeder takes any configuration.
const TOGETHER: [&[(&str, Fault)]; 3] = [
    &[("intake", Missing), ("picker", Truncated), ("feeder", Missing)],
    &[("intake", Truncated), ("picker", Refusing), ("feeder", Truncated)],
    &[("intake", Refusing), ("picker", Missing)],
];

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_starts_without_its_modules_serves_and_heals() {
    let mut stand = Stand::prepare(StandOptions::default()).await.unwrap();
    for faults in TOGETHER {
        start_with(&mut stand, faults).await;
        requests_are_served(&stand).await;
        assert_eq!(picked(&stand).await, 0);
        stop(&mut stand);
    }

    // From here on there is a daemon, which a feed without its feeder must not deceive.
    stand.start_daemon().unwrap();
    start_with(&mut stand, &[("feeder", Missing)]).await;
    requests_are_served(&stand).await;
    assert_eq!(fallbacks(&stand).await.keys().collect::<Vec<_>>(), ["no_state"]);
    wait_until("the daemon has got an answer", Duration::from_secs(10), async || {
        let gateway = stand.readyz().await.ok()?["gateways"][0].clone();
        gateway["error"].as_str()?.contains("503").then_some(gateway)
    })
    .await
    .map(|gateway| assert_eq!(gateway["state"], "disconnected"))
    .unwrap();
    heals(&mut stand).await;
    stop(&mut stand);

    // What intake publishes, nobody picks from.
    start_with(&mut stand, &[("picker", Refusing)]).await;
    stand.wait_ready().await.unwrap();
    requests_are_served(&stand).await;
    assert_eq!(picked(&stand).await, 0);
    heals(&mut stand).await;
}

/// Renders, damages the filters, and starts Envoy, which must refuse each of them.
async fn start_with(stand: &mut Stand, faults: &[(&str, Fault)]) {
    stand.render().unwrap();
    for (filter, fault) in faults {
        damage(stand, filter, *fault);
    }
    stand.start_envoy(&[]).await.unwrap();
    for filter in ["intake", "picker", "feeder"] {
        let name = format!("extension_config_discovery.http_filter.{filter}.update_rejected");
        let rejected = stand.envoy_stat(&format!(".*{name}")).await.unwrap();
        let is_damaged = faults.iter().any(|(name, _)| *name == filter);
        assert_eq!(rejected > 0, is_damaged, "{filter} of {faults:?}: {rejected} rejected");
    }
}

fn stop(stand: &mut Stand) {
    stand.envoy.take().unwrap().kill();
}

fn damage(stand: &Stand, filter: &str, fault: Fault) {
    let resource = stand.rendered().join("ecds").join(format!("{filter}.yaml"));
    let text = std::fs::read_to_string(&resource).unwrap();
    let module = if filter == "feeder" { "feeder" } else { "router" };
    let module = module_file(stand, module);
    let (old, new) = match fault {
        Missing => (module.clone(), module.with_extension("gone")),
        Truncated => {
            let cut = module.with_extension("cut");
            let bytes = std::fs::read(&module).unwrap();
            std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
            (module, cut)
        }
        Refusing if filter == "intake" => ("maxBodyBytes".into(), "maxBodyBites".into()),
        Refusing => ("destinations".into(), "destination".into()),
    };
    let damaged = text.replace(&old.display().to_string(), &new.display().to_string());
    assert_ne!(text, damaged, "{filter} {fault:?}");
    std::fs::write(resource, damaged).unwrap();
}

/// The rendered copy of a module.
fn module_file(stand: &Stand, name: &str) -> PathBuf {
    let files = std::fs::read_dir(stand.rendered().join("modules")).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    let is_it = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_string_lossy();
        file.starts_with(name) && file.ends_with(".wasm")
    };
    files.find(is_it).expect("a rendered module")
}

async fn requests_are_served(stand: &Stand) {
    for protocol in BOTH {
        for bytes in [500, 200_000] {
            // Whether the engine takes as many is not the question.
            let body = question(&prose(&format!("{protocol:?}"), bytes));
            let answer = protocol.post(stand, COMPLETIONS, &body).await;
            assert_eq!(answer.status, 400, "{answer:?}");
            passed(stand, &answer, &body);
        }
        let body = completion(&prose(&format!("{protocol:?} again"), 500));
        let answer = protocol.post(stand, COMPLETIONS, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        passed(stand, &answer, &body);
    }
}

/// A second rendering puts the good filters back, and the running Envoy takes them.
async fn heals(stand: &mut Stand) {
    stand.render().unwrap();
    let body = question(&prose("healed?", 500));
    wait_until("requests are picked again", Duration::from_secs(20), async || {
        let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
        passed(stand, &answer, &body);
        (picked(stand).await > 0).then_some(())
    })
    .await
    .unwrap();
    let body = completion(&prose("healed", 500));
    let answer = Protocol::H2.post(stand, COMPLETIONS, &body).await;
    let line = line(stand, &answer).await;
    assert_eq!(line.picked().first(), Some(&served(stand, &answer, &body)), "{line:?}");
}
