//! Payloads of every release, and of whole sessions of a real vLLM.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::Path;

use kv_events::{
    BlockRemoved, BlockStored, DecodeError, Encoding, EngineKey, EventBatch, ExtraKeys, KvEvent,
    decode,
};
use proptest::prelude::*;
use serde_json::Value;

fn golden(name: &str) -> String {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/kv-events").join(name);
    std::fs::read_to_string(path).expect("a golden file")
}

fn lines(name: &str) -> Vec<Value> {
    golden(name).lines().map(|line| serde_json::from_str(line).expect("json")).collect()
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("hex");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The fields of an event by name, whichever form `decoded` has.
fn fields(event: &Value, names: &Value) -> BTreeMap<String, Value> {
    match event {
        Value::Object(map) => map.clone().into_iter().collect(),
        Value::Array(values) => {
            let mut map = BTreeMap::from([("type".to_owned(), values[0].clone())]);
            let names = names.as_array().map(Vec::as_slice).unwrap_or_default();
            map.extend(
                names
                    .iter()
                    .zip(&values[1..])
                    .map(|(n, v)| (n.as_str().unwrap().into(), v.clone())),
            );
            map
        }
        other => panic!("{other}"),
    }
}

fn key(value: &Value) -> EngineKey {
    EngineKey(value.as_u64().unwrap_or_else(|| value.as_i64().expect("an integer") as u64))
}

fn expected_event(event: &Value, record: &Value) -> KvEvent {
    let tag = event.get("type").or_else(|| event.get(0)).and_then(Value::as_str).expect("a tag");
    let fields = fields(event, &record[tag]);
    let get = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let text = |name: &str| get(name).map(|value| value.as_str().unwrap().to_owned());
    let number = |name: &str| get(name).map(|value| value.as_u64().unwrap() as u32);
    let keys = |name: &str| get(name).unwrap().as_array().unwrap().iter().map(key).collect();
    let strings = |keys: &Value| -> Vec<String> {
        let keys = keys.as_array().map(Vec::as_slice).unwrap_or_default();
        keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect()
    };
    match tag {
        "BlockStored" => KvEvent::Stored(BlockStored {
            block_hashes: keys("block_hashes"),
            parent_block_hash: get("parent_block_hash").map(key),
            token_ids: serde_json::from_value(fields["token_ids"].clone()).unwrap(),
            block_size: number("block_size").unwrap(),
            lora_name: text("lora_name"),
            lora_id: get("lora_id").map(|value| value.as_i64().unwrap()),
            medium: text("medium"),
            extra_keys: get("extra_keys").map_or(Vec::new(), |blocks| {
                blocks
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|keys| ExtraKeys { strings: strings(keys), ..ExtraKeys::default() })
                    .collect()
            }),
            group_idx: number("group_idx"),
            kv_cache_spec_kind: text("kv_cache_spec_kind"),
            sliding_window: number("kv_cache_spec_sliding_window"),
            cache_salt: text("cache_salt"),
        }),
        "BlockRemoved" => KvEvent::Removed(BlockRemoved {
            block_hashes: keys("block_hashes"),
            medium: text("medium"),
            group_idx: number("group_idx"),
        }),
        "AllBlocksCleared" => KvEvent::AllBlocksCleared,
        tag => KvEvent::Unknown(tag.to_owned()),
    }
}

#[test]
fn the_payload_of_every_release_keeps_its_meaning() {
    for (file, releases) in
        [("kv-events-by-version.jsonl", 39), ("kv-events-sglang-by-version.jsonl", 6)]
    {
        let records = lines(file);
        assert_eq!(records.len(), releases);
        for record in records {
            let decoded = &record["decoded"];
            let got = decode(&hex(&record["payload_hex"])).expect("a batch");
            let expected = EventBatch {
                ts: decoded[0].as_f64().unwrap(),
                events: decoded[1]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|event| expected_event(event, &record))
                    .collect(),
                data_parallel_rank: decoded.get(2).and_then(Value::as_u64).map(|n| n as u32),
                // Tested by what it says of releases.
                encoding: got.encoding,
            };
            assert_eq!(expected.events.len(), 3);
            assert_eq!(got, expected, "{file} {}", record["version"]);
        }
    }
}

/// `0.10.1` as numbers.
fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().expect("a number")).collect()
}

/// True if `text` is within `first` to `last`, of which the latter names all its patches.
fn is_within(text: &str, first: &str, last: Option<&str>) -> bool {
    let of = version(text);
    let ends = last.map(version);
    version(first) <= of && ends.is_none_or(|last| of[..last.len().min(of.len())] <= last[..])
}

#[test]
fn the_payload_of_every_release_names_it_among_few() {
    for (file, engine) in
        [("kv-events-by-version.jsonl", "vLLM"), ("kv-events-sglang-by-version.jsonl", "SGLang")]
    {
        for record in lines(file) {
            let written_by = record["version"].as_str().unwrap();
            let encoding = decode(&hex(&record["payload_hex"])).expect("a batch").encoding;
            // The recorded hashes of vLLM fit either sign, those of SGLang are negative.
            let kind = if engine == "SGLang" { "i64" } else { "integers" };
            assert_eq!(encoding.hash_kind(), Some(kind), "{engine} {written_by}");
            let releases = encoding.releases();
            let own = releases.iter().find(|releases| releases.engine == engine);
            let own = own.unwrap_or_else(|| panic!("{engine} {written_by}: {releases:?}"));
            assert!(is_within(written_by, own.first, own.last), "{written_by}: {own}");
            // What the next or the last form could have written is left out.
            let is_map = record["decoded"][1][0].is_object();
            let others = if is_map { ["0.9", "0.23"] } else { ["0.24", "0.33"] };
            for other in others.iter().filter(|_| engine == "vLLM") {
                assert!(!is_within(other, own.first, own.last), "{written_by}: {own}");
            }
        }
    }
}

#[test]
fn a_recorded_session_of_vllm_0_32_is_vllm_with_maps_and_u64_hashes() {
    let mut encoding = Encoding::default();
    for frames in session("session-chat-small-cache.jsonl") {
        encoding.merge(&decode(&frames[2]).expect("decodes").encoding);
    }
    let releases: Vec<String> = encoding.releases().iter().map(ToString::to_string).collect();
    assert_eq!(releases, ["vLLM 0.24 or later"]);
    assert_eq!((encoding.form(), encoding.hash_kind()), (Some("maps"), Some("u64")));
}

fn session(name: &str) -> Vec<Vec<Vec<u8>>> {
    lines(name)
        .iter()
        .filter_map(|line| Some(line.get("event")?.as_array()?.iter().map(hex).collect()))
        .collect()
}

#[test]
fn recorded_sessions_hold_what_msgpack_counts() {
    let counts: Value = serde_json::from_str(&golden("counts.json")).expect("json");
    for name in ["session-chat-small-cache.jsonl", "session-chat-large-cache.jsonl"] {
        let frames = session(name);
        let expected = counts[name].as_array().unwrap();
        assert!(frames.len() >= 90, "{name}: {}", frames.len());
        assert_eq!(frames.len(), expected.len());
        for (frames, expected) in frames.iter().zip(expected) {
            let batch = decode(&frames[2]).expect("decodes");
            let (mut tags, mut hashes) = (BTreeMap::new(), Vec::<EngineKey>::new());
            let mut tokens = Vec::<u32>::new();
            for event in &batch.events {
                let tag = match event {
                    KvEvent::Stored(event) => {
                        hashes.extend(&event.block_hashes);
                        tokens.extend(&event.token_ids);
                        assert_eq!(event.extra_keys.len(), event.block_hashes.len());
                        "BlockStored"
                    }
                    KvEvent::Removed(event) => {
                        hashes.extend(&event.block_hashes);
                        "BlockRemoved"
                    }
                    KvEvent::AllBlocksCleared => "AllBlocksCleared",
                    KvEvent::Unknown(tag) => panic!("{tag}"),
                };
                *tags.entry(tag).or_insert(0u64) += 1;
            }
            let got = serde_json::json!({
                "sequence": u64::from_be_bytes(frames[1].as_slice().try_into().unwrap()),
                "ts_bits": batch.ts.to_bits().to_string(),
                "rank": batch.data_parallel_rank,
                "tags": tags,
                "hashes": hashes.len(),
                "hash_sum": hashes.iter().fold(0u64, |sum, key| sum.wrapping_add(key.0)).to_string(),
                "tokens": tokens.len(),
                "token_sum": tokens.iter().map(|token| u64::from(*token)).sum::<u64>(),
            });
            assert_eq!(&got, expected, "{name}");
        }
    }
}

#[test]
fn the_salted_requests_of_a_session_are_salted() {
    let mut salts = Vec::new();
    for frames in session("session-chat-small-cache.jsonl") {
        for event in decode(&frames[2]).expect("decodes").events {
            if let KvEvent::Stored(event) = event {
                salts.extend(event.salt().map(str::to_owned));
            }
        }
    }
    salts.dedup();
    let requests = lines("session-chat-small-cache.jsonl");
    let mut asked: Vec<String> = requests
        .iter()
        .filter_map(|line| line["request"].get("cache_salt")?.as_str().map(str::to_owned))
        .collect();
    asked.dedup();
    assert!(!asked.is_empty());
    assert_eq!(salts, asked);
}

/// Bytes a batch takes on the heap.
fn footprint(batch: &EventBatch) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
    let event = |event: &KvEvent| match event {
        KvEvent::Stored(e) => {
            e.block_hashes.capacity() * size_of::<EngineKey>()
                + e.token_ids.capacity() * size_of::<u32>()
                + e.extra_keys.capacity() * size_of::<ExtraKeys>()
                + e.extra_keys
                    .iter()
                    .map(|keys| {
                        keys.strings.capacity() * size_of::<String>()
                            + keys.strings.iter().map(String::capacity).sum::<usize>()
                    })
                    .sum::<usize>()
                + [&e.lora_name, &e.medium, &e.kv_cache_spec_kind, &e.cache_salt]
                    .into_iter()
                    .map(text)
                    .sum::<usize>()
        }
        KvEvent::Removed(e) => e.block_hashes.capacity() * size_of::<EngineKey>() + text(&e.medium),
        KvEvent::AllBlocksCleared => 0,
        KvEvent::Unknown(tag) => tag.capacity(),
    };
    batch.events.capacity() * size_of::<KvEvent>() + batch.events.iter().map(event).sum::<usize>()
}

fn check_untrusted(payload: &[u8]) -> Result<(), TestCaseError> {
    match decode(payload) {
        // An event of two bytes takes some 300, and a vector grows in powers of two.
        Ok(batch) => prop_assert!(footprint(&batch) <= 1024 + 400 * payload.len()),
        Err(DecodeError::Truncated { offset }) => prop_assert!(offset <= payload.len()),
        Err(_) => {}
    }
    Ok(())
}

fn any_recorded() -> impl Strategy<Value = Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> =
        ["kv-events-by-version.jsonl", "kv-events-sglang-by-version.jsonl"]
            .iter()
            .flat_map(|name| lines(name))
            .map(|record| hex(&record["payload_hex"]))
            .collect();
    payloads.extend(session("session-chat-small-cache.jsonl").into_iter().map(|mut f| f.remove(2)));
    prop::sample::select(payloads)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(payload in prop::collection::vec(any::<u8>(), 0..400)) {
        check_untrusted(&payload)?;
    }

    #[test]
    fn damaged_payloads_are_decoded_or_refused(
        mut payload in any_recorded(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (index, byte) in damage {
            let index = index.index(payload.len());
            payload[index] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        check_untrusted(&payload)?;
    }

    #[test]
    fn a_cut_payload_is_never_a_batch(payload in any_recorded(), cut in any::<prop::sample::Index>()) {
        prop_assert!(decode(&payload[..cut.index(payload.len())]).is_err());
    }
}
