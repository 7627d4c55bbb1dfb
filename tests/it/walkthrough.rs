//! The walk-through: what is repeated goes to the engine that holds it, what is new elsewhere.

use std::rc::Rc;

use serde_json::{Value, json};
use testbed::{Answer, EngineOptions, Stand, StandOptions};

use crate::support::{BOTH, CHAT, COMPLETIONS, Protocol, cases, completion, line, prose, served};

/// Tokens per block of the simulated engines.
const BLOCK: u64 = 16;
/// Bytes per stride of the index.
const STRIDE: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn prompts_go_to_the_engine_that_holds_them() {
    // Room for prompts of a megabyte, twice per engine.
    let flags = ["--num-blocks", "60000", "--max-model-len", "450000"].map(str::to_owned).to_vec();
    let engines = vec![EngineOptions { flags }; 3];
    let stand = Stand::start(StandOptions { engines, ..StandOptions::default() }).await.unwrap();
    cases!(stand;
        a_repeated_prompt_is_served_by_its_holder_who_finds_as_many_blocks_as_we_said,
        a_prompt_that_ends_inside_a_stride_is_at_most_two_blocks_short,
        a_chat_of_three_turns_stays_and_a_second_conversation_goes_elsewhere,
        a_megabyte_is_matched_the_second_time,
    );
}

fn cached_tokens(answer: &Answer) -> u64 {
    answer.header("x-sim-cached-tokens").parse().expect("x-sim-cached-tokens")
}

/// Sends `body` and waits until the gateway knows that it is held.
async fn first(stand: &Stand, protocol: Protocol, path: &str, body: &[u8]) -> (Answer, String) {
    let before = stand.event_batches().await.unwrap();
    let answer = protocol.post(stand, path, body).await;
    let holder = served(stand, &answer, body);
    stand.settled(&holder, &before).await.unwrap();
    (answer, holder)
}

/// Enough tokens to fill the block in which the prompt ends, so that the engine announces it.
fn completion_that_fills_its_block(prompt: &str) -> Vec<u8> {
    json!({"model": "tiny", "prompt": prompt, "max_tokens": BLOCK + 1}).to_string().into_bytes()
}

/// Sends `body` again: its holder serves it. Returns the blocks we matched and those it found.
async fn again(stand: &Stand, protocol: Protocol, body: &[u8], holder: &str) -> (u64, u64) {
    let path = COMPLETIONS;
    let answer = protocol.post(stand, path, body).await;
    assert_eq!(served(stand, &answer, body), holder);
    let line = line(stand, &answer).await;
    assert_eq!(line.picked()[0], holder, "{line:?}");
    let scores = line.scores().expect("scores");
    assert_eq!(scores.keys().collect::<Vec<_>>(), [holder], "{line:?}");
    (scores[holder], cached_tokens(&answer) / BLOCK)
}

pub(crate) async fn a_repeated_prompt_is_served_by_its_holder_who_finds_as_many_blocks_as_we_said(
    stand: Rc<Stand>,
) {
    for protocol in BOTH {
        let prompt = prose(&format!("{protocol:?} repeated"), 47 * STRIDE);
        let body = completion_that_fills_its_block(&prompt);
        let (answer, holder) = first(&stand, protocol, COMPLETIONS, &body).await;
        let cold = line(&stand, &answer).await;
        assert_eq!(cold.scores(), None, "{cold:?}");
        assert_eq!(cold.picked()[0], holder, "{cold:?}");
        assert_eq!(cached_tokens(&answer), 0);
        let (ours, theirs) = again(&stand, protocol, &body, &holder).await;
        assert!(ours.abs_diff(theirs) <= 1, "{ours} blocks matched, {theirs} cached");
        assert!(ours > 40, "{ours} blocks of 47 strides");
    }
}

/// Only whole strides match, and of this text a stride is 19 tokens: more than a block. The last
/// block of a prompt is announced only when it is full.
pub(crate) async fn a_prompt_that_ends_inside_a_stride_is_at_most_two_blocks_short(
    stand: Rc<Stand>,
) {
    for (protocol, bytes) in [(Protocol::H1, 2940), (Protocol::H1, 3000), (Protocol::H2, 3007)] {
        let body = completion(&prose(&format!("{protocol:?} {bytes}"), bytes));
        let (_, holder) = first(&stand, protocol, COMPLETIONS, &body).await;
        let (ours, theirs) = again(&stand, protocol, &body, &holder).await;
        assert!(ours <= theirs && theirs - ours <= 2, "{ours} blocks matched, {theirs} cached");
    }
}

/// The system message differs per conversation, so that they have no first stride in common.
fn conversation(topic: &str) -> Vec<Value> {
    vec![
        json!({"role": "system", "content": prose(topic, 400)}),
        json!({"role": "user", "content": prose(topic, 600)}),
    ]
}

pub(crate) async fn a_chat_of_three_turns_stays_and_a_second_conversation_goes_elsewhere(
    stand: Rc<Stand>,
) {
    for protocol in BOTH {
        let chat = |messages: &[Value]| {
            json!({"model": "tiny", "messages": messages, "max_tokens": 40}).to_string()
        };
        let mut messages = conversation(&format!("{protocol:?} chat"));
        let body = chat(&messages);
        let (mut answer, holder) = first(&stand, protocol, CHAT, body.as_bytes()).await;
        let mut matched = 0;
        for turn in 2..=3 {
            let said = answer.json().unwrap()["choices"][0]["message"].clone();
            let next = json!({"role": "user", "content": prose(&format!("turn {turn}"), 300)});
            messages.extend([said, next]);
            let body = chat(&messages);
            let before = stand.event_batches().await.unwrap();
            answer = protocol.post(&stand, CHAT, body.as_bytes()).await;
            assert_eq!(served(&stand, &answer, body.as_bytes()), holder, "turn {turn}");
            let line = line(&stand, &answer).await;
            let scores = line.scores().expect("scores");
            assert_eq!(scores.keys().collect::<Vec<_>>(), [&holder], "{line:?}");
            let (ours, theirs) = (scores[&holder], cached_tokens(&answer) / BLOCK);
            assert!(ours.abs_diff(theirs) <= 1, "{ours} matched, {theirs} cached: {line:?}");
            assert!(ours > matched, "turn {turn} matches no more than the one before: {line:?}");
            matched = ours;
            stand.settled(&holder, &before).await.unwrap();
        }
        let other = chat(&conversation(&format!("{protocol:?} other")));
        let (answer, elsewhere) = first(&stand, protocol, CHAT, other.as_bytes()).await;
        assert_ne!(elsewhere, holder);
        assert_eq!(line(&stand, &answer).await.scores(), None);
    }
}

pub(crate) async fn a_megabyte_is_matched_the_second_time(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = completion_that_fills_its_block(&prose(&format!("{protocol:?} MB"), 1 << 20));
        let (_, holder) = first(&stand, protocol, COMPLETIONS, &body).await;
        let (ours, theirs) = again(&stand, protocol, &body, &holder).await;
        assert!(ours.abs_diff(theirs) <= 1, "{ours} blocks matched, {theirs} cached");
        assert!(ours > 10_000, "{ours} blocks of a megabyte");
    }
}
