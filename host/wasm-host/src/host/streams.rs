//! Streams as their two ends drive them.

use super::Host;
use super::plugins::Found;
use crate::error::HostError;
use crate::headers::HeaderMap;
use crate::plugin::{ChainId, FailurePolicy, StreamId};
use crate::property::Value;
use crate::state::lock;
use crate::stream::data::{Direction, Filter, Handle, Iteration, Property, StreamData, StreamRef};
use crate::stream::iterate::Verdict;
use crate::stream::{LocalReply, Outcome, Pause, Warning};
use crate::vm::context::Context;
use crate::vm::{Called, Vm};
use std::sync::{Arc, Mutex};

impl Host {
    /// Opens a stream through a chain on a worker.
    ///
    /// # Errors
    /// [`HostError::UnknownChain`] or [`HostError::UnknownWorker`] if one is not there.
    pub fn open(&mut self, chain: ChainId, worker: usize) -> Result<StreamId, HostError> {
        let config = self.chains.get(chain.0).cloned().ok_or(HostError::UnknownChain(chain.0))?;
        if worker >= self.workers {
            return Err(HostError::UnknownWorker { worker, workers: self.workers });
        }
        self.last_stream += 1;
        let id = self.last_stream;
        let (start_ns, retained_limit) = {
            let shared = lock(&self.shared);
            (shared.wall_ns, shared.limits.stream_bytes)
        };
        let stream: StreamRef = Arc::new(Mutex::new(StreamData {
            id,
            pipes: Default::default(),
            filters: Vec::new(),
            attributes: Value::map(),
            route: None,
            route_choice: config.route.clone(),
            filter_state: Default::default(),
            outcome: Outcome::default(),
            taken_response_bytes: 0,
            logging: false,
            response_code: None,
            start_ns,
            connection_id: id,
            buffer_limit: config.buffer_limit_bytes,
            retained: 0,
            retained_limit,
            calling: None,
            finished: false,
        }));
        for plugin in config.plugins {
            let handle = match self.find(plugin, worker) {
                Found::Skipped => continue,
                Found::Dead => Handle::Dead,
                Found::Running(place) => {
                    let slot = lock(&stream).filters.len();
                    let config = self.plugin(plugin).map(|plugin| Arc::clone(&plugin.config));
                    let machine = self.vms.get_mut(&place.vm);
                    let context = machine.zip(config).and_then(|(machine, config)| {
                        let stream = Arc::clone(&stream);
                        machine.add_context(Context::stream(place.root, config, stream, slot))
                    });
                    match context {
                        Some(context) => {
                            Handle::Context { vm: place.vm, root: place.root, context }
                        }
                        None => Handle::Dead,
                    }
                }
            };
            lock(&stream).filters.push(Filter::new(plugin, handle));
        }
        self.streams.insert(id, stream);
        Ok(StreamId(id))
    }

    /// Sets an attribute that guests can read, such as `["source", "address"]`; it goes before what
    /// the host would say itself.
    ///
    /// # Errors
    /// [`HostError::UnknownStream`] if it is not there.
    pub fn set_attribute(
        &mut self,
        stream: StreamId,
        path: &[&str],
        value: impl Into<Value>,
    ) -> Result<(), HostError> {
        lock(&*self.stream(stream)?).attributes.put(path, value.into());
        Ok(())
    }

    /// Sets stream filter state, as another filter of the gateway would. The property `x` of a guest
    /// has the name `wasm.x`.
    ///
    /// # Errors
    /// [`HostError::UnknownStream`] if it is not there.
    pub fn set_filter_state(
        &mut self,
        stream: StreamId,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<(), HostError> {
        let property = Property { value: value.as_ref().to_vec(), readonly: false };
        lock(&*self.stream(stream)?).filter_state.insert(name.as_ref().to_vec(), property);
        Ok(())
    }

    /// The client's headers.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there or has had them.
    pub fn request_headers(
        &mut self,
        stream: StreamId,
        headers: HeaderMap,
        end_stream: bool,
    ) -> Result<(), HostError> {
        self.headers(stream, Direction::Request, headers, end_stream)
    }

    /// A piece of the client's body.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there, has had no headers, or has ended.
    pub fn request_body(
        &mut self,
        stream: StreamId,
        chunk: impl Into<Vec<u8>>,
        end_stream: bool,
    ) -> Result<(), HostError> {
        self.body(stream, Direction::Request, chunk.into(), end_stream)
    }

    /// The client's trailers, which end its request.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there, has had no headers, or has ended.
    pub fn request_trailers(
        &mut self,
        stream: StreamId,
        trailers: HeaderMap,
    ) -> Result<(), HostError> {
        self.trailers(stream, Direction::Request, trailers)
    }

    /// The upstream's headers. Dropped if the client has been answered already.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there or has had them.
    pub fn response_headers(
        &mut self,
        stream: StreamId,
        headers: HeaderMap,
        end_stream: bool,
    ) -> Result<(), HostError> {
        self.headers(stream, Direction::Response, headers, end_stream)
    }

    /// A piece of the upstream's body.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there, has had no headers, or has ended.
    pub fn response_body(
        &mut self,
        stream: StreamId,
        chunk: impl Into<Vec<u8>>,
        end_stream: bool,
    ) -> Result<(), HostError> {
        self.body(stream, Direction::Response, chunk.into(), end_stream)
    }

    /// The upstream's trailers, which end its response.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there, has had no headers, or has ended.
    pub fn response_trailers(
        &mut self,
        stream: StreamId,
        trailers: HeaderMap,
    ) -> Result<(), HostError> {
        self.trailers(stream, Direction::Response, trailers)
    }

    /// What became of a stream so far.
    ///
    /// # Errors
    /// [`HostError::UnknownStream`] if it is not there.
    pub fn outcome(&self, stream: StreamId) -> Result<Outcome, HostError> {
        Ok(snapshot(&mut lock(&*self.stream(stream)?)))
    }

    /// What became of a stream so far, with what bodies have gained since this was asked before: for an
    /// embedder that passes them on as they come. Later [`Outcome`]s do not have the bytes again.
    ///
    /// # Errors
    /// [`HostError::UnknownStream`] if it is not there.
    pub fn take_outcome(&mut self, stream: StreamId) -> Result<Outcome, HostError> {
        let stream = self.stream(stream)?;
        let mut data = lock(&stream);
        let outcome = snapshot(&mut data);
        data.taken_response_bytes += outcome.downstream.body.len();
        data.outcome.upstream.body.clear();
        data.outcome.downstream.body.clear();
        Ok(outcome)
    }

    /// Ends a stream, whatever it was at (a client that goes away does just this): the access log
    /// phase of every filter, then the end of their contexts.
    ///
    /// # Errors
    /// [`HostError::UnknownStream`] if it is not there.
    pub fn close(&mut self, stream: StreamId) -> Result<Outcome, HostError> {
        let stream = self.stream(stream)?;
        let slots = {
            let mut data = lock(&stream);
            data.pipes[0].aborted = true;
            data.pipes[1].aborted = true;
            data.finished = true;
            data.logging = true;
            data.filters.len()
        };
        for slot in 0..slots {
            self.create_context(&stream, slot);
            if let Some((vm, context)) = handle(&stream, slot) {
                self.call(vm, "proxy_on_log", context, &[]);
            }
        }
        lock(&stream).logging = false;
        for slot in 0..slots {
            if let Some((vm, context)) = handle(&stream, slot) {
                self.call(vm, "proxy_on_done", context, &[]);
                self.delete_context(vm, context);
            }
        }
        let (id, outcome, plugins) = {
            let mut data = lock(&stream);
            let plugins: Vec<_> = data.filters.iter().map(|filter| filter.plugin).collect();
            (data.id, snapshot(&mut data), plugins)
        };
        self.streams.remove(&id);
        for plugin in plugins {
            self.end_if_unused(plugin);
        }
        Ok(outcome)
    }

    fn headers(
        &mut self,
        id: StreamId,
        direction: Direction,
        headers: HeaderMap,
        end_stream: bool,
    ) -> Result<(), HostError> {
        let stream = self.stream(id)?;
        {
            let mut data = lock(&stream);
            if direction == Direction::Response && (data.outcome.local_reply || data.outcome.reset)
            {
                return Ok(());
            }
            if data.pipe(direction).headers.is_some() {
                return Err(HostError::OutOfOrder { stream: id.0, what: "headers twice" });
            }
            if direction == Direction::Response {
                data.response_code =
                    headers.get_str(":status").and_then(|status| status.parse().ok());
                data.outcome.details.get_or_insert_with(|| "via_upstream".to_owned());
            }
            let pipe = data.pipe(direction);
            pipe.headers = Some(match direction {
                Direction::Request => headers.of_request(),
                Direction::Response => headers.of_response(),
            });
            pipe.observed_end = end_stream;
            if direction == Direction::Request {
                data.choose_route();
            }
        }
        self.run_headers(&stream, direction, None, end_stream);
        Ok(())
    }

    fn body(
        &mut self,
        id: StreamId,
        direction: Direction,
        chunk: Vec<u8>,
        end_stream: bool,
    ) -> Result<(), HostError> {
        let stream = self.stream(id)?;
        {
            let mut data = lock(&stream);
            if dropped(&mut data, direction, id)? {
                return Ok(());
            }
            let pipe = data.pipe(direction);
            pipe.observed_end = end_stream;
            pipe.received = pipe.received.saturating_add(u64::try_from(chunk.len()).unwrap_or(0));
        }
        self.pass_chunk(&stream, direction, chunk, end_stream);
        Ok(())
    }

    fn trailers(
        &mut self,
        id: StreamId,
        direction: Direction,
        trailers: HeaderMap,
    ) -> Result<(), HostError> {
        let stream = self.stream(id)?;
        {
            let mut data = lock(&stream);
            if dropped(&mut data, direction, id)? {
                return Ok(());
            }
            let pipe = data.pipe(direction);
            pipe.trailers = Some(trailers);
            pipe.observed_end = true;
        }
        self.run_trailers(&stream, direction, None);
        Ok(())
    }

    /// Tells a filter's guest of the stream, once.
    pub(crate) fn create_context(&mut self, stream: &StreamRef, slot: usize) {
        let (handle, created) = {
            let mut data = lock(stream);
            let Some(filter) = data.filters.get_mut(slot) else { return };
            (filter.handle, std::mem::replace(&mut filter.created, true))
        };
        if let (Handle::Context { vm, root, context }, false) = (handle, created) {
            self.call(vm, "proxy_on_context_create", context, &[root]);
        }
    }

    /// Calls a filter's guest, or finds out what its dead machine means for the stream.
    pub(crate) fn guest(
        &mut self,
        stream: &StreamRef,
        direction: Direction,
        slot: usize,
        callback: &'static str,
        args: &[u32],
    ) -> Verdict {
        let (handle, created) = {
            let data = lock(stream);
            let Some(filter) = data.filters.get(slot) else { return Verdict::Pass };
            (filter.handle, filter.created)
        };
        // A filter that the request never reached has no say in the response.
        if !created {
            return Verdict::Pass;
        }
        let Handle::Context { vm, context, .. } = handle else {
            return self.fail_stream(stream, slot);
        };
        if self.vms.get(&vm).is_none_or(Vm::is_failed) {
            return self.after_failure(stream, slot);
        }
        let before = lock(stream).calling.replace((direction, slot));
        let called = self.call(vm, callback, context, args);
        lock(stream).calling = before;
        // Another call may have ended the machine while its actions were done.
        if self.vms.get(&vm).is_none_or(Vm::is_failed) {
            return self.after_failure(stream, slot);
        }
        match called {
            Called::Missing => Verdict::Pass,
            Called::Returned { value, stop } => Verdict::Said { value, stop },
            Called::Failed => self.after_failure(stream, slot),
        }
    }

    fn after_failure(&mut self, stream: &StreamRef, slot: usize) -> Verdict {
        let plugin = lock(stream).filters.get(slot).map(|filter| filter.plugin);
        let policy = plugin.and_then(|plugin| self.plugin(plugin));
        let policy = policy.map(|plugin| plugin.config.failure_policy);
        if policy == Some(FailurePolicy::LegacyFailOpen) {
            return Verdict::Pass;
        }
        self.fail_stream(stream, slot)
    }

    fn fail_stream(&mut self, stream: &StreamRef, slot: usize) -> Verdict {
        let reply = {
            let mut data = lock(stream);
            let answered = data.outcome.local_reply;
            let Some(filter) = data.filters.get_mut(slot) else { return Verdict::Closed };
            let failed_before = std::mem::replace(&mut filter.stream_failed, true);
            if failed_before && answered {
                // The response is the one that this filter's failure made.
                return Verdict::Pass;
            }
            !failed_before && !std::mem::replace(&mut filter.local_reply_sent, true)
        };
        if reply {
            let mut reply = LocalReply::plain(503, "", "wasm_fail_stream");
            reply.grpc_status = Some(14);
            self.local_reply(stream, &reply);
        }
        Verdict::Closed
    }

    /// A guest's `proxy_continue_stream`.
    pub(crate) fn resume_asked(&mut self, stream: &StreamRef, slot: usize, direction: Direction) {
        {
            let mut data = lock(stream);
            let outside = data.calling.is_none();
            let ended = data.pipe(direction).observed_end;
            let plugin = data.filters.get(slot).map(|filter| filter.plugin);
            let holds = data
                .side(slot, direction)
                .is_some_and(|side| side.buffering && side.iteration == Iteration::StopSingle);
            if let (true, false, true, Some(plugin)) = (outside, ended, holds, plugin) {
                let response = direction == Direction::Response;
                data.warn(Warning::ResumedBeforeEnd { plugin, response });
            }
        }
        self.resume(stream, slot, direction);
    }
}

fn handle(stream: &StreamRef, slot: usize) -> Option<(u64, u32)> {
    match lock(stream).filters.get(slot)?.handle {
        Handle::Context { vm, context, .. } => Some((vm, context)),
        Handle::Dead => None,
    }
}

/// Whether what comes is of no use any more.
fn dropped(data: &mut StreamData, direction: Direction, id: StreamId) -> Result<bool, HostError> {
    let answered = data.outcome.local_reply || data.outcome.reset;
    let pipe = data.pipe(direction);
    if pipe.aborted || (answered && direction == Direction::Response) {
        return Ok(true);
    }
    if pipe.headers.is_none() {
        return Err(HostError::OutOfOrder {
            stream: id.0,
            what: "body or trailers before headers",
        });
    }
    if pipe.observed_end {
        return Err(HostError::OutOfOrder { stream: id.0, what: "something after the end" });
    }
    Ok(false)
}

fn snapshot(data: &mut StreamData) -> Outcome {
    let mut outcome = data.outcome.clone();
    let buffered =
        |pipe: &crate::stream::data::Pipe| pipe.buffered.as_ref().map_or(0, |bytes| bytes.len());
    outcome.buffered_bytes = (buffered(&data.pipes[0]), buffered(&data.pipes[1]));
    outcome.filter_state = data
        .filter_state
        .iter()
        .map(|(name, property)| (name.clone(), property.value.clone()))
        .collect();
    for filter in &data.filters {
        for (side, pipe) in filter.sides.iter().zip(&data.pipes) {
            if side.iteration == Iteration::Continue || pipe.aborted {
                continue;
            }
            outcome.paused.push(Pause {
                plugin: filter.plugin,
                response: std::ptr::eq(pipe, &data.pipes[1]),
                all: side.stopped_all(),
            });
        }
    }
    outcome
}
