//! A rolling upgrade over a change of the feed's format: daemon and modules of neighbouring formats
//! refuse each other by name, and requests are served all the while.
//!
//! The neighbour is made of the real one: a proxy on the feed's way writes another format's number
//! into what passes, which is all that a reader of this format may look at.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use testbed::{Stand, StandOptions, wait_until};
use tokio::net::{TcpListener, UnixStream};

use crate::support::{
    COMPLETIONS, Protocol, assert_fell_back, completion, fallbacks, line, prose, served, teach,
};

const SAME: u8 = 0;
/// The daemon writes a later format.
const DAEMON_LATER: u8 = 1;
/// The feeder reads and writes a later format.
const FEEDER_LATER: u8 = 2;

/// Place of the format's number in a batch, after the magic, and in an ack, after the kind.
const IN_BATCH: usize = 4;
const IN_ACK: usize = 1;

async fn proxy(listener: TcpListener, feed: PathBuf, era: Arc<AtomicU8>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (feed, era) = (feed.clone(), Arc::clone(&era));
        tokio::spawn(async move {
            let pass = service_fn(|request: hyper::Request<Incoming>| {
                let (feed, era) = (feed.clone(), era.load(Ordering::SeqCst));
                async move { Ok::<_, Infallible>(pass(request, feed, era).await) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            // A client that goes away is no failure of the proxy.
            let _ = server.serve_connection(TokioIo::new(stream), pass).await;
        });
    }
}

async fn pass(
    request: hyper::Request<Incoming>,
    feed: PathBuf,
    era: u8,
) -> hyper::Response<Full<Bytes>> {
    let unreachable = || hyper::Response::builder().status(503).body(Full::default()).unwrap();
    let (head, body) = request.into_parts();
    let mut batch = body.collect().await.unwrap().to_bytes().to_vec();
    match era {
        // A question without a batch has no format.
        _ if head.method == http::Method::GET => {}
        DAEMON_LATER => batch[IN_BATCH] += 1,
        // To a later feeder this batch is of an earlier format.
        FEEDER_LATER => batch[IN_BATCH] -= 1,
        _ => {}
    }
    let Ok(stream) = UnixStream::connect(feed).await else { return unreachable() };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::from_parts(head, Full::new(Bytes::from(batch)));
    let Ok(answer) = sender.send_request(request).await else { return unreachable() };
    let status = answer.status();
    let mut ack = answer.into_body().collect().await.unwrap().to_bytes().to_vec();
    if era == FEEDER_LATER && ack.len() > IN_ACK {
        ack[IN_ACK] += 1;
    }
    hyper::Response::builder().status(status).body(Full::new(Bytes::from(ack))).unwrap()
}

async fn gateway_is(stand: &Stand, state: &str) -> String {
    wait_until(&format!("the gateway is {state}"), Duration::from_secs(30), async || {
        let gateway = stand.readyz().await.ok()?["gateways"][0].clone();
        let error = gateway["error"].as_str().unwrap_or_default().to_owned();
        (gateway["state"] == state).then_some(error)
    })
    .await
    .unwrap()
}

/// A request is served, and left to the proxy's policy for `reason`.
async fn falls_back(stand: &Stand, reason: &str) {
    let before = fallbacks(stand).await;
    let body = completion(&prose("an upgrade", 800));
    let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
    served(stand, &answer, &body);
    assert_fell_back(stand, &before, reason, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbouring_formats_refuse_each_other_by_name_and_requests_are_served() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut stand = Stand::prepare(StandOptions {
        more_config: format!(
            "gateways: [{{name: gw-0, feed: \"http://{address}\"}}]\nrouting: {{maxStateAgeMs: 2000}}\n"
        ),
        ..StandOptions::default()
    })
    .await
    .unwrap();
    let era = Arc::new(AtomicU8::new(FEEDER_LATER));
    let feed = stand.folder.path().join("feed.sock");
    let proxy = tokio::spawn(proxy(listener, feed, Arc::clone(&era)));
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();

    // Modules first.
    let error = gateway_is(&stand, "refused").await;
    assert_eq!(
        error,
        "the gateway's feeder speaks feed format 2 and this daemon 1: run both of one version"
    );
    falls_back(&stand, "no_state").await;

    // The daemon follows, here by both being of one format again.
    era.store(SAME, Ordering::SeqCst);
    stand.wait_ready().await.unwrap();
    let body = completion(&prose("after an upgrade", 3000));
    let holder = teach(&stand, &body).await;

    // The daemon first: what it pushed before stays until it is too old.
    era.store(DAEMON_LATER, Ordering::SeqCst);
    let error = gateway_is(&stand, "refused").await;
    assert!(
        error.starts_with("the gateway refused a batch: feed format 2, and this build speaks 1 ("),
        "{error}"
    );
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_eq!(served(&stand, &answer, &body), holder);
    wait_until("the state is stale", Duration::from_secs(30), async || {
        let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
        fallbacks(&stand).await.contains_key("state_stale").then_some(())
    })
    .await
    .unwrap();

    era.store(SAME, Ordering::SeqCst);
    gateway_is(&stand, "live").await;
    // By now others hold it as well: the proxy's policy sent it to them.
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    let engine = served(&stand, &answer, &body);
    let line = line(&stand, &answer).await;
    assert!(line.scores().unwrap()[&engine] > 0, "{line:?}");
    proxy.abort();
}
