//! Requests that only some endpoints may serve.

use super::*;
use crate::{DROPPED_HEADER, SUBSET_PROPERTY};

fn hinted(hint: &[u8]) -> Gateway {
    let gateway = Gateway::new();
    gateway.host.properties.borrow_mut().insert(SUBSET_PROPERTY.join("/"), hint.to_vec());
    gateway
}

fn all(list: &str) -> std::collections::BTreeSet<&str> {
    list.split(',').collect()
}

#[test]
fn only_the_named_endpoints_are_candidates_and_every_attempt_has_one() {
    let mut gateway = hinted(b"c, a");
    gateway.hold(8, &text(640), None, 10, &[1, 2]);
    assert_eq!(gateway.complete(&text(640)).as_deref(), Some("c,a"));
    let line = gateway.line();
    assert_eq!(line["scores"], serde_json::json!({"c": 9}), "b holds it as well");
    assert!(line["totals"].get("b").is_none());
    // Two attempts are configured; after a shorter list the load balancer would choose.
    let mut gateway = hinted(b"c,x");
    assert_eq!(gateway.complete(&text(640)).as_deref(), Some("c,c"));
    assert_eq!(gateway.line()["picked"], serde_json::json!(["c", "c"]));
    assert_eq!(gateway.counter("wasm_epp_requests_picked_total"), 1);
}

#[test]
fn a_request_that_nobody_may_serve_is_answered_and_leaves_nothing() {
    let good = r#"{"model":"m","prompt":"x"}"#;
    let long = format!(r#"{{"model":"m","prompt":"{}"}}"#, text(8000));
    let check = |hint: &[u8], path: &str, body: &str, reason: &str| {
        let mut gateway = hinted(hint);
        assert_eq!(gateway.send(path, body), None);
        let response = gateway.host.response.borrow().clone();
        let (status, _) = response.unwrap_or_else(|| panic!("no answer: {path} {body}"));
        assert_eq!(status, 503);
        let headers = gateway.host.response_headers.borrow();
        assert_eq!(headers[DROPPED_HEADER], b"rejected-no-endpoints");
        let counters: Vec<_> = gateway.host.counters.borrow().clone().into_iter().collect();
        assert_eq!(counters, [(format!("wasm_epp_requests_refused_{reason}_total"), 1)]);
        assert_eq!(gateway.line()["refused"], *reason);
        assert!(gateway.host.property(&[FEATURES_PROPERTY]).unwrap().is_none());
        let own = gateway.vm.row.identity();
        assert_eq!((own, gateway.vm.report.fell_back), (None, 0), "the picker never ran");
    };
    for (path, body) in [
        ("/v1/completions", good),
        ("/v1/completions", "{"),
        ("/v1/completions", ""),
        ("/v1/completions", &long),
        ("/v1/models", ""),
    ] {
        check(b"", path, body, "subset_empty");
        check(&[0; 4], path, body, "subset_empty");
    }
    check(b"x", "/v1/completions", good, "subset_without_candidate");
}

#[test]
fn a_request_without_a_decision_is_kept_within_it() {
    let check = |change: &dyn Fn(&mut Gateway), body: &str| {
        let mut gateway = hinted(b"a,c");
        change(&mut gateway);
        let list = gateway.send("/v1/completions", body).unwrap();
        assert_eq!(all(&list), all("a,c"), "{body}");
        assert!(list.split(',').count() >= 2, "for every attempt: {list}");
        assert_eq!((gateway.vm.report.fell_back, gateway.vm.report.picked), (1, 0));
    };
    let good = r#"{"model":"m","prompt":"x"}"#;
    check(&|_| {}, "");
    check(&|_| {}, "{");
    check(&|_| {}, &format!(r#"{{"model":"m","prompt":"{}"}}"#, text(8000)));
    check(&|_| {}, r#"{"model":"nope","prompt":"x"}"#);
    check(&|g| g.host.data.borrow_mut().clear(), good);
    check(&|g| g.loads(8, &[None; 3]), good);
    check(&|g| g.host.refused.borrow_mut().push("set_property"), good);
    // Also what is not read at all, though nothing fell back then.
    let mut gateway = hinted(b"a,c");
    assert_eq!(all(&gateway.send("/v1/models", "x").unwrap()), all("a,c"));
    assert_eq!(gateway.vm.report.fell_back, 0);
}

#[test]
fn without_a_readable_hint_or_an_answer_the_request_goes_on() {
    let mut gateway = hinted(&[0xff, 0xfe]);
    assert_eq!(gateway.complete("x").map(|list| list.split(',').count()), Some(2));
    assert_eq!(gateway.counter("wasm_epp_mishaps_subset_unreadable_total"), 1);

    let mut gateway = hinted(b"");
    gateway.host.refused.borrow_mut().push("respond");
    assert!(gateway.complete("x").is_none());
    assert!(gateway.counter("wasm_epp_mishaps_request_not_refused_total") > 0);
}
