//! Who answers the callouts of guests.

use crate::headers::HeaderMap;
use std::time::Duration;

/// An HTTP request of a guest.
#[derive(Clone, Debug)]
pub struct HttpCall {
    /// Cluster it goes to.
    pub cluster: String,
    /// Its headers, with `content-length` if it has a body.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers, if there are any.
    pub trailers: Option<HeaderMap>,
    /// After how long the host answers 504 instead; `None` is never.
    pub timeout: Option<Duration>,
    /// Number that the guest knows it by, within its virtual machine.
    pub token: u32,
}

/// A response to a guest's request.
#[derive(Clone, Debug, Default)]
pub struct HttpResponse {
    /// Its headers, `:status` among them.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl HttpResponse {
    /// A response of that status and body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = HeaderMap::from([(":status", status.to_string())]);
        Self { headers, body: body.into(), trailers: None }
    }
}

/// What becomes of a guest's request.
#[derive(Clone, Debug)]
pub enum HttpReply {
    /// A response, that long after the request on the virtual clock.
    Response {
        /// How long after the request.
        after: Duration,
        /// The response.
        response: HttpResponse,
    },
    /// The stream is reset, that long after the request: the guest gets Envoy's own 503.
    Reset {
        /// How long after the request.
        after: Duration,
    },
    /// Nothing by itself: a timeout, or the embedder's `answer_http`.
    Pending,
}

/// A gRPC request of a guest, or the opening of a stream.
#[derive(Clone, Debug)]
pub struct GrpcCall {
    /// Cluster, or a serialised `GrpcService` message.
    pub target: Vec<u8>,
    /// Service name.
    pub service: String,
    /// Method name.
    pub method: String,
    /// First metadata.
    pub metadata: HeaderMap,
    /// The one message; of a stream's opening, nothing.
    pub message: Vec<u8>,
    /// After how long the host fails the call with status 14; `None` is never.
    pub timeout: Option<Duration>,
    /// Number that the guest knows it by, within its virtual machine.
    pub token: u32,
}

/// What happens on a gRPC stream or to a call. A call has one message or a close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrpcEvent {
    /// First metadata of the answer; only of streams.
    InitialMetadata(HeaderMap),
    /// A message.
    Message(Vec<u8>),
    /// Last metadata of the answer; only of streams.
    TrailingMetadata(HeaderMap),
    /// The end, with status and text.
    Close {
        /// gRPC status code.
        status: u32,
        /// Its text.
        message: String,
    },
}

/// Events with how long after now they happen.
pub type Schedule<E> = Vec<(Duration, E)>;

/// The servers that guests can call: scripted ones, or an adapter to real ones. It is asked while a
/// guest runs, so what it takes to answer is time of that guest's callback; the virtual clock goes
/// on only by what the answer says.
pub trait Upstreams: Send {
    /// Whether there is such a cluster; calls to others fail at once.
    fn has_cluster(&self, name: &str) -> bool;

    /// An HTTP request was sent.
    fn http_call(&mut self, call: &HttpCall) -> HttpReply;

    /// A gRPC request was sent. No events leave it pending.
    fn grpc_call(&mut self, call: &GrpcCall) -> Schedule<GrpcEvent> {
        let _ = call;
        Vec::new()
    }

    /// A gRPC stream was opened.
    fn grpc_open(&mut self, call: &GrpcCall) -> Schedule<GrpcEvent> {
        let _ = call;
        Vec::new()
    }

    /// A guest sent a message on its stream of that token, or its last one.
    fn grpc_message(
        &mut self,
        token: u32,
        message: &[u8],
        end_of_stream: bool,
    ) -> Schedule<GrpcEvent> {
        let _ = (token, message, end_of_stream);
        Vec::new()
    }
}

/// No clusters at all: every callout is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoUpstreams;

impl Upstreams for NoUpstreams {
    fn has_cluster(&self, _: &str) -> bool {
        false
    }

    fn http_call(&mut self, _: &HttpCall) -> HttpReply {
        HttpReply::Pending
    }
}
