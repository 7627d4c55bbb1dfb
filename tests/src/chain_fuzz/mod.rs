//! Whole modules in the wasmtime host, given any bytes at any callback that the ABI allows at that
//! moment: streams of all lengths beside each other, time, and shared data that somebody damaged.
//!
//! A session is a gateway and what happens to it, all of it from one number, so that a death is
//! repeated by that number alone.

mod bytes;
mod filters;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use wasm_host::{MetricKind, StreamId};

use crate::wasmtime::{Gateway, Held, Modules, POOL, State, VM_ID};
pub use bytes::Corpus;
use bytes::Random;

/// Streams that are open at a time, at most.
const MAX_OPEN: usize = 6;
const WORKERS: usize = 2;
/// Part of what endpoints hold, and of some prompts.
const PROMPT: &str =
    "You are a helpful assistant. Answer in one sentence, in the language of the question. ";

/// What a session did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Streams that passed the chain, to whatever end.
    pub streams: u64,
    /// Callbacks into the modules.
    pub callbacks: u64,
    /// Streams that the picker gave a destination.
    pub picked: u64,
    /// Streams that were answered here.
    pub answered: u64,
    /// Counters of the modules by name: which ways were gone.
    pub counters: BTreeMap<String, u64>,
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, other: Self) {
        self.streams += other.streams;
        self.callbacks += other.callbacks;
        self.picked += other.picked;
        self.answered += other.answered;
        for (name, count) in other.counters {
            *self.counters.entry(name).or_default() += count;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Opened,
    RequestHeaders,
    RequestEnded,
    ResponseHeaders,
    ResponseEnded,
}

struct Open {
    stream: StreamId,
    phase: Phase,
    is_feed: bool,
    kind: usize,
}

struct Session<'a> {
    gateway: Gateway,
    corpus: &'a Corpus,
    random: Random,
    state: Vec<(feed::Key, Vec<u8>)>,
    open: Vec<Open>,
    done: Done,
}

/// Runs the session of that number for about `streams` streams.
///
/// # Errors
/// If a module died, with what it died of.
pub fn session(modules: &Modules, corpus: &Corpus, number: u64, streams: u64) -> Result<Done> {
    let mut random = Random::new(number);
    let filters = filters::choose(&mut random);
    let gateway = Gateway::new(modules, &filters, WORKERS, number)?;
    let held = [
        Held { text: &PROMPT.repeat(8), strides: 9, slots: &[0, 2] },
        Held { text: &PROMPT.repeat(3), strides: 2, slots: &[1] },
    ];
    let endpoints = [1, 3, 3, 3, 40][random.below(5)];
    let state = State { endpoints, held: &held }.records();
    let mut session =
        Session { gateway, corpus, random, state, open: Vec::new(), done: Done::default() };
    session.restore();
    while session.done.streams < streams {
        session.step()?;
        if let Some(death) = session.gateway.death()? {
            bail!("session {number} after {} streams, {filters:?}: {death}", session.done.streams);
        }
    }
    let counters = session.gateway.host.metrics().into_iter();
    let counters = counters.filter(|(kind, ..)| *kind == MetricKind::Counter);
    session.done.counters = counters
        .map(|(_, name, metric)| (String::from_utf8_lossy(&name).into_owned(), metric.value))
        .collect();
    Ok(session.done)
}

impl Session<'_> {
    fn restore(&mut self) {
        let state = std::mem::take(&mut self.state);
        self.gateway.put(&state);
        self.state = state;
    }

    fn step(&mut self) -> Result<()> {
        match self.random.below(64) {
            0 => self.damage_shared(),
            1..=3 => self.restore(),
            4 | 5 => {
                let ms = [1, 20, 300, 1_000, 7_000][self.random.below(5)];
                self.gateway.host.advance(Duration::from_millis(ms))?;
            }
            6..=14 if self.open.len() < MAX_OPEN => self.open()?,
            _ if self.open.is_empty() => self.open()?,
            _ => self.stream()?,
        }
        self.gateway.host.run()?;
        let calls = self.gateway.host.take_calls();
        self.done.callbacks += calls.len() as u64;
        self.gateway.host.take_logs();
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        let is_feed = self.random.below(12) == 0;
        let chain = if is_feed { self.gateway.feed } else { self.gateway.requests };
        let worker = self.random.below(WORKERS);
        let stream = self.gateway.host.open(chain, worker)?;
        let pool: Vec<u8> = match self.random.below(10) {
            0 => self.corpus.any(&mut self.random),
            1 => b"second".to_vec(),
            _ => POOL.into(),
        };
        self.gateway.host.set_attribute(stream, &["xds", "cluster_name"], pool.as_slice())?;
        let kind = Corpus::kind(&mut self.random);
        self.open.push(Open { stream, phase: Phase::Opened, is_feed, kind });
        Ok(())
    }

    /// One thing that may happen to a stream next.
    fn stream(&mut self) -> Result<()> {
        let at = self.random.below(self.open.len());
        let Open { stream, phase, is_feed, kind } = self.open[at];
        if self.random.below(40) == 0 {
            return self.close(at);
        }
        if self.random.below(16) == 0 {
            self.set_state(stream)?;
        }
        let (host, random) = (&mut self.gateway.host, &mut self.random);
        let mut next = phase;
        match phase {
            Phase::Opened => {
                let ends = random.below(6) == 0;
                let headers = self.corpus.request(random, is_feed, kind);
                host.request_headers(stream, headers, ends)?;
                next = if ends { Phase::RequestEnded } else { Phase::RequestHeaders };
            }
            Phase::RequestHeaders => {
                if random.below(12) == 0 {
                    host.request_trailers(stream, self.corpus.trailers(random))?;
                    next = Phase::RequestEnded;
                } else {
                    let ends = random.below(3) != 0;
                    let body = self.corpus.request_body(random, is_feed, kind);
                    // Whole, or in two pieces.
                    let cut = random.below(body.len() + 1);
                    let (first, second) = body.split_at(if random.below(3) == 0 { cut } else { 0 });
                    if !first.is_empty() {
                        host.request_body(stream, first.to_vec(), false)?;
                    }
                    host.request_body(stream, second.to_vec(), ends)?;
                    if ends {
                        next = Phase::RequestEnded;
                    }
                }
            }
            Phase::RequestEnded => {
                let ends = random.below(6) == 0;
                host.response_headers(stream, self.corpus.response(random), ends)?;
                next = if ends { Phase::ResponseEnded } else { Phase::ResponseHeaders };
            }
            Phase::ResponseHeaders => {
                if random.below(16) == 0 {
                    host.response_trailers(stream, self.corpus.trailers(random))?;
                    next = Phase::ResponseEnded;
                } else {
                    let ends = random.below(3) == 0;
                    host.response_body(stream, self.corpus.response_body(random), ends)?;
                    if ends {
                        next = Phase::ResponseEnded;
                    }
                }
            }
            Phase::ResponseEnded => return self.close(at),
        }
        self.open[at].phase = next;
        let outcome = self.gateway.host.outcome(stream)?;
        if outcome.local_reply || outcome.reset {
            return self.close(at);
        }
        Ok(())
    }

    fn close(&mut self, at: usize) -> Result<()> {
        let Open { stream, is_feed, .. } = self.open.swap_remove(at);
        let outcome = self.gateway.host.close(stream)?;
        self.done.streams += 1;
        self.done.answered += u64::from(outcome.local_reply && !is_feed);
        let headers = outcome.upstream.headers.unwrap_or_default();
        self.done.picked += u64::from(headers.get("x-gateway-destination-endpoint").is_some());
        Ok(())
    }

    /// What filters tell each other, by somebody else.
    fn set_state(&mut self, stream: StreamId) -> Result<()> {
        let name =
            ["wasm.wasm_epp.features", "wasm.wasm_epp.score.mine", "wasm.wasm_epp.prediction"]
                [self.random.below(3)];
        let told = self.gateway.host.outcome(stream)?.filter_state;
        let value = match told.get(name.as_bytes()) {
            Some(told) => self.corpus.damaged(&mut self.random, told),
            None => self.corpus.any(&mut self.random),
        };
        self.gateway.host.set_filter_state(stream, name, &value)?;
        Ok(())
    }

    /// A value of the shared data becomes another, as if a daemon of the same format had written it
    /// badly, or another process had the same memory.
    fn damage_shared(&mut self) {
        let keys = self.gateway.host.shared_keys(VM_ID);
        if keys.is_empty() {
            return;
        }
        let key = &keys[self.random.below(keys.len())];
        let value = self.gateway.host.shared_data(VM_ID, key).unwrap_or_default();
        let value = match self.random.below(4) {
            0 => self.corpus.record(&mut self.random),
            _ => self.corpus.damaged(&mut self.random, &value),
        };
        self.gateway.host.set_shared_data(VM_ID, key, value);
    }
}
