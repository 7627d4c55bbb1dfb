//! What no report of the engines tells yet.

use super::*;

#[test]
fn what_is_in_flight_is_weighed_at_the_next_decision_and_moves_to_who_serves() {
    let mut gateway = Gateway::new();
    let first = |list: &str| list.split(',').next().unwrap().to_owned();
    gateway.keep = true;
    let list = gateway.complete("short").unwrap();
    let (a, b) = (first(&list), list.split(',').nth(1).unwrap().to_owned());
    let mut open = gateway.kept.pop().unwrap();
    let sent = |gateway: &mut Gateway| {
        gateway.complete("another").unwrap();
        gateway.line()["in_flight"].clone()
    };
    gateway.keep = false;
    assert_eq!(sent(&mut gateway), serde_json::json!({a.as_str(): 1}));
    assert_eq!(gateway.line()["totals"][&a], 0.0, "one is in flight that it has not reported");
    gateway.host.properties.borrow_mut().insert("upstream/address".into(), b.clone().into_bytes());
    gateway.picker.answered(&gateway.host, &mut gateway.vm, Some(&mut open));
    assert_eq!(sent(&mut gateway), serde_json::json!({b.as_str(): 1}));
    assert_eq!(gateway.counter("wasm_epp_requests_moved_total"), 1);
    gateway.picker.ended(&gateway.host, &mut gateway.vm, open);
    assert_eq!(sent(&mut gateway), serde_json::json!({}));
}

#[test]
fn a_burst_with_a_new_prefix_stays_together_until_the_prefix_is_old() {
    let mut gateway = Gateway::new();
    let question = |i: usize| format!("{}{i:>64}", text(2048));
    let first = |list: Option<String>| list.unwrap().split(',').next().unwrap().to_owned();
    let place = first(gateway.complete(&question(0)));
    for i in 1..9 {
        assert_eq!(first(gateway.complete(&question(i))), place);
        assert_eq!(gateway.line()["speculative"], serde_json::json!({place.as_str(): 32}));
        assert!(gateway.line()["scores"].is_null(), "nobody is known to hold it");
    }
    gateway.host.now_ns.set(2_000_000_000);
    gateway.head(Head {
        instance: 1,
        epoch: 8,
        is_complete: true,
        stamp_ns: 2_000_000_000,
        ..Head::default()
    });
    gateway.complete(&question(9));
    assert_eq!(gateway.line()["speculative"], serde_json::json!({}));
}

#[test]
fn the_row_tells_of_the_first_request_at_once() {
    let mut gateway = Gateway::new();
    gateway.complete("short");
    let row = gateway.host.shared(Key::Row(0).encode().as_ref()).unwrap().unwrap().0;
    assert_eq!(feed::WorkerRow::decode(&row).unwrap().picked, 1);
}
