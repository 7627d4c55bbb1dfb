//! One history for all: what 64 engines publish while chats behind shared system prompts grow, move
//! and are evicted; and prompts to look up at its end.

use std::collections::{BTreeMap, HashMap};

use crate::corpus::Corpus;
use crate::random::Random;

/// Tokens per block.
pub(crate) const BLOCK: usize = 16;
/// Blocks of a prompt that is looked up, and of a chat at its longest.
pub(crate) const PROMPT_BLOCKS: usize = 488;
/// Blocks of a system prompt: a page of instructions and some tools.
const SYSTEM_BLOCKS: usize = 64;
const SYSTEM_PROMPTS: usize = 8;
/// Share of turns that go on with a chat the endpoint knows.
const CONTINUES: f64 = 0.75;
/// Share of those that are sent to another endpoint than the last one, for load.
const MOVES: f64 = 0.06;
/// Blocks of a question with what a client attaches to it, and of an answer.
const QUESTION_BLOCKS: (usize, usize) = (16, 44);
const ANSWER_BLOCKS: (usize, usize) = (6, 18);

/// Name an engine gives a block: a hash of all tokens up to its end, equal on all engines.
pub(crate) type Name = u64;

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Stored { parent: Option<Name>, hashes: Vec<Name>, token_ids: Vec<u32> },
    Removed { hashes: Vec<Name> },
}

/// What one step of an engine publishes.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) slot: u16,
    pub(crate) events: Vec<Event>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) endpoints: usize,
    /// Blocks an endpoint's cache holds.
    pub(crate) capacity_blocks: usize,
    /// Blocks stored in all, in terms of what all caches hold.
    pub(crate) turnover: f64,
    pub(crate) prompts: usize,
    pub(crate) seed: u64,
}

pub(crate) struct Trace {
    pub(crate) batches: Vec<Batch>,
    /// Batches before the first removal.
    pub(crate) fill_batches: usize,
    /// Token ids, [`PROMPT_BLOCKS`] blocks each.
    pub(crate) prompts: Vec<Vec<u32>>,
}

/// A block of the history: where it hangs and what it says.
struct Block {
    name: Name,
    tokens: [u32; BLOCK],
}

struct Chat {
    system: usize,
    blocks: Vec<Block>,
}

impl Chat {
    fn is_full(&self) -> bool {
        SYSTEM_BLOCKS + self.blocks.len() >= PROMPT_BLOCKS
    }
}

#[derive(Default)]
struct Endpoint {
    used: usize,
    has_system: [bool; SYSTEM_PROMPTS],
    /// Blocks held of each chat, from its first on.
    chats: HashMap<usize, Held>,
    by_age: BTreeMap<u64, usize>,
    /// Chats that last ran here and may go on.
    open: Vec<usize>,
}

struct Held {
    blocks: usize,
    stamp: u64,
}

struct History<'c> {
    corpus: &'c Corpus,
    random: Random,
    systems: Vec<Vec<Block>>,
    chats: Vec<Chat>,
    endpoints: Vec<Endpoint>,
    clock: u64,
    batches: Vec<Batch>,
    fill_batches: Option<usize>,
    stored: usize,
}

impl Trace {
    pub(crate) fn new(options: &Options, corpus: &Corpus) -> Self {
        let mut history = History {
            corpus,
            random: Random(options.seed),
            systems: Vec::new(),
            chats: Vec::new(),
            endpoints: (0..options.endpoints).map(|_| Endpoint::default()).collect(),
            clock: 0,
            batches: Vec::new(),
            fill_batches: None,
            stored: 0,
        };
        for _ in 0..SYSTEM_PROMPTS {
            let mut blocks = Vec::new();
            history.grow(&mut blocks, None, SYSTEM_BLOCKS);
            history.systems.push(blocks);
        }
        let all = (options.endpoints * options.capacity_blocks) as f64 * options.turnover;
        while history.stored < all as usize {
            history.turn(options.capacity_blocks);
        }
        let prompts = (0..options.prompts).map(|_| history.prompt()).collect();
        let fill_batches = history.fill_batches.unwrap_or(history.batches.len());
        Self { batches: history.batches, fill_batches, prompts }
    }

    /// Blocks stored and removed, in all and before the first removal.
    pub(crate) fn operations(&self) -> (usize, usize) {
        let count = |batches: &[Batch]| -> usize {
            let blocks = |event: &Event| match event {
                Event::Stored { hashes, .. } | Event::Removed { hashes } => hashes.len(),
            };
            batches.iter().flat_map(|batch| &batch.events).map(blocks).sum()
        };
        (count(&self.batches), count(&self.batches[..self.fill_batches]))
    }
}

impl History<'_> {
    /// Appends `count` blocks of text from somewhere in the corpus.
    fn grow(&mut self, blocks: &mut Vec<Block>, before: Option<Name>, count: usize) {
        let ids = &self.corpus.ids;
        let mut at = self.random.below(ids.len());
        for i in 0..count {
            let mut tokens: [u32; BLOCK] = std::array::from_fn(|j| ids[(at + j) % ids.len()]);
            if i == 0 {
                // What no other place starts with, as a name or a date would make it.
                for token in &mut tokens[..4] {
                    *token = ids[self.random.below(ids.len())];
                }
            }
            at = (at + BLOCK) % ids.len();
            let parent = blocks.last().map(|block: &Block| block.name).or(before);
            blocks.push(Block { name: name_of(parent, &tokens), tokens });
        }
    }

    fn turn(&mut self, capacity: usize) {
        let mut slot = self.random.below(self.endpoints.len());
        let open = self.endpoints[slot].open.len();
        let chat = if open > 0 && self.random.chance(CONTINUES) {
            let at = self.random.below(open);
            let chat = self.endpoints[slot].open.swap_remove(at);
            if self.random.chance(MOVES) {
                slot = self.random.below(self.endpoints.len());
            }
            chat
        } else {
            let system = self.random.below(SYSTEM_PROMPTS);
            self.chats.push(Chat { system, blocks: Vec::new() });
            self.chats.len() - 1
        };

        let system = self.chats[chat].system;
        let mut blocks = std::mem::take(&mut self.chats[chat].blocks);
        let room = PROMPT_BLOCKS - SYSTEM_BLOCKS - blocks.len();
        let question = self.random.between(QUESTION_BLOCKS).min(room);
        let answer = self.random.between(ANSWER_BLOCKS).min(room - question);
        let before = self.systems[system].last().map(|block| block.name);
        self.grow(&mut blocks, before, question);
        let asked = blocks.len();
        self.grow(&mut blocks, before, answer);
        self.chats[chat].blocks = blocks;

        let held = self.endpoints[slot].chats.get(&chat).map_or(0, |held| held.blocks);
        let systems = if self.endpoints[slot].has_system[system] { 0 } else { SYSTEM_BLOCKS };
        let needed = self.chats[chat].blocks.len() - held + systems;
        let removed = self.make_room(slot, chat, needed, capacity);
        // One step computes the question and gives up what it needs the room of; then each block
        // of the answer is full after another step.
        self.publish(slot, chat, removed, systems > 0, held, asked);
        for at in asked..self.chats[chat].blocks.len() {
            self.publish(slot, chat, Vec::new(), false, at, at + 1);
        }

        let (is_full, blocks) = (self.chats[chat].is_full(), self.chats[chat].blocks.len());
        self.clock += 1;
        let endpoint = &mut self.endpoints[slot];
        endpoint.has_system[system] = true;
        endpoint.used += needed;
        let now = Held { blocks, stamp: self.clock };
        if let Some(before) = endpoint.chats.insert(chat, now) {
            endpoint.by_age.remove(&before.stamp);
        }
        endpoint.by_age.insert(self.clock, chat);
        if !is_full {
            endpoint.open.push(chat);
        }
    }

    fn publish(
        &mut self,
        slot: usize,
        chat: usize,
        mut events: Vec<Event>,
        with_system: bool,
        from: usize,
        to: usize,
    ) {
        let Chat { system, blocks } = &self.chats[chat];
        let system = &self.systems[*system];
        let mut stored: Vec<&Block> = Vec::new();
        let parent = if with_system {
            stored.extend(system);
            None
        } else if from == 0 {
            system.last()
        } else {
            blocks.get(from - 1)
        };
        stored.extend(&blocks[from..to]);
        if !stored.is_empty() {
            self.stored += stored.len();
            events.push(Event::Stored {
                parent: parent.map(|block| block.name),
                hashes: stored.iter().map(|block| block.name).collect(),
                token_ids: stored.iter().flat_map(|block| block.tokens).collect(),
            });
        }
        self.batches.push(Batch { slot: slot as u16, events });
    }

    /// Gives up the last blocks of the chats that were used longest ago, one event each.
    fn make_room(
        &mut self,
        slot: usize,
        keep: usize,
        needed: usize,
        capacity: usize,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        let endpoint = &mut self.endpoints[slot];
        while endpoint.used + needed > capacity {
            let Some((stamp, chat)) = endpoint.by_age.iter().find(|(_, chat)| **chat != keep)
            else {
                break;
            };
            let (stamp, chat) = (*stamp, *chat);
            let Some(held) = endpoint.chats.get_mut(&chat) else { break };
            held.blocks -= 1;
            endpoint.used -= 1;
            events.push(Event::Removed { hashes: vec![self.chats[chat].blocks[held.blocks].name] });
            if held.blocks == 0 {
                endpoint.chats.remove(&chat);
                endpoint.by_age.remove(&stamp);
                endpoint.open.retain(|other| *other != chat);
            }
        }
        if !events.is_empty() {
            self.fill_batches.get_or_insert(self.batches.len());
        }
        events
    }

    /// A prompt of full length: mostly the next turn of a chat, sometimes a new chat behind a known
    /// system prompt, rarely one that nobody knows anything of.
    fn prompt(&mut self) -> Vec<u32> {
        let mut tokens: Vec<u32> = Vec::with_capacity(PROMPT_BLOCKS * BLOCK);
        let kind = self.random.below(100);
        if kind >= 3 {
            // Of two chats the later: what is recent is asked for more often.
            let (one, other) =
                (self.random.below(self.chats.len()), self.random.below(self.chats.len()));
            let chat = &self.chats[one.max(other)];
            let own = if kind >= 13 { &chat.blocks[..] } else { &[] };
            tokens
                .extend(self.systems[chat.system].iter().chain(own).flat_map(|block| block.tokens));
        }
        let mut rest = Vec::new();
        self.grow(&mut rest, None, PROMPT_BLOCKS - tokens.len() / BLOCK);
        tokens.extend(rest.iter().flat_map(|block| block.tokens));
        tokens
    }
}

fn name_of(parent: Option<Name>, tokens: &[u32]) -> Name {
    let mut name = parent.unwrap_or(0x5EED);
    for token in tokens {
        name = crate::random::mix(name ^ u64::from(*token));
    }
    name
}
