//! Virtual time, and what it brings: ticks, notifications, answers of callouts.

use super::Host;
use crate::error::HostError;
use crate::headers::HeaderMap;
use crate::state::events::{Event, EventKind};
use crate::state::lock;
use crate::upstreams::{GrpcEvent, HttpResponse};
use crate::vm::Vm;
use crate::vm::context::Root;
use std::time::Duration;

/// Events that one call of `advance` delivers; guests that make more of them by each would never
/// let it return.
const EVENTS: usize = 100_000;

impl Host {
    /// Nanoseconds since 1970 on the guests' wall clock.
    pub fn now_ns(&self) -> u64 {
        lock(&self.shared).wall_ns
    }

    /// Nanoseconds on the guests' monotonic clock.
    pub fn monotonic_ns(&self) -> u64 {
        lock(&self.shared).monotonic_ns
    }

    /// How long until something happens by itself, if anything will.
    pub fn next_event(&self) -> Option<Duration> {
        let shared = lock(&self.shared);
        let due = shared.events.next_due()?;
        Some(Duration::from_nanos(due.saturating_sub(shared.monotonic_ns)))
    }

    /// Delivers what is due now, without any time passing.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn run(&mut self) -> Result<usize, HostError> {
        self.advance(Duration::ZERO)
    }

    /// Lets time pass. Everything due on the way is delivered at its own time, in order; how many
    /// things that were is the result.
    ///
    /// # Errors
    /// [`HostError::Endless`] if guests keep each other busy without end.
    pub fn advance(&mut self, by: Duration) -> Result<usize, HostError> {
        let until = {
            let shared = lock(&self.shared);
            let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
            shared.monotonic_ns.saturating_add(by)
        };
        let mut delivered = 0;
        loop {
            let due = lock(&self.shared).events.pop_due(until);
            let Some((due_ns, event)) = due else { break };
            self.set_clock(due_ns);
            self.deliver(event);
            delivered += 1;
            if delivered >= EVENTS {
                return Err(HostError::Endless { delivered });
            }
        }
        self.set_clock(until);
        Ok(delivered)
    }

    fn set_clock(&mut self, monotonic_ns: u64) {
        let mut shared = lock(&self.shared);
        let by = monotonic_ns.saturating_sub(shared.monotonic_ns);
        shared.monotonic_ns += by;
        shared.wall_ns = shared.wall_ns.saturating_add(by);
    }

    /// Answers an HTTP callout that its upstream left pending; `None` resets it. Delivered with the
    /// next [`run`](Self::run). Tokens are those of [`HttpCall`](crate::HttpCall), and one that is
    /// unknown or answered already is ignored. All machines that have the token get it; with several
    /// of them, let the upstream answer instead.
    pub fn answer_http(&mut self, token: u32, response: Option<HttpResponse>) {
        let mut waiting = Vec::new();
        for (vm, machine) in &mut self.vms {
            let Some(state) = machine.state() else { continue };
            for (id, context) in &mut state.contexts {
                if context.as_root().is_some_and(|root| root.http_calls.contains(&token)) {
                    waiting.push((*vm, *id));
                }
            }
        }
        let mut shared = lock(&self.shared);
        let now = shared.monotonic_ns;
        for (vm, root) in waiting {
            let kind = EventKind::Http { token, response: response.clone() };
            shared.events.push(now, Event { vm, root, kind });
        }
    }

    fn deliver(&mut self, Event { vm, root, kind }: Event) {
        match kind {
            EventKind::Tick { generation } => self.tick(vm, root, generation),
            EventKind::QueueReady { token } => {
                if self.root(vm, root).is_some() {
                    self.call(vm, "proxy_on_queue_ready", root, &[token]);
                }
            }
            EventKind::Http { token, response } => self.http_answer(vm, root, token, response),
            EventKind::Grpc { token, event } => self.grpc_event(vm, root, token, event),
        }
    }

    fn root(&mut self, vm: u64, root: u32) -> Option<&mut Root> {
        self.vms.get_mut(&vm)?.state()?.contexts.get_mut(&root)?.as_root()
    }

    fn set_status(&mut self, vm: u64, root: u32, code: u32, message: &str) {
        let state = self.vms.get_mut(&vm).and_then(Vm::state);
        if let Some(context) = state.and_then(|state| state.contexts.get_mut(&root)) {
            context.status = (code, message.as_bytes().to_vec());
        }
    }

    fn tick(&mut self, vm: u64, root: u32, generation: u64) {
        let current = self.root(vm, root).is_some_and(|root| root.tick_generation == generation);
        if !current {
            return;
        }
        self.call(vm, "proxy_on_tick", root, &[]);
        let Some(context) = self.root(vm, root) else { return };
        if context.tick_generation == generation && context.tick_period_ms > 0 {
            let period_ns = u64::from(context.tick_period_ms) * 1_000_000;
            let mut shared = lock(&self.shared);
            let due = shared.monotonic_ns.saturating_add(period_ns);
            shared.events.push(due, Event { vm, root, kind: EventKind::Tick { generation } });
        }
    }

    fn http_answer(&mut self, vm: u64, root: u32, token: u32, response: Option<HttpResponse>) {
        let Some(context) = self.root(vm, root) else { return };
        if !context.http_calls.remove(&token) {
            return;
        }
        let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let args = match &response {
            Some(response) => [
                token,
                len(response.headers.len()),
                len(response.body.len()),
                len(response.trailers.as_ref().map_or(0, HeaderMap::len)),
            ],
            None => [token, 0, 0, 0],
        };
        let reset = response.is_none();
        context.response = response;
        if reset {
            self.set_status(vm, root, crate::Status::BrokenConnection as u32, "reset");
        }
        self.call(vm, "proxy_on_http_call_response", root, &args);
        if let Some(context) = self.root(vm, root) {
            context.response = None;
        }
        if reset {
            self.set_status(vm, root, crate::Status::BrokenConnection as u32, "");
        }
    }

    fn grpc_event(&mut self, vm: u64, root: u32, token: u32, event: GrpcEvent) {
        let Some(context) = self.root(vm, root) else { return };
        let of_call = context.grpc_calls.contains(&token);
        let stream = context.grpc_streams.get(&token).copied();
        if !of_call && stream.is_none_or(|stream| stream.remote_closed) {
            return;
        }
        let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        match event {
            GrpcEvent::InitialMetadata(_) | GrpcEvent::TrailingMetadata(_) if of_call => {}
            GrpcEvent::InitialMetadata(metadata) => {
                let args = [token, len(metadata.len())];
                context.grpc_initial = Some(metadata);
                self.call(vm, "proxy_on_grpc_receive_initial_metadata", root, &args);
                if let Some(context) = self.root(vm, root) {
                    context.grpc_initial = None;
                }
            }
            GrpcEvent::TrailingMetadata(metadata) => {
                let args = [token, len(metadata.len())];
                context.grpc_trailing = Some(metadata);
                self.call(vm, "proxy_on_grpc_receive_trailing_metadata", root, &args);
                if let Some(context) = self.root(vm, root) {
                    context.grpc_trailing = None;
                }
            }
            GrpcEvent::Message(message) => {
                let args = [token, len(message.len())];
                context.grpc_calls.remove(&token);
                context.grpc_message = Some(message);
                self.call(vm, "proxy_on_grpc_receive", root, &args);
                if let Some(context) = self.root(vm, root) {
                    context.grpc_message = None;
                }
            }
            GrpcEvent::Close { status, message } => {
                context.grpc_calls.remove(&token);
                match stream {
                    Some(stream) if stream.local_closed => {
                        context.grpc_streams.remove(&token);
                    }
                    Some(_) => {
                        if let Some(stream) = context.grpc_streams.get_mut(&token) {
                            stream.remote_closed = true;
                        }
                    }
                    None => {}
                }
                self.set_status(vm, root, status, &message);
                self.call(vm, "proxy_on_grpc_close", root, &[token, status]);
                self.set_status(vm, root, status, "");
            }
        }
    }
}
