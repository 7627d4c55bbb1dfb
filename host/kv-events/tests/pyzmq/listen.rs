//! Many publishers that connect to one listener.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_events::{
    Counters, Counts, Directory, EventListener, ListenConfig, ListenUpdate, Position, Resume,
    Timing, Topic,
};
use tokio::sync::mpsc;

use crate::support::{Publisher, in_time, python, timing, word};

/// What is known of pods before they connect.
#[derive(Default)]
struct Known {
    replays: HashMap<String, String>,
    places: Mutex<HashMap<String, Resume>>,
}

impl Directory for Known {
    fn replay(&self, topic: &Topic) -> Option<String> {
        self.replays.get(&topic.pod).cloned()
    }

    fn resume(&self, topic: &Topic) -> Option<Resume> {
        self.places.lock().expect("no panic").remove(&topic.pod)
    }
}

struct Heard {
    endpoint: String,
    updates: mpsc::Receiver<ListenUpdate>,
    counters: Arc<Counters>,
    /// Of pod `own`.
    own: Arc<Counters>,
}

impl Heard {
    async fn listen(config: ListenConfig, replays: HashMap<String, String>) -> Self {
        Self::knowing(config, Known { replays, places: Mutex::default() }).await
    }

    async fn knowing(config: ListenConfig, known: Known) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let counters = Arc::<Counters>::default();
        let listener = EventListener::bind(config).await.expect("a port");
        let endpoint = listener.endpoint().to_owned();
        let own = Arc::<Counters>::default();
        let of_own = Arc::clone(&own);
        let listener = listener.counting(Arc::new(move |topic: &Topic| {
            (topic.pod == "own").then(|| Arc::clone(&of_own))
        }));
        let timing = Timing { silence: Duration::from_millis(500), ..timing() };
        tokio::spawn(listener.run(timing, counters.clone(), Arc::new(known), sender));
        Self { endpoint, updates, counters, own }
    }

    async fn anywhere() -> Self {
        Self::listen(ListenConfig::new("tcp://127.0.0.1:0"), HashMap::new()).await
    }

    async fn publisher(&self, topic: &str, more: &[&str]) -> Option<Publisher> {
        let args = [&["--connect", &self.endpoint, "--topic", topic], more].concat();
        Publisher::start(&args).await
    }

    fn counts(&self) -> Counts {
        self.counters.counts()
    }

    /// The next update as `pod:word`.
    async fn next(&mut self) -> String {
        let update = in_time("update", self.updates.recv()).await;
        let ListenUpdate { topic, update } = update.expect("a source");
        assert_eq!(topic.model, "tiny@v1");
        format!("{}:{}", topic.pod, word(&update))
    }

    async fn until(&mut self, word: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                got if got == word => return before,
                got => before.push(got),
            }
        }
    }

    /// Publishes until one of the words is heard; nothing tells when a subscription takes effect.
    async fn sending(&mut self, publisher: &mut Publisher, words: &[&str]) {
        let heard = async {
            loop {
                publisher.tell("send 1").await;
                let wait = Duration::from_millis(100);
                while let Ok(word) = tokio::time::timeout(wait, self.next()).await {
                    if words.contains(&word.as_str()) {
                        return;
                    }
                }
            }
        };
        in_time(&words.join(" or "), heard).await;
    }

    /// Publishes until `a` is connected and has delivered something. How much of its history is
    /// known is a matter of luck: what is published before the subscription takes effect is lost.
    async fn up(&mut self, publisher: &mut Publisher, pod: &str) {
        let states = [format!("{pod}:live"), format!("{pod}:partial")];
        self.sending(publisher, &[&states[0], &states[1]]).await;
    }

    /// Publishes until a number counts something.
    async fn counted(&self, publisher: &mut Publisher, count: impl Fn(Counts) -> u64) {
        let counted = async {
            while count(self.counts()) == 0 {
                publisher.tell("send 1").await;
            }
        };
        in_time("count", counted).await;
    }
}

/// A free port for a replay socket that has to be known before there is a publisher.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("a port").port().to_string()
}

#[tokio::test]
async fn publishers_are_told_apart_by_topic_and_replayed_each_from_its_own_address() {
    let ports = [free_port(), free_port()];
    let address = |port: &String| format!("tcp://127.0.0.1:{port}");
    let replays = [("a".to_owned(), address(&ports[0])), ("b:8000".to_owned(), address(&ports[1]))];
    let config = ListenConfig::new("tcp://127.0.0.1:0");
    let mut heard = Heard::listen(config, replays.into()).await;
    for (pod, port) in ["a", "b:8000"].iter().zip(&ports) {
        let args = ["--replay-port", port, "--drop", "0", "1", "2"];
        let topic = format!("kv@{pod}@tiny@v1");
        let Some(mut publisher) = heard.publisher(&topic, &args).await else { return };
        publisher.tell("send 5").await;
        // What was not published live comes by replay.
        heard.sending(&mut publisher, &[&format!("{pod}:0")]).await;
        for sequence in 1..=5 {
            let between = heard.until(&format!("{pod}:{sequence}")).await;
            assert!(between.iter().all(|word| word.ends_with(":live")), "{between:?}");
        }
        publisher.kill().await;
        heard.until(&format!("{pod}:lost")).await;
    }
}

#[tokio::test]
async fn a_publisher_whose_numbers_do_not_follow_on_a_known_place_is_void() {
    let position = Position { sequence: 7, fingerprint: 1 };
    let places = [("a".to_owned(), Resume { position, partial: false })];
    let known = Known { places: Mutex::new(places.into()), ..Known::default() };
    let mut heard = Heard::knowing(ListenConfig::new("tcp://127.0.0.1:0"), known).await;
    let Some(mut publisher) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    heard.sending(&mut publisher, &["a:restart"]).await;
}

#[tokio::test]
async fn a_publisher_that_comes_back_from_zero_is_a_restart() {
    let mut heard = Heard::anywhere().await;
    let Some(mut publisher) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    publisher.tell("send 30").await;
    heard.up(&mut publisher, "a").await;
    publisher.tell("restart").await;
    heard.until("a:lost").await;
    heard.sending(&mut publisher, &["a:restart"]).await;
}

#[tokio::test]
async fn two_pods_do_not_disturb_each_other() {
    let mut heard = Heard::anywhere().await;
    let Some(mut a) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    let Some(mut b) = heard.publisher("kv@b@tiny@v1", &[]).await else { return };
    heard.up(&mut a, "a").await;
    heard.up(&mut b, "b").await;
    a.tell("send 10").await;
    b.tell("send 10").await;
    let mut numbers = HashMap::<String, Vec<u64>>::new();
    while numbers.len() < 2 || numbers.values().any(|of| of.len() < 10) {
        let word = heard.next().await;
        let (pod, number) = word.rsplit_once(':').expect("pod:word");
        if let Ok(number) = number.parse() {
            numbers.entry(pod.to_owned()).or_default().push(number);
        }
    }
    for (pod, of) in numbers {
        assert!(of.windows(2).all(|pair| pair[1] == pair[0] + 1), "{pod}: {of:?}");
    }
    assert_eq!(heard.counts(), Counts::default());
}

#[tokio::test]
async fn topics_of_another_form_are_counted() {
    let heard = Heard::anywhere().await;
    // The prefix is right, so that the subscription lets it through.
    let Some(mut publisher) = heard.publisher("kv@nobody", &[]).await else { return };
    heard.counted(&mut publisher, |counts| counts.unknown_topics).await;
}

#[tokio::test]
async fn sources_are_bounded_and_the_long_gone_make_room() {
    let config = ListenConfig { max_sources: 1, ..ListenConfig::new("tcp://127.0.0.1:0") };
    let mut heard = Heard::listen(config, HashMap::new()).await;
    let Some(mut a) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    heard.up(&mut a, "a").await;
    let Some(mut b) = heard.publisher("kv@b@tiny@v1", &[]).await else { return };
    heard.counted(&mut b, |counts| counts.sources_refused).await;
    a.kill().await;
    heard.until("a:lost").await;
    heard.sending(&mut b, &["a:gap"]).await;
    heard.until("b:connecting").await;
    assert_eq!(heard.counts().sources_evicted, 1);
}

#[tokio::test]
async fn a_topic_belongs_to_the_newest_connection() {
    let mut heard = Heard::anywhere().await;
    let Some(mut old) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    heard.up(&mut old, "a").await;
    let Some(mut new) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    heard.sending(&mut new, &["a:lost"]).await;
    heard.up(&mut new, "a").await;
    // The old one does not get through until the new one is gone.
    heard.counted(&mut old, |counts| counts.superseded).await;
    new.kill().await;
    heard.until("a:lost").await;
    heard.up(&mut old, "a").await;
}

#[tokio::test]
async fn a_pod_with_counters_of_its_own_is_counted_apart() {
    let port = free_port();
    let replays = [("own".to_owned(), format!("tcp://127.0.0.1:{port}"))];
    let mut heard = Heard::listen(ListenConfig::new("tcp://127.0.0.1:0"), replays.into()).await;
    let topic = "kv@own@tiny@v1";
    let args = ["--replay-port", &port, "--drop", "0", "1", "2"];
    let Some(mut old) = heard.publisher(topic, &args).await else { return };
    old.tell("send 5").await;
    heard.up(&mut old, "own").await;
    let counts = heard.own.counts();
    assert!(counts.replays >= 1 && counts.replayed_batches >= 3, "{counts:?}");
    let Some(mut new) = heard.publisher(topic, &[]).await else { return };
    heard.sending(&mut new, &["own:lost"]).await;
    let superseded = async {
        while heard.own.counts().superseded == 0 {
            old.tell("send 1").await;
        }
    };
    in_time("superseded", superseded).await;
    assert_eq!((heard.counts().superseded, heard.counts().replays), (0, 0));
}

#[tokio::test]
async fn one_connection_may_speak_for_several_pods() {
    let mut heard = Heard::anywhere().await;
    let Some(mut publisher) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    heard.up(&mut publisher, "a").await;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let topic = hex(b"kv@b@tiny@v1");
    for sequence in 0..2u64 {
        // `[1.5, [["AllBlocksCleared"]]]`
        let payload = "92cb3ff80000000000009191b0416c6c426c6f636b73436c6561726564";
        publisher.tell(&format!("raw {topic} {sequence:016x} {payload}")).await;
    }
    heard.until("b:0").await;
    heard.until("b:1").await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let config = ListenConfig { max_connections: 1, ..ListenConfig::new("tcp://127.0.0.1:0") };
    let mut heard = Heard::listen(config, HashMap::new()).await;
    let Some(mut a) = heard.publisher("kv@a@tiny@v1", &[]).await else { return };
    heard.up(&mut a, "a").await;
    let Some(mut b) = heard.publisher("kv@b@tiny@v1", &[]).await else { return };
    heard.counted(&mut b, |counts| counts.connections_refused).await;
}

#[tokio::test]
async fn listening_ends_with_its_receiver() {
    if python().is_none() {
        return;
    }
    let (sender, updates) = mpsc::channel(1);
    let config = ListenConfig::new("tcp://127.0.0.1:0");
    let counters = Arc::default();
    let task = tokio::spawn(kv_events::listen(
        config,
        Timing::default(),
        counters,
        Arc::new(Known::default()),
        sender,
    ));
    drop(updates);
    let ended = tokio::time::timeout(Duration::from_secs(60), task).await.expect("it ends");
    ended.expect("no panic").expect("bound");
}
