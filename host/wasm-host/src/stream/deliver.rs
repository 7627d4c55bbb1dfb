//! The two ends of a chain: what reaches upstream and client, and answers that are made here.

use super::data::{Body, Direction, StreamData, StreamRef};
use super::local_reply::LocalReply;
use crate::host::Host;
use crate::state::lock;

impl Host {
    /// Answers the client from here.
    pub(crate) fn local_reply(&mut self, stream: &StreamRef, reply: &LocalReply) {
        let mut data = lock(stream);
        if data.finished || data.outcome.reset {
            return;
        }
        data.pipes[0].aborted = true;
        let (headers, body) = reply.message(data.pipes[0].headers.as_ref());
        if data.outcome.downstream.headers.is_some() {
            // Too late for anything else.
            data.outcome.details = Some(reply.details.clone());
            if !data.outcome.downstream.end_of_stream {
                data.reset();
            }
            return;
        }
        data.outcome.details = Some(reply.details.clone());
        data.outcome.local_reply = true;
        data.response_code = headers.get_str(":status").and_then(|status| status.parse().ok());
        let started = data.pipes[1].headers.is_some();
        data.pipes[1].headers = Some(headers);
        data.pipes[1].observed_end = true;
        data.pipes[1].trailers = None;
        data.pipes[1].buffered = None;
        if started {
            // The upstream's response was on its way: this one goes past the filters.
            data.deliver_headers(Direction::Response, body.is_empty());
            if !body.is_empty() {
                data.pipes[1].chunks.push(body);
                let place = data.pipes[1].chunks.len() - 1;
                data.deliver_body(Direction::Response, Body::Chunk(place), true);
            }
            data.pipes[1].aborted = true;
            return;
        }
        drop(data);
        self.run_headers(stream, Direction::Response, None, body.is_empty());
        if !body.is_empty() {
            self.pass_chunk(stream, Direction::Response, body, true);
        }
    }
}

impl StreamData {
    fn side_of(&mut self, direction: Direction) -> &mut super::outcome::Message {
        match direction {
            Direction::Request => &mut self.outcome.upstream,
            Direction::Response => &mut self.outcome.downstream,
        }
    }

    pub(crate) fn deliver_headers(&mut self, direction: Direction, end_stream: bool) {
        let headers = self.pipe(direction).headers.clone();
        let message = self.side_of(direction);
        message.headers = headers;
        message.end_of_stream = end_stream;
        self.ended(direction, end_stream);
    }

    pub(crate) fn deliver_body(&mut self, direction: Direction, body: Body, end_stream: bool) {
        let pipe = self.pipe(direction);
        let bytes = match body {
            Body::Chunk(place) => pipe.chunks.get_mut(place).map(std::mem::take),
            Body::Buffered => pipe.buffered.as_mut().map(std::mem::take),
        };
        let bytes = bytes.unwrap_or_default();
        let message = self.side_of(direction);
        if !bytes.is_empty() {
            message.chunks.push(bytes.len());
            message.body.extend_from_slice(&bytes);
        }
        message.end_of_stream |= end_stream;
        self.ended(direction, end_stream);
    }

    pub(crate) fn deliver_trailers(&mut self, direction: Direction) {
        let trailers = self.pipe(direction).trailers.clone();
        let message = self.side_of(direction);
        message.trailers = trailers;
        message.end_of_stream = true;
        self.ended(direction, true);
    }

    /// After the end of a response nobody waits for the rest of the request.
    fn ended(&mut self, direction: Direction, end_stream: bool) {
        if direction == Direction::Response && end_stream {
            self.pipes[0].aborted = true;
        }
    }

    pub(crate) fn reset(&mut self) {
        self.outcome.reset = true;
        self.pipes[0].aborted = true;
        self.pipes[1].aborted = true;
    }
}
