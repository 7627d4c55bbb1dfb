//! Which requests run: vLLM's scheduler with whole-prompt prefill, without time.

use std::collections::{BTreeSet, VecDeque};

use crate::cache::BlockCache;
use crate::chain::Chain;
use crate::events::KvEvent;

/// Identity of a request inside the engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct JobId(pub(crate) u64);

/// A request: its tokens, and the tokens it is going to produce.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) chain: Chain,
    pub(crate) output: Vec<u32>,
    pub(crate) produced: usize,
    pub(crate) read_cache: bool,
    /// Set at the first admission; a request that was preempted keeps its first value.
    pub(crate) cached_tokens: Option<usize>,
}

impl Job {
    pub(crate) fn new(id: JobId, chain: Chain, output: Vec<u32>, read_cache: bool) -> Job {
        Job { id, chain, output, produced: 0, read_cache, cached_tokens: None }
    }
}

/// What a step does, decided at its start.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Requests admitted for the first time, with their cached tokens.
    pub(crate) admitted: Vec<(JobId, usize)>,
    /// Tokens to compute for requests that (re)start.
    pub(crate) prefill_tokens: usize,
    /// Requests that (re)start.
    pub(crate) starting: usize,
    /// Requests that decode one token.
    pub(crate) decoding: usize,
}

/// One token a request got at the end of a step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Produced {
    pub(crate) id: JobId,
    pub(crate) token: u32,
    pub(crate) finished: bool,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) prefix_queries_tokens: u64,
    pub(crate) prefix_hits_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) finished: u64,
}

/// See the module.
pub(crate) struct Scheduler {
    pub(crate) cache: BlockCache,
    max_num_seqs: usize,
    waiting: VecDeque<Job>,
    running: Vec<Job>,
    pub(crate) totals: Totals,
}

impl Scheduler {
    pub(crate) fn new(cache: BlockCache, max_num_seqs: usize) -> Scheduler {
        Scheduler {
            cache,
            max_num_seqs,
            waiting: VecDeque::new(),
            running: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// Puts a request at the end of the queue. Its blocks must fit the empty cache.
    pub(crate) fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// LoRA adapters of the requests that run, and of those that wait.
    pub(crate) fn adapters(&self) -> [BTreeSet<String>; 2] {
        let of = |job: &Job| job.chain.namespace.lora_name.clone();
        [self.running.iter().filter_map(of).collect(), self.waiting.iter().filter_map(of).collect()]
    }

    /// Forgets a request; unknown ids are ignored.
    pub(crate) fn abort(&mut self, id: JobId) {
        self.waiting.retain(|job| job.id != id);
        if let Some(at) = self.running.iter().position(|job| job.id == id) {
            self.cache.release(&mut self.running.remove(at).chain);
        }
    }

    /// Room for one more token of everyone who runs, then requests from the queue.
    pub(crate) fn begin_step(&mut self) -> Step {
        let mut step = Step::default();
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() {
            if self.cache.extend(&mut self.running[at].chain) {
                at += 1;
            } else if let Some(mut job) = self.running.pop() {
                // The last comer pays, possibly the one that asked.
                self.cache.release(&mut job.chain);
                self.totals.preemptions += 1;
                self.waiting.push_front(job);
                preempted = true;
            }
        }
        step.decoding = self.running.len();
        while !preempted && self.running.len() < self.max_num_seqs {
            let Some(mut job) = self.waiting.pop_front() else { break };
            let Some(cached) = self.cache.admit(&mut job.chain, job.read_cache) else {
                self.waiting.push_front(job);
                break;
            };
            step.starting += 1;
            step.prefill_tokens += job.chain.tokens.len() - cached;
            if job.cached_tokens.is_none() {
                job.cached_tokens = Some(cached);
                step.admitted.push((job.id, cached));
                self.totals.prompt_tokens += job.chain.tokens.len() as u64;
                if job.read_cache {
                    self.totals.prefix_queries_tokens += job.chain.tokens.len() as u64;
                    self.totals.prefix_hits_tokens += cached as u64;
                }
            }
            self.running.push(job);
        }
        step
    }

    /// Everyone who runs gets a token; who has all of them leaves. Also returns the step's events.
    pub(crate) fn end_step(&mut self) -> (Vec<Produced>, Vec<KvEvent>) {
        let mut produced = Vec::with_capacity(self.running.len());
        for mut job in std::mem::take(&mut self.running) {
            // The last token's own KV is never computed, so it never fills a block.
            if let Some(&token) = job.output.get(job.produced) {
                job.produced += 1;
                job.chain.tokens.push(token);
                self.totals.generated_tokens += 1;
                let finished = job.produced == job.output.len();
                produced.push(Produced { id: job.id, token, finished });
            }
            if job.produced >= job.output.len() {
                self.cache.release(&mut job.chain);
                self.totals.finished += 1;
            } else {
                self.running.push(job);
            }
        }
        (produced, self.cache.take_events())
    }

    /// Forgets the cache; `false` while requests run.
    pub(crate) fn reset_cache(&mut self) -> bool {
        self.cache.clear()
    }
}
