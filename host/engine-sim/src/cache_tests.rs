//! The cache against a naive twin, driven through the scheduler, and what events alone tell.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::chain::Namespace;
use crate::scheduler::{Job, JobId, Scheduler};

/// A block of the twin: the whole text it stands for, and when it came to stand for it.
type TwinBlock = Option<(Vec<u32>, u64)>;

/// The twin: no hashes, no ids. Free blocks in the order in which they would be evicted.
struct Twin {
    free: Vec<TwinBlock>,
    clock: u64,
}

/// A run of tokens that a router would learn from events.
#[derive(Default)]
struct Mirror {
    texts: HashMap<u64, Vec<u32>>,
    counts: BTreeMap<u64, usize>,
}

impl Mirror {
    fn apply(&mut self, event: &KvEvent) {
        match event {
            KvEvent::Stored(stored) => {
                let mut text =
                    stored.parent.map_or_else(Vec::new, |hash| self.texts[&hash].clone());
                let blocks = stored.token_ids.chunks_exact(stored.block_size_tokens);
                assert_eq!(blocks.len(), stored.hashes.len());
                assert_eq!(stored.extra_keys.len(), stored.hashes.len());
                if let Some(parent) = stored.parent {
                    assert!(self.counts.contains_key(&parent), "stored after an absent parent");
                }
                for (tokens, hash) in blocks.zip(&stored.hashes) {
                    text.extend_from_slice(tokens);
                    let known = self.texts.entry(*hash).or_insert_with(|| text.clone());
                    assert_eq!(*known, text, "one hash, two texts");
                    *self.counts.entry(*hash).or_default() += 1;
                }
            }
            KvEvent::Removed(hash) => {
                let count = self.counts.get_mut(hash).expect("removed what was not held");
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(hash);
                }
            }
            KvEvent::Cleared => self.counts.clear(),
        }
    }

    /// Tokens of `prompt` that an engine with these blocks would find cached.
    fn cached_tokens(&self, prompt: &[u32], block_size: usize) -> usize {
        let most = prompt.len().saturating_sub(1) / block_size;
        let held = |blocks: usize| {
            let wanted = &prompt[..blocks * block_size];
            self.counts.keys().any(|hash| self.texts[hash] == wanted)
        };
        (1..=most).take_while(|&blocks| held(blocks)).count() * block_size
    }

    fn held_texts(&self) -> Vec<Vec<u32>> {
        let copies = |(hash, count): (&u64, &usize)| vec![self.texts[hash].clone(); *count];
        let mut texts: Vec<_> = self.counts.iter().flat_map(copies).collect();
        texts.sort();
        texts
    }
}

impl Twin {
    fn new(usable: usize) -> Twin {
        Twin { free: vec![None; usable], clock: 0 }
    }

    /// One request alone in the cache: the prompt, then all but the last generated token.
    fn run(&mut self, prompt: &[u32], generated: &[u32], block_size: usize) -> usize {
        let most = (prompt.len() - 1) / block_size;
        let mut mine: Vec<TwinBlock> = Vec::new();
        while mine.len() < most {
            let Some(at) = self.oldest_copy(&prompt[..(mine.len() + 1) * block_size]) else {
                break;
            };
            mine.push(self.free.remove(at));
        }
        let cached = mine.len() * block_size;
        let mut text = prompt.to_vec();
        self.fill(&mut mine, &text, block_size);
        for token in &generated[..generated.len() - 1] {
            text.push(*token);
            self.fill(&mut mine, &text, block_size);
        }
        let (registered, empty): (Vec<_>, Vec<_>) =
            mine.into_iter().rev().partition(Option::is_some);
        self.free.splice(0..0, empty);
        self.free.extend(registered);
        cached
    }

    fn oldest_copy(&self, wanted: &[u32]) -> Option<usize> {
        let copies = self.free.iter().enumerate().filter_map(|(at, block)| {
            block.as_ref().filter(|(text, _)| text == wanted).map(|(_, since)| (since, at))
        });
        copies.min().map(|(_, at)| at)
    }

    fn fill(&mut self, mine: &mut Vec<TwinBlock>, text: &[u32], block_size: usize) {
        while mine.len() < text.len().div_ceil(block_size) {
            self.free.remove(0);
            mine.push(None);
        }
        for (index, block) in mine.iter_mut().enumerate().take(text.len() / block_size) {
            if block.is_none() {
                self.clock += 1;
                *block = Some((text[..(index + 1) * block_size].to_vec(), self.clock));
            }
        }
    }

    fn held_texts(&self) -> Vec<Vec<u32>> {
        let mut texts: Vec<_> = self.free.iter().flatten().map(|(text, _)| text.clone()).collect();
        texts.sort();
        texts
    }
}

fn job(id: u64, prompt: &[u32], output: &[u32]) -> Job {
    Job::new(JobId(id), Chain::new(Namespace::default(), prompt.to_vec()), output.to_vec(), true)
}

/// Prompts over two letters, cut from few stems, so that they share prefixes and repeat exactly.
fn prompts() -> impl Strategy<Value = Vec<(Vec<u32>, Vec<u32>)>> {
    let prompt = prop::collection::vec(0u32..2, 1..14);
    let output = prop::collection::vec(0u32..2, 1..6);
    prop::collection::vec((prompt, output), 1..40)
}

fn run_to_end(scheduler: &mut Scheduler, mirror: &mut Mirror) {
    while scheduler.has_work() {
        scheduler.begin_step();
        let (_, events) = scheduler.end_step();
        events.iter().for_each(|event| mirror.apply(event));
        assert_eq!(mirror.counts, scheduler.cache.held());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_at_a_time_agrees_with_the_naive_twin(
        requests in prompts(), block_size in 1usize..5, spare in 0usize..6,
    ) {
        let usable = 18usize.div_ceil(block_size) + spare;
        let mut scheduler = Scheduler::new(BlockCache::new(block_size, usable + 1, 7), 4);
        let (mut twin, mut mirror) = (Twin::new(usable), Mirror::default());
        for (id, (prompt, output)) in (0u64..).zip(&requests) {
            let predicted = mirror.cached_tokens(prompt, block_size);
            scheduler.submit(job(id, prompt, output));
            let step = scheduler.begin_step();
            let (_, events) = scheduler.end_step();
            events.iter().for_each(|event| mirror.apply(event));
            run_to_end(&mut scheduler, &mut mirror);
            let cached = twin.run(prompt, output, block_size);
            prop_assert_eq!(&step.admitted, &vec![(JobId(id), cached)]);
            prop_assert_eq!(predicted, cached, "events alone predict the hit");
            prop_assert_eq!(mirror.held_texts(), twin.held_texts());
            prop_assert_eq!(scheduler.cache.used_blocks(), 0);
        }
    }

    /// Many requests at once in a cache too small for them: queueing, preemption, aborts, resets.
    #[test]
    fn events_stay_truthful_under_load(
        requests in prompts(), block_size in 1usize..5, spare in 0usize..6,
        max_num_seqs in 1usize..5, abort_every in 2u64..9, reset_every in 2u64..9,
    ) {
        let usable = 18usize.div_ceil(block_size) + spare;
        let mut scheduler = Scheduler::new(BlockCache::new(block_size, usable + 1, 7), max_num_seqs);
        let mut mirror = Mirror::default();
        let (mut tokens, mut expected) = (0usize, 0usize);
        for (id, (prompt, output)) in (0u64..).zip(&requests) {
            scheduler.submit(job(id, prompt, output));
            let step = scheduler.begin_step();
            prop_assert!(scheduler.running() <= max_num_seqs);
            prop_assert!(scheduler.cache.used_blocks() <= usable);
            prop_assert!(step.starting >= step.admitted.len());
            let (produced, events) = scheduler.end_step();
            tokens += produced.len();
            events.iter().for_each(|event| mirror.apply(event));
            prop_assert_eq!(&mirror.counts, &scheduler.cache.held());
            if id.is_multiple_of(abort_every) {
                scheduler.abort(JobId(id));
            } else {
                expected += output.len();
            }
            if id.is_multiple_of(reset_every) && scheduler.reset_cache() {
                scheduler.cache.take_events().iter().for_each(|event| mirror.apply(event));
                prop_assert!(mirror.counts.is_empty());
            }
        }
        while scheduler.has_work() {
            scheduler.begin_step();
            let (produced, events) = scheduler.end_step();
            prop_assert!(!produced.is_empty(), "a step without progress");
            tokens += produced.len();
            events.iter().for_each(|event| mirror.apply(event));
            prop_assert_eq!(&mirror.counts, &scheduler.cache.held());
        }
        prop_assert!(tokens >= expected, "every request that stayed got all its tokens");
        prop_assert_eq!(scheduler.cache.used_blocks(), 0);
    }
}

fn events_of(scheduler: &mut Scheduler, prompt: &[u32], output: &[u32]) -> (usize, Vec<KvEvent>) {
    scheduler.submit(job(0, prompt, output));
    let mut cached = None;
    let mut all = Vec::new();
    while scheduler.has_work() {
        let step = scheduler.begin_step();
        cached = cached.or(step.admitted.first().map(|&(_, cached)| cached));
        all.extend(scheduler.end_step().1);
    }
    (cached.unwrap(), all)
}

/// Measured on vLLM 0.32: a prompt of two exact blocks sent twice.
#[test]
fn a_full_hit_recomputes_and_stores_the_last_block_again() {
    let mut scheduler = Scheduler::new(BlockCache::new(32, 160, 1), 8);
    let prompt: Vec<u32> = (0..64).collect();
    let (cached, first) = events_of(&mut scheduler, &prompt, &[1]);
    assert_eq!(cached, 0);
    let [KvEvent::Stored(first)] = &first[..] else { panic!("{first:?}") };
    let (cached, second) = events_of(&mut scheduler, &prompt, &[1]);
    assert_eq!(cached, 32);
    let [KvEvent::Stored(second)] = &second[..] else { panic!("{second:?}") };
    assert_eq!(second.hashes, [first.hashes[1]]);
    assert_eq!(second.parent, Some(first.hashes[0]));
    let fill: Vec<u32> = (1000..1000 + 159 * 32).collect();
    let (_, third) = events_of(&mut scheduler, &fill, &[1]);
    let removed = |hash: u64| third.iter().filter(|e| **e == KvEvent::Removed(hash)).count();
    assert_eq!((removed(first.hashes[0]), removed(first.hashes[1])), (1, 2));
}

#[test]
fn eviction_takes_the_tail_of_the_oldest_chain_first() {
    let mut scheduler = Scheduler::new(BlockCache::new(4, 7, 1), 8);
    let (_, stored) = events_of(&mut scheduler, &(0..12).collect::<Vec<u32>>(), &[1]);
    let [KvEvent::Stored(stored)] = &stored[..] else { panic!("{stored:?}") };
    let (_, events) = events_of(&mut scheduler, &(100..117).collect::<Vec<u32>>(), &[1]);
    assert_eq!(events[0], KvEvent::Removed(stored.hashes[2]));
    assert_eq!(events[1], KvEvent::Removed(stored.hashes[1]));
    assert!(matches!(events[2], KvEvent::Stored(_)));
    assert_eq!(events.len(), 3);
}

#[test]
fn generated_tokens_fill_blocks_but_for_the_last_one() {
    let mut scheduler = Scheduler::new(BlockCache::new(4, 10, 1), 8);
    let blocks = |events: &[KvEvent]| {
        let hashes = |e: &KvEvent| matches!(e, KvEvent::Stored(s) if s.hashes.len() == 1);
        assert!(events.iter().all(hashes));
        events.len()
    };
    let (_, events) = events_of(&mut scheduler, &[1, 2, 3, 4, 5], &[6, 7, 8]);
    assert_eq!(blocks(&events), 1, "8 tokens, the last one not computed");
    let (cached, events) = events_of(&mut scheduler, &[1, 2, 3, 4, 5], &[6, 7, 8, 9]);
    assert_eq!((cached, blocks(&events)), (4, 1));
    let (cached, _) = events_of(&mut scheduler, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[1]);
    assert_eq!(cached, 8);
}

#[test]
fn a_reset_is_refused_while_a_request_runs() {
    let mut scheduler = Scheduler::new(BlockCache::new(4, 10, 1), 8);
    scheduler.submit(job(0, &[1, 2, 3, 4], &[5, 6]));
    scheduler.begin_step();
    assert!(!scheduler.reset_cache());
    scheduler.abort(JobId(0));
    scheduler.end_step();
    assert!(scheduler.reset_cache());
    assert_eq!(scheduler.cache.take_events(), [KvEvent::Cleared]);
    assert!(scheduler.cache.held().is_empty());
}

#[test]
fn salt_and_adapter_separate_prompts() {
    let mut scheduler = Scheduler::new(BlockCache::new(4, 20, 1), 8);
    let mut run = |lora: Option<&str>, salt: Option<&str>| {
        let namespace =
            Namespace { lora_name: lora.map(str::to_owned), cache_salt: salt.map(str::to_owned) };
        let chain = Chain::new(namespace, (0..9).collect());
        scheduler.submit(Job::new(JobId(0), chain, vec![1], true));
        let cached = scheduler.begin_step().admitted[0].1;
        (cached, scheduler.end_step().1)
    };
    for (lora, salt) in [(None, None), (Some("sql"), Some("s1")), (None, Some("s1"))] {
        let (cached, events) = run(lora, salt);
        assert_eq!(cached, 0);
        let KvEvent::Stored(stored) = &events[0] else { panic!("{events:?}") };
        let words = |list: &[Option<&str>]| -> Vec<String> {
            list.iter().flatten().map(|s| (*s).to_owned()).collect()
        };
        assert_eq!(stored.extra_keys, [words(&[lora, salt]), words(&[lora])]);
        assert_eq!(run(lora, salt).0, 8);
    }
}
