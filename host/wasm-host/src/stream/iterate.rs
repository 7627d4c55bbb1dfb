//! How frames pass the filters of a chain: the rules of Envoy's filter manager
//! (`source/common/http/filter_manager.cc`) and of its wasm filter on top of them.

use super::data::{Body, Direction, Iteration, StreamData, StreamRef};
use super::local_reply::LocalReply;
use super::outcome::Warning;
use crate::host::Host;
use crate::state::lock;
use std::sync::Arc;

/// What a filter's callback comes down to.
pub(crate) enum Verdict {
    /// It was not asked: no such callback, or its machine is dead and that does not matter.
    Pass,
    /// It said so; `stop` if it asked for a local reply.
    Said { value: u32, stop: bool },
    /// Its machine is dead, and the stream with it.
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DataStatus {
    Continue,
    StopAndBuffer,
    StopAndWatermark,
    StopNoBuffer,
}

fn headers_status(verdict: &Verdict, allow_stop_iteration: bool) -> Iteration {
    match verdict {
        Verdict::Pass => Iteration::Continue,
        Verdict::Closed | Verdict::Said { stop: true, .. } => Iteration::StopAllWatermark,
        Verdict::Said { value, .. } => match value {
            // 2 is "continue and end the stream", which Envoy does not do.
            0 | 2 => Iteration::Continue,
            1 if allow_stop_iteration => Iteration::StopSingle,
            3 => Iteration::StopAllBuffer,
            _ => Iteration::StopAllWatermark,
        },
    }
}

fn data_status(verdict: &Verdict) -> DataStatus {
    match verdict {
        Verdict::Pass | Verdict::Said { value: 0, stop: false } => DataStatus::Continue,
        Verdict::Said { value: 1, stop: false } => DataStatus::StopAndBuffer,
        Verdict::Said { value: 2, stop: false } => DataStatus::StopAndWatermark,
        _ => DataStatus::StopNoBuffer,
    }
}

fn trailers_pass(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Pass | Verdict::Said { value: 0, stop: false })
}

/// Filters in the order of a direction, from the one after `after`, or from itself.
fn slots(
    data: &StreamData,
    direction: Direction,
    after: Option<usize>,
    itself: bool,
) -> Vec<usize> {
    let n = data.filters.len();
    match (direction, after) {
        (Direction::Request, None) => (0..n).collect(),
        (Direction::Request, Some(after)) => (after + usize::from(!itself)..n).collect(),
        (Direction::Response, None) => (0..n).rev().collect(),
        (Direction::Response, Some(after)) => (0..after + usize::from(itself)).rev().collect(),
    }
}

impl Host {
    pub(crate) fn run_headers(
        &mut self,
        stream: &StreamRef,
        direction: Direction,
        after: Option<usize>,
        end_stream: bool,
    ) {
        let slots = slots(&lock(stream), direction, after, false);
        for slot in slots {
            if lock(stream).pipe(direction).aborted {
                return;
            }
            if direction == Direction::Request {
                self.create_context(stream, slot);
            }
            let count = {
                let mut data = lock(stream);
                let created = data.filters.get(slot).is_some_and(|filter| filter.created);
                let Some(side) = data.side(slot, direction) else { return };
                side.end_stream = end_stream;
                side.sees_headers = created;
                if let Some(filter) = data.filters.get_mut(slot) {
                    filter.end_of_stream = end_stream;
                }
                data.pipe(direction).headers.as_ref().map_or(0, |headers| headers.len())
            };
            let callback = match direction {
                Direction::Request => "proxy_on_request_headers",
                Direction::Response => "proxy_on_response_headers",
            };
            let args = [u32::try_from(count).unwrap_or(u32::MAX), u32::from(end_stream)];
            let verdict = self.guest(stream, direction, slot, callback, &args);
            let allow = self.allows_stop_iteration(stream, slot);
            let mut data = lock(stream);
            let status = headers_status(&verdict, allow);
            let plugin = data.filters.get(slot).map(|filter| filter.plugin);
            if let (Verdict::Said { value: 1, stop: false }, false, false, Some(plugin)) =
                (&verdict, allow, end_stream, plugin)
            {
                let response = direction == Direction::Response;
                data.warn(Warning::HeldBeforeBody { plugin, response });
            }
            let Some(side) = data.side(slot, direction) else { return };
            if status == Iteration::Continue {
                side.sees_headers = false;
                // Resumed within its own callback: the filters behind it have had the headers.
                if std::mem::replace(&mut side.headers_continued, true) {
                    return;
                }
            } else {
                side.iteration = status;
                return;
            }
        }
        let mut data = lock(stream);
        if data.pipe(direction).aborted {
            return;
        }
        data.deliver_headers(direction, end_stream);
    }

    pub(crate) fn run_data(
        &mut self,
        stream: &StreamRef,
        direction: Direction,
        after: Option<usize>,
        body: Body,
        mut end_stream: bool,
    ) {
        let slots = {
            let mut data = lock(stream);
            let itself = after
                .and_then(|slot| data.side(slot, direction))
                .is_some_and(|side| side.iterate_from_current);
            slots(&data, direction, after, itself)
        };
        let mut trailers_from = None;
        for slot in slots {
            let mut data = lock(stream);
            if data.pipe(direction).aborted {
                return;
            }
            let has_trailers = data.pipe(direction).trailers.is_some();
            let Some(side) = data.side(slot, direction) else { return };
            if side.stopped_all() {
                let streaming = side.iteration == Iteration::StopAllWatermark;
                data.pipe(direction).streaming = streaming;
                drop(data);
                self.hold(stream, direction, body);
                return;
            }
            // The filter has seen the end, so this is not for it or those behind it.
            if side.end_stream {
                return;
            }
            side.end_stream = end_stream && !has_trailers;
            let ends = side.end_stream;
            drop(data);
            let status = self.data_callback(stream, direction, slot, body, ends);
            let mut data = lock(stream);
            if data.pipe(direction).aborted {
                return;
            }
            let pipe = data.pipe(direction);
            if std::mem::take(&mut pipe.trailers_added) {
                end_stream = false;
                trailers_from = Some(slot);
            }
            drop(data);
            if !self.after_data(stream, direction, slot, status, body) {
                return;
            }
        }
        let ends = {
            let mut data = lock(stream);
            if data.pipe(direction).aborted {
                return;
            }
            let ends = end_stream && data.pipe(direction).trailers.is_none();
            data.deliver_body(direction, body, ends);
            ends
        };
        if let Some(slot) = trailers_from.filter(|_| !ends) {
            self.run_trailers(stream, direction, Some(slot));
        }
    }

    fn data_callback(
        &mut self,
        stream: &StreamRef,
        direction: Direction,
        slot: usize,
        body: Body,
        end_stream: bool,
    ) -> DataStatus {
        let (created, buffering) = {
            let mut data = lock(stream);
            let created = data.filters.get(slot).is_some_and(|filter| filter.created);
            (created, data.side(slot, direction).is_some_and(|side| side.buffering))
        };
        if !created {
            return DataStatus::Continue;
        }
        if buffering {
            self.hold(stream, direction, body);
            if lock(stream).pipe(direction).aborted {
                return DataStatus::StopAndBuffer;
            }
        }
        let len = {
            let mut data = lock(stream);
            if let Some(filter) = data.filters.get_mut(slot) {
                filter.end_of_stream = end_stream;
            }
            if let Some(side) = data.side(slot, direction) {
                side.body = Some(body);
            }
            data.body(slot, direction).map_or(0, |body| body.len())
        };
        let callback = match direction {
            Direction::Request => "proxy_on_request_body",
            Direction::Response => "proxy_on_response_body",
        };
        let args = [u32::try_from(len).unwrap_or(u32::MAX), u32::from(end_stream)];
        let verdict = self.guest(stream, direction, slot, callback, &args);
        let status = data_status(&verdict);
        let mut data = lock(stream);
        let Some(side) = data.side(slot, direction) else { return status };
        side.buffering = status == DataStatus::StopAndBuffer;
        if status == DataStatus::Continue {
            side.body = None;
        }
        status
    }

    /// Whether the data goes on to the next filter.
    fn after_data(
        &mut self,
        stream: &StreamRef,
        direction: Direction,
        slot: usize,
        status: DataStatus,
        body: Body,
    ) -> bool {
        let mut data = lock(stream);
        let Some(side) = data.side(slot, direction) else { return false };
        if status == DataStatus::Continue {
            if side.iteration != Iteration::StopSingle {
                return true;
            }
            drop(data);
            self.hold(stream, direction, body);
            self.resume(stream, slot, direction);
            return false;
        }
        side.iteration = Iteration::StopSingle;
        let pipe = data.pipe(direction);
        if status == DataStatus::StopNoBuffer {
            // So that a resume passes an empty end on.
            if pipe.observed_end && pipe.trailers.is_none() && pipe.buffered.is_none() {
                pipe.buffered = Some(Vec::new());
            }
        } else {
            pipe.streaming = status == DataStatus::StopAndWatermark;
            drop(data);
            self.hold(stream, direction, body);
        }
        false
    }

    /// Moves what is passing to what is held back. Above the limit the stream ends, unless the sender
    /// can be made to wait.
    fn hold(&mut self, stream: &StreamRef, direction: Direction, body: Body) {
        let mut data = lock(stream);
        let limit = data.buffer_limit;
        let pipe = data.pipe(direction);
        if let Body::Chunk(place) = body {
            let chunk = pipe.chunks.get_mut(place).map(std::mem::take).unwrap_or_default();
            match &mut pipe.buffered {
                Some(buffered) => buffered.extend_from_slice(&chunk),
                None => pipe.buffered = Some(chunk),
            }
        }
        let excess = pipe.buffered.as_ref().is_some_and(|buffered| buffered.len() > limit);
        if !excess || pipe.streaming {
            return;
        }
        drop(data);
        let reply = match direction {
            Direction::Request => {
                LocalReply::plain(413, "Payload Too Large", "request_payload_too_large")
            }
            Direction::Response => {
                LocalReply::plain(500, "Internal Server Error", "response_payload_too_large")
            }
        };
        self.local_reply(stream, &reply);
    }

    pub(crate) fn run_trailers(
        &mut self,
        stream: &StreamRef,
        direction: Direction,
        after: Option<usize>,
    ) {
        let slots = {
            let mut data = lock(stream);
            let itself = after
                .and_then(|slot| data.side(slot, direction))
                .is_some_and(|side| side.iterate_from_current);
            slots(&data, direction, after, itself)
        };
        for slot in slots {
            let (created, count) = {
                let mut data = lock(stream);
                if data.pipe(direction).aborted {
                    return;
                }
                let created = data.filters.get(slot).is_some_and(|filter| filter.created);
                let Some(side) = data.side(slot, direction) else { return };
                if side.stopped_all() {
                    return;
                }
                side.sees_trailers = created;
                let trailers = data.pipe(direction).trailers.as_ref();
                (created, trailers.map_or(0, |trailers| trailers.len()))
            };
            let callback = match direction {
                Direction::Request => "proxy_on_request_trailers",
                Direction::Response => "proxy_on_response_trailers",
            };
            let verdict = if created {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                self.guest(stream, direction, slot, callback, &[count])
            } else {
                Verdict::Pass
            };
            let mut data = lock(stream);
            if data.pipe(direction).aborted {
                return;
            }
            let Some(side) = data.side(slot, direction) else { return };
            side.end_stream = true;
            if !trailers_pass(&verdict) {
                if side.iteration == Iteration::Continue {
                    side.iteration = Iteration::StopSingle;
                }
                return;
            }
            side.sees_trailers = false;
            if side.iteration == Iteration::StopSingle {
                drop(data);
                self.resume(stream, slot, direction);
                return;
            }
        }
        let mut data = lock(stream);
        if !data.pipe(direction).aborted {
            data.deliver_trailers(direction);
        }
    }

    /// Lets go of all that a filter holds. Asked for within its own callback, this happens before
    /// what the callback returns counts, so a pause that it returns holds what comes then.
    pub(crate) fn resume(&mut self, stream: &StreamRef, slot: usize, direction: Direction) {
        let mut data = lock(stream);
        let pipe = data.pipe(direction);
        if pipe.aborted || pipe.headers.is_none() {
            return;
        }
        let nothing_held = pipe.buffered.as_ref().is_none_or(Vec::is_empty);
        let headers_only = pipe.observed_end && pipe.buffered.is_none() && pipe.trailers.is_none();
        let Some(side) = data.side(slot, direction) else { return };
        if side.iteration == Iteration::Continue && side.headers_continued && nothing_held {
            return;
        }
        // What is held is on its way already: a guest that resumes in each callback that its resuming
        // brings about would otherwise never come to an end.
        if std::mem::replace(&mut side.resuming, true) {
            return;
        }
        side.iterate_from_current |= side.stopped_all();
        side.iteration = Iteration::Continue;
        let headers_held = !std::mem::replace(&mut side.headers_continued, true);
        drop(data);
        if headers_held {
            self.run_headers(stream, direction, Some(slot), headers_only);
        }
        let (trailers, held, ended) = {
            let mut data = lock(stream);
            let pipe = data.pipe(direction);
            (pipe.trailers.is_some(), pipe.buffered.is_some(), pipe.observed_end)
        };
        if held {
            self.run_data(stream, direction, Some(slot), Body::Buffered, ended && !trailers);
        }
        if trailers {
            self.run_trailers(stream, direction, Some(slot));
        }
        if let Some(side) = lock(stream).side(slot, direction) {
            side.iterate_from_current = false;
            side.resuming = false;
        }
    }

    /// Passes bytes that came in.
    pub(crate) fn pass_chunk(
        &mut self,
        stream: &StreamRef,
        direction: Direction,
        chunk: Vec<u8>,
        end_stream: bool,
    ) {
        let place = {
            let mut data = lock(stream);
            let pipe = data.pipe(direction);
            pipe.chunks.push(chunk);
            pipe.chunks.len() - 1
        };
        self.run_data(stream, direction, None, Body::Chunk(place), end_stream);
        let mut data = lock(stream);
        data.pipe(direction).chunks.truncate(place);
        for filter in &mut data.filters {
            let Some(side) = filter.sides.get_mut(direction as usize) else { continue };
            if side.body == Some(Body::Chunk(place)) {
                // The bytes went where the filter's own answer sent them.
                side.body = Some(Body::Buffered).filter(|_| side.iteration != Iteration::Continue);
            }
        }
    }

    fn allows_stop_iteration(&self, stream: &StreamRef, slot: usize) -> bool {
        let plugin = lock(stream).filters.get(slot).map(|filter| filter.plugin);
        plugin
            .and_then(|plugin| self.plugin(plugin))
            .is_some_and(|plugin| plugin.config.allow_on_headers_stop_iteration)
    }

    /// What a guest asked for, after its callback.
    pub(crate) fn act_on_stream(&mut self, id: u64, act: impl FnOnce(&mut Self, &StreamRef)) {
        if let Some(stream) = self.streams.get(&id).map(Arc::clone) {
            act(self, &stream);
        }
    }
}
