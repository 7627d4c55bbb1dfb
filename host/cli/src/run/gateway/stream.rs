//! One request: between client, modules and endpoint, with attempts as the rendered routes have them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use wasm_host::HeaderMap;

use super::actor::{Event, Input};
use super::balance::{Active, Attempts};
use super::upload::Upload;
use super::{Kind, Shared, message, seconds};
use crate::render::DESTINATION;

/// Longest silence of a stream, as in the rendered listener.
const IDLE: Duration = Duration::from_secs(900);
/// Envoy's base and longest back-off between attempts.
const BACKOFF: Duration = Duration::from_millis(25);
const MAX_BACKOFF: Duration = Duration::from_millis(250);
/// Frames that may wait for a client.
const WAITING_FRAMES: usize = 8;

/// The stream broke: the client's connection or stream is to break too.
#[derive(Debug, thiserror::Error)]
#[error("the stream was reset")]
pub(super) struct Broken;

/// A response's body on its way to the client.
pub(super) struct Download(mpsc::Receiver<Result<Frame<Bytes>, Broken>>);

impl Body for Download {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.0.poll_recv(cx)
    }
}

type Answer = oneshot::Sender<Response<Download>>;
type Source = UnsyncBoxBody<Bytes, hyper::Error>;
type Attempt = Pin<Box<dyn Future<Output = Tried> + Send>>;
/// An attempt's answer, or why there is none.
type Tried = (Active, Result<Response<Incoming>, String>);

/// Answers a request.
pub(super) async fn serve(
    shared: Arc<Shared>,
    kind: Kind,
    worker: usize,
    request: Request<Incoming>,
) -> Result<Response<Download>, Broken> {
    let (answer, answered) = oneshot::channel();
    // A task of its own: the modules hear of the end of a stream also when the client has gone away.
    tokio::spawn(Stream::open(shared, kind, worker, request, answer).run());
    answered.await.map_err(|_| Broken)
}

/// How a stream goes on.
enum Next {
    Goes,
    Ends,
}

struct Stream {
    shared: Arc<Shared>,
    kind: Kind,
    number: u64,
    events: mpsc::UnboundedReceiver<Event>,
    /// Inputs that the modules have not done with.
    busy: usize,
    incoming: Option<Incoming>,
    upload: Upload,
    /// Headers that left the chain.
    asked: Option<HeaderMap>,
    attempts: Option<Attempts>,
    attempt: Option<Attempt>,
    /// The endpoint that is tried or answers.
    active: Option<Active>,
    source: Option<Source>,
    /// Whether the source's bytes go through the modules.
    reads_responses: bool,
    answer: Option<Answer>,
    client: Option<mpsc::Sender<Result<Frame<Bytes>, Broken>>>,
    /// Bytes of the response's body, where its head says them.
    length: Option<u64>,
    log: Log,
}

/// What the access log says.
struct Log {
    began: Instant,
    method: String,
    path: String,
    request_id: Option<Vec<u8>>,
    status: Option<u16>,
    details: String,
    response_bytes: u64,
}

impl Stream {
    fn open(
        shared: Arc<Shared>,
        kind: Kind,
        worker: usize,
        request: Request<Incoming>,
        answer: Answer,
    ) -> Self {
        let headers = message::of_request(&request, kind, shared.strips);
        let text = |name: &str| headers.get_str(name).unwrap_or_default().to_owned();
        let log = Log {
            began: Instant::now(),
            method: text(":method"),
            path: text(":path"),
            request_id: headers.get(message::REQUEST_ID).map(<[u8]>::to_vec),
            status: None,
            details: String::new(),
            response_bytes: 0,
        };
        let incoming = request.into_body();
        let end = incoming.is_end_stream();
        let (sender, events) = mpsc::unbounded_channel();
        let number = shared.next_stream();
        let upload = Upload::new(shared.replay_bytes);
        shared.actor.send(number, Input::Open { kind, worker, headers, end, events: sender });
        Self {
            kind,
            number,
            events,
            busy: 1,
            incoming: Some(incoming).filter(|_| !end),
            upload,
            asked: None,
            attempts: None,
            attempt: None,
            active: None,
            source: None,
            reads_responses: true,
            answer: Some(answer),
            client: None,
            length: None,
            log,
            shared,
        }
    }

    fn tell(&mut self, input: Input) {
        self.busy += 1;
        self.shared.actor.send(self.number, input);
    }

    async fn run(mut self) {
        loop {
            let is_free = self.busy == 0;
            let is_whole = self.is_whole();
            let step = async {
                tokio::select! {
                    biased;
                    () = gone(&mut self.answer, &self.client), if !is_whole => Step::Gone,
                    event = self.events.recv() => Step::Event(event),
                    tried = attempt(&mut self.attempt) => Step::Tried(Box::new(tried)),
                    frame = from(&mut self.source), if is_free || !self.reads_responses => {
                        Step::FromEndpoint(frame)
                    }
                    frame = from_client(&mut self.incoming, &self.upload), if is_free => {
                        Step::FromClient(frame)
                    }
                }
            };
            let next = match tokio::time::timeout(IDLE, step).await {
                Err(_) => self.broken("stream_idle_timeout").await,
                Ok(Step::Gone) => {
                    "downstream_remote_disconnect".clone_into(&mut self.log.details);
                    Next::Ends
                }
                Ok(Step::Event(Some(event))) => self.heard(event).await,
                Ok(Step::Event(None)) => self.broken("the modules' thread has ended").await,
                Ok(Step::Tried(tried)) => self.tried(*tried),
                Ok(Step::FromEndpoint(frame)) => self.answered(frame).await,
                Ok(Step::FromClient(frame)) => self.uploaded(frame).await,
            };
            if let Next::Ends = next {
                break;
            }
        }
        self.shared.actor.send(self.number, Input::Close);
        if self.kind == Kind::Inference {
            self.log();
        }
    }

    /// Breaks the client's connection or stream.
    async fn broken(&mut self, why: &str) -> Next {
        why.clone_into(&mut self.log.details);
        self.answer = None;
        if let Some(client) = self.client.take() {
            // One that has gone away is not to be told.
            let _ = client.send(Err(Broken)).await;
        }
        Next::Ends
    }

    async fn heard(&mut self, event: Event) -> Next {
        match event {
            Event::Opened { reads_responses } => self.reads_responses = reads_responses,
            Event::Done => self.busy = self.busy.saturating_sub(1),
            Event::RequestHeaders { headers, explanation } => {
                self.asked = Some(headers);
                self.route(explanation);
            }
            Event::RequestBody(chunk) => self.upload.push(chunk),
            Event::RequestEnd => self.upload.end(),
            Event::ResponseHeaders { headers, is_local, details } => {
                if is_local {
                    // Whatever the endpoint says is of no use any more.
                    (self.attempt, self.source) = (None, None);
                }
                if self.log.details.is_empty() {
                    self.log.details = details;
                }
                let (client, download) = mpsc::channel(WAITING_FRAMES);
                let id = self.log.request_id.as_deref();
                let response = message::to_response(&headers, id, Download(download));
                self.log.status = Some(response.status().as_u16());
                self.length = message::length(&self.log.method, &response);
                self.client = Some(client);
                if let Some(answer) = self.answer.take()
                    && answer.send(response).is_err()
                {
                    return Next::Ends;
                }
            }
            Event::ResponseBody(chunk) => return self.give(Frame::data(chunk)).await,
            Event::ResponseTrailers(trailers) => {
                return self.give(Frame::trailers(message::to_trailers(&trailers))).await;
            }
            Event::ResponseEnd => return Next::Ends,
            Event::Reset(why) => return self.broken(&why).await,
        }
        Next::Goes
    }

    /// Whether the client has all it waits for: HTTP lets go of a body then, also before its end is said.
    fn is_whole(&self) -> bool {
        self.client.is_some() && self.length.is_some_and(|length| self.log.response_bytes >= length)
    }

    async fn give(&mut self, frame: Frame<Bytes>) -> Next {
        self.log.response_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        if let Some(client) = &self.client
            && client.send(Ok(frame)).await.is_err()
            && !self.is_whole()
        {
            "downstream_remote_disconnect".clone_into(&mut self.log.details);
            return Next::Ends;
        }
        Next::Goes
    }

    /// Sends a request that has left the chain where it belongs.
    fn route(&mut self, explanation: Option<Vec<u8>>) {
        match self.kind {
            // Reached when the feeder is skipped or dead: that must never look like an ack.
            Kind::Feed => self.own(503, "", "direct_response"),
            Kind::Probe => {
                let text = explanation.unwrap_or_else(|| b"-".to_vec());
                self.own(200, Bytes::from(text), "direct_response");
            }
            Kind::Inference => {
                let routes = Arc::clone(&self.shared.routes);
                let asked = self.asked.clone().unwrap_or_default();
                match routes.of(&asked) {
                    None => self.own(404, "", "route_not_found"),
                    Some(routed) => {
                        let list = asked.get_str(DESTINATION).unwrap_or_default();
                        self.attempts = Some(Attempts::new(routed.cluster, list));
                        self.attempt(Duration::ZERO);
                    }
                }
            }
        }
    }

    /// An answer of the gateway's own, through the modules as any other.
    fn own(&mut self, status: u16, body: impl Into<Bytes>, details: &str) {
        let body = body.into();
        let headers = message::own(status, "text/plain", &body);
        let end = body.is_empty();
        let upstream = self.active.as_ref().map(|active| active.name.clone());
        let details = Some(details.to_owned());
        self.log.details = details.clone().unwrap_or_default();
        self.tell(Input::ResponseHeaders { headers, end, upstream, details });
        self.source =
            (!end).then(|| Full::new(body).map_err(|never| match never {}).boxed_unsync());
    }

    /// Begins an attempt, after a while.
    fn attempt(&mut self, after: Duration) {
        let routes = Arc::clone(&self.shared.routes);
        let Some(asked) = &self.asked else { return };
        let (Some(routed), Some(attempts)) = (routes.of(asked), &mut self.attempts) else { return };
        let Some(active) = attempts.next(routed.cluster, &self.shared.balancer, draw) else {
            return self.own(503, "no healthy upstream", "no_healthy_upstream");
        };
        let path = routed.path(asked.get_str(":path").unwrap_or("/"));
        let reader = self.upload.reader();
        let request = message::to_request(asked, &active.name, &path, reader);
        let shared = Arc::clone(&self.shared);
        self.attempt = Some(Box::pin(async move {
            tokio::time::sleep(after).await;
            let tried = match request {
                Ok(request) => shared.client.request(request).await.map_err(|error| {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    source.unwrap_or_else(|| error.to_string())
                }),
                Err(error) => Err(error.to_string()),
            };
            (active, tried)
        }));
    }

    /// An attempt is over: its answer goes to the client, unless another attempt is due.
    fn tried(&mut self, (active, tried): Tried) -> Next {
        self.attempt = None;
        let routes = Arc::clone(&self.shared.routes);
        let retries = self.asked.as_ref().and_then(|asked| routes.of(asked));
        let retries = retries.map_or(0, |routed| routed.cluster.retries);
        let made = self.attempts.as_ref().map_or(0, Attempts::count);
        let is_failure =
            tried.as_ref().map_or(true, |r| r.status() == StatusCode::SERVICE_UNAVAILABLE);
        if is_failure && made <= retries && self.upload.is_whole() {
            let most = (BACKOFF * 2u32.saturating_pow(made).saturating_sub(1)).min(MAX_BACKOFF);
            let after = most.mul_f64(f64::from(draw()) / f64::from(u32::MAX));
            self.attempt(after);
            return Next::Goes;
        }
        let upstream = Some(active.name.clone());
        self.active = Some(active);
        match tried {
            Ok(response) => {
                let headers = message::of_response(&response);
                let body = response.into_body();
                let end = body.is_end_stream();
                self.tell(Input::ResponseHeaders { headers, end, upstream, details: None });
                self.source = (!end).then(|| body.boxed_unsync());
            }
            Err(why) => {
                let text = format!(
                    "upstream connect error or disconnect/reset before headers. reset reason: {why}"
                );
                self.own(503, text, "upstream_reset_before_response_started");
            }
        }
        Next::Goes
    }

    async fn answered(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) -> Next {
        // What nobody looks at passes once the headers have.
        while !self.reads_responses && self.client.is_none() {
            let Some(event) = self.events.recv().await else {
                return self.broken("the modules' thread has ended").await;
            };
            if let Next::Ends = self.heard(event).await {
                return Next::Ends;
            }
            if self.source.is_none() {
                // An answer of a module's own took its place.
                return Next::Goes;
            }
        }
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) if self.reads_responses => {
                    self.tell(Input::ResponseBody { chunk, end: false });
                    Next::Goes
                }
                Ok(chunk) => self.give(Frame::data(chunk)).await,
                // The rendered clusters do not take trailers from endpoints.
                Err(_) => Next::Goes,
            },
            Some(Err(_)) => self.broken("upstream_reset_after_response_started").await,
            None => {
                self.source = None;
                if self.reads_responses {
                    self.tell(Input::ResponseBody { chunk: Bytes::new(), end: true });
                    return Next::Goes;
                }
                Next::Ends
            }
        }
    }

    async fn uploaded(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) -> Next {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => {
                    let end = self.incoming.as_ref().is_none_or(Body::is_end_stream);
                    if end {
                        self.incoming = None;
                    }
                    self.tell(Input::RequestBody { chunk, end });
                }
                Err(frame) => {
                    self.incoming = None;
                    let trailers = frame.trailers_ref().map(message::of_trailers);
                    self.tell(Input::RequestTrailers(trailers.unwrap_or_default()));
                }
            },
            Some(Err(_)) => return self.broken("downstream_remote_disconnect").await,
            None => {
                self.incoming = None;
                self.tell(Input::RequestBody { chunk: Bytes::new(), end: true });
            }
        }
        Next::Goes
    }

    fn log(&self) {
        let Log { began, method, path, request_id, status, details, response_bytes } = &self.log;
        let line = json!({
            "method": method,
            "path": path,
            "status": status,
            "details": details,
            "upstream": self.active.as_ref().map(|active| &active.name),
            "attempts": self.attempts.as_ref().map_or(0, Attempts::count),
            "request_bytes": self.upload.bytes(),
            "response_bytes": response_bytes,
            "ms": began.elapsed().as_millis() as u64,
            "request_id": request_id.as_deref().map(String::from_utf8_lossy),
        });
        println!("{} access {line}", seconds());
    }
}

enum Step {
    Gone,
    Event(Option<Event>),
    Tried(Box<Tried>),
    FromEndpoint(Option<Result<Frame<Bytes>, hyper::Error>>),
    FromClient(Option<Result<Frame<Bytes>, hyper::Error>>),
}

/// Resolves when the client does not wait any more.
async fn gone(
    answer: &mut Option<Answer>,
    client: &Option<mpsc::Sender<Result<Frame<Bytes>, Broken>>>,
) {
    match (answer, client) {
        (Some(answer), _) => answer.closed().await,
        (None, Some(client)) => client.closed().await,
        (None, None) => std::future::pending().await,
    }
}

async fn attempt(attempt: &mut Option<Attempt>) -> Tried {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}

async fn from(source: &mut Option<Source>) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    match source {
        Some(source) => source.frame().await,
        None => std::future::pending().await,
    }
}

async fn from_client(
    incoming: &mut Option<Incoming>,
    upload: &Upload,
) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    match incoming {
        Some(incoming) => {
            upload.room().await;
            incoming.frame().await
        }
        None => std::future::pending().await,
    }
}

fn draw() -> u32 {
    // Without randomness the first of equals is taken.
    getrandom::u32().unwrap_or(0)
}
