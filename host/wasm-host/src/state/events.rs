//! What happens later: ticks, queue notifications, answers of callouts, in order of time.

use crate::headers::HeaderMap;
use crate::upstreams::{GrpcEvent, HttpResponse};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What is to be delivered to a virtual machine's root context.
#[derive(Clone, Debug)]
pub(crate) enum EventKind {
    Tick {
        generation: u64,
    },
    QueueReady {
        token: u32,
    },
    /// `None` is a reset.
    Http {
        token: u32,
        response: Option<HttpResponse>,
    },
    Grpc {
        token: u32,
        event: GrpcEvent,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) vm: u64,
    pub(crate) root: u32,
    pub(crate) kind: EventKind,
}

/// Events by when they are due on the monotonic clock, then in the order they were made.
#[derive(Default)]
pub(crate) struct Events {
    pending: BTreeMap<Reverse<(u64, u64)>, Event>,
    made: u64,
}

impl Events {
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn push(&mut self, due_ns: u64, event: Event) {
        self.made += 1;
        self.pending.insert(Reverse((due_ns, self.made)), event);
    }

    /// The next event due at or before that time, and when it was due.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<(u64, Event)> {
        let Reverse((due_ns, _)) = *self.pending.last_key_value()?.0;
        if due_ns > now_ns {
            return None;
        }
        self.pending.pop_last().map(|(_, event)| (due_ns, event))
    }

    /// When the next event is due.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.pending.last_key_value().map(|(Reverse((due_ns, _)), _)| *due_ns)
    }

    /// Forgets everything meant for a virtual machine that is gone.
    pub(crate) fn forget(&mut self, vm: u64) {
        self.pending.retain(|_, event| event.vm != vm);
    }
}

/// What the host answers itself when a callout's timeout has passed: what Envoy's router says.
pub(crate) fn timeout_response() -> HttpResponse {
    local_response(504, "upstream request timeout")
}

/// What it answers when the upstream resets a callout's stream.
pub(crate) fn reset_response() -> HttpResponse {
    local_response(
        503,
        "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
    )
}

fn local_response(status: u16, body: &str) -> HttpResponse {
    let body = body.as_bytes().to_vec();
    let headers = HeaderMap::from([
        (":status", status.to_string()),
        ("content-length", body.len().to_string()),
        ("content-type", "text/plain".to_owned()),
    ]);
    HttpResponse { headers, body, trailers: None }
}
