//! Recorded sessions of a real vLLM whose weights are random: what it generates is rarely what its
//! tokenizer would make of the text, and its own `cached_tokens` says when that mattered.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::HashMap;

use canonical::{CONTEXT_TOKENS, Verdict};
use kv_events::{BlockStored, EngineKey, KvEvent};
use prompt::{Api, Renderer, Request};
use serde_json::Value;
use support::{Model, tiny, workspace};

/// One block with everything before it.
struct Block {
    chain: Vec<u32>,
    /// Its last token was generated, and no later prompt had this text yet.
    is_open: bool,
    is_generated: bool,
    /// What the checker says of it and its generated ancestors.
    is_canonical: bool,
}

#[derive(Default, Debug)]
struct Tally {
    generated: usize,
    flagged: usize,
    /// Generated blocks whose text came back in a prompt: flagged and missed, or neither.
    agree: usize,
    /// Flagged, yet the engine found it.
    flagged_but_found: usize,
    /// Not flagged, yet the engine missed it.
    missed_but_not_flagged: usize,
}

fn store(
    model: &Model,
    blocks: &mut HashMap<EngineKey, Block>,
    event: &BlockStored,
    prompt_tokens: usize,
    tally: &mut Tally,
) {
    let mut parent = event.parent_block_hash;
    let ids = event.token_ids.chunks_exact(event.block_size as usize);
    for (hash, ids) in event.block_hashes.iter().zip(ids) {
        let (before, mut is_canonical) = match parent.and_then(|parent| blocks.get(&parent)) {
            Some(block) => (block.chain.clone(), block.is_canonical),
            None => (Vec::new(), true),
        };
        let chain = [before.as_slice(), ids].concat();
        let is_generated = chain.len() > prompt_tokens;
        if is_generated {
            let context = &before[before.len().saturating_sub(CONTEXT_TOKENS)..];
            let verdict = model.checker.check(context, ids);
            is_canonical &= !verdict.is_non_canonical();
            // The chain before it ends otherwise, as far as it was generated.
            if verdict == (Verdict::NonCanonical { with_previous: true })
                && let Some(previous) = parent.and_then(|parent| blocks.get_mut(&parent))
                && previous.is_generated
            {
                tally.flagged += usize::from(previous.is_canonical);
                previous.is_canonical = false;
            }
            tally.generated += 1;
            tally.flagged += usize::from(!is_canonical);
        }
        blocks.entry(*hash).or_insert(Block {
            chain,
            is_open: is_generated,
            is_generated,
            is_canonical,
        });
        parent = Some(*hash);
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn replay(model: &Model, file: &str) -> Tally {
    let renderer = Renderer::new(&model.folder.spec).unwrap();
    let text =
        std::fs::read_to_string(workspace().join("tests/golden/kv-events").join(file)).unwrap();
    let mut tally = Tally::default();
    let mut blocks: HashMap<EngineKey, Block> = HashMap::new();
    let mut prompt_tokens = 0;
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if let Some(event) = line.get("event") {
            let batch = kv_events::decode(&unhex(event[2].as_str().unwrap())).unwrap();
            for event in &batch.events {
                match event {
                    KvEvent::Stored(stored) => {
                        store(model, &mut blocks, stored, prompt_tokens, &mut tally);
                    }
                    KvEvent::Removed(removed) => {
                        removed.block_hashes.iter().for_each(|hash| drop(blocks.remove(hash)));
                    }
                    other => panic!("{other:?}"),
                }
            }
            continue;
        }
        let Some(request) = line.get("request") else { continue };
        prompt_tokens = line["prompt_tokens"].as_u64().unwrap() as usize;
        let cached = line["cached_tokens"].as_u64().unwrap() as usize;
        let api = match line["path"].as_str().unwrap() {
            "/v1/completions" => Api::Completions,
            _ => Api::ChatCompletions,
        };
        let body = request.to_string();
        let request = Request::parse(api, body.as_bytes()).unwrap();
        // A salt makes equal text different.
        if request.cache_salt().is_some() {
            continue;
        }
        let Ok(prompt) = renderer.render(&request) else { continue };
        for block in blocks.values_mut().filter(|block| block.is_open) {
            let text = model.folder.tokens.text(&block.chain).unwrap();
            if !prompt.bytes.starts_with(&text) {
                continue;
            }
            block.is_open = false;
            match (block.is_canonical, cached >= block.chain.len()) {
                (true, true) | (false, false) => tally.agree += 1,
                (false, true) => tally.flagged_but_found += 1,
                (true, false) => tally.missed_but_not_flagged += 1,
            }
        }
    }
    tally
}

#[test]
fn verdicts_agree_with_what_the_engine_found_again() {
    let model = tiny();
    for file in ["session-chat-large-cache.jsonl", "session-chat-small-cache.jsonl"] {
        let tally = replay(&model, file);
        println!("{file}: {tally:?}");
        let judged = tally.agree + tally.flagged_but_found + tally.missed_but_not_flagged;
        assert!(judged >= 10, "{file}: {tally:?}");
        assert_eq!(tally.flagged_but_found, 0, "{file}: {tally:?}");
        // Only where the turn ended before a next block told of the last two tokens.
        assert!(tally.missed_but_not_flagged <= 1, "{file}: {tally:?}");
    }
}
