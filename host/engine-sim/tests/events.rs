//! The event sockets, read by code that shares nothing with the engine.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Sim, decode, field, json, patiently, sub_frames};
use engine_sim::{EventEncoding, ReplayFraming, SimConfig};
use rmpv::Value as Mp;
use serde_json::json;
use zeromq::{Socket, SocketRecv};

fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

async fn complete(sim: &Sim, prompt: Vec<u32>) -> u64 {
    let reply = sim.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 1})).await;
    // A miss is left out.
    json(&reply)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

/// Publishes until the subscription has reached the engine; returns the first batch it got.
async fn first_batch(sim: &Sim, socket: &mut zeromq::SubSocket) -> Vec<Vec<u8>> {
    let mut start = 0;
    loop {
        complete(sim, ids(start..start + 17)).await;
        start += 17;
        let received = tokio::time::timeout(std::time::Duration::from_millis(20), socket.recv());
        if let Ok(message) = received.await {
            return sub_frames(message.unwrap());
        }
        assert!(start < 7000, "no batch reached the subscriber");
    }
}

fn seq(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame.try_into().unwrap())
}

#[tokio::test]
async fn map_events_are_vllm_0_32s() {
    let sim = Sim::start(SimConfig { topic: "kv@e@tiny".to_owned(), ..SimConfig::default() }).await;
    let mut socket = sim.subscribe().await;
    let first = first_batch(&sim, &mut socket).await;
    complete(&sim, ids(7000..7040)).await;
    let frames = sub_frames(patiently("batch", socket.recv()).await.unwrap());
    assert_eq!(frames.len(), 3);
    assert_eq!(frames[0], b"kv@e@tiny");
    assert_eq!(seq(&frames[1]), seq(&first[1]) + 1);
    let batch = decode(&frames[2]);
    let [ts, events, rank] = &batch.as_array().unwrap()[..] else { panic!("{batch}") };
    assert!(ts.is_f64() && ts.as_f64().unwrap() > 1.7e9);
    assert_eq!(rank.as_u64(), Some(0));
    let [event] = &events.as_array().unwrap()[..] else { panic!("{events}") };
    let names: Vec<&str> =
        event.as_map().unwrap().iter().map(|(name, _)| name.as_str().unwrap()).collect();
    let expected = [
        "type",
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
    ];
    assert_eq!(names, expected, "fields and order of a real event");
    assert_eq!(field(event, "type").as_str(), Some("BlockStored"));
    let hashes = field(event, "block_hashes");
    assert!(hashes.as_array().unwrap().iter().all(Mp::is_u64) && hashes[1].is_u64());
    assert!(field(event, "parent_block_hash").is_nil());
    let tokens: Vec<Mp> = ids(7000..7032).into_iter().map(Mp::from).collect();
    assert_eq!(field(event, "token_ids"), Mp::Array(tokens));
    assert_eq!(field(event, "block_size").as_u64(), Some(16));
    assert!(field(event, "lora_id").is_nil() && field(event, "lora_name").is_nil());
    assert_eq!(field(event, "medium").as_str(), Some("GPU"));
    assert_eq!(field(event, "extra_keys"), Mp::Array(vec![Mp::Nil, Mp::Nil]));
    assert_eq!(field(event, "group_idx").as_u64(), Some(0));
    assert_eq!(field(event, "kv_cache_spec_kind").as_str(), Some("full_attention"));

    assert_eq!(sim.post("/reset_prefix_cache", &json!({})).await.status(), 200);
    let frames = sub_frames(patiently("batch", socket.recv()).await.unwrap());
    let cleared = Mp::Map(vec![(Mp::from("type"), Mp::from("AllBlocksCleared"))]);
    assert_eq!(decode(&frames[2])[1], Mp::Array(vec![cleared]));
    assert_eq!(complete(&sim, ids(7000..7040)).await, 0, "nothing is cached any more");

    // What is forgotten without a word is stored again, and that is the next that is heard.
    assert_eq!(sim.post("/sim/forget", &json!({})).await.status(), 200);
    assert_eq!(complete(&sim, ids(7000..7040)).await, 0, "nothing is cached any more");
    for _ in 0..2 {
        let frames = sub_frames(patiently("batch", socket.recv()).await.unwrap());
        let events = decode(&frames[2])[1].as_array().unwrap().clone();
        assert_eq!(events.len(), 1);
        assert_eq!(field(&events[0], "type").as_str(), Some("BlockStored"));
    }
}

#[tokio::test]
async fn array_events_are_vllm_0_23s() {
    let config = SimConfig {
        event_encoding: EventEncoding::TaggedArray,
        replay_framing: ReplayFraming::WithoutTopic,
        adapters: vec!["sql".to_owned()],
        num_blocks: 3,
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await;
    let salted = json!({
        "model": "sql", "cache_salt": "s1", "prompt": ids(0..17), "max_tokens": 1,
    });
    sim.post("/v1/completions", &salted).await;
    complete(&sim, ids(100..131)).await;
    sim.post("/reset_prefix_cache", &json!({})).await;
    let replies = sim.replay(0).await;
    assert_eq!(replies.len(), 4);
    let events = |reply: usize| {
        let [empty, number, payload] = &replies[reply][..] else { panic!("{replies:?}") };
        assert_eq!((empty.len(), seq(number)), (0, reply as u64));
        decode(payload)[1].as_array().unwrap().clone()
    };
    let stored = events(0)[0].clone();
    let hash = stored[1][0].clone();
    let tokens = Mp::Array(ids(0..16).into_iter().map(Mp::from).collect());
    let expected = vec![
        Mp::from("BlockStored"),
        Mp::Array(vec![hash.clone()]),
        Mp::Nil,
        tokens,
        Mp::from(16),
        Mp::Nil,
        Mp::from("GPU"),
        Mp::from("sql"),
        Mp::Array(vec![Mp::Array(vec![Mp::from("sql"), Mp::from("s1")])]),
        Mp::from(0),
        Mp::from("full_attention"),
        Mp::Nil,
    ];
    assert_eq!(stored, Mp::Array(expected));
    let removed =
        vec![Mp::from("BlockRemoved"), Mp::Array(vec![hash]), Mp::from("GPU"), Mp::from(0)];
    assert_eq!(events(1)[0], Mp::Array(removed));
    assert_eq!(events(1)[1][0].as_str(), Some("BlockStored"));
    assert_eq!(events(2), vec![Mp::Array(vec![Mp::from("AllBlocksCleared")])]);
    assert_eq!(replies[3], [vec![], vec![0xff; 8], vec![]]);
}

#[tokio::test]
async fn replay_starts_where_asked_and_keeps_buffer_steps() {
    let config = SimConfig { topic: "t".to_owned(), buffer_steps: 3, ..SimConfig::default() };
    let sim = Sim::start(config).await;
    for start in 0..5 {
        complete(&sim, ids(start * 16..start * 16 + 17)).await;
    }
    for (from, expected) in [(0, vec![2, 3, 4]), (4, vec![4]), (5, vec![])] {
        let mut replies = sim.replay(from).await;
        let end = replies.pop().unwrap();
        assert_eq!(end, [vec![], vec![], vec![0xff; 8], vec![]]);
        assert!(replies.iter().all(|frames| frames[0].is_empty() && frames[1] == b"t"));
        let numbers: Vec<u64> = replies.iter().map(|frames| seq(&frames[2])).collect();
        assert_eq!(numbers, expected, "from {from}");
    }
}

/// Live and replayed batches are the same bytes.
#[tokio::test]
async fn replay_repeats_what_was_published() {
    let sim = Sim::start(SimConfig::default()).await;
    let mut socket = sim.subscribe().await;
    let live = first_batch(&sim, &mut socket).await;
    let replies = sim.replay(seq(&live[1])).await;
    assert_eq!(replies[0][1..], live[..]);
}

/// From the replayed events alone: which blocks are held, hence what a prompt will find.
#[tokio::test]
async fn events_predict_cached_tokens_under_eviction() {
    let config = SimConfig { num_blocks: 12, block_size_tokens: 4, ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let (mut hits, mut removals) = (0, 0);
    for round in 0..60u32 {
        // Three stems whose blocks do not fit together, in an order that comes back to each.
        let stem = [0, 1, 0, 2, 1, 1][round as usize % 6] * 100;
        let prompt = ids(stem..stem + 10 + round % 13);
        let mut texts: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut held: BTreeMap<u64, i32> = BTreeMap::new();
        let mut replies = sim.replay(0).await;
        replies.pop();
        for (number, frames) in replies.iter().enumerate() {
            assert_eq!(seq(&frames[2]), number as u64);
            for event in decode(&frames[3])[1].as_array().unwrap() {
                let hashes: Vec<u64> = field(event, "block_hashes")
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|hash| hash.as_u64().unwrap())
                    .collect();
                if field(event, "type").as_str() == Some("BlockRemoved") {
                    *held.get_mut(&hashes[0]).unwrap() -= 1;
                    removals += 1;
                    continue;
                }
                let parent = field(event, "parent_block_hash").as_u64();
                let mut text: Vec<u64> = parent.map_or_else(Vec::new, |hash| texts[&hash].clone());
                let tokens = field(event, "token_ids");
                let tokens: Vec<u64> =
                    tokens.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
                for (hash, block) in hashes.iter().zip(tokens.chunks(4)) {
                    text.extend(block);
                    texts.insert(*hash, text.clone());
                    *held.entry(*hash).or_default() += 1;
                }
            }
        }
        assert!(held.values().all(|count| *count >= 0));
        assert!(held.values().sum::<i32>() <= 11);
        let prompt64: Vec<u64> = prompt.iter().map(|&id| u64::from(id)).collect();
        let present = |blocks: usize| {
            held.iter().any(|(hash, n)| *n > 0 && texts[hash] == prompt64[..blocks * 4])
        };
        let predicted = (1..=(prompt.len() - 1) / 4).take_while(|&n| present(n)).count() as u64 * 4;
        assert_eq!(complete(&sim, prompt).await, predicted, "round {round}");
        hits += predicted;
    }
    assert!(hits > 0 && removals > 0, "{hits} cached tokens, {removals} removals");
}

const PYZMQ_SUBSCRIBER: &str = r#"
import sys, zmq
context = zmq.Context()
sub = context.socket(zmq.SUB)
sub.connect(sys.argv[1])
sub.subscribe(b"kv@")
print("ready", flush=True)
sub.RCVTIMEO = 15000
topic, seq, payload = sub.recv_multipart()
print(topic.decode(), int.from_bytes(seq, "big"), payload.hex(), flush=True)
dealer = context.socket(zmq.DEALER)
dealer.RCVTIMEO = 15000
dealer.connect(sys.argv[2])
dealer.send_multipart([b"", (0).to_bytes(8, "big")])
while True:
    frames = dealer.recv_multipart()
    print(len(frames), int.from_bytes(frames[-2], "big"), flush=True)
    if frames[-2] == b"\xff" * 8:
        break
"#;

#[tokio::test]
async fn pyzmq_reads_both_sockets() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.local/venv/bin/python");
    let probe = tokio::process::Command::new(&python).args(["-c", "import zmq"]).output().await;
    if !probe.is_ok_and(|probe| probe.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no pyzmq in {} on CI", python.display());
        println!("skipped: no pyzmq in {}", python.display());
        return;
    }
    let sim = Sim::start(SimConfig { topic: "kv@e@tiny".to_owned(), ..SimConfig::default() }).await;
    let mut child = tokio::process::Command::new(&python)
        .args(["-c", PYZMQ_SUBSCRIBER])
        .arg(sim.running.kv_events.as_ref().unwrap())
        .arg(sim.running.replay.as_ref().unwrap())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(patiently("start", lines.next_line()).await.unwrap().unwrap(), "ready");
    // Publish until the subscription has arrived.
    let mut received = Box::pin(lines.next_line());
    let mut published = 0u32;
    let line = loop {
        complete(&sim, ids(published * 17..published * 17 + 17)).await;
        published += 1;
        assert!(published < 400, "nothing reached pyzmq");
        let wait = tokio::time::timeout(std::time::Duration::from_millis(20), &mut received);
        if let Ok(line) = wait.await {
            break line.unwrap().unwrap();
        }
    };
    drop(received);
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[0], "kv@e@tiny");
    let byte = |at: usize| u8::from_str_radix(&words[2][at..at + 2], 16).unwrap();
    let payload: Vec<u8> = (0..words[2].len()).step_by(2).map(byte).collect();
    assert_eq!(field(&decode(&payload)[1][0], "type").as_str(), Some("BlockStored"));
    for expected in 0..published {
        let line = patiently("replay line", lines.next_line()).await.unwrap().unwrap();
        assert_eq!(line, format!("4 {expected}"));
    }
    let line = patiently("end marker", lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line, format!("4 {}", u64::MAX));
}

#[tokio::test]
async fn the_publisher_may_connect_and_waits_for_its_listener() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    drop(listener);
    let config = SimConfig {
        kv_events: Some(endpoint.clone()),
        topic: "kv@pod@tiny".to_owned(),
        ..SimConfig::default()
    };
    let sim = Sim::start_connecting(config).await;
    // Nobody listens yet, and requests are served all the same.
    complete(&sim, ids(7100..7117)).await;
    let mut socket = zeromq::SubSocket::new();
    socket.bind(&endpoint).await.unwrap();
    socket.subscribe("kv@").await.unwrap();
    let frames = first_batch(&sim, &mut socket).await;
    assert_eq!(frames[0], b"kv@pod@tiny");
    // Numbers count what went unheard.
    assert!(seq(&frames[1]) >= 1);
}
