//! TensorRT-LLM's lists, written from the documented format and served by a real HTTP server.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kv_events::trtllm::{self, MAX_LIST_BYTES, TrtllmConfig};
use kv_events::{Counters, EngineKey, KvEvent, ResetReason, SourceState, SourceUpdate};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

type Answers = Arc<Mutex<VecDeque<(StatusCode, Vec<u8>)>>>;

/// Hands out the answers one by one, then empty lists.
async fn serve(answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("a port");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            let answers = answers.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                assert_eq!(request.method(), Method::POST);
                assert_eq!(request.uri().path(), "/kv_cache_events");
                let answer = answers.lock().expect("answers").pop_front();
                let (status, body) = answer.unwrap_or((StatusCode::OK, b"[]".to_vec()));
                let mut response = Response::new(Full::new(Bytes::from(body)));
                *response.status_mut() = status;
                async { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    format!("http://{address}/kv_cache_events")
}

struct Engine {
    answers: Answers,
    updates: mpsc::Receiver<SourceUpdate>,
    counters: Arc<Counters>,
}

impl Engine {
    async fn start(block_size_tokens: Option<u32>) -> Self {
        let answers = Answers::default();
        let (sender, updates) = mpsc::channel(16);
        let counters = Arc::<Counters>::default();
        let config = TrtllmConfig {
            interval: Duration::from_millis(5),
            block_size_tokens,
            ..TrtllmConfig::new(serve(answers.clone()).await)
        };
        tokio::spawn(trtllm::follow(config, counters.clone(), sender));
        let mut engine = Self { answers, updates, counters };
        engine.expect("connecting\npartial").await;
        engine
    }

    fn answer(&self, events: &[Value]) {
        let body = serde_json::to_vec(events).expect("json");
        self.answers.lock().expect("answers").push_back((StatusCode::OK, body));
    }

    fn answer_bytes(&self, status: StatusCode, body: &[u8]) {
        self.answers.lock().expect("answers").push_back((status, body.to_vec()));
    }

    /// The next updates, one a line.
    async fn expect(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim) {
            let update = tokio::time::timeout(Duration::from_secs(60), self.updates.recv()).await;
            let got = line_of(update.expect("an update in time").expect("a source"));
            assert_eq!(got, line, "of {lines}");
        }
    }
}

fn hashes(keys: &[EngineKey]) -> String {
    keys.iter().map(|key| format!(" {}", key.0)).collect()
}

fn line_of(update: SourceUpdate) -> String {
    match update {
        SourceUpdate::State(SourceState::Live { partial: false }) => "live".to_owned(),
        SourceUpdate::State(SourceState::Live { partial: true }) => "partial".to_owned(),
        SourceUpdate::State(state) => format!("{state:?}").to_lowercase(),
        SourceUpdate::Reset { reason: ResetReason::Gap } => "gap".to_owned(),
        SourceUpdate::Reset { reason: ResetReason::Restart } => "restart".to_owned(),
        SourceUpdate::Undecodable { sequence, .. } => format!("garbage {sequence}"),
        SourceUpdate::Batch { sequence, batch, .. } => {
            let mut line = sequence.to_string();
            if let Some(rank) = batch.data_parallel_rank {
                write!(line, " rank{rank}").expect("a string");
            }
            for event in batch.events {
                match event {
                    KvEvent::Stored(stored) => {
                        let medium = stored.medium.expect("a medium");
                        let parent = stored.parent_block_hash.map(|key| key.0);
                        write!(line, "; {medium} stored{}", hashes(&stored.block_hashes))
                            .expect("a string");
                        if let Some(parent) = parent {
                            write!(line, " after {parent}").expect("a string");
                        }
                        if stored.block_size > 0 {
                            let size = stored.block_size as usize;
                            assert_eq!(stored.token_ids.len(), stored.block_hashes.len() * size);
                            assert_eq!(stored.extra_keys.len(), stored.block_hashes.len());
                            write!(line, " tokens {:?}", stored.token_ids).expect("a string");
                        }
                        if stored.extra_keys.iter().any(|keys| keys.multimodal) {
                            line.push_str(" image");
                        }
                    }
                    KvEvent::Removed(removed) => {
                        let medium = removed.medium.expect("a medium");
                        write!(line, "; {medium} removed{}", hashes(&removed.block_hashes))
                            .expect("a string");
                    }
                    KvEvent::AllBlocksCleared => line.push_str("; cleared"),
                    KvEvent::Unknown(tag) => write!(line, "; {tag}").expect("a string"),
                }
            }
            line
        }
    }
}

fn created(id: u64) -> Value {
    json!({"event_id": id, "data": {"type": "created", "num_blocks_per_cache_level": [100, 50]}})
}

fn stored(id: u64, parent: Option<u64>, blocks: &[(u64, &[u32])]) -> Value {
    let blocks: Vec<Value> = blocks
        .iter()
        .map(|(hash, tokens)| {
            let tokens: Vec<Value> = tokens
                .iter()
                .map(|id| json!({"type": "unique_token", "token_id": id, "token_extra_id": 0}))
                .collect();
            json!({"type": "stored_block", "block_hash": hash, "tokens": tokens,
                   "cache_level": 0, "priority": 35})
        })
        .collect();
    let data = json!({"type": "stored", "parent_hash": parent, "blocks": blocks});
    json!({"event_id": id, "data": data})
}

fn removed(id: u64, hashes: &[u64]) -> Value {
    json!({"event_id": id, "data": {"type": "removed", "block_hashes": hashes}})
}

fn moved(id: u64, hash: u64, old: u8, new: u8) -> Value {
    json!({"event_id": id, "data": {"type": "updated", "block_hash": hash,
        "cache_level": {"type": "event_diff", "new_value": new, "old_value": old},
        "priority": null}})
}

#[tokio::test]
async fn what_is_stored_and_removed_is_told_as_other_engines_do() {
    let mut engine = Engine::start(None).await;
    engine.answer(&[created(0), stored(1, None, &[(10, &[1, 2]), (11, &[3, 4])])]);
    engine.expect("1; GPU stored 10 11 tokens [1, 2, 3, 4]\nlive").await;
    engine.answer(&[stored(2, Some(11), &[(12, &[5, 6])]), removed(3, &[12, 11])]);
    engine.expect("3; GPU stored 12 after 11 tokens [5, 6]; GPU removed 12 11").await;
    // Removed once is removed; what was never there is not removed.
    engine.answer(&[removed(4, &[12, 99]), removed(5, &[10])]);
    engine.expect("5; GPU removed 10").await;
    assert_eq!(engine.counters.counts(), kv_events::Counts::default());
}

#[tokio::test]
async fn a_block_moves_between_tiers_without_being_nowhere() {
    let mut engine = Engine::start(None).await;
    engine.answer(&[created(0), stored(1, None, &[(10, &[1, 2])])]);
    engine.expect("1; GPU stored 10 tokens [1, 2]\nlive").await;
    engine.answer(&[moved(2, 10, 0, 1)]);
    engine.expect("2; CPU stored 10; GPU removed 10").await;
    // A change of priority alone, and a block nobody knows.
    let priority = json!({"event_id": 3, "data": {"type": "updated", "block_hash": 10,
        "cache_level": null, "priority": {"type": "event_diff", "new_value": 1, "old_value": 0}}});
    engine.answer(&[priority, moved(4, 77, 0, 1), removed(5, &[10])]);
    engine.expect("5; CPU removed 10").await;
}

#[tokio::test]
async fn a_block_that_is_stored_again_is_not_counted_twice() {
    let mut engine = Engine::start(None).await;
    let chain: [(u64, &[u32]); 3] = [(10, &[1, 2]), (11, &[3, 4]), (12, &[5, 6])];
    engine.answer(&[created(0), stored(1, Some(10), &chain[1..2])]);
    engine.expect("1; GPU stored 11 after 10 tokens [3, 4]\nlive").await;
    engine.answer(&[stored(2, None, &chain)]);
    engine.expect("2; GPU stored 10 tokens [1, 2]; GPU stored 12 after 11 tokens [5, 6]").await;
}

#[tokio::test]
async fn a_partial_block_is_no_block() {
    let mut engine = Engine::start(None).await;
    engine.answer(&[created(0), stored(1, None, &[(10, &[1, 2, 3, 4]), (11, &[5, 6])])]);
    engine.expect("1; GPU stored 10 tokens [1, 2, 3, 4]\nlive").await;
    engine.answer(&[stored(2, None, &[(12, &[7])]), removed(3, &[11, 12, 10])]);
    engine.expect("3; GPU removed 10").await;
    let mut engine = Engine::start(Some(2)).await;
    engine.answer(&[created(0), stored(1, None, &[(10, &[1])]), stored(2, None, &[(11, &[1, 2])])]);
    engine.expect("2; GPU stored 11 tokens [1, 2]\nlive").await;
}

#[tokio::test]
async fn a_gap_in_the_numbers_voids_what_was_known() {
    let mut engine = Engine::start(None).await;
    engine.answer(&[created(0), stored(1, None, &[(10, &[1, 2])])]);
    engine.expect("1; GPU stored 10 tokens [1, 2]\nlive").await;
    engine.answer(&[stored(2, None, &[(11, &[3, 4])]), stored(7, None, &[(12, &[5, 6])])]);
    engine
        .expect(
            "2; GPU stored 11 tokens [3, 4]
             gap
             7; GPU stored 12 tokens [5, 6]
             partial",
        )
        .await;
    // Of before the gap nothing is left.
    engine.answer(&[removed(8, &[10, 12])]);
    engine.expect("8; GPU removed 12").await;
    let counts = engine.counters.counts();
    assert_eq!((counts.gaps, counts.restarts), (1, 0));
}

#[tokio::test]
async fn numbers_from_zero_are_a_restart() {
    let mut engine = Engine::start(None).await;
    engine.answer(&[stored(41, None, &[(10, &[1, 2])])]);
    engine.expect("41; GPU stored 10 tokens [1, 2]").await;
    engine.answer(&[created(0), stored(1, None, &[(10, &[1, 2])])]);
    engine.expect("restart\n1; GPU stored 10 tokens [1, 2]\nlive").await;
    let counts = engine.counters.counts();
    assert_eq!((counts.gaps, counts.restarts), (0, 1));
}

#[tokio::test]
async fn garbage_is_counted_and_leaves_doubt_until_the_numbers_go_on() {
    let mut engine = Engine::start(None).await;
    engine.answer(&[created(0), stored(1, None, &[(10, &[1, 2])])]);
    engine.expect("1; GPU stored 10 tokens [1, 2]\nlive").await;
    engine.answer_bytes(StatusCode::OK, b"<html>");
    engine.expect("lost\nresyncing").await;
    engine.answer(&[stored(2, None, &[(11, &[1, 2])])]);
    engine.expect("2; GPU stored 11 tokens [1, 2]\nlive").await;
    // One event of a list: its place stays empty.
    let odd = json!({"event_id": 3, "data": {"type": "removed", "block_hashes": ["x"]}});
    engine.answer(&[odd, stored(4, None, &[(12, &[1, 2])])]);
    engine.expect("gap\n4; GPU stored 12 tokens [1, 2]\npartial").await;
    let counts = engine.counters.counts();
    assert_eq!((counts.not_batches, counts.connections_failed), (2, 0));
}

#[tokio::test]
async fn an_engine_that_fails_is_lost_and_found() {
    let mut engine = Engine::start(None).await;
    engine.answer(&[created(0)]);
    engine.expect("live").await;
    engine.answer_bytes(StatusCode::SERVICE_UNAVAILABLE, b"");
    engine.expect("lost\nlive").await;
    engine.answer_bytes(StatusCode::OK, &vec![b' '; MAX_LIST_BYTES + 1]);
    engine.expect("lost\nresyncing").await;
    let counts = engine.counters.counts();
    assert_eq!((counts.frames_too_large, counts.connections_failed), (1, 1));
}

#[tokio::test]
async fn ranks_have_numbers_of_their_own_and_windows_are_not_mixed() {
    let mut engine = Engine::start(None).await;
    let of = |mut event: Value, rank: u32, window: u64| {
        event["attention_dp_rank"] = rank.into();
        event["window_size"] = window.into();
        event
    };
    engine.answer(&[
        of(created(0), 0, 128),
        of(created(1), 0, 4096),
        of(stored(2, None, &[(10, &[1, 2])]), 0, 4096),
        of(stored(3, None, &[(10, &[1, 2])]), 0, 128),
        of(created(0), 1, 4096),
        of(stored(1, None, &[(10, &[1, 2])]), 1, 4096),
    ]);
    engine
        .expect(
            "3 rank0; GPU stored 10 tokens [1, 2]
             1 rank1; GPU stored 10 tokens [1, 2]
             live",
        )
        .await;
}

#[tokio::test]
async fn hashes_of_either_sign_images_and_unknown_events_are_taken() {
    let mut engine = Engine::start(None).await;
    let mut image = stored(1, None, &[(0, &[1, 2])]);
    image["data"]["blocks"][0]["block_hash"] = json!(-1);
    image["data"]["blocks"][0]["tokens"][1]["token_extra_id"] = json!(7);
    let unknown =
        json!({"event_id": 2, "data": {"type": "compacted", "x": [1]}, "hash_algo": "v2"});
    engine.answer(&[created(0), image, unknown]);
    engine.expect("2; GPU stored 18446744073709551615 tokens [1, 2] image; trtllm\nlive").await;
}

#[tokio::test]
async fn only_plain_http_is_spoken() {
    let (sender, mut updates) = mpsc::channel(16);
    tokio::spawn(trtllm::follow(TrtllmConfig::new("https://x/"), Arc::default(), sender));
    for state in [SourceState::Connecting, SourceState::Lost] {
        assert_eq!(updates.recv().await, Some(SourceUpdate::State(state)));
    }
}
