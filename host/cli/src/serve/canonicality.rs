//! Generated blocks are checked off the apply path: what a model generates need not be tokenized as
//! its tokenizer would, and then an engine misses where the text matches.
//!
//! Blocks are listed at once and unlisted when they differ. The checker has a budget; what it cannot
//! keep up with stays listed, and is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use canonical::{Checker, Verdict};
use prefix_index::EngineHash;

use super::scope::Scope;

mod ends;

use ends::Ends;

/// Blocks that may wait for their check.
const QUEUE: usize = 8192;
/// Ends of blocks remembered per scope, to be the left context of what follows: about 100 bytes each.
const MAX_ENDS: usize = 131_072;
/// Time the checker rests per time it works: a quarter of one core at most.
const REST: u32 = 3;
/// It rests after this much work.
const SPELL: Duration = Duration::from_millis(5);

struct Question {
    slot: u16,
    /// Of [`OfSlot::before`].
    before: u64,
    hash: EngineHash,
    context: Vec<u32>,
    block: Vec<u32>,
}

/// Counters of one scope's checks.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Waiting now.
    pub(crate) waiting: AtomicU64,
    /// Judged.
    pub(crate) checked: AtomicU64,
    /// Judged as neither, for lack of context or of rules.
    pub(crate) unknown: AtomicU64,
    /// Not judged, as the queue was full or the context not known.
    pub(crate) skipped: AtomicU64,
    by_slot: Box<[OfSlot]>,
}

/// Checks of one slot's endpoint.
#[derive(Debug, Default)]
struct OfSlot {
    /// Judged as one or the other.
    decided: AtomicU64,
    /// Endpoints that had the slot before: what was asked of theirs is no business of this one's.
    before: AtomicU64,
}

impl Checks {
    /// The endpoint's generated blocks that were found canonical, or not to be.
    pub(crate) fn decided(&self, slot: u16) -> u64 {
        self.of(slot).map_or(0, |of| of.decided.load(Ordering::Relaxed))
    }

    /// Whether there is a checker at all.
    pub(crate) fn has_checker(&self) -> bool {
        !self.by_slot.is_empty()
    }

    fn of(&self, slot: u16) -> Option<&OfSlot> {
        self.by_slot.get(usize::from(slot))
    }

    fn before(&self, slot: u16) -> u64 {
        self.of(slot).map_or(0, |of| of.before.load(Ordering::Relaxed))
    }
}

/// The asking side; kept with what changes of a scope.
pub(crate) struct Asker {
    questions: SyncSender<Question>,
    checks: Arc<Checks>,
    ends: Ends,
}

impl Asker {
    /// Remembers how the blocks end, and asks about `generated` ones among them.
    pub(crate) fn stored<'b>(
        &mut self,
        slot: u16,
        parent: Option<EngineHash>,
        hashes: &[EngineHash],
        blocks: impl Iterator<Item = &'b [u32]>,
        is_generated: bool,
    ) {
        let mut before = parent;
        for (hash, block) in hashes.iter().zip(blocks) {
            if is_generated {
                match before.and_then(|before| self.ends.get(slot, before)) {
                    Some(end) => self.ask(slot, *hash, end.to_vec(), block.to_vec()),
                    None => count(&self.checks.skipped),
                }
            }
            self.ends.remember(slot, *hash, block);
            before = Some(*hash);
        }
    }

    fn ask(&self, slot: u16, hash: EngineHash, context: Vec<u32>, block: Vec<u32>) {
        count(&self.checks.waiting);
        let before = self.checks.before(slot);
        let question = Question { slot, before, hash, context, block };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.questions.try_send(question)
        {
            self.checks.waiting.fetch_sub(1, Ordering::Relaxed);
            count(&self.checks.skipped);
        }
    }

    /// The slot becomes another endpoint's. To be called with the scope locked.
    pub(crate) fn forget(&mut self, slot: u16) {
        self.ends.forget(slot);
        if let Some(of) = self.checks.of(slot) {
            of.decided.store(0, Ordering::Relaxed);
            of.before.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// An asker and its checker's thread, which ends with the scope.
pub(crate) fn start(
    checker: Checker,
    slots: usize,
) -> (Asker, Arc<Checks>, impl FnOnce(Weak<Scope>)) {
    let (questions, asked) = sync_channel(QUEUE);
    let by_slot = (0..slots).map(|_| OfSlot::default()).collect();
    let checks = Arc::new(Checks { by_slot, ..Checks::default() });
    let asker = Asker { questions, checks: Arc::clone(&checks), ends: Ends::new(MAX_ENDS) };
    let run = {
        let checks = Arc::clone(&checks);
        move |scope: Weak<Scope>| {
            std::thread::spawn(move || judge(&checker, &asked, &checks, &scope));
        }
    };
    (asker, checks, run)
}

fn judge(checker: &Checker, asked: &Receiver<Question>, checks: &Checks, scope: &Weak<Scope>) {
    let mut worked = Duration::ZERO;
    while let Ok(question) = asked.recv() {
        let Some(scope) = scope.upgrade() else { return };
        let started = Instant::now();
        let verdict = checker.check(&question.context, &question.block);
        count(&checks.checked);
        if verdict != Verdict::Unknown
            && question.before == checks.before(question.slot)
            && let Some(of) = checks.of(question.slot)
        {
            count(&of.decided);
        }
        match verdict {
            Verdict::Canonical => {}
            Verdict::Unknown => count(&checks.unknown),
            Verdict::NonCanonical { with_previous } => {
                let mut live = scope.live();
                // Slots change hands with the scope locked.
                let is_its = question.before == checks.before(question.slot);
                if let Some((_, index)) = live.indexes.first_mut().filter(|_| is_its) {
                    let previous = index.parent_of(question.slot, question.hash);
                    if let Some(previous) = previous.filter(|_| with_previous) {
                        index.mark_non_canonical(question.slot, previous);
                    }
                    index.mark_non_canonical(question.slot, question.hash);
                }
                drop(live);
                scope.changed();
            }
        }
        // After what it changed is in the index, so that "none waits" means "all is said".
        checks.waiting.fetch_sub(1, Ordering::Relaxed);
        worked += started.elapsed();
        if worked > SPELL {
            drop(scope);
            std::thread::sleep(worked * REST);
            worked = Duration::ZERO;
        }
    }
}
