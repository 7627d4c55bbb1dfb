//! Engines that announce nothing: the gateway remembers what it sent them, whichever worker did.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Value, json};
use testbed::{Answer, Client, EngineOptions, Stand, StandOptions};

use crate::support::{BOTH, COMPLETIONS, Protocol, cases, line, prose, served};

/// That a prompt is remembered is what is tested: at the default weights a load that differs by one request
/// outweighs half a prompt.
const ROUTING: &str = "
routing:
  scorers: [{type: prefix-cache, weight: 20}, {type: queue, weight: 2}, {type: no-hit-lru, weight: 2}]
";

/// Tokens of the small caches.
const CACHE_TOKENS: u64 = 400 * 16;

fn stand(blocks: u32, announced: bool) -> StandOptions {
    let flags = ["--num-blocks".to_owned(), blocks.to_string(), "--max-model-len=100000".into()];
    StandOptions {
        engines: vec![EngineOptions { flags: flags.into() }; 3],
        workers: 2,
        engines_connect: !announced,
        more_config: ROUTING.into(),
        ..StandOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_without_events_get_their_prompts_again() {
    let stand = Stand::start(stand(40_000, false)).await.unwrap();
    cases!(stand;
        chats_return_to_their_engine_by_either_worker,
        a_prompt_is_remembered_of_the_engine_that_served_it,
    );
}

/// What the gateway remembers of each engine for this request, in tokens.
async fn remembered(stand: &Stand, answer: &Answer) -> BTreeMap<String, u64> {
    let line = line(stand, answer).await;
    let all = line.record["approximate"].as_object().cloned().unwrap_or_default();
    all.into_iter().map(|(name, tokens)| (name, tokens.as_u64().unwrap())).collect()
}

fn ask(prompt: &str) -> Vec<u8> {
    json!({"model": "tiny", "prompt": prompt, "max_tokens": 1}).to_string().into_bytes()
}

/// (prompt, cached) tokens by the engine's own count.
fn usage(answer: &Answer) -> (u64, u64) {
    let usage: Value = serde_json::from_slice(&answer.body).unwrap();
    let usage = &usage["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    (usage["prompt_tokens"].as_u64().unwrap(), cached)
}

async fn chats_return_to_their_engine_by_either_worker(stand: Rc<Stand>) {
    let mut homes: BTreeMap<usize, String> = BTreeMap::new();
    let (mut predicted, mut cached) = (0, 0);
    for turn in 1..=5 {
        for chat in 0..9 {
            let body = ask(&prose(&format!("chat {chat}"), 1_500 * turn));
            // A connection each, and so one of two workers.
            let answer = BOTH[chat % 2].post(&stand, COMPLETIONS, &body).await;
            let engine = served(&stand, &answer, &body);
            let known = remembered(&stand, &answer).await;
            match homes.get(&chat) {
                None => {
                    assert_eq!(known, BTreeMap::new(), "chat {chat} is new");
                    homes.insert(chat, engine);
                }
                Some(home) => {
                    assert_eq!(&engine, home, "chat {chat}, turn {turn}");
                    assert_eq!(known.keys().collect::<Vec<_>>(), [home]);
                    predicted += known[home];
                    cached += usage(&answer).1;
                }
            }
        }
    }
    println!("cached tokens: {predicted} by the gateway, {cached} by the engines");
    assert!(predicted * 10 > cached * 7 && predicted * 10 < cached * 13, "{predicted}, {cached}");
    let engines: std::collections::BTreeSet<&String> = homes.values().collect();
    assert_eq!(engines.len(), 3, "and all engines have chats");
}

async fn a_prompt_is_remembered_of_the_engine_that_served_it(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = ask(&prose(&format!("{protocol:?} retries"), 2_000));
        let first = protocol.post(&stand, COMPLETIONS, &body).await;
        let home = served(&stand, &first, &body);
        let engine = Client::new(stand.engine(&home).unwrap().http);
        let behave = async |what: &str| {
            let behaviour = json!({"on_request": what});
            assert_eq!(engine.post("/sim/behaviour", &behaviour).await.unwrap().status, 200);
        };
        // Longer by half: new to the first engine too.
        let body = ask(&prose(&format!("{protocol:?} retries"), 3_000));
        behave("reset").await;
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        behave("serve").await;
        let next = served(&stand, &answer, &body);
        assert_ne!(next, home);
        let again = protocol.post(&stand, COMPLETIONS, &body).await;
        let known = remembered(&stand, &again).await;
        assert!(known[&next] > known[&home] && known[&home] > 0, "{known:?}");
        assert_eq!(served(&stand, &again, &body), next, "{known:?}");
    }
}

/// The engines' metrics say how much fits; what came before that is gone, there and here.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_longer_fits_is_forgotten() {
    let stand = Stand::start(stand(400, false)).await.unwrap();
    let first = ask(&prose("the first", 2_000));
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &first).await;
    served(&stand, &answer, &first);
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &first).await;
    let known = remembered(&stand, &answer).await;
    assert_eq!(known.len(), 1, "{known:?}");
    assert!(usage(&answer).1 > 0);
    let mut tokens = 0;
    for other in 0.. {
        let body = ask(&prose(&format!("filler {other}"), 4_000));
        let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
        tokens += usage(&answer).0;
        // Twice what all caches hold, by the engines' count or by the estimate of four bytes a token.
        if tokens.min(1_000 * (other + 1)) > 2 * 3 * CACHE_TOKENS {
            break;
        }
    }
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &first).await;
    assert_eq!(remembered(&stand, &answer).await, BTreeMap::new());
    assert_eq!(usage(&answer).1, 0, "nor has any engine kept it");
}

/// Chats of which the caches hold a part: what the engines find cached when the gateway knows
/// exactly, and when it only remembers.
#[tokio::test(flavor = "multi_thread")]
async fn remembering_finds_nearly_what_events_find() {
    let mut shares = Vec::new();
    for announced in [true, false] {
        let stand = Stand::start(stand(1_500, announced)).await.unwrap();
        let (mut prompt, mut cached, mut by_memory) = (0, 0, 0);
        // More chats than trails, so that it is not by the last two seconds that they return.
        let mut turns = [0usize; 200];
        let mut state = 5u32;
        for request in 0..1_200 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let chat = (state >> 16) as usize % turns.len();
            turns[chat] = turns[chat] % 6 + 1;
            let body = ask(&prose(&format!("chat {chat}"), 300 + 500 * turns[chat]));
            let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
            served(&stand, &answer, &body);
            let (all, held) = usage(&answer);
            (prompt, cached) = (prompt + all, cached + held);
            if request > 1_100 {
                by_memory += usize::from(!remembered(&stand, &answer).await.is_empty());
            }
        }
        assert_eq!(by_memory > 50, !announced, "{by_memory}");
        shares.push(cached as f64 / prompt as f64);
    }
    println!("hit share: {:.4} exact, {:.4} approximate", shares[0], shares[1]);
    assert!(shares[1] > 0.8 * shares[0], "{shares:?}");
}
