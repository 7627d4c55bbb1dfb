//! What a stream holds, seen from its filters.

use super::outcome::{Outcome, Warning};
use crate::abi::Status;
use crate::headers::HeaderMap;
use crate::plugin::{PluginId, RouteChoice};
use crate::property::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub(crate) type StreamRef = Arc<Mutex<StreamData>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Request = 0,
    Response = 1,
}

/// Whether frames go past a filter (`IterationState` of Envoy's filter manager).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Iteration {
    #[default]
    Continue,
    /// The filter holds what it was given, and is given what follows.
    StopSingle,
    /// The filter is given nothing; the body is kept up to the limit.
    StopAllBuffer,
    /// The filter is given nothing; the sender is told to wait at the limit.
    StopAllWatermark,
}

/// Where the bytes are that a filter can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// What is passing right now; the number is its place among nested ones.
    Chunk(usize),
    /// What is held back.
    Buffered,
}

/// One filter's view of one direction.
#[derive(Debug, Default)]
pub(crate) struct Side {
    pub(crate) iteration: Iteration,
    pub(crate) headers_continued: bool,
    pub(crate) iterate_from_current: bool,
    pub(crate) end_stream: bool,
    pub(crate) sees_headers: bool,
    pub(crate) sees_trailers: bool,
    pub(crate) body: Option<Body>,
    /// Whether the last body callback said "stop and buffer".
    pub(crate) buffering: bool,
    /// What the filter held is being let go.
    pub(crate) resuming: bool,
}

impl Side {
    pub(crate) fn stopped_all(&self) -> bool {
        matches!(self.iteration, Iteration::StopAllBuffer | Iteration::StopAllWatermark)
    }
}

/// What happens when the filter's virtual machine is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handle {
    /// A context in a virtual machine.
    Context { vm: u64, root: u32, context: u32 },
    /// The machine had failed before the stream began: 503.
    Dead,
}

pub(crate) struct Filter {
    pub(crate) plugin: PluginId,
    pub(crate) handle: Handle,
    pub(crate) sides: [Side; 2],
    /// Whether the guest has been told of the stream.
    pub(crate) created: bool,
    pub(crate) end_of_stream: bool,
    pub(crate) local_reply_sent: bool,
    pub(crate) stream_failed: bool,
}

impl Filter {
    pub(crate) fn new(plugin: PluginId, handle: Handle) -> Self {
        Self {
            plugin,
            handle,
            sides: Default::default(),
            created: false,
            end_of_stream: false,
            local_reply_sent: false,
            stream_failed: false,
        }
    }
}

/// One direction of a stream.
#[derive(Default)]
pub(crate) struct Pipe {
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) trailers: Option<HeaderMap>,
    /// Bytes held back, shared by all filters.
    pub(crate) buffered: Option<Vec<u8>>,
    /// Bytes that are passing, of nested iterations.
    pub(crate) chunks: Vec<Vec<u8>>,
    /// Whether the sender has finished.
    pub(crate) observed_end: bool,
    /// Nothing more goes through the chain.
    pub(crate) aborted: bool,
    /// Bytes that came in.
    pub(crate) received: u64,
    /// Whether the next excess of the limit slows the sender down instead of failing the stream.
    pub(crate) streaming: bool,
    /// The trailers were added by a filter during the last body callback.
    pub(crate) trailers_added: bool,
}

pub(crate) struct Property {
    pub(crate) value: Vec<u8>,
    pub(crate) readonly: bool,
}

pub(crate) struct StreamData {
    pub(crate) id: u64,
    pub(crate) pipes: [Pipe; 2],
    pub(crate) filters: Vec<Filter>,
    pub(crate) attributes: Value,
    pub(crate) route: Option<Value>,
    pub(crate) route_choice: Option<RouteChoice>,
    pub(crate) filter_state: BTreeMap<Vec<u8>, Property>,
    pub(crate) outcome: Outcome,
    /// Of the response's body, before what is in `outcome`.
    pub(crate) taken_response_bytes: usize,
    /// Access log phase: maps are those of the log.
    pub(crate) logging: bool,
    pub(crate) response_code: Option<u16>,
    pub(crate) start_ns: u64,
    pub(crate) connection_id: u64,
    pub(crate) buffer_limit: usize,
    /// Bytes of properties and guests' additions to bodies, of which only so many are allowed.
    pub(crate) retained: usize,
    pub(crate) retained_limit: usize,
    /// Callback under way: which direction, and of which filter.
    pub(crate) calling: Option<(Direction, usize)>,
    pub(crate) finished: bool,
}

impl StreamData {
    pub(crate) fn pipe(&mut self, direction: Direction) -> &mut Pipe {
        match direction {
            Direction::Request => &mut self.pipes[0],
            Direction::Response => &mut self.pipes[1],
        }
    }

    pub(crate) fn side(&mut self, slot: usize, direction: Direction) -> Option<&mut Side> {
        let sides = &mut self.filters.get_mut(slot)?.sides;
        Some(match direction {
            Direction::Request => &mut sides[0],
            Direction::Response => &mut sides[1],
        })
    }

    /// The bytes that a filter can see.
    pub(crate) fn body(&mut self, slot: usize, direction: Direction) -> Option<&mut Vec<u8>> {
        let side = self.side(slot, direction)?;
        let (body, buffering) = (side.body, side.buffering);
        let pipe = self.pipe(direction);
        if buffering {
            return pipe.buffered.as_mut();
        }
        match body? {
            Body::Chunk(place) => pipe.chunks.get_mut(place),
            Body::Buffered => pipe.buffered.as_mut(),
        }
    }

    /// Counts bytes that a guest makes the host keep.
    pub(crate) fn retain(&mut self, bytes: usize) -> Result<(), Status> {
        let total = self.retained.saturating_add(bytes);
        if total > self.retained_limit {
            return Err(Status::InternalFailure);
        }
        self.retained = total;
        Ok(())
    }

    pub(crate) fn warn(&mut self, warning: Warning) {
        if !self.outcome.warnings.contains(&warning) {
            self.outcome.warnings.push(warning);
        }
    }

    /// Forgets the route, unless the headers have left the chain.
    pub(crate) fn clear_route(&mut self) {
        if self.outcome.upstream.headers.is_none() {
            self.route = None;
            self.outcome.route_clears += 1;
        }
    }

    /// Chooses the route if there is none.
    pub(crate) fn choose_route(&mut self) {
        if self.route.is_none()
            && let (Some(choose), Some(headers)) = (&self.route_choice, &self.pipes[0].headers)
        {
            self.route = Some(choose(headers));
        }
    }
}
