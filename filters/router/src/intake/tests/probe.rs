//! Probes: decided as requests are, told, and without any other effect.

use feed::{EXPLANATION_PROPERTY, SCORE_PROPERTY_PREFIX, Scores};
use serde_json::{Value, json};

use super::*;

const BODY: &str = r#"{"model":"m","prompt":"abcdefgh"}"#;

fn gateway(route: &str, cluster: Option<&str>) -> Gateway {
    let mut gateway = Gateway::new();
    let mut properties = gateway.host.properties.borrow_mut();
    properties.insert("xds/route_name".into(), route.as_bytes().to_vec());
    properties.remove("xds/cluster_name");
    properties.extend(cluster.map(|name| ("xds/cluster_name".into(), name.as_bytes().to_vec())));
    drop(properties);
    let picker = r#"{"destinations":2,"scorers":[{"type":"queue","weight":2},
        {"type":"module","name":"dead","weight":1},{"type":"module","name":"mine","weight":1}]}"#;
    gateway.picker = Picker::new(PickerConfig::parse(picker.as_bytes()).unwrap());
    let scores = Scores { epoch: 8, revision: 77, scores: vec![(0, 1.0), (1, 0.0), (2, 0.0)] };
    let name = format!("{SCORE_PROPERTY_PREFIX}mine");
    gateway.host.set_property(&name, &scores.encode()).unwrap();
    gateway
}

fn told(gateway: &Gateway) -> Option<Value> {
    let said = gateway.host.property(&[EXPLANATION_PROPERTY]).unwrap()?;
    Some(serde_json::from_slice(&said).unwrap())
}

#[test]
fn a_probe_is_decided_and_told_and_nothing_else_comes_of_it() {
    let mut gateway = gateway("wasm_epp.probe/pool", None);
    gateway.keep = true;
    gateway.loads(8, &[Some(3), Some(9), Some(9)]);
    assert_eq!(gateway.send("/v1/completions", BODY), None);
    let told = told(&gateway).unwrap();
    assert_eq!((&told["picked"][0], &told["reason"]), (&json!("a"), &Value::Null), "{told}");
    assert_eq!(told["revisions"], json!({"mine": 77, "dead": null}));
    assert_eq!(told["modules"]["dead"], "missing");
    // (9 - 3) / 6 and (9 - 9) / 6.
    assert_eq!(told["scorers"], json!({"queue": {"a": 1.0, "b": 0.0, "c": 0.0}}));
    assert_eq!(told["vm"], format!("{:016x}", gateway.vm.row.identity().unwrap().0));
    assert_eq!(told["config"], format!("{:016x}", gateway.picker.config_hash()));
    // No count, no reservation, no pick, no trail, no line; a row, by which the VM is known.
    assert_eq!(*gateway.host.counters.borrow(), Default::default());
    assert_eq!((gateway.vm.report.picked, gateway.kept.len()), (0, 0));
    assert_eq!(gateway.host.shared(Key::Picks(0).encode().as_ref()).unwrap(), None);
    assert_eq!(gateway.host.shared(Key::Trails(0).encode().as_ref()).unwrap(), None);
    assert!(gateway.host.lines.borrow().is_empty());
    assert!(gateway.host.shared(Key::Row(0).encode().as_ref()).unwrap().is_some());
}

#[test]
fn a_probe_without_a_decision_is_told_why_and_not_counted() {
    let check = |mut gateway: Gateway, body: &str, reason: &str| {
        assert_eq!(gateway.send("/v1/completions", body), None);
        let told = told(&gateway).unwrap();
        assert_eq!((&told["reason"], &told["picked"]), (&json!(reason), &Value::Null));
        assert_eq!(*gateway.host.counters.borrow(), Default::default());
        assert_eq!(gateway.vm.report.fell_back, 0);
    };
    check(gateway("wasm_epp.probe/pool", None), "{", "body_not_json");
    check(gateway("wasm_epp.probe/pool", None), "", "body_missing");
    check(gateway("wasm_epp.probe/other", None), BODY, "unknown_pool");
    let away = gateway("wasm_epp.probe/pool", None);
    away.loads(8, &[None, None, None]);
    check(away, BODY, "none_ready");
}

#[test]
fn a_route_of_a_cluster_is_no_probe_whatever_its_name() {
    let mut gateway = gateway("wasm_epp.probe/pool", Some("pool"));
    assert_eq!(gateway.send("/v1/completions", BODY).as_deref(), Some("a,b"));
    assert_eq!(told(&gateway), None);
    assert_eq!(gateway.send("/v1/completions", "{"), None);
    assert_eq!((told(&gateway), gateway.vm.report.fell_back), (None, 1));
    // Nor is a route without a cluster and of another name.
    let mut gateway = super::probe::gateway("pool", None);
    assert_eq!(gateway.send("/v1/completions", BODY), None);
    assert_eq!((told(&gateway), gateway.vm.report.fell_back), (None, 1));
}
