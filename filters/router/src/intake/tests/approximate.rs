//! Endpoints that announce nothing, beside those that do.

use feed::SENT_PROPERTY;

use super::*;

const ON: &str =
    r#""approximatePrefix":{"capacityTokens":2000,"autoTune":true,"maxPrefixTokens":512}"#;

fn gateway(config: &str) -> Gateway {
    let mut gateway = Gateway::new();
    let comma = if config.is_empty() { "" } else { "," };
    let intake = format!(
        r#"{{"maxBodyBytes":65536,"maxStateAgeMs":1000,"pools":[{{"name":"pool"}}]{comma}{config}}}"#
    );
    gateway.intake = Intake::new(IntakeConfig::parse(intake.as_bytes()).unwrap());
    gateway
}

/// Of the three endpoints those in `silent` announce nothing.
fn sources(gateway: &Gateway, silent: &[u16], cache_tokens: u32) {
    let record = |slot| LoadRecord {
        slot,
        load: Load { is_ready: true, waiting: Some(0), running: Some(0), ..Load::default() },
        source: if silent.contains(&slot) { SourceState::None } else { SourceState::Live },
        block_size_tokens: 16,
        cache_tokens,
        started_s: 0,
        adapters: None,
    };
    let records = (0..3).map(record).collect();
    gateway.set(Key::Load(Key::parity(8), 0), &LoadTable { epoch: 8, records }.encode());
}

fn first(list: Option<String>) -> String {
    list.unwrap().split(',').next().unwrap().to_owned()
}

/// So that no trail tells where prompts went.
fn much_later(gateway: &mut Gateway) {
    let now = gateway.host.now_ns.get() + 10_000_000_000;
    gateway.host.now_ns.set(now);
    gateway.head(Head {
        instance: 1,
        epoch: 8,
        sequence: 2,
        is_complete: true,
        stamp_ns: now,
        ..Head::default()
    });
}

#[test]
fn a_prompt_goes_where_it_was_sent_and_the_line_says_that_it_is_remembered() {
    let mut gateway = gateway(ON);
    sources(&gateway, &[0, 1, 2], 0);
    let chat = text(1024);
    let home = first(gateway.complete(&chat));
    let line = gateway.line();
    assert!(line["approximate"].is_null(), "{line}");
    for _ in 0..4 {
        much_later(&mut gateway);
        assert_eq!(first(gateway.complete(&chat)), home);
        let line = gateway.line();
        // 16 strides of 16 tokens; the last token is computed anew.
        assert_eq!(line["approximate"], serde_json::json!({ home.as_str(): 255 }));
        assert_eq!(line["scores"], serde_json::json!({ home.as_str(): 15 }));
        assert_eq!(line["totals"][&home].as_f64(), Some(5.0), "at full value: {line}");
    }
    assert_eq!(gateway.host.property(&[SENT_PROPERTY]).unwrap().unwrap(), b"");
    assert!(!gateway.host.counters.borrow().keys().any(|name| name.contains("mishap")));
    // Longer than what is remembered: 512 tokens are 32 strides.
    let long = "z".repeat(8192);
    let home = first(gateway.complete(&long));
    much_later(&mut gateway);
    gateway.complete(&long);
    assert_eq!(gateway.line()["approximate"], serde_json::json!({ home.as_str(): 512 }));
}

#[test]
fn the_engines_own_cache_size_takes_the_place_of_the_configured_one() {
    // 20 strides of 16 tokens each, or what is configured: 125.
    for (tune, cache_tokens, is_kept) in
        [("true", 320, false), ("false", 320, true), ("true", 0, true)]
    {
        let mut gateway =
            gateway(&ON.replace("\"autoTune\":true", &format!("\"autoTune\":{tune}")));
        sources(&gateway, &[0, 1, 2], cache_tokens);
        gateway.complete(&"a".repeat(1024));
        for other in ["b", "c", "d", "e", "f", "g"] {
            much_later(&mut gateway);
            gateway.complete(&other.repeat(1024));
        }
        much_later(&mut gateway);
        gateway.complete(&"a".repeat(1024));
        assert_eq!(gateway.line()["approximate"].is_object(), is_kept, "{tune} {cache_tokens}");
    }
}

#[test]
fn endpoints_with_events_are_never_guessed_and_pools_of_them_pay_nothing() {
    let costs = |config: &str, silent: &[u16]| {
        let mut gateway = gateway(config);
        sources(&gateway, silent, 0);
        gateway.hold(8, &text(1024), None, 8, &[1]);
        gateway.complete(&text(1024));
        much_later(&mut gateway);
        gateway.host.gets.set(0);
        gateway.host.sets.set(0);
        gateway.complete(&text(1024));
        let told = gateway.host.properties.borrow().contains_key(SENT_PROPERTY);
        (gateway.host.gets.get(), gateway.host.sets.get(), told, gateway.line())
    };
    let (with, without) = (costs(ON, &[]), costs("", &[]));
    assert_eq!(with, without, "not a call more");
    assert!(!with.2 && with.3["approximate"].is_null());
    // One of three announces nothing, and another holds the prompt: that one gets it.
    let (_, _, _, line) = costs(ON, &[2]);
    assert_eq!(line["picked"][0], "b");
    assert!(line["approximate"].is_null(), "nothing was sent to it: {line}");
    let (_, _, told, line) = costs("", &[0, 1, 2]);
    assert!(!told && line["approximate"].is_null(), "{line}");
    assert_eq!(line["totals"]["b"].as_f64(), Some(2.0), "it counts for nothing: {line}");
}

#[test]
fn what_a_retry_moved_is_remembered_of_the_endpoint_that_served() {
    let mut gateway = gateway(ON);
    sources(&gateway, &[0, 1, 2], 0);
    gateway.keep = true;
    let list = gateway.complete(&text(1024)).unwrap();
    let names: Vec<&str> = list.split(',').collect();
    gateway.host.properties.borrow_mut().insert("upstream/address".into(), names[1].into());
    let mut reservation = gateway.kept.pop().unwrap();
    gateway.picker.answered(&gateway.host, &mut gateway.vm, Some(&mut reservation));
    gateway.picker.ended(&gateway.host, &mut gateway.vm, reservation);
    much_later(&mut gateway);
    assert_eq!(first(gateway.complete(&text(1024))), names[1]);
    assert_eq!(gateway.line()["approximate"], serde_json::json!({ names[1]: 255 }));
}

#[test]
fn a_daemon_that_starts_again_takes_nothing_away() {
    let mut gateway = gateway(ON);
    sources(&gateway, &[0, 1, 2], 0);
    let home = first(gateway.complete(&text(1024)));
    // Other slots for the same addresses, by a writer of a higher epoch.
    gateway.push_epoch(10, &["c", "a", "b"]);
    let record = |slot| LoadRecord {
        slot,
        load: Load { is_ready: true, ..Load::default() },
        ..LoadRecord::default()
    };
    let table = LoadTable { epoch: 10, records: (0..3).map(record).collect() };
    gateway.set(Key::Load(Key::parity(10), 0), &table.encode());
    let now = gateway.host.now_ns.get() + 10_000_000_000;
    gateway.host.now_ns.set(now);
    gateway.head(Head {
        instance: 1,
        epoch: 10,
        sequence: 1,
        is_complete: true,
        stamp_ns: now,
        config_version: 9,
        ..Head::default()
    });
    assert_eq!(first(gateway.complete(&text(1024))), home);
    assert_eq!(gateway.line()["approximate"], serde_json::json!({ home.as_str(): 255 }));
}
