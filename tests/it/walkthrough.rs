//! The walk-through: what is repeated goes to the engine that holds it, what is new elsewhere.

use std::rc::Rc;

use serde_json::{Value, json};
use testbed::{Answer, EngineOptions, Stand, StandOptions};

use crate::support::{BOTH, CHAT, COMPLETIONS, Protocol, cases, completion, line, prose, served};

/// Tokens per block of the simulated engines.
const BLOCK: u64 = 16;

#[tokio::test(flavor = "multi_thread")]
async fn prompts_go_to_the_engine_that_holds_them() {
    // Room for prompts of a megabyte, twice per engine.
    let flags = ["--num-blocks", "60000", "--max-model-len", "450000"].map(str::to_owned).to_vec();
    let engines = vec![EngineOptions { flags }; 3];
    let stand = Stand::start(StandOptions { engines, ..StandOptions::default() }).await.unwrap();
    cases!(stand;
        a_repeated_prompt_is_served_by_its_holder_who_finds_as_many_blocks_as_we_said,
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

/// Sends `body` again: its holder serves it, and our count of blocks is the engine's.
async fn again(stand: &Stand, protocol: Protocol, path: &str, body: &[u8], holder: &str) -> u64 {
    let answer = protocol.post(stand, path, body).await;
    assert_eq!(served(stand, &answer, body), holder);
    let line = line(stand, &answer).await;
    assert_eq!(line.picked()[0], holder, "{line:?}");
    let scores = line.scores().expect("scores");
    assert_eq!(scores.keys().collect::<Vec<_>>(), [holder], "{line:?}");
    let (ours, theirs) = (scores[holder], cached_tokens(&answer) / BLOCK);
    assert!(ours.abs_diff(theirs) <= 1, "{ours} blocks matched, {theirs} cached: {line:?}");
    ours
}

async fn a_repeated_prompt_is_served_by_its_holder_who_finds_as_many_blocks_as_we_said(
    stand: Rc<Stand>,
) {
    for protocol in BOTH {
        let body = completion(&prose(&format!("{protocol:?} repeated"), 3000));
        let (answer, holder) = first(&stand, protocol, COMPLETIONS, &body).await;
        let cold = line(&stand, &answer).await;
        assert_eq!(cold.scores(), None, "{cold:?}");
        assert_eq!(cold.picked()[0], holder, "{cold:?}");
        assert_eq!(cached_tokens(&answer), 0);
        let blocks = again(&stand, protocol, COMPLETIONS, &body, &holder).await;
        assert!(blocks > 20, "{blocks} blocks of 3000 bytes");
    }
}

/// The system message differs per conversation, so that they have no first stride in common.
fn conversation(topic: &str) -> Vec<Value> {
    vec![
        json!({"role": "system", "content": prose(topic, 400)}),
        json!({"role": "user", "content": prose(topic, 600)}),
    ]
}

async fn a_chat_of_three_turns_stays_and_a_second_conversation_goes_elsewhere(stand: Rc<Stand>) {
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

async fn a_megabyte_is_matched_the_second_time(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = completion(&prose(&format!("{protocol:?} megabyte"), 1 << 20));
        let (_, holder) = first(&stand, protocol, COMPLETIONS, &body).await;
        let blocks = again(&stand, protocol, COMPLETIONS, &body, &holder).await;
        assert!(blocks > 10_000, "{blocks} blocks of a megabyte");
    }
}
