//! What became of a stream.

use crate::headers::HeaderMap;
use crate::plugin::PluginId;
use std::collections::BTreeMap;

/// What one side of a stream has received so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Headers, once they have left the chain.
    pub headers: Option<HeaderMap>,
    /// All of the body that has left the chain.
    pub body: Vec<u8>,
    /// Length of each piece in which it did.
    pub chunks: Vec<usize>,
    /// Trailers, once they have left the chain.
    pub trailers: Option<HeaderMap>,
    /// Whether that is all there will be.
    pub end_of_stream: bool,
}

impl Message {
    /// `:status` as a number, if there are headers with one.
    pub fn status(&self) -> Option<u16> {
        self.headers.as_ref()?.get_str(":status")?.parse().ok()
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A plugin that holds a stream, and nothing but itself can let it go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// The plugin.
    pub plugin: PluginId,
    /// Whether it is the response that it holds, not the request.
    pub response: bool,
    /// Whether it holds everything; else it is still given what comes.
    pub all: bool,
}

/// What a guest may do, but had better not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Warning {
    /// A paused body was resumed from outside a callback of the stream before its end was there.
    /// Envoy 1.40 then forwards the rest in a wrong order. This host withholds the chunk that
    /// follows, by the same rules, until something else lets the buffer go.
    ResumedBeforeEnd {
        /// The plugin.
        plugin: PluginId,
        /// Whether it was the response.
        response: bool,
    },
    /// Everything was held by a plugin that had not seen the body: with nothing else to wake it, the
    /// stream hangs until a timeout.
    HeldBeforeBody {
        /// The plugin.
        plugin: PluginId,
        /// Whether it was the response.
        response: bool,
    },
}

/// What became of a stream so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// What the upstream has received.
    pub upstream: Message,
    /// What the client has received.
    pub downstream: Message,
    /// Why the response is what it is, in Envoy's words: `via_upstream` if it came from there.
    pub details: Option<String>,
    /// Whether the response was made here, not by the upstream.
    pub local_reply: bool,
    /// Whether the stream was reset.
    pub reset: bool,
    /// Who holds the stream.
    pub paused: Vec<Pause>,
    /// Bodies that are held back, in bytes: of the request, of the response.
    pub buffered_bytes: (usize, usize),
    /// Stream filter state by name; a guest's property `x` is `wasm.x`.
    pub filter_state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// How often a guest had the route chosen again.
    pub route_clears: u32,
    /// What its guests had better not have done.
    pub warnings: Vec<Warning>,
}
