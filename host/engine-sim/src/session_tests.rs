//! Whole sessions recorded from vLLM 0.32, replayed through the scheduler: same cached tokens, same
//! events in the same order, up to the names of hashes.

use std::collections::HashMap;
use std::path::Path;

use rmpv::Value as Mp;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cache::BlockCache;
use crate::chain::{Chain, Namespace};
use crate::events::KvEvent;
use crate::scheduler::{Job, JobId, Scheduler};
use crate::text::Text;

/// An event without hashes of its own: what one engine's copy can be compared with another's.
#[derive(Debug, PartialEq, Eq)]
enum Plain {
    Stored { first: usize, parent: Option<usize>, token_ids: Vec<u32> },
    Removed(usize),
}

/// Numbers hashes in the order in which they are first stored.
#[derive(Default)]
struct Names(HashMap<u64, usize>);

impl Names {
    fn stored(&mut self, hashes: &[u64], parent: Option<u64>, token_ids: Vec<u32>) -> Plain {
        let parent = parent.map(|hash| self.0[&hash]);
        for &hash in hashes {
            let next = self.0.len();
            self.0.entry(hash).or_insert(next);
        }
        Plain::Stored { first: self.0[&hashes[0]], parent, token_ids }
    }
}

fn field<'a>(event: &'a Mp, name: &str) -> &'a Mp {
    let pairs = event.as_map().unwrap();
    &pairs.iter().find(|(key, _)| key.as_str() == Some(name)).unwrap().1
}

fn uints(list: &Mp) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|item| item.as_u64().unwrap()).collect()
}

fn recorded(frame: &Value, names: &mut Names) -> Vec<Plain> {
    let hex = frame[2].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let batch = rmpv::decode::read_value(&mut &bytes[..]).unwrap();
    let plain = |event: &Mp| match field(event, "type").as_str().unwrap() {
        "BlockStored" => {
            let ids = uints(field(event, "token_ids")).iter().map(|&id| id as u32).collect();
            let parent = field(event, "parent_block_hash").as_u64();
            names.stored(&uints(field(event, "block_hashes")), parent, ids)
        }
        "BlockRemoved" => Plain::Removed(names.0[&uints(field(event, "block_hashes"))[0]]),
        other => panic!("unexpected event {other}"),
    };
    batch[1].as_array().unwrap().iter().map(plain).collect()
}

fn simulated(events: Vec<KvEvent>, names: &mut Names) -> Vec<Plain> {
    let plain = |event| match event {
        KvEvent::Stored(stored) => names.stored(&stored.hashes, stored.parent, stored.token_ids),
        KvEvent::Removed(hash) => Plain::Removed(names.0[&hash]),
        KvEvent::Cleared => panic!("nobody resets"),
    };
    events.into_iter().map(plain).collect()
}

/// Requests of the file, each with the events that followed it.
fn session(name: &str) -> Option<Vec<(Value, Vec<Value>)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/captures").join(name);
    let Ok(text) = std::fs::read_to_string(&path) else {
        assert!(std::env::var_os("CI").is_none(), "{} is missing on CI", path.display());
        println!("skipped: {} is missing", path.display());
        return None;
    };
    let mut requests: Vec<(Value, Vec<Value>)> = Vec::new();
    for line in text.lines() {
        let mut parsed: Value = serde_json::from_str(line).unwrap();
        if let Some(event) = parsed.get_mut("event") {
            requests.last_mut().unwrap().1.push(event.take());
            continue;
        }
        // The order of keys is part of a prompt with tools; `Value` need not keep it.
        let raw: HashMap<&str, &RawValue> = serde_json::from_str(line).unwrap();
        parsed["raw"] = raw["request"].get().into();
        requests.push((parsed, Vec::new()));
    }
    Some(requests)
}

fn check(name: &str, num_blocks: usize) {
    let Some(requests) = session(name) else { return };
    let text = Text::load(&crate::default_model_folder()).unwrap();
    let mut scheduler = Scheduler::new(BlockCache::new(32, num_blocks, 1), 8);
    let (mut theirs, mut ours) = (Names::default(), Names::default());
    assert_eq!(requests.len(), 59);
    for (line, frames) in requests {
        let (label, request) = (line["label"].as_str().unwrap(), &line["request"]);
        let prompt = match line["path"].as_str().unwrap() {
            "/v1/completions" => text.encode(request["prompt"].as_str().unwrap(), true).unwrap(),
            "/v1/chat/completions" => text
                .encode_chat(prompt::Api::ChatCompletions, line["raw"].as_str().unwrap().as_bytes())
                .unwrap(),
            other => panic!("unexpected path {other}"),
        };
        let at = format!("{name}, {label}");
        assert_eq!(prompt.len() as u64, line["prompt_tokens"], "{at}: prompt tokens");
        let expected: Vec<Plain> =
            frames.iter().flat_map(|frame| recorded(frame, &mut theirs)).collect();

        // What vLLM generated is known where it filled a block; the rest fills none.
        let mut all = prompt[..line["cached_tokens"].as_u64().unwrap() as usize].to_vec();
        for event in &expected {
            if let Plain::Stored { token_ids, .. } = event {
                all.extend_from_slice(token_ids);
            }
        }
        let mut output = all.get(prompt.len()..).unwrap_or_default().to_vec();
        output.resize(request["max_tokens"].as_u64().unwrap() as usize, 0);

        let namespace = Namespace {
            lora_name: None,
            cache_salt: request["cache_salt"].as_str().map(str::to_owned),
        };
        scheduler.submit(Job::new(JobId(0), Chain::new(namespace, prompt), output, true));
        let (mut cached, mut events) = (None, Vec::new());
        while scheduler.has_work() {
            let step = scheduler.begin_step();
            cached = cached.or(step.admitted.first().map(|&(_, cached)| cached));
            events.extend(scheduler.end_step().1);
        }
        assert_eq!(cached.unwrap() as u64, line["cached_tokens"], "{at}: cached tokens");
        assert_eq!(simulated(events, &mut ours), expected, "{at}: events");
    }
}

#[test]
fn a_recorded_session_that_evicts() {
    // Not recorded with the session; the only size at which every eviction agrees.
    check("session-chat-small-cache.jsonl", 150);
}

#[test]
fn a_recorded_session_in_a_large_cache() {
    check("session-chat-large-cache.jsonl", 4096);
}
