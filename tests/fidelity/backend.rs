//! The upstream of one script: HTTP/2, answers as told, writes down what it received.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::record::Message;
use crate::script::{Answer, Pairs, Part, frames};

/// Path of requests that are no part of a script.
pub(crate) const WARM: &str = "/warm";
/// How the paths of callouts begin.
pub(crate) const CALLOUT: &str = "/callout";

/// Pings by which one side knows that the other has read all before it.
pub(crate) type Pings = Arc<tokio::sync::Mutex<PingPong>>;

/// Waits until the peer has read what was sent. A ping may overtake frames that are queued, but not
/// those that were queued before an earlier ping came back.
pub(crate) async fn barrier(pings: &Pings) -> Result<(), h2::Error> {
    let mut pings = pings.lock().await;
    for _ in 0..2 {
        pings.ping(Ping::opaque()).await?;
    }
    Ok(())
}

#[derive(Default)]
struct State {
    answer: Answer,
    callouts: BTreeMap<String, Answer>,
    received: Vec<Message>,
    called: Vec<Message>,
    active: usize,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    released: watch::Sender<BTreeSet<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    pub(crate) async fn start(callouts: BTreeMap<String, Answer>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State { callouts, ..State::default() }));
        let (released, _) = watch::channel(BTreeSet::new());
        let (states, gates) = (Arc::clone(&state), released.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&states), gates.clone()));
            }
        });
        Ok(Self { address, state, released, task })
    }

    pub(crate) fn answer_with(&self, answer: Answer) {
        lock(&self.state).answer = answer;
    }

    pub(crate) fn release(&self, gate: &str) {
        self.released.send_modify(|released| {
            released.insert(gate.to_owned());
        });
    }

    /// Whether all that has come is written down, and answered but for callouts.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.state).active == 0
    }

    /// Requests since the last time: of clients, of guests.
    pub(crate) fn take(&self) -> (Vec<Message>, Vec<Message>) {
        let mut state = lock(&self.state);
        (std::mem::take(&mut state.received), std::mem::take(&mut state.called))
    }
}

async fn serve(
    stream: TcpStream,
    state: Arc<Mutex<State>>,
    gates: watch::Sender<BTreeSet<String>>,
) {
    let _ = stream.set_nodelay(true);
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let Some(pings) = connection.ping_pong() else { return };
    let pings: Pings = Arc::new(tokio::sync::Mutex::new(pings));
    let mut streams = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let is_warm = request.uri().path() == WARM;
        lock(&state).active += usize::from(!is_warm);
        let (state, pings) = (Arc::clone(&state), Arc::clone(&pings));
        let released = gates.subscribe();
        streams.spawn(async move {
            let is_callout = request.uri().path().starts_with(CALLOUT);
            // A stream that the proxy resets is written down as such.
            let _ = exchange(request, respond, &state, &pings, released).await;
            lock(&state).active -= usize::from(!is_warm && !is_callout);
        });
    }
}

async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    state: &Mutex<State>,
    pings: &Pings,
    mut released: watch::Receiver<BTreeSet<String>>,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    if path == WARM {
        respond.send_response(Response::new(()), true)?;
        return Ok(());
    }
    let mut headers = pairs(&parts.headers);
    headers.push((":method".into(), parts.method.to_string()));
    let of_uri = [
        (":scheme", parts.uri.scheme_str()),
        (":authority", parts.uri.authority().map(|a| a.as_str())),
    ];
    headers
        .extend(of_uri.into_iter().filter_map(|(name, value)| Some((name.into(), value?.into()))));
    let full = parts.uri.path_and_query().map_or("", |path| path.as_str());
    headers.push((":path".into(), full.to_owned()));
    let mut message = Message { headers: Some(headers), ..Message::default() };
    let is_callout = path.starts_with(CALLOUT);
    read(&mut body, &mut message).await;
    let is_complete = message.is_complete;
    let answer = {
        let mut state = lock(state);
        if is_callout {
            state.called.push(message);
            state.active -= 1;
            state.callouts.get(&path).cloned().unwrap_or_default()
        } else {
            state.received.push(message);
            state.answer.clone()
        }
    };
    if !is_complete {
        return Ok(());
    }
    if let Some(gate) = &answer.gate {
        // The backend outlives its streams.
        let _ = released.wait_for(|released| released.contains(gate)).await;
    }
    if answer.never {
        let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
        return Ok(());
    }
    if answer.reset {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(answer.status).unwrap_or_default();
    *response.headers_mut() = map(&answer.headers);
    let pieces: Vec<_> = answer.body.iter().filter_map(Part::data).collect();
    let frames = frames(&pieces, &answer.trailers);
    let mut send =
        respond.send_response(response, frames.is_empty() && answer.trailers.is_empty())?;
    barrier(pings).await?;
    for (frame, is_last) in frames {
        send.send_data(frame.into(), is_last)?;
        barrier(pings).await?;
    }
    if !answer.trailers.is_empty() {
        send.send_trailers(map(&answer.trailers))?;
    }
    Ok(())
}

/// Reads a body to its end, however it ends.
pub(crate) async fn read(body: &mut RecvStream, message: &mut Message) {
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        message.body.extend_from_slice(&data);
        if body.flow_control().release_capacity(data.len()).is_err() {
            return;
        }
    }
    match body.trailers().await {
        Ok(trailers) => {
            message.trailers = trailers.map(|trailers| pairs(&trailers));
            message.is_complete = true;
        }
        Err(_) => message.is_complete = false,
    }
}

pub(crate) fn pairs(map: &HeaderMap) -> Pairs {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

pub(crate) fn map(pairs: &Pairs) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::try_from(name).expect("a header's name");
        map.append(name, HeaderValue::from_str(value).expect("a header's value"));
    }
    map
}
