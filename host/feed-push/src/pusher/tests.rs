//! The pusher against the real feeder behind a real socket, with gateways that restart, lose
//! answers, refuse, and that two daemons want.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use feed::{Accuracy, BucketWriter, Directory, DirectoryEntry, Key, SlotAccuracy, value_epoch};
use feeder::Feeder;
use hostcalls::memory::MemoryHost;
use hostcalls::{Expect, Host as _};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use super::*;

/// A gateway process: the feeder and its shared data.
#[derive(Default)]
struct Gateway {
    feeder: Feeder,
    host: MemoryHost,
    /// Posts from now on whose answer is lost although the batch is applied.
    lose_answers: u32,
    /// Posts from now on that the feeder does not see.
    answer_503: u32,
    /// Whether its feeder can say how right predictions were.
    knows_accuracy: bool,
}

type Shared = Arc<Mutex<Gateway>>;

fn gateway() -> Gateway {
    static RANDOM: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);
    let gateway = Gateway::default();
    gateway.host.random.set(RANDOM.fetch_add(10, std::sync::atomic::Ordering::Relaxed));
    gateway
}

async fn serve(listener: UnixListener, gateway: Shared) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let gateway = Arc::clone(&gateway);
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let mut gateway = gateway.lock().unwrap();
                    let gateway = &mut *gateway;
                    if path == feed::ACCURACY_PATH {
                        let report = feeder::accuracy(&gateway.host).encode();
                        let status = if gateway.knows_accuracy { 200 } else { 404 };
                        let body = Full::new(Bytes::from(report));
                        return Ok(Response::builder().status(status).body(body).unwrap());
                    }
                    if gateway.answer_503 > 0 {
                        gateway.answer_503 -= 1;
                        return Ok(Response::builder().status(503).body(Full::default()).unwrap());
                    }
                    gateway.host.now_ns.set(gateway.host.now_ns.get() + 1_000_000);
                    let ack = gateway.feeder.post(&gateway.host, &body);
                    if gateway.lose_answers > 0 {
                        gateway.lose_answers -= 1;
                        return Ok(Response::builder().status(502).body(Full::default()).unwrap());
                    }
                    let status = ack.status.http_status() as u16;
                    Ok::<_, Infallible>(
                        Response::builder()
                            .status(status)
                            .body(Full::new(Bytes::from(ack.encode())))
                            .unwrap(),
                    )
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Numbered values, each in a bucket of its own: all, changed, and those in flight.
#[derive(Clone, Default)]
struct Values(Arc<Mutex<(Buckets, Buckets)>>, Vec<u32>);

type Buckets = BTreeMap<u32, u8>;

impl Values {
    fn set(&self, bucket: u32, value: u8) {
        let mut inner = self.0.lock().unwrap();
        inner.0.insert(bucket, value);
        inner.1.insert(bucket, value);
    }
}

impl StateSource for Values {
    fn begin_snapshot(&mut self) {
        let mut inner = self.0.lock().unwrap();
        inner.1 = inner.0.clone();
    }
    fn fill(&mut self, epoch: u64, batch: &mut BatchBuilder, _: usize, _: u32) -> Fill {
        let mut inner = self.0.lock().unwrap();
        self.1.clear();
        for _ in 0..3 {
            let Some((bucket, value)) = inner.1.pop_first() else { break };
            let mut bytes = BucketWriter::new(epoch).finish();
            bytes.extend([value, 0, 0, 0, 0]);
            batch.push(Key::Bucket(0, bucket), &bytes);
            self.1.push(bucket);
        }
        if inner.1.is_empty() { Fill::Drained } else { Fill::More }
    }
    fn applied(&mut self) {
        self.1.clear();
    }
    fn unknown(&mut self) {
        let mut inner = self.0.lock().unwrap();
        for bucket in self.1.drain(..) {
            let value = inner.0[&bucket];
            inner.1.insert(bucket, value);
        }
    }
}

struct Setup {
    folder: tempfile::TempDir,
    gateway: Shared,
    server: tokio::task::JoinHandle<()>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let gateway: Shared = Arc::new(Mutex::new(gateway()));
        let listener = UnixListener::bind(folder.path().join("feed")).unwrap();
        let server = tokio::spawn(serve(listener, Arc::clone(&gateway)));
        Self { folder, gateway, server }
    }

    /// Another process takes the path; the old one keeps its open connections.
    fn hot_restart(&mut self) -> Shared {
        let path = self.folder.path().join("feed");
        self.server.abort();
        std::fs::remove_file(&path).unwrap();
        let gateway: Shared = Arc::new(Mutex::new(gateway()));
        let listener = UnixListener::bind(path).unwrap();
        self.server = tokio::spawn(serve(listener, Arc::clone(&gateway)));
        std::mem::replace(&mut self.gateway, gateway)
    }

    fn pusher(&self, values: impl StateSource + Sync) -> Running {
        let changed = Arc::new(Notify::new());
        let (stop, stopped) = watch::channel(false);
        let (aside, set_aside) = watch::channel(false);
        let pusher = Pusher::new(
            PusherConfig {
                poll: Duration::MAX,
                name: "gw".into(),
                target: Target::Unix(self.folder.path().join("feed")),
                changed: Arc::clone(&changed),
                aside: set_aside,
                stop: stopped,
            },
            values,
        );
        let status = pusher.status();
        Running { changed, aside, stop, status, task: tokio::spawn(pusher.run()) }
    }

    /// Waits until the gateway's active state is exactly `expected`.
    async fn holds(&self, expected: &[(u32, u8)]) {
        wait_for(|| held(&self.gateway).as_deref() == Some(expected)).await;
    }
}

struct Running {
    changed: Arc<Notify>,
    aside: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    status: Arc<Mutex<GatewayStatus>>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn is(&self, state: PushState) {
        wait_for(|| self.status.lock().unwrap().state == state).await;
    }
}

async fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "did not come true within 20 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Buckets of the active epoch, or `None` while there is none.
fn held(gateway: &Shared) -> Option<Vec<(u32, u8)>> {
    let gateway = gateway.lock().unwrap();
    let data = gateway.host.data.borrow();
    let head = Head::decode(&data.get(b"feed/head".as_slice())?.0).unwrap();
    let active = head.active_epoch()?;
    let buckets = data.iter().filter(|(key, _)| key[0] == b'B');
    let mine = buckets.filter(|(_, (value, _))| value_epoch(value) == Some(active));
    Some(mine.map(|(key, (value, _))| (u32::from(key[3]), value[10])).collect())
}

#[tokio::test]
async fn a_gateway_gets_a_snapshot_then_changes() {
    let setup = Setup::new();
    let values = Values::default();
    (0..10).for_each(|i| values.set(i, i as u8));
    let running = setup.pusher(values.clone());
    setup.holds(&(0..10).map(|i| (i, i as u8)).collect::<Vec<_>>()).await;
    running.is(PushState::Live).await;
    values.set(3, 77);
    running.changed.notify_one();
    wait_for(|| held(&setup.gateway).unwrap()[3] == (3, 77)).await;
    assert_eq!(running.status.lock().unwrap().snapshots, 1);
    let acked_at = running.status.lock().unwrap().last_ack;
    // The next heartbeat moves it.
    wait_for(|| running.status.lock().unwrap().last_ack > acked_at && acked_at.is_some()).await;
    values.set(4, 99);
    running.stop.send(true).unwrap();
    running.task.await.unwrap();
    assert_eq!(held(&setup.gateway).unwrap()[4], (4, 99), "what was left is pushed before the end");
}

#[tokio::test]
async fn lost_answers_and_a_dead_feeder_lose_nothing() {
    let setup = Setup::new();
    let values = Values::default();
    values.set(1, 1);
    let running = setup.pusher(values.clone());
    running.is(PushState::Live).await;
    setup.gateway.lock().unwrap().lose_answers = 2;
    values.set(1, 2);
    values.set(2, 2);
    running.changed.notify_one();
    wait_for(|| setup.gateway.lock().unwrap().lose_answers == 0).await;
    setup.gateway.lock().unwrap().answer_503 = 2;
    values.set(3, 3);
    running.changed.notify_one();
    wait_for(|| setup.gateway.lock().unwrap().answer_503 == 0).await;
    setup.holds(&[(1, 2), (2, 2), (3, 3)]).await;
    running.is(PushState::Live).await;
    assert_eq!(running.status.lock().unwrap().snapshots, 1, "a lost answer needs no snapshot");
    assert!(running.status.lock().unwrap().failures >= 4);
}

#[tokio::test]
async fn a_hot_restart_is_found_by_the_fresh_connection() {
    let mut setup = Setup::new();
    let values = Values::default();
    values.set(1, 1);
    let running = setup.pusher(values.clone());
    running.is(PushState::Live).await;
    let old = setup.hot_restart();
    setup.holds(&[(1, 1)]).await;
    assert!(held(&old).is_some());
    wait_for(|| running.status.lock().unwrap().snapshots == 2).await;
}

/// Three values, and changes without end.
struct Endless {
    left: u32,
    last: u8,
}

impl StateSource for Endless {
    fn begin_snapshot(&mut self) {
        self.left = 3;
    }
    fn fill(&mut self, epoch: u64, batch: &mut BatchBuilder, _: usize, _: u32) -> Fill {
        self.left = self.left.saturating_sub(1);
        self.last = self.last.wrapping_add(1);
        let mut bytes = BucketWriter::new(epoch).finish();
        bytes.extend([self.last, 0, 0, 0, 0]);
        batch.push(Key::Bucket(0, self.left), &bytes);
        if self.left > 0 { Fill::More } else { Fill::Newer }
    }
    fn applied(&mut self) {}
    fn unknown(&mut self) {
        self.left = 3;
    }
}

#[tokio::test]
async fn changes_without_end_neither_keep_a_snapshot_from_being_whole_nor_hide_a_hot_restart() {
    let mut setup = Setup::new();
    let running = setup.pusher(Endless { left: 0, last: 0 });
    running.is(PushState::Live).await;
    let buckets = |of: &Shared| held(of).map(|held| held.iter().map(|(n, _)| *n).collect());
    assert_eq!(buckets(&setup.gateway), Some(vec![0, 1, 2]));
    setup.hot_restart();
    wait_for(|| buckets(&setup.gateway) == Some(vec![0, 1, 2])).await;
}

/// As many values as the batch takes, of those that wait; which sizes were asked for.
struct Backlog(Arc<Mutex<(u32, Vec<u32>)>>);

impl StateSource for Backlog {
    fn begin_snapshot(&mut self) {}
    fn fill(&mut self, epoch: u64, batch: &mut BatchBuilder, _: usize, most: u32) -> Fill {
        let mut inner = self.0.lock().unwrap();
        inner.1.push(most);
        let taken = most.min(inner.0);
        inner.0 -= taken;
        for bucket in 0..taken {
            batch.push(Key::Bucket(0, bucket), &BucketWriter::new(epoch).finish());
        }
        if inner.0 == 0 { Fill::Drained } else { Fill::More }
    }
    fn applied(&mut self) {}
    fn unknown(&mut self) {}
}

#[tokio::test]
async fn batches_grow_while_more_waits_and_shrink_again() {
    let setup = Setup::new();
    let state = Arc::new(Mutex::new((6000, Vec::new())));
    let running = setup.pusher(Backlog(Arc::clone(&state)));
    // A heartbeat's batch follows the last of the backlog.
    wait_for(|| state.lock().unwrap().1.len() >= 6).await;
    assert_eq!(state.lock().unwrap().1[..6], [500, 1000, 2000, 2000, 2000, 500]);
    running.is(PushState::Live).await;
}

#[tokio::test]
async fn a_second_daemon_takes_over_and_the_first_stands_by_until_it_is_gone() {
    let setup = Setup::new();
    let (first_values, second_values) = (Values::default(), Values::default());
    first_values.set(1, 1);
    second_values.set(1, 2);
    let first = setup.pusher(first_values.clone());
    first.is(PushState::Live).await;
    let second = setup.pusher(second_values.clone());
    second.is(PushState::Live).await;
    first.is(PushState::Standby).await;
    setup.holds(&[(1, 2)]).await;
    second.stop.send(true).unwrap();
    second.task.await.unwrap();
    // The test's gateway clock moves per post; the first daemon's questions move it too.
    setup.gateway.lock().unwrap().host.now_ns.set(10_000_000_000);
    first.is(PushState::Live).await;
    setup.holds(&[(1, 1)]).await;
}

#[tokio::test]
async fn who_hears_nothing_leaves_the_gateway_to_another_and_does_not_take_it_back() {
    let setup = Setup::new();
    let (first_values, second_values) = (Values::default(), Values::default());
    first_values.set(1, 1);
    second_values.set(1, 2);
    let (first, second) = (setup.pusher(first_values), setup.pusher(second_values));
    wait_for(|| {
        let states = [&first, &second].map(|one| one.status.lock().unwrap().state);
        states.contains(&PushState::Live) && states.contains(&PushState::Standby)
    })
    .await;
    let is_first = first.status.lock().unwrap().state == PushState::Live;
    let (feeding, waiting, theirs) = if is_first { (first, second, 2) } else { (second, first, 1) };
    feeding.aside.send(true).unwrap();
    feeding.is(PushState::Standby).await;
    setup.gateway.lock().unwrap().host.now_ns.set(10_000_000_000);
    waiting.is(PushState::Live).await;
    setup.holds(&[(1, theirs)]).await;
    feeding.aside.send(false).unwrap();
    let heard = feeding.status.lock().unwrap().last_ack;
    wait_for(|| feeding.status.lock().unwrap().last_ack > heard).await;
    assert_eq!(feeding.status.lock().unwrap().state, PushState::Standby);
    // Until the other one hears nothing.
    waiting.aside.send(true).unwrap();
    waiting.is(PushState::Standby).await;
    setup.gateway.lock().unwrap().host.now_ns.set(30_000_000_000);
    feeding.is(PushState::Live).await;
}

#[tokio::test]
async fn no_gateway_yet_is_retried_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let values = Values::default();
    values.set(1, 1);
    let setup =
        Setup { folder, gateway: Arc::new(Mutex::new(gateway())), server: tokio::spawn(async {}) };
    let running = setup.pusher(values.clone());
    wait_for(|| running.status.lock().unwrap().last_error.is_some()).await;
    let error = running.status.lock().unwrap().last_error.clone().unwrap();
    assert!(error.contains("connect to the feed listener: No such file"), "{error}");
    let listener = UnixListener::bind(setup.folder.path().join("feed")).unwrap();
    tokio::spawn(serve(listener, Arc::clone(&setup.gateway)));
    setup.holds(&[(1, 1)]).await;
}

#[tokio::test]
async fn how_right_the_predictions_were_is_looked_at_with_each_connection() {
    let setup = Setup::new();
    let values = Values::default();
    values.set(1, 1);
    let running = setup.pusher(values.clone());
    running.is(PushState::Live).await;
    let epoch = running.status.lock().unwrap().head.epoch;
    let told = |of: &Running| of.status.lock().unwrap().accuracy.scopes.clone();
    let of = |answers, epoch| {
        let slots = vec![(4, SlotAccuracy { answers, ..SlotAccuracy::default() })];
        Accuracy { epoch, slots }
    };
    let measured = |accuracy: Accuracy| {
        let epoch = accuracy.epoch;
        let gateway = setup.gateway.lock().unwrap();
        let set = |key: Key, value: Vec<u8>| {
            gateway.host.set_shared(key.encode().as_ref(), &value, Expect::Anything).unwrap();
        };
        let entries = vec![DirectoryEntry::default()];
        set(Key::Directory(Key::parity(epoch)), Directory { epoch, entries }.encode());
        set(Key::Accuracy(0), accuracy.encode());
    };
    measured(of(7, epoch));
    // A feeder that does not know the question is fed all the same.
    let before = running.status.lock().unwrap().batches;
    wait_for(|| running.status.lock().unwrap().batches >= before + 2).await;
    assert_eq!(told(&running), []);
    setup.gateway.lock().unwrap().knows_accuracy = true;
    wait_for(|| told(&running) == [(0, of(7, epoch))]).await;
    measured(of(8, epoch));
    wait_for(|| told(&running) == [(0, of(8, epoch))]).await;
    assert_eq!(running.status.lock().unwrap().failures, 0);
    // Of another writer, whose slots are not ours.
    let other = setup.pusher(values.clone());
    other.is(PushState::Live).await;
    let epoch = other.status.lock().unwrap().head.epoch;
    measured(of(9, epoch));
    wait_for(|| told(&other) == [(0, of(9, epoch))]).await;
    running.is(PushState::Standby).await;
    wait_for(|| told(&running).is_empty()).await;
}
