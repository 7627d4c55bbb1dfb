//! A whole request and its response in one call.

use super::Host;
use crate::error::HostError;
use crate::headers::HeaderMap;
use crate::plugin::{ChainId, StreamId};
use crate::stream::{Message, Outcome};

/// A request as a client sends it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Its headers.
    pub headers: HeaderMap,
    /// Pieces of its body, as they come.
    pub chunks: Vec<Vec<u8>>,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl Request {
    /// A GET without a body.
    pub fn get(path: &str) -> Self {
        Self { headers: pseudo("GET", path), ..Self::default() }
    }

    /// A POST with a body in one piece and its `content-length`.
    pub fn post(path: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let mut headers = pseudo("POST", path);
        headers.add("content-length", body.len().to_string());
        Self { headers, chunks: vec![body], trailers: None }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.add(name, value);
        self
    }
}

fn pseudo(method: &str, path: &str) -> HeaderMap {
    HeaderMap::from([
        (":method", method),
        (":scheme", "http"),
        (":authority", "example.com"),
        (":path", path),
    ])
}

/// A response as an upstream sends it.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Its headers.
    pub headers: HeaderMap,
    /// Pieces of its body, as they come.
    pub chunks: Vec<Vec<u8>>,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl Response {
    /// A response of that status with a body in one piece.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers = HeaderMap::from([(":status", status.to_string())]);
        Self { headers, chunks: if body.is_empty() { vec![] } else { vec![body] }, trailers: None }
    }
}

impl Host {
    /// Sends a request through a chain, delivers what is due, has `upstream` answer if the whole
    /// request reached it, sends the response back, and closes the stream.
    ///
    /// # Errors
    /// [`HostError`] if the chain or worker is not there, or guests keep each other busy.
    pub fn exchange(
        &mut self,
        chain: ChainId,
        worker: usize,
        request: Request,
        upstream: impl FnOnce(&Message) -> Response,
    ) -> Result<Outcome, HostError> {
        let stream = self.open(chain, worker)?;
        self.send_request(stream, request)?;
        self.run()?;
        let outcome = self.outcome(stream)?;
        if outcome.upstream.end_of_stream && !outcome.local_reply && !outcome.reset {
            self.send_response(stream, upstream(&outcome.upstream))?;
            self.run()?;
        }
        self.close(stream)
    }

    /// Sends all of a request on an open stream.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there or has had a request.
    pub fn send_request(&mut self, stream: StreamId, request: Request) -> Result<(), HostError> {
        let Request { headers, chunks, trailers } = request;
        let pieces = chunks.len();
        self.request_headers(stream, headers, pieces == 0 && trailers.is_none())?;
        for (i, chunk) in chunks.into_iter().enumerate() {
            self.request_body(stream, chunk, i + 1 == pieces && trailers.is_none())?;
        }
        match trailers {
            Some(trailers) => self.request_trailers(stream, trailers),
            None => Ok(()),
        }
    }

    /// Sends all of a response on an open stream.
    ///
    /// # Errors
    /// [`HostError`] if the stream is not there or has had a response.
    pub fn send_response(&mut self, stream: StreamId, response: Response) -> Result<(), HostError> {
        let Response { headers, chunks, trailers } = response;
        let pieces = chunks.len();
        self.response_headers(stream, headers, pieces == 0 && trailers.is_none())?;
        for (i, chunk) in chunks.into_iter().enumerate() {
            self.response_body(stream, chunk, i + 1 == pieces && trailers.is_none())?;
        }
        match trailers {
            Some(trailers) => self.response_trailers(stream, trailers),
            None => Ok(()),
        }
    }
}
