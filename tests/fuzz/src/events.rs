//! KV events: the payload, the frames around it and the state machine behind it, and the lists of
//! TensorRT-LLM.

use bytes::{Bytes, BytesMut};
use kv_events::zmtp::{Decoder, Item, MAX_MESSAGE_FRAMES};
use kv_events::{Action, Cursor, Message, trtllm::Adapter};
use tokio::time::Instant;

/// A payload is decoded or refused, and does not grow out of proportion.
pub fn decode(payload: &[u8]) {
    if let Ok(batch) = kv_events::decode(payload) {
        assert!(batch.events.len() <= payload.len());
        // What is shown of a batch must not panic either.
        assert!(!format!("{batch:?}").is_empty());
    }
}

/// The stream of a peer, in pieces: whole messages drive a cursor, whose order must hold.
pub fn framing(stream: &[u8]) {
    let Some((&piece, stream)) = stream.split_first() else { return };
    let mut decoder = Decoder::default();
    let mut input = BytesMut::new();
    let mut cursor = Watched::new(piece & 1 == 1);
    for piece in stream.chunks(usize::from(piece / 2).max(1)) {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(None) => break,
                Ok(Some(Item::Command(name, _))) => cursor.command(&name),
                Ok(Some(Item::Message(frames))) => {
                    assert!((1..=MAX_MESSAGE_FRAMES).contains(&frames.len()));
                    let [.., sequence, payload] = frames.as_slice() else { continue };
                    let Ok(sequence) = <[u8; 8]>::try_from(&sequence.bytes[..]) else { continue };
                    let replayed = frames.len() > 3;
                    cursor.message(u64::from_be_bytes(sequence), &payload.bytes, replayed);
                }
                Err(_) => return,
            }
        }
    }
}

/// A cursor whose promise is checked: sequence numbers without holes between two resets.
struct Watched {
    cursor: Cursor,
    last: Option<u64>,
    now: Instant,
}

impl Watched {
    fn new(can_replay: bool) -> Self {
        let mut watched = Self { cursor: Cursor::new(can_replay), last: None, now: Instant::now() };
        watched.cursor.connected();
        watched.check();
        watched
    }

    /// Stands for what happens beside messages.
    fn command(&mut self, name: &[u8]) {
        match name.first() {
            Some(b'e') => self.cursor.replay_ended(),
            Some(b'f') => self.cursor.replay_failed(),
            Some(b's') => self.cursor.silent(),
            Some(b'd') => {
                self.cursor.disconnected();
                self.cursor.connecting();
                self.cursor.connected();
            }
            _ => {}
        }
        self.check();
    }

    fn message(&mut self, sequence: u64, payload: &Bytes, replayed: bool) {
        let payload = payload.clone();
        let message = Message { sequence, payload, cut_from: None, received_at: self.now };
        if replayed {
            self.cursor.replayed(message);
        } else {
            self.cursor.live(message);
        }
        self.check();
    }

    fn check(&mut self) {
        while let Some(action) = self.cursor.next_action() {
            match action {
                Action::Reset(_) => self.last = None,
                Action::Deliver(message) => {
                    if let Some(last) = self.last {
                        assert_eq!(Some(message.sequence), last.checked_add(1), "a hole");
                    }
                    self.last = Some(message.sequence);
                }
                _ => {}
            }
        }
    }
}

/// A list, twice: the second time as what follows.
pub fn trtllm(list: &[u8]) {
    let mut adapter = Adapter::new(None);
    let now = Instant::now();
    for _ in 0..2 {
        if let Ok(taken) = adapter.take(list, now) {
            for update in taken.updates {
                assert!(!format!("{update:?}").is_empty());
            }
        }
        let _ = adapter.state();
    }
}
