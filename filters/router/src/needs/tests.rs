use super::*;
use feed::{EndpointEntry, Speed};
use hostcalls::Expect;
use hostcalls::memory::MemoryHost;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

/// What `needs` makes of a request with these headers, and how many of them were malformed.
fn request(needs: &Needs, headers: &[(&str, &[u8])]) -> (RequestFeatures, u64) {
    let host = MemoryHost::default();
    for (name, value) in headers {
        host.headers.borrow_mut().insert((*name).into(), value.to_vec());
    }
    let mut features = RequestFeatures::default();
    needs.request(&host, &mut Report::default(), "pool", &mut features);
    let counters = host.counters.borrow();
    (features, counters.get("wasm_epp_mishaps_slo_malformed_total").copied().unwrap_or(0))
}

#[test]
fn only_listed_headers_are_published_and_only_text() {
    let needs = Needs { headers: strings(&["x-b", "x-a", "x-c", "x-d"]), ..Needs::default() };
    let (features, _) = request(
        &needs,
        &[
            ("x-a", "ü".as_bytes()),
            ("x-b", &[b'v'; 256]),
            ("x-c", &[b'v'; 257]),
            ("x-d", b"\xff"),
            ("x-e", b"not listed"),
            ("x-llm-d-inference-objective", b"nobody reads it"),
            ("x-slo-ttft-ms", b"1"),
        ],
    );
    assert_eq!(features.headers, pairs(&[("x-b", &"v".repeat(256)), ("x-a", "ü")]));
    assert_eq!(RequestFeatures { headers: vec![], ..features }, RequestFeatures::default());
}

#[test]
fn request_control_reads_new_names_first_and_old_ones_too() {
    let objective = |name: &str, priority, pool: Option<&str>| Objective {
        name: name.into(),
        priority,
        pool: pool.map(str::to_owned),
    };
    let needs = Needs {
        request_control: true,
        objectives: vec![
            objective("batch", -1, Some("elsewhere")),
            objective("batch", -10, Some("pool")),
            objective("chat", 5, None),
        ],
        ..Needs::default()
    };
    let priority = |headers: &[(&str, &[u8])]| request(&needs, headers).0.priority;
    let (new, old) = ("x-llm-d-inference-objective", "x-gateway-inference-objective");
    assert_eq!(priority(&[]), None);
    assert_eq!(priority(&[(new, b"batch")]), Some(-10), "its pool's");
    assert_eq!(priority(&[(old, b"chat")]), Some(5));
    assert_eq!(priority(&[(old, b"chat"), (new, b"batch")]), Some(-10));
    assert_eq!(priority(&[(new, b"nobody's")]), Some(0), "as llm-d");
    let (features, malformed) = request(
        &needs,
        &[
            ("x-gateway-inference-fairness-id", b"tenant-1"),
            ("x-llm-d-slo-ttft-ms", b" 250.5 "),
            ("x-slo-ttft-ms", b"9"),
            ("x-slo-tpot-ms", b"20"),
        ],
    );
    assert_eq!(features.fairness_id.as_deref(), Some("tenant-1"));
    assert_eq!((features.slo_ttft_ms, features.slo_tpot_ms), (Some(250.5), Some(20.0)));
    assert_eq!(malformed, 0);
    for value in [&b"fast"[..], b"", b"-1", b"inf", b"NaN", b"1ms"] {
        let (features, malformed) = request(&needs, &[("x-llm-d-slo-tpot-ms", value)]);
        assert_eq!((features.slo_tpot_ms, malformed), (None, 1), "{value:?}");
    }
}

fn candidates(slots: &[u16]) -> Vec<Candidate> {
    slots.iter().map(|slot| Candidate { slot: *slot, ..Candidate::default() }).collect()
}

#[test]
fn only_listed_labels_and_attributes_are_published() {
    let entry = |slot, labels: &[(&str, &str)], attributes: &[(&str, f32)]| EndpointEntry {
        slot,
        labels: pairs(labels),
        attributes: attributes.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
        ..EndpointEntry::default()
    };
    let table = Table {
        epoch: 1,
        endpoints: vec![
            entry(2, &[("zone", "a"), ("role", "decode"), ("team", "x")], &[("cost", 1.5)]),
            entry(5, &[("role", "prefill")], &[("cost", 2.5), ("speed", 9.0)]),
        ],
    };
    let needs = Needs {
        labels: strings(&["role", "zone"]),
        attributes: strings(&["cost"]),
        ..Needs::default()
    };
    let mut found = candidates(&[5, 2, 7]);
    needs.endpoints(&table, &[], None, &mut found);
    assert_eq!(found[0].labels, pairs(&[("role", "prefill")]));
    assert_eq!(found[1].labels, pairs(&[("role", "decode"), ("zone", "a")]));
    assert_eq!(found[0].attributes, [("cost".to_owned(), 2.5)]);
    assert_eq!(found[2], candidates(&[7])[0], "not in the table");
    let mut found = candidates(&[2]);
    Needs::default().endpoints(&table, &[], None, &mut found);
    assert_eq!(found, candidates(&[2]));
}

#[test]
fn an_adapter_is_where_llm_d_would_say() {
    // From the cases of `lora_affinity.go`: active, then room for one more, then waiting.
    let check = |told: Option<(bool, &[u16], &[u16])>, adapter, expected| {
        let adapters = told.map(|(has_room, running, waiting)| EngineAdapters {
            has_room,
            running: running.to_vec(),
            waiting: waiting.to_vec(),
        });
        let loads = [LoadRecord { slot: 4, adapters, ..LoadRecord::default() }];
        let mut found = candidates(&[4]);
        Needs::default().endpoints(&Table::default(), &loads, adapter, &mut found);
        assert_eq!(found[0].adapter, expected, "{loads:?} {adapter:?}");
    };
    check(Some((true, &[3], &[])), Some(3), AdapterState::Active);
    check(Some((false, &[3, 1], &[1])), Some(1), AdapterState::Active);
    check(Some((true, &[3], &[1])), Some(1), AdapterState::Room);
    check(Some((true, &[], &[])), Some(1), AdapterState::Room);
    check(Some((false, &[3], &[1])), Some(1), AdapterState::Waiting);
    check(Some((false, &[3], &[2])), Some(1), AdapterState::Full);
    check(Some((false, &[3], &[2])), None, AdapterState::Unknown);
    check(None, Some(1), AdapterState::Unknown);
}

#[test]
fn rates_are_read_only_where_a_plugin_needs_them() {
    let host = MemoryHost::default();
    let mut measured = Accuracy { epoch: 8, slots: vec![] };
    let speed = |answers, tokens, ms| Speed { answers, tokens, ms };
    measured.change(4, |of| of.prefill = speed(5, 6_000.0, 1_500.0));
    measured.change(4, |of| of.decode = speed(5, 100.0, 1_250.0));
    measured.change(6, |of| of.decode = speed(4, 100.0, 1_250.0));
    let key = Key::Accuracy(3).encode();
    host.set_shared(key.as_ref(), &measured.encode(), Expect::Anything).unwrap();
    let of = |rates: bool, epoch| {
        let mut found = candidates(&[4, 6]);
        Needs { rates, ..Needs::default() }.rates(&host, 3, epoch, &mut found);
        found
            .into_iter()
            .map(|c| (c.rates.prefill_tokens_per_s, c.rates.tpot_ms))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(true, 8), [(Some(4_000.0), Some(12.5)), (None, None)]);
    assert_eq!(of(true, 9), [(None, None); 2], "another writer's slots");
    let gets = host.gets.get();
    assert_eq!(of(false, 8), [(None, None); 2]);
    assert_eq!(host.gets.get(), gets);
}
