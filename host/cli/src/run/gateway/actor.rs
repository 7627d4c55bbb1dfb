//! The thread that runs the modules. Streams send it what comes from either end, and are sent what
//! leaves the chain at the other.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc as events, oneshot};
use wasm_host::{ChainId, HeaderMap, HostError, Message, Outcome, StreamId};

use super::super::error::RunError;
use super::super::once::level_name;
use super::super::stand::Stand;
use super::{Kind, seconds};

/// What a stream tells the modules.
pub(super) enum Input {
    Open {
        kind: Kind,
        worker: usize,
        headers: HeaderMap,
        end: bool,
        events: Events,
    },
    RequestBody {
        chunk: Bytes,
        end: bool,
    },
    RequestTrailers(HeaderMap),
    /// What the endpoint answers, or what the gateway does for `details`.
    ResponseHeaders {
        headers: HeaderMap,
        end: bool,
        upstream: Option<String>,
        details: Option<String>,
    },
    ResponseBody {
        chunk: Bytes,
        end: bool,
    },
    Close,
}

/// What a stream is told.
#[derive(Debug)]
pub(super) enum Event {
    /// First of all: whether bodies of responses go through the modules, or need not.
    Opened {
        reads_responses: bool,
    },
    RequestHeaders {
        headers: HeaderMap,
        explanation: Option<Vec<u8>>,
    },
    RequestBody(Bytes),
    RequestEnd,
    ResponseHeaders {
        headers: HeaderMap,
        is_local: bool,
        details: String,
    },
    ResponseBody(Bytes),
    ResponseTrailers(HeaderMap),
    ResponseEnd,
    /// A module reset the stream, or the host refused it.
    Reset(String),
    /// An input, whose consequences came before this, is done.
    Done,
}

pub(super) type Events = events::UnboundedSender<Event>;

/// A handle of the thread.
#[derive(Clone)]
pub(super) struct Actor {
    inputs: mpsc::Sender<(u64, Input)>,
}

impl Actor {
    /// Starts the thread, which ends with its last handle. The receiver resolves when it ends.
    pub(super) fn start(
        stand: Stand,
        workers: usize,
    ) -> Result<(Self, oneshot::Receiver<()>), RunError> {
        let (inputs, received) = mpsc::channel();
        let (ended, end) = oneshot::channel();
        let loop_ = Loop {
            stand,
            workers,
            streams: HashMap::new(),
            started: Instant::now(),
            passed: Duration::ZERO,
            failures: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("wasm".to_owned());
        thread
            .spawn(move || {
                // Dropped also when a panic ends the thread.
                let _ended: oneshot::Sender<()> = ended;
                loop_.run(&received);
            })
            .map_err(|reason| RunError::Listen { address: "the thread of wasm".into(), reason })?;
        Ok((Self { inputs }, end))
    }

    /// Tells the modules; a stream whose thread has ended sees its events end.
    pub(super) fn send(&self, stream: u64, input: Input) {
        // Its failure is seen by the stream, whose events end.
        let _ = self.inputs.send((stream, input));
    }
}

/// Longest time between two looks at the clock.
const IDLE: Duration = Duration::from_secs(1);

struct Loop {
    stand: Stand,
    workers: usize,
    streams: HashMap<u64, Open>,
    started: Instant,
    /// Time that the guests have been told of.
    passed: Duration,
    failures: Vec<String>,
}

/// A stream, and what it was told already.
struct Open {
    id: StreamId,
    events: Events,
    request: Told,
    response: Told,
    is_reset: bool,
}

#[derive(Default)]
struct Told {
    headers: bool,
    trailers: bool,
    end: bool,
}

impl Loop {
    fn run(mut self, inputs: &mpsc::Receiver<(u64, Input)>) {
        self.report();
        loop {
            let due = self.stand.host.next_event().unwrap_or(IDLE).min(IDLE);
            let input = match inputs.recv_timeout(due) {
                Ok(input) => Some(input),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            self.pass_time();
            if let Some((number, input)) = input {
                self.take(number, input);
            }
            self.report();
        }
    }

    fn pass_time(&mut self) {
        let now = self.started.elapsed();
        match self.stand.host.advance(now.saturating_sub(self.passed)) {
            Ok(0) => {}
            Ok(_) => {
                let open: Vec<u64> = self.streams.keys().copied().collect();
                open.into_iter().for_each(|number| self.tell(number));
            }
            Err(error) => println!("{} error: {error}", seconds()),
        }
        self.passed = now;
    }

    fn take(&mut self, number: u64, input: Input) {
        match input {
            Input::Open { kind, worker, headers, end, events } => {
                if let Err(error) = self.open(number, kind, worker, headers, end, &events) {
                    // A stream that has gone away needs no telling.
                    let _ = events.send(Event::Reset(error.to_string()));
                    self.streams.remove(&number);
                    return;
                }
            }
            Input::Close => {
                if let Some(open) = self.streams.remove(&number)
                    && let Err(error) = self.stand.host.close(open.id)
                {
                    println!("{} error: {error}", seconds());
                }
                return;
            }
            input => {
                let Some(open) = self.streams.get(&number) else { return };
                let id = open.id;
                if let Err(error) = self.pass(id, input) {
                    self.reset(number, &error);
                    return;
                }
            }
        }
        // What guests ask for at once, such as queues they notify.
        if let Err(error) = self.stand.host.run() {
            self.reset(number, &error);
            return;
        }
        self.tell(number);
        if let Some(open) = self.streams.get(&number) {
            let _ = open.events.send(Event::Done);
        }
    }

    fn open(
        &mut self,
        number: u64,
        kind: Kind,
        worker: usize,
        headers: HeaderMap,
        end: bool,
        events: &Events,
    ) -> Result<(), RunError> {
        let (chain, reads_responses) = self.chain(kind)?;
        let id = self.stand.open(chain, worker)?;
        let events = events.clone();
        let _ = events.send(Event::Opened { reads_responses });
        let open = Open {
            id,
            events,
            request: Told::default(),
            response: Told::default(),
            is_reset: false,
        };
        self.streams.insert(number, open);
        Ok(self.stand.host.request_headers(id, headers, end)?)
    }

    /// The chain of a stream, and whether its plugins may look at bodies of responses.
    fn chain(&self, kind: Kind) -> Result<(ChainId, bool), RunError> {
        let (chains, layout) = (&self.stand.chains, &self.stand.layout);
        let missing = || RunError::Usage(format!("there is no chain for {kind:?}"));
        match (kind, chains.metered, &layout.metered) {
            (Kind::Feed, ..) => Ok((chains.feed.ok_or_else(missing)?, false)),
            (Kind::Probe, ..) => Ok((chains.probe.ok_or_else(missing)?, false)),
            (Kind::Inference, Some((chain, share)), Some((plugins, _))) if drawn(share) => {
                Ok((chain, layout.reads_response_bodies(plugins)))
            }
            _ => Ok((chains.inference, layout.reads_response_bodies(&layout.inference))),
        }
    }

    fn pass(&mut self, id: StreamId, input: Input) -> Result<(), HostError> {
        let host = &mut self.stand.host;
        match input {
            Input::Open { .. } | Input::Close => Ok(()),
            Input::RequestBody { chunk, end } => host.request_body(id, chunk, end),
            Input::RequestTrailers(trailers) => host.request_trailers(id, trailers),
            Input::ResponseHeaders { headers, end, upstream, details } => {
                if let Some(address) = upstream {
                    host.set_attribute(id, &["upstream", "address"], address)?;
                }
                if let Some(details) = details {
                    host.set_attribute(id, &["response", "code_details"], details)?;
                }
                host.response_headers(id, headers, end)
            }
            Input::ResponseBody { chunk, end } => host.response_body(id, chunk, end),
        }
    }

    fn reset(&mut self, number: u64, error: &HostError) {
        if let Some(open) = self.streams.get_mut(&number) {
            open.is_reset = true;
            let _ = open.events.send(Event::Reset(error.to_string()));
        }
    }

    /// Tells a stream what has left the chain since it was told last.
    fn tell(&mut self, number: u64) {
        let Some(open) = self.streams.get_mut(&number) else { return };
        let Ok(outcome) = self.stand.host.take_outcome(open.id) else { return };
        open.tell(outcome);
    }

    /// Prints what the modules logged, and how any ended.
    fn report(&mut self) {
        for line in self.stand.host.take_logs() {
            println!("{} {} {}: {}", seconds(), level_name(line.level), line.source, line.text);
        }
        let calls = self.stand.host.take_calls();
        if calls.iter().any(|call| call.trapped) {
            let failures = self.stand.failures(self.workers);
            for failure in failures.iter().filter(|failure| !self.failures.contains(failure)) {
                println!("{} critical failed: {failure}", seconds());
            }
            self.failures = failures;
        }
    }
}

/// Whether a request is of a share, 0..=1.
fn drawn(share: f64) -> bool {
    // Without randomness nothing is measured.
    getrandom::u32().is_ok_and(|n| f64::from(n) < share * f64::from(u32::MAX))
}

impl Open {
    fn tell(&mut self, outcome: Outcome) {
        if self.is_reset {
            return;
        }
        let events = &self.events;
        // A stream that has gone away closes itself.
        let send = |event| drop(events.send(event));
        let explained = format!("wasm.{}", feed::EXPLANATION_PROPERTY);
        if let Some(headers) = fresh_headers(&mut self.request, &outcome.upstream) {
            let explanation = outcome.filter_state.get(explained.as_bytes()).cloned();
            send(Event::RequestHeaders { headers, explanation });
        }
        if !outcome.upstream.body.is_empty() {
            send(Event::RequestBody(outcome.upstream.body.into()));
        }
        if outcome.upstream.end_of_stream && !std::mem::replace(&mut self.request.end, true) {
            send(Event::RequestEnd);
        }
        if let Some(headers) = fresh_headers(&mut self.response, &outcome.downstream) {
            let details = outcome.details.clone().unwrap_or_default();
            send(Event::ResponseHeaders { headers, is_local: outcome.local_reply, details });
        }
        if !outcome.downstream.body.is_empty() {
            send(Event::ResponseBody(outcome.downstream.body.into()));
        }
        if let Some(trailers) = &outcome.downstream.trailers
            && !std::mem::replace(&mut self.response.trailers, true)
        {
            send(Event::ResponseTrailers(trailers.clone()));
        }
        if outcome.downstream.end_of_stream && !std::mem::replace(&mut self.response.end, true) {
            send(Event::ResponseEnd);
        }
        if outcome.reset {
            self.is_reset = true;
            send(Event::Reset("a module reset it".to_owned()));
        }
    }
}

fn fresh_headers(told: &mut Told, message: &Message) -> Option<HeaderMap> {
    let headers = message.headers.as_ref().filter(|_| !told.headers)?;
    told.headers = true;
    Some(headers.clone())
}
