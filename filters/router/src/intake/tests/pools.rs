//! Requests of several pools: the route is "front"'s, the models of the state are "pool"'s.

use super::*;

fn gateway() -> Gateway {
    let mut gateway = Gateway::new();
    let config = r#"{"maxBodyBytes":4096,"maxStateAgeMs":1000,"byModel":"front","pools":[
        {"name":"front","models":[{"name":"f","aliases":["both"]}]},
        {"name":"pool","models":[{"name":"m","aliases":["alias","both"]},{"name":"other"}]}]}"#;
    gateway.intake = Intake::new(IntakeConfig::parse(config.as_bytes()).unwrap());
    gateway.route("front");
    gateway
}

impl Gateway {
    fn route(&self, pool: &str) {
        self.host.properties.borrow_mut().insert("xds/cluster_name".into(), pool.into());
    }

    fn ask(&mut self, model: &str) -> Option<String> {
        self.host.headers.borrow_mut().remove(POOL_HEADER);
        let body = serde_json::json!({"model": model, "prompt": text(640)}).to_string();
        self.send("/v1/completions", &body)
    }

    /// The pool that the last request was sent to, and how often one was.
    fn sent_to(&self) -> (Option<String>, u64) {
        let header = self.host.headers.borrow().get(POOL_HEADER).cloned();
        let rerouted = self.counter("wasm_epp_requests_rerouted_total");
        (header.map(|name| String::from_utf8(name).unwrap()), rerouted)
    }
}

#[test]
fn a_request_goes_to_the_pool_of_its_model_and_is_scored_there() {
    let mut gateway = gateway();
    gateway.hold(8, &text(640), None, 6, &[1]);
    for (i, model) in (1..).zip(["m", "alias"]) {
        assert!(gateway.ask(model).unwrap().starts_with("b,"), "{model}");
        assert_eq!(gateway.sent_to(), (Some("pool".into()), i));
        assert_eq!(gateway.line()["scores"], serde_json::json!({"b": 6}));
    }
    // An adapter that only the daemon knows.
    assert!(gateway.ask("m:sql").is_some());
    assert_eq!(gateway.sent_to(), (Some("pool".into()), 3));
}

#[test]
fn a_model_of_the_routes_own_pool_or_of_nobody_stays() {
    let mut gateway = gateway();
    for (i, model) in (1..).zip(["f", "both", "none such"]) {
        // The state of this gateway has no model of that pool.
        assert_eq!(gateway.ask(model), None, "{model}");
        assert_eq!(gateway.sent_to(), (None, 0), "{model}");
        assert_eq!(gateway.counter("wasm_epp_requests_fallback_unknown_model_total"), i);
    }
    // Neither does one of another route, which chose its pool.
    gateway.route("pool");
    assert_eq!(gateway.ask("f"), None);
    assert_eq!(gateway.sent_to(), (None, 0));
    assert!(gateway.ask("m").is_some());
    assert_eq!(gateway.sent_to(), (None, 0));
    // A request without a model is the route's own too.
    gateway.route("front");
    gateway.send("/v1/completions", r#"{"prompt":"x"}"#);
    assert_eq!(gateway.sent_to(), (None, 0));
}

#[test]
fn the_pool_of_a_model_does_not_depend_on_the_state() {
    let check = |reason: &str, change: &dyn Fn(&mut Gateway), models: &[&str]| {
        let mut gateway = gateway();
        // So that the adapters are known.
        gateway.ask("m");
        let before = gateway.sent_to().1;
        change(&mut gateway);
        for (i, model) in (1..).zip(models) {
            assert_eq!(gateway.ask(model), None, "{reason} {model}");
            assert_eq!(gateway.sent_to(), (Some("pool".into()), before + i), "{reason} {model}");
            let counter = format!("wasm_epp_requests_fallback_{reason}_total");
            assert_eq!(gateway.counter(&counter), i, "{model}");
        }
    };
    check("no_state", &|g| g.host.data.borrow_mut().clear(), &["m", "alias", "other"]);
    check("state_stale", &|g| g.host.now_ns.set(1_000_000_001), &["m", "m:sql"]);
    check("state_malformed", &|g| g.set(Key::Head, b"junk"), &["m"]);
    check("state_malformed", &|g| g.set(Key::Load(false, 0), b"junk"), &["m"]);
}

#[test]
fn what_cannot_be_read_stays_and_the_states_reason_comes_first() {
    let mut gateway = gateway();
    let mut check = |body: &str, reason: &str| {
        assert_eq!(gateway.send("/v1/completions", body), None);
        assert_eq!(gateway.line()["reason"], *reason);
        assert_eq!(gateway.sent_to(), (None, 0));
        gateway.host.data.borrow_mut().clear();
    };
    check("{", "body_not_json");
    check("{", "no_state");
}

#[test]
fn a_host_that_lets_no_pool_be_chosen_leaves_the_request_undecided() {
    let mut gateway = gateway();
    gateway.host.refused.borrow_mut().push("set_request_header");
    assert_eq!(gateway.ask("m"), None);
    assert_eq!(gateway.line()["reason"], "header_refused");
    assert_eq!(gateway.counter("wasm_epp_requests_rerouted_total"), 0);
    assert!(gateway.host.property(&[FEATURES_PROPERTY]).unwrap().is_none());
}

#[test]
fn a_pool_is_known_by_the_cluster_that_somebody_else_named() {
    let mut gateway = Gateway::new();
    let config = r#"{"maxBodyBytes":4096,"maxStateAgeMs":1000,"pools":[
        {"name":"front","cluster":"outbound|80||front.ns.svc.cluster.local"},
        {"name":"pool","cluster":"outbound|8000||pool.ns.svc.cluster.local"}]}"#;
    gateway.intake = Intake::new(IntakeConfig::parse(config.as_bytes()).unwrap());
    gateway.hold(8, &text(640), None, 6, &[1]);
    gateway.route("outbound|8000||pool.ns.svc.cluster.local");
    assert!(gateway.ask("m").unwrap().starts_with("b,"));
    // The pool's own name is no cluster's then.
    gateway.route("pool");
    assert_eq!(gateway.ask("m"), None);
}
