//! The engine's loop: steps that take time, around the scheduler that does not.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::SimConfig;
use crate::events::KvEvent;
use crate::scheduler::{Job, JobId, Scheduler, Step, Totals};

/// What a request hears from the engine, with the index of its prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Output {
    /// It runs; so many of its tokens were cached.
    Admitted { cached_tokens: usize },
    /// One more token.
    Token { token: u32, finished: bool },
}

pub(crate) type OutputSender = mpsc::UnboundedSender<(usize, Output)>;

/// What the engine is asked.
pub(crate) enum Command {
    /// Run this; the sender's receiver going away aborts it.
    Submit { job: Job, index: usize, outputs: OutputSender },
    /// Forget the cache; what is not announced makes everybody else's picture of it wrong.
    ResetCache { is_announced: bool, reply: oneshot::Sender<bool> },
}

/// What `/metrics` shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) used_blocks: usize,
    pub(crate) usable_blocks: usize,
    pub(crate) totals: Totals,
    /// Names of the adapters of requests that run, and of those that wait.
    pub(crate) adapters: [BTreeSet<String>; 2],
}

/// Shared with the HTTP side.
#[derive(Clone, Default)]
pub(crate) struct SharedStats(Arc<Mutex<Stats>>);

impl SharedStats {
    pub(crate) fn get(&self) -> Stats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, stats: Stats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}

/// Times of a step; see [`SimConfig`].
#[derive(Clone, Copy)]
pub(crate) struct Latency {
    prefill_tokens_per_s: f64,
    base_ms: f64,
    inter_token_ms: f64,
}

impl Latency {
    pub(crate) fn new(config: &SimConfig) -> Latency {
        Latency {
            prefill_tokens_per_s: config.prefill_tokens_per_s,
            base_ms: config.base_ms,
            inter_token_ms: config.inter_token_ms,
        }
    }

    /// As on a real engine, one step serves everyone: a long prefill delays those who decode.
    fn of(self, step: &Step) -> Duration {
        let mut ms = 0.0;
        if step.starting > 0 {
            ms += self.base_ms + 1e3 * step.prefill_tokens as f64 / self.prefill_tokens_per_s;
        }
        if step.decoding > 0 {
            ms += self.inter_token_ms;
        }
        Duration::from_secs_f64(ms / 1e3)
    }
}

/// The loop and what it owns.
pub(crate) struct Engine {
    pub(crate) scheduler: Scheduler,
    pub(crate) latency: Latency,
    pub(crate) stats: SharedStats,
    pub(crate) batches: mpsc::UnboundedSender<Vec<KvEvent>>,
    pub(crate) outputs: HashMap<JobId, (usize, OutputSender)>,
}

impl Engine {
    /// Runs until the command channel closes.
    pub(crate) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        self.show_stats();
        let mut step_start = Instant::now();
        loop {
            if !self.scheduler.has_work() {
                let Some(command) = commands.recv().await else { return };
                self.handle(command);
                step_start = Instant::now();
            }
            while let Ok(command) = commands.try_recv() {
                self.handle(command);
            }
            self.drop_abandoned();
            let step = self.scheduler.begin_step();
            self.show_stats();
            for &(id, cached_tokens) in &step.admitted {
                self.tell(id, Output::Admitted { cached_tokens });
            }
            // Steps follow each other without drift, whatever the timer's resolution.
            let end = step_start + self.latency.of(&step);
            if end > Instant::now() {
                let wake = sleep_until(end);
                tokio::pin!(wake);
                loop {
                    tokio::select! {
                        () = &mut wake => break,
                        command = commands.recv() => match command {
                            Some(command) => self.handle(command),
                            None => return,
                        },
                    }
                }
            } else {
                tokio::task::yield_now().await;
            }
            step_start = end.max(step_start);
            self.finish_step();
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit { job, index, outputs } => {
                self.outputs.insert(job.id, (index, outputs));
                self.scheduler.submit(job);
            }
            Command::ResetCache { is_announced, reply } => {
                let done = self.scheduler.reset_cache();
                let events = self.scheduler.cache.take_events();
                if is_announced {
                    self.publish(events);
                }
                // Whoever asked may have left.
                let _ = reply.send(done);
            }
        }
        self.show_stats();
    }

    fn finish_step(&mut self) {
        let (produced, events) = self.scheduler.end_step();
        self.publish(events);
        self.show_stats();
        for made in produced {
            self.tell(made.id, Output::Token { token: made.token, finished: made.finished });
            if made.finished {
                self.outputs.remove(&made.id);
            }
        }
    }

    fn publish(&self, events: Vec<KvEvent>) {
        if !events.is_empty() {
            // Fails only while shutting down.
            let _ = self.batches.send(events);
        }
    }

    fn tell(&self, id: JobId, output: Output) {
        if let Some((index, outputs)) = self.outputs.get(&id) {
            // A closed receiver is noticed in `drop_abandoned`.
            let _ = outputs.send((*index, output));
        }
    }

    fn drop_abandoned(&mut self) {
        let closed = self.outputs.iter().filter(|(_, (_, outputs))| outputs.is_closed());
        let gone: Vec<JobId> = closed.map(|(&id, _)| id).collect();
        for id in gone {
            self.outputs.remove(&id);
            self.scheduler.abort(id);
        }
    }

    fn show_stats(&self) {
        self.stats.set(Stats {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            used_blocks: self.scheduler.cache.used_blocks(),
            usable_blocks: self.scheduler.cache.usable_blocks(),
            totals: self.scheduler.totals,
            adapters: self.scheduler.adapters(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::BlockCache;
    use crate::chain::{Chain, Namespace};

    #[test]
    fn a_step_takes_the_time_of_its_parts() {
        let latency = Latency { prefill_tokens_per_s: 1000.0, base_ms: 5.0, inter_token_ms: 20.0 };
        let check = |starting, prefill_tokens, decoding, ms| {
            let step = Step { starting, prefill_tokens, decoding, ..Step::default() };
            assert_eq!(latency.of(&step), Duration::from_millis(ms), "{step:?}");
        };
        check(0, 0, 0, 0);
        check(0, 0, 3, 20);
        check(1, 40, 0, 45);
        check(2, 100, 0, 105);
        check(1, 40, 7, 65);
        let instant =
            Latency { prefill_tokens_per_s: f64::INFINITY, base_ms: 0.0, inter_token_ms: 0.0 };
        let step = Step { starting: 1, prefill_tokens: 9, decoding: 1, ..Step::default() };
        assert_eq!(instant.of(&step), Duration::ZERO);
    }

    #[test]
    fn cached_tokens_need_no_prefill() {
        let mut scheduler = Scheduler::new(BlockCache::new(16, 99, 0), 8);
        let mut prefill_tokens = || {
            let chain = Chain::new(Namespace::default(), (0..40).collect());
            scheduler.submit(Job::new(JobId(0), chain, vec![1], true));
            let step = scheduler.begin_step();
            scheduler.end_step();
            step.prefill_tokens
        };
        assert_eq!((prefill_tokens(), prefill_tokens()), (40, 8));
    }
}
