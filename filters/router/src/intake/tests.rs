//! Intake and picker on a gateway's state in memory.

use feed::{
    BucketEntry, BucketWriter, Directory, DirectoryEntry, EndpointEntry, Head, Key, LoadTable,
    ModelValue, Picks, Table,
};
use hostcalls::memory::MemoryHost;
use hostcalls::{Expect, Host as _};
use prefix::{Seed, bucket_of, fingerprint_of};
use prompt::ModelSpec;
use routing::{Load, SourceState};

use super::*;
use crate::{DESTINATION_HEADER, Picker, PickerConfig};

mod approximate;
mod features;
mod in_flight;
mod pools;
mod subset;

const SEED: Seed = Seed([9; 64]);
const BUCKETS: u32 = 16;
const TEXT: &str = "abcdefgh";

/// A gateway that three endpoints a, b, c of pool "pool" were pushed to.
struct Gateway {
    host: MemoryHost,
    intake: Intake,
    picker: Picker,
    vm: Vm,
    /// Requests are left open, in `kept`.
    keep: bool,
    kept: Vec<crate::Reservation>,
}

impl Gateway {
    fn new() -> Self {
        let host = MemoryHost::default();
        host.properties.borrow_mut().insert("xds/cluster_name".into(), b"pool".to_vec());
        host.headers.borrow_mut().insert("x-request-id".into(), b"id-1".to_vec());
        let intake = r#"{"maxBodyBytes":4096,"maxStateAgeMs":1000,"pools":[{"name":"pool"}]}"#;
        let picker = r#"{"destinations":2,"scorers":[{"type":"prefix-cache","weight":3},{"type":"queue","weight":2}]}"#;
        let mut gateway = Self {
            host,
            intake: Intake::new(IntakeConfig::parse(intake.as_bytes()).unwrap()),
            picker: Picker::new(PickerConfig::parse(picker.as_bytes()).unwrap()),
            vm: Vm::default(),
            keep: false,
            kept: Vec::new(),
        };
        gateway.push_epoch(8, &["a", "b", "c"]);
        gateway.head(Head {
            instance: 1,
            epoch: 8,
            sequence: 1,
            is_complete: true,
            ..Head::default()
        });
        gateway
    }

    fn set(&self, key: Key, value: &[u8]) {
        self.host.set_shared(key.encode().as_ref(), value, Expect::Anything).unwrap();
    }

    fn head(&mut self, head: Head) {
        self.set(Key::Head, &head.encode());
    }

    fn push_epoch(&mut self, epoch: u64, names: &[&str]) {
        let odd = Key::parity(epoch);
        let entry = |scope, model: &str, aliases: &[&str]| DirectoryEntry {
            scope,
            pool: "pool".into(),
            model: model.into(),
            aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
            adapters: vec!["sql".into()],
            token_ids_scope: (scope == 0).then_some(5),
        };
        let entries = vec![entry(0, "m", &["alias"]), entry(1, "other", &[])];
        self.set(Key::Directory(odd), &Directory { epoch, entries }.encode());
        let endpoints = (0u16..).zip(names).map(|(slot, name)| EndpointEntry {
            slot,
            address: (*name).into(),
            ..EndpointEntry::default()
        });
        self.set(Key::Table(odd, 0), &Table { epoch, endpoints: endpoints.collect() }.encode());
        self.loads(epoch, &[Some(0); 3]);
        let spec = ModelSpec {
            chat_template: Some(
                "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}".into(),
            ),
            ..ModelSpec::default()
        };
        let model = ModelValue {
            epoch,
            seed: SEED,
            bucket_count: BUCKETS,
            bytes_per_token: 4.0,
            spec_json: serde_json::to_vec(&spec).unwrap(),
        };
        self.set(Key::Model(odd, 0), &model.encode());
    }

    /// Waiting requests per endpoint; `None` is one that is not ready.
    fn loads(&self, epoch: u64, waiting: &[Option<u32>]) {
        let record = |(slot, waiting): (u16, &Option<u32>)| LoadRecord {
            slot,
            load: Load {
                is_ready: waiting.is_some(),
                waiting: *waiting,
                running: waiting.map(|_| 0),
                ..Load::default()
            },
            source: SourceState::Live,
            block_size_tokens: 16,
            ..LoadRecord::default()
        };
        let records = (0u16..).zip(waiting).map(record).collect();
        self.set(Key::Load(Key::parity(epoch), 0), &LoadTable { epoch, records }.encode());
    }

    /// Lists `slots` under the first `strides` strides of `text`, 16 tokens each.
    fn hold(&self, epoch: u64, text: &str, salt: Option<&str>, strides: usize, slots: &[u16]) {
        let root = Namespace { model: "m", lora: None, salt }.root(&SEED);
        let keys = KeyChain::keys_of(root, &SEED, text.as_bytes());
        let held = &keys[..strides.min(keys.len())];
        set_strides(self, epoch, 0, held, slots, |_| vec![]);
    }

    /// Sends a request through both filters; returns the destinations.
    fn send(&mut self, path: &str, body: &str) -> Option<String> {
        {
            let mut headers = self.host.headers.borrow_mut();
            headers.insert(":path".into(), path.as_bytes().to_vec());
            headers.insert(":method".into(), b"POST".to_vec());
            headers.remove(DESTINATION_HEADER);
        }
        *self.host.body.borrow_mut() = body.as_bytes().to_vec();
        let now = self.host.now_ns.get();
        let (host, report) = (&self.host, &mut self.vm.report);
        let outcome = match self.intake.on_headers(host, report, body.is_empty()) {
            HeadersStep::WaitForBody(api) => {
                match self.intake.on_body(host, report, body.len(), true) {
                    BodyStep::Decide => self.intake.decide(host, &mut self.vm, api, now),
                    BodyStep::Answered => Outcome::Answered,
                    BodyStep::GiveUp | BodyStep::Wait => Outcome::GoesOn,
                }
            }
            HeadersStep::Continue => Outcome::GoesOn,
            HeadersStep::Answered => Outcome::Answered,
        };
        if outcome == Outcome::Answered {
            return None;
        }
        let Ok(picked) = self.picker.pick(&self.host, &mut self.vm, 1, now) else { return None };
        if let Some(reservation) = picked {
            match self.keep {
                true => self.kept.push(reservation),
                false => self.picker.ended(&self.host, &mut self.vm, reservation),
            }
        }
        let headers = self.host.headers.borrow();
        headers.get(DESTINATION_HEADER).map(|value| String::from_utf8(value.clone()).unwrap())
    }

    fn complete(&mut self, text: &str) -> Option<String> {
        self.send("/v1/completions", &serde_json::json!({"model": "m", "prompt": text}).to_string())
    }

    fn counter(&self, name: &str) -> u64 {
        self.host.counters.borrow().get(name).copied().unwrap_or(0)
    }

    fn line(&self) -> serde_json::Value {
        let lines = self.host.lines.borrow();
        let (_, line) = lines.last().unwrap();
        serde_json::from_str(line.strip_prefix("Got pod scores ").unwrap()).unwrap()
    }
}

fn text(bytes: usize) -> String {
    TEXT.repeat(bytes / TEXT.len())
}

#[test]
fn the_endpoint_that_holds_the_prefix_comes_first() {
    let mut gateway = Gateway::new();
    gateway.hold(8, &text(640), None, 6, &[1]);
    assert_eq!(
        gateway
            .complete(&text(640))
            .as_deref()
            .map(|list| list.split(',').next().unwrap().to_owned())
            .as_deref(),
        Some("b")
    );
    let line = gateway.line();
    assert_eq!(line["scores"], serde_json::json!({"b": 6}));
    assert_eq!((line["request_id"].as_str(), line["model"].as_str()), (Some("id-1"), Some("m")));
    assert_eq!(line["picked"].as_array().unwrap().len(), 2);
    // 3 * 6/10 + 2 * 1, and nothing but the queue for the others.
    assert_eq!(
        (line["totals"]["b"].as_f64(), line["totals"]["a"].as_f64()),
        (Some(3.8), Some(2.0))
    );
    assert_eq!(gateway.counter("wasm_epp_requests_picked_total"), 1);
}

#[test]
fn a_prompt_held_whole_gives_one_token_back() {
    let mut gateway = Gateway::new();
    gateway.hold(8, &text(640), None, 10, &[1]);
    gateway.complete(&text(640));
    assert_eq!(gateway.line()["scores"]["b"], 9, "160 tokens held, the engine recomputes the last");
    gateway.complete(&text(648));
    assert_eq!(gateway.line()["scores"]["b"], 10, "8 bytes more, so the last token is not held");
}

#[test]
fn nobody_holds_anything_says_null_and_routes_by_load() {
    let mut gateway = Gateway::new();
    gateway.loads(8, &[Some(5), Some(0), None]);
    assert_eq!(gateway.complete(&text(640)).as_deref(), Some("b,a"));
    assert!(gateway.line()["scores"].is_null());
}

#[test]
fn equal_endpoints_are_taken_in_turn() {
    let mut gateway = Gateway::new();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let list = gateway.complete("short").unwrap();
        seen.insert(list.split(',').next().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 3);
    let picks = gateway.host.shared(Key::Picks(0).encode().as_ref()).unwrap().unwrap().0;
    assert_eq!(Picks::decode(&picks).unwrap().count, 3);
}

#[test]
fn salts_aliases_chats_and_prefixed_paths() {
    let mut gateway = Gateway::new();
    gateway.hold(8, &text(640), Some("s"), 10, &[2]);
    let first = |list: Option<String>| list.unwrap().split(',').next().unwrap().to_owned();
    let salted =
        serde_json::json!({"model": "alias", "prompt": text(640), "cache_salt": "s"}).to_string();
    assert_eq!(first(gateway.send("/v1/completions", &salted)), "c");
    assert_eq!(first(gateway.send("/some/pool/v1/completions?x=1", &salted)), "c");
    gateway.complete(&text(640));
    assert!(gateway.line()["scores"].is_null(), "without the salt it is another namespace");
    gateway.hold(8, &format!("<user>{}", text(640)), None, 8, &[1]);
    let chat =
        serde_json::json!({"model": "m", "messages": [{"role": "user", "content": text(640)}]})
            .to_string();
    assert_eq!(first(gateway.send("/v1/chat/completions", &chat)), "b");
}

/// Buckets of `scope` with these strides, 16 tokens each.
fn set_strides(
    gateway: &Gateway,
    epoch: u64,
    scope: u16,
    keys: &[StrideKey],
    slots: &[u16],
    resume: impl Fn(u32) -> Vec<(u16, u32)>,
) {
    for bucket in 0..BUCKETS {
        let mut writer = BucketWriter::new(epoch);
        for (key, tokens) in keys.iter().zip((16u32..).step_by(16)) {
            if bucket_of(*key, BUCKETS) == bucket {
                writer.push(BucketEntry {
                    fingerprint: fingerprint_of(*key),
                    tokens,
                    gpu: slots,
                    offloaded: &[],
                    resumes: &resume(tokens),
                });
            }
        }
        gateway.set(Key::Bucket(scope, bucket), &writer.finish());
    }
}

#[test]
fn an_adapter_has_a_namespace_of_its_own() {
    let mut gateway = Gateway::new();
    let text = text(648);
    let root = Namespace { model: "m", lora: Some("sql"), salt: None }.root(&SEED);
    let keys = KeyChain::keys_of(root, &SEED, text.as_bytes());
    set_strides(&gateway, 8, 0, &keys, &[1], |_| vec![]);
    let mut check = |name: &str, expected: serde_json::Value| {
        let body = serde_json::json!({"model": name, "prompt": text}).to_string();
        gateway.send("/v1/completions", &body).unwrap();
        assert_eq!(gateway.line()["scores"], expected, "{name}");
    };
    check("m", serde_json::Value::Null);
    // Both models of this pool have it, so it is asked for with its model.
    check("m:sql", serde_json::json!({"b": 10}));
    check("alias:sql", serde_json::json!({"b": 10}));
}

#[test]
fn a_prompt_of_token_ids_is_matched_in_its_own_key_space() {
    let mut gateway = Gateway::new();
    let ids: Vec<u32> = (500..600).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let root = Namespace { model: "m", lora: None, salt: None }.root_of_token_ids(&SEED);
    let keys = KeyChain::keys_of(root, &SEED, &bytes);
    set_strides(&gateway, 8, 5, &keys[..3], &[2], |_| vec![]);
    for prompt in [serde_json::json!(ids), serde_json::json!([ids])] {
        let body = serde_json::json!({"model": "m", "prompt": prompt}).to_string();
        assert!(gateway.send("/v1/completions", &body).unwrap().starts_with("c,"));
        assert_eq!(gateway.line()["scores"], serde_json::json!({"c": 3}));
    }
}

#[test]
fn a_hybrid_engine_counts_up_to_where_it_can_resume() {
    let mut gateway = Gateway::new();
    let root = Namespace { model: "m", lora: None, salt: None }.root(&SEED);
    let keys = KeyChain::keys_of(root, &SEED, text(640).as_bytes());
    set_strides(&gateway, 8, 0, &keys, &[0, 1], |tokens| vec![(1, tokens.min(48))]);
    assert!(gateway.complete(&text(648)).unwrap().starts_with("a,"));
    assert_eq!(gateway.line()["scores"], serde_json::json!({"a": 10, "b": 3}));
    // 3 * 3/10 + 2: the share of the prompt that b can reuse.
    assert_eq!(gateway.line()["totals"]["b"].as_f64(), Some(2.9));
}

#[test]
fn what_cannot_be_matched_is_routed_by_load_with_the_reason() {
    let mut gateway = Gateway::new();
    gateway.loads(8, &[Some(5), Some(0), Some(7)]);
    for (body, reason) in [
        (r#"{"model":"m","prompt":["a","b"]}"#, "several_prompts"),
        (r#"{"model":"m","prompt":"x","prompt_logprobs":1}"#, "request_skips_cache"),
    ] {
        assert_eq!(gateway.send("/v1/completions", body).as_deref(), Some("b,a"));
        assert_eq!(gateway.line()["unmatched"], reason);
        assert_eq!(gateway.counter(&format!("wasm_epp_requests_unmatched_{reason}_total")), 1);
    }
}

#[test]
fn without_usable_state_nothing_is_set_and_the_reason_counted() {
    let check = |reason: &str, change: &dyn Fn(&mut Gateway), body: &str| {
        let mut gateway = Gateway::new();
        change(&mut gateway);
        assert_eq!(gateway.send("/v1/completions", body), None, "{reason}");
        assert_eq!(
            gateway.counter(&format!("wasm_epp_requests_fallback_{reason}_total")),
            1,
            "{reason}"
        );
        assert_eq!(gateway.line()["reason"], *reason);
    };
    let good = r#"{"model":"m","prompt":"x"}"#;
    let head = Head { instance: 1, epoch: 8, is_complete: true, ..Head::default() };
    check("no_state", &|g| g.host.data.borrow_mut().clear(), good);
    check("no_state", &|g| g.head(Head { epoch: 0, ..head }), good);
    check("state_incomplete", &|g| g.head(Head { is_complete: false, ..head }), good);
    check("state_stale", &|g| g.host.now_ns.set(1_000_000_001), good);
    check("state_malformed", &|g| g.set(Key::Head, b"junk"), good);
    check("state_malformed", &|g| g.set(Key::Load(false, 0), b"junk"), good);
    check(
        "state_malformed",
        &|g| g.set(Key::Directory(false), &Directory { epoch: 7, entries: vec![] }.encode()),
        good,
    );
    check("unknown_model", &|_| {}, r#"{"model":"nope","prompt":"x"}"#);
    check("unknown_model", &|_| {}, r#"{"prompt":"x"}"#);
    check("unknown_pool", &|g| g.host.properties.borrow_mut().clear(), good);
    check("body_not_json", &|_| {}, "{");
    check("body_missing", &|_| {}, "");
    check("body_too_large", &|_| {}, &format!(r#"{{"model":"m","prompt":"{}"}}"#, text(8000)));
    check("none_ready", &|g| g.loads(8, &[None; 3]), good);
    check("property_refused", &|g| g.host.refused.borrow_mut().push("set_property"), good);
    check("header_refused", &|g| g.host.refused.borrow_mut().push("set_request_header"), good);
}

#[test]
fn requests_that_are_not_ours_are_not_waited_for() {
    let mut gateway = Gateway::new();
    let mut step = |method: &str, path: &str, more: &[(&str, &str)]| {
        let mut headers = gateway.host.headers.borrow_mut();
        headers.clear();
        headers.insert(":method".into(), method.into());
        headers.insert(":path".into(), path.into());
        for (name, value) in more {
            headers.insert((*name).into(), value.as_bytes().to_vec());
        }
        drop(headers);
        gateway.intake.on_headers(&gateway.host, &mut gateway.vm.report, false)
    };
    assert_eq!(step("POST", "/v1/completions", &[]), HeadersStep::WaitForBody(Api::Completions));
    for (method, path, more) in [
        ("GET", "/v1/completions", vec![]),
        ("POST", "/v1/models", vec![]),
        ("POST", "/v1/completions", vec![("upgrade", "websocket")]),
        ("POST", "/v1/completions", vec![("content-length", "5000")]),
    ] {
        assert_eq!(step(method, path, &more), HeadersStep::Continue, "{method} {path} {more:?}");
    }
    assert_eq!(gateway.counter("wasm_epp_requests_fallback_body_too_large_total"), 1);
}

#[test]
fn a_takeover_is_read_bucket_by_bucket_with_slots_translated() {
    let mut gateway = Gateway::new();
    gateway.hold(8, &text(640), None, 10, &[1]);
    // The next writer lists the endpoints in another order, and has sent half its buckets.
    gateway.push_epoch(9, &["c", "b", "a"]);
    let old: Vec<_> = (0..BUCKETS)
        .map(|b| gateway.host.shared(Key::Bucket(0, b).encode().as_ref()).unwrap().unwrap().0)
        .collect();
    gateway.hold(9, &text(640), None, 10, &[1, 2]);
    for bucket in (0..BUCKETS).step_by(2) {
        gateway.set(Key::Bucket(0, bucket), &old[bucket as usize]);
    }
    gateway.head(Head {
        instance: 1,
        epoch: 9,
        previous_epoch: 8,
        config_version: 1,
        ..Head::default()
    });
    let list = gateway.complete(&text(640)).unwrap();
    assert!(list.starts_with("b,"), "{list}");
    assert_eq!(gateway.line()["scores"]["b"], 9);
    // Slot 2 of the incoming writer is a, which is slot 0 of the one that is read.
    gateway.hold(9, &text(640), None, 10, &[2]);
    let list = gateway.complete(&text(640)).unwrap();
    assert!(list.starts_with("a,"), "{list}");
    gateway.hold(9, &text(640), None, 10, &[1, 2]);
    for bucket in (0..BUCKETS).step_by(2) {
        gateway.set(Key::Bucket(0, bucket), &old[bucket as usize]);
    }
    // Complete: what the old writer listed and the new one did not send again is void.
    gateway.head(Head {
        instance: 1,
        epoch: 9,
        is_complete: true,
        config_version: 2,
        ..Head::default()
    });
    gateway.complete(&text(640));
    assert_ne!(gateway.line()["scores"]["b"], 9);
    gateway.hold(9, &text(640), None, 10, &[2]);
    let list = gateway.complete(&text(640)).unwrap();
    assert!(list.starts_with("a,"), "{list}");
}

#[test]
fn a_picker_survives_what_it_cannot_read() {
    let mut gateway = Gateway::new();
    gateway.host.properties.borrow_mut().insert(FEATURES_PROPERTY.into(), b"junk".to_vec());
    assert!(gateway.picker.pick(&gateway.host, &mut gateway.vm, 1, 0).unwrap().is_none());
    assert_eq!(gateway.counter("wasm_epp_requests_fallback_features_malformed_total"), 1);
    assert!(gateway.host.properties.borrow()[FEATURES_PROPERTY].is_empty());
    assert!(gateway.picker.pick(&gateway.host, &mut gateway.vm, 1, 0).unwrap().is_none());
    assert_eq!(gateway.counter("wasm_epp_requests_fallback_features_malformed_total"), 1);
}
mod probe;
