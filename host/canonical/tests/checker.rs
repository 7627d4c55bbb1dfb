//! Verdicts against re-encoding whole texts with the tokenizer itself.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::Instant;

use canonical::{CONTEXT_TOKENS, Verdict};
use support::{BLOCK, Model, Random, models, texts, tiny, verdicts};

#[test]
fn what_the_tokenizer_made_is_never_flagged() {
    for model in models() {
        let (mut blocks, mut unknown) = (0, 0);
        for text in texts() {
            let encoding = model.tokenizer.encode_fast(text.as_str(), false).unwrap();
            // Chains start anywhere in a text, as blocks do.
            for skip in [0, 1, 5, 11] {
                let ids = encoding.get_ids().get(skip..).unwrap_or_default();
                let from = if skip == 0 { 0 } else { 1 };
                for (i, verdict) in verdicts(&model.checker, ids).into_iter().enumerate().skip(from)
                {
                    blocks += 1;
                    unknown += usize::from(verdict == Verdict::Unknown);
                    let shown = &ids[(i * BLOCK).saturating_sub(CONTEXT_TOKENS)..(i + 1) * BLOCK];
                    let pieces: Vec<_> =
                        shown.iter().map(|id| model.tokenizer.id_to_token(*id)).collect();
                    assert!(!verdict.is_non_canonical(), "{}: {pieces:?}", model.name);
                }
            }
        }
        println!("{}: {blocks} canonical blocks, 0 flagged, {unknown} unknown", model.name);
        assert!(blocks > 1000 && unknown * 20 < blocks, "{}: {unknown} of {blocks}", model.name);
    }
}

/// First token that a re-encoding of the whole text makes otherwise; `None` where the ids are what
/// the tokenizer makes of their text. Ids that are no text differ where they stop being text.
fn naive_difference(model: &Model, ids: &[u32]) -> Option<usize> {
    let bytes = model.folder.tokens.text(ids).unwrap();
    let (text, is_cut) = match std::str::from_utf8(&bytes) {
        Ok(text) => (text, false),
        Err(error) => (std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap(), true),
    };
    // The tokenizer puts the dummy prefix back.
    let has_prefix = model.folder.spec.segment_prefix != prompt::SegmentPrefix::None;
    let text = if has_prefix { text.strip_prefix(' ').unwrap_or(text) } else { text };
    let encoding = model.tokenizer.encode_fast(text, false).unwrap();
    let same = encoding.get_ids().iter().zip(ids).take_while(|(a, b)| a == b).count();
    (is_cut || same < ids.len()).then_some(same)
}

/// Counts how the first flagged block compares with the first block that differs.
fn compare(model: &Model, kind: &str, chains: &[Vec<u32>]) -> (usize, usize, usize) {
    let (mut agree, mut early, mut late) = (0, 0, 0);
    for ids in chains {
        let flagged =
            verdicts(&model.checker, ids).iter().position(|verdict| verdict.is_non_canonical());
        // Truncation at the chain's end is nobody's fault: the last two tokens are not judged.
        let whole = ids.len() / BLOCK * BLOCK;
        let differs =
            naive_difference(model, &ids[..whole]).filter(|at| at + 2 < whole).map(|at| at / BLOCK);
        match (flagged, differs) {
            (None, None) => agree += 1,
            // A difference in a block's last tokens is found with the next block.
            (Some(flagged), Some(differs)) if flagged == differs || flagged == differs + 1 => {
                agree += 1
            }
            (Some(flagged), Some(differs)) if flagged > differs => late += 1,
            (None, Some(_)) => late += 1,
            _ => early += 1,
        }
    }
    println!(
        "{} {kind}: {} chains, {agree} agree, {early} flagged early, {late} late or never",
        model.name,
        chains.len()
    );
    (agree, early, late)
}

#[test]
fn other_tokens_are_flagged_as_a_whole_encoding_says() {
    let seed = 20_261_125;
    println!("seed {seed}");
    let mut random = Random(seed);
    for model in models() {
        let vocab = model.tokenizer.get_vocab_size(false);
        // Every text of a Llama 2 type tokenizer begins with the dummy prefix.
        let first = model.tokenizer.encode_fast("the", false).unwrap().get_ids()[0];
        let random_chain = |random: &mut Random| -> Vec<u32> {
            std::iter::once(first).chain((1..96).map(|_| random.below(vocab) as u32)).collect()
        };
        let chains: Vec<Vec<u32>> = (0..400).map(|_| random_chain(&mut random)).collect();
        let (agree, early, _) = compare(&model, "random tokens", &chains);
        assert!(agree >= 390 && early == 0, "{}", model.name);

        // The starts of texts, with one token spelled as two others.
        let starts: Vec<Vec<u32>> = texts()
            .iter()
            .map(|text| {
                model.tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec()
            })
            .filter(|ids| ids.len() > 200)
            // Where the next letter is out of sight, cuts in white space are not judged.
            .filter(|ids| !model.folder.tokens.text(&ids[..160]).unwrap().trim_ascii().is_empty())
            .collect();
        let mut chains = Vec::new();
        while chains.len() < 400 {
            let mut chain = starts[random.below(starts.len())][..160].to_vec();
            let place = random.below(140);
            let piece: Vec<char> =
                model.tokenizer.id_to_token(chain[place]).unwrap().chars().collect();
            let (left, right) = piece.split_at(random.below(piece.len()) % piece.len());
            let half =
                |half: &[char]| model.tokenizer.token_to_id(&half.iter().collect::<String>());
            if let [Some(left), Some(right)] = [half(left), half(right)] {
                chain.splice(place..=place, [left, right]);
                chain.truncate(160);
                chains.push(chain);
            }
        }
        let (agree, early, _) = compare(&model, "one token as two", &chains);
        assert!(agree >= 380 && early == 0, "{}", model.name);
    }
}

#[test]
fn verdicts_of_small_cases() {
    let model = tiny();
    let ids = |text: &str| model.tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
    let check = |chain: &[u32], expected: Verdict| {
        assert_eq!(model.checker.check(&[], chain), expected, "{chain:?}");
    };
    let hello = ids("hello world, hello world");
    check(&hello, Verdict::Canonical);
    check(&[], Verdict::Unknown);
    check(&hello[..2], Verdict::Unknown);
    check(&[&[9999], &hello[..]].concat(), Verdict::Unknown);
    let letters: Vec<u32> = "hello world".chars().flat_map(|c| ids(&c.to_string())).collect();
    let wrong = Verdict::NonCanonical { with_previous: false };
    check(&letters, wrong);
    // A control token spelled by others.
    let spelled: Vec<u32> =
        "<|im_end|> and so on".chars().flat_map(|c| ids(&c.to_string())).collect();
    check(&spelled, wrong);
    check(&[&[8002], &hello[..]].concat(), Verdict::Canonical);
    // Decomposed text is never what the tokenizer makes.
    let model = tiny();
    let e: Vec<u32> =
        [ids("e"), vec![ids("\u{301}")[0], ids("\u{301}")[1]], hello.clone()].concat();
    assert_eq!(model.checker.check(&[], &e), wrong);
    // " live" and "cl": "liv", "ecl" of their text, so the block before is wrong as well.
    let (before, block) = (ids("and so it is, live"), ids("clear, as it is, and so on"));
    let with_previous = Verdict::NonCanonical { with_previous: true };
    assert_eq!(model.checker.check(&before, &block), with_previous);
}

#[test]
fn a_block_costs_microseconds() {
    for model in models() {
        let all = texts().concat();
        let ids = model.tokenizer.encode_fast(all.as_str(), false).unwrap().get_ids().to_vec();
        let blocks = ids.len() / BLOCK;
        let mut took = Vec::new();
        for _ in 0..2 {
            let start = Instant::now();
            std::hint::black_box(verdicts(&model.checker, &ids));
            took.push(start.elapsed().as_secs_f64() * 1e6 / blocks as f64);
        }
        println!(
            "{}: {blocks} blocks, {:.1} us first, {:.1} us again",
            model.name, took[0], took[1]
        );
        assert!(took[1] < 2000.0, "a budget per block is kept: {took:?}");
    }
}
