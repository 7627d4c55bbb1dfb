//! Histories drawn at random: whatever engines do, in whatever order their batches are lost and asked
//! for again, the index ends as the twins say.

use crate::support::frames::{Chain, Event, Hashes, Release, cleared};
use crate::support::text::Text;
use crate::support::twin::{Place, Space};
use crate::support::{Engine, Plan, Scene};

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_history_ends_as_the_twins_say() {
    let seeds = match std::env::var("WASM_EPP_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => vec![1, 2, 3],
    };
    for seed in seeds {
        println!("seed {seed} (WASM_EPP_SEED repeats it alone)");
        history(seed).await;
    }
}

async fn history(seed: u64) {
    let blocks = [16, 32, 8, 16];
    let plans = vec![
        Plan::vllm(16).args(&["--framing", "plain"]),
        Plan::vllm(32),
        Plan::sglang(8),
        Plan::vllm(16),
    ];
    let Some(mut scene) = Scene::start(plans).await else { return };
    let mut random = Random(seed);
    let trunk = Text::about("a trunk", 300);
    let texts = [
        trunk.branch(64, "the first branch", 200),
        trunk.branch(160, "the second branch", 100),
        Text::about("something else", 250),
        trunk,
    ];
    let vllm = Release::all("kv-events-by-version.jsonl", Hashes::Unsigned);
    let sglang = Release::all("kv-events-sglang-by-version.jsonl", Hashes::Signed);
    // SGLang has places since 0.5.9.
    let sglang: Vec<Release> = sglang.into_iter().filter(|r| r.knows("medium")).collect();
    let vllm: Vec<Release> = vllm.into_iter().filter(|r| r.knows("medium")).collect();
    for step in 0..300 {
        let engine = random.below(4);
        let is_tree = engine == 2;
        let releases = if is_tree { &sglang } else { &vllm };
        let release = releases[random.below(releases.len())].clone();
        let text = &texts[random.below(texts.len())];
        let it = &mut scene.engines[engine];
        let events =
            step_of(&mut random, &Chain::new(text, blocks[engine]).of(engine), it, is_tree);
        it.release = release;
        match random.below(5) {
            0 => {
                it.keep(&events);
                it.batches += 1;
            }
            _ => it.publish(&events),
        }
        if step % 50 == 49 {
            // Shows what was kept back.
            scene.engines.iter_mut().for_each(|engine| engine.publish(&[]));
            let texts: Vec<&Text> = texts.iter().collect();
            scene.check(&format!("seed {seed}, step {step}"), &texts).await;
        }
    }
}

/// One scheduler step of an engine: its events, with the twin told the same.
fn step_of(
    random: &mut Random,
    chain: &Chain<'_>,
    engine: &mut Engine,
    is_tree: bool,
) -> Vec<Event> {
    let (text, space) = (chain.text, &Space::default());
    let twin = &mut engine.twin;
    let held = (0..chain.len()).take_while(|b| twin.copies(text, *b, Place::Gpu) > 0).count();
    let elsewhere = if is_tree { "CPU_PINNED" } else { "CPU" };
    match random.below(10) {
        // More of the prompt, from the first block that is missed.
        0..=3 if held < chain.len() => {
            let more = held + 1 + random.below(chain.len() - held);
            twin.hold(text, space, held..more, Place::Gpu);
            vec![chain.stored(held..more)]
        }
        // The last block again.
        4 if held > 1 => {
            twin.hold(text, space, held - 1..held, Place::Gpu);
            vec![chain.stored(held - 1..held)]
        }
        // Eviction from the end, a copy at a time. Another text's blocks may hang below.
        5 | 6 if held > 0 => {
            let mut events = Vec::new();
            let mut block = held;
            for _ in 0..1 + random.below(held) {
                if block == held || twin.copies(text, block, Place::Gpu) == 0 {
                    block -= 1;
                }
                twin.drop(text, space, [block], Place::Gpu);
                events.push(chain.removed([block]));
            }
            events
        }
        // A copy elsewhere.
        7 | 8 if held > 0 => {
            let block = random.below(held);
            if twin.copies(text, block, Place::Cpu) > 0 {
                return Vec::new();
            }
            twin.hold(text, space, [block], Place::Cpu);
            match is_tree {
                true => vec![chain.stored(block..block + 1).medium(elsewhere)],
                false => vec![chain.announced(block..block + 1, elsewhere)],
            }
        }
        9 => {
            let last = (0..chain.len()).rfind(|b| twin.copies(text, *b, Place::Cpu) > 0);
            let Some(block) = last else { return Vec::new() };
            twin.drop(text, space, [block], Place::Cpu);
            vec![chain.removed([block]).medium(elsewhere)]
        }
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clear_amid_a_history_is_a_clear() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16), Plan::sglang(16)]).await else {
        return;
    };
    let texts = [Text::about("one", 120), Text::about("two", 120)];
    for engine in 0..2 {
        let it = &mut scene.engines[engine];
        for text in &texts {
            it.store(&Chain::new(text, 16).of(engine), 0..6);
        }
        let [one, two] = [&texts[0], &texts[1]].map(|text| Chain::new(text, 16).of(engine));
        it.publish(&[two.stored(6..7), cleared(), one.stored(0..2)]);
        it.twin.clear();
        it.twin.hold(&texts[0], &Space::default(), 0..2, Place::Gpu);
    }
    scene.check("cleared within a batch", &[&texts[0], &texts[1]]).await;
}
