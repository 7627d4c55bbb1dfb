//! What comes from a carrier: replies of the server, and the entries in them.

use bytes::{Bytes, BytesMut};
use carrier::resp::{Decoder, Value};
use carrier::{EntryId, Reader, Record, Step};
use kv_events::RawUpdate;
use tokio::time::Instant;

/// The first byte chooses: an entry, or replies in pieces whose strings are a stream's entries.
pub fn read(data: &[u8]) {
    match data.split_first() {
        None => {}
        Some((0, entry)) => entry_is_written_back(&Bytes::copy_from_slice(entry)),
        Some((&piece, stream)) => replies(usize::from(piece), stream),
    }
}

fn entry_is_written_back(entry: &Bytes) {
    if let Ok(record) = Record::decode(entry) {
        assert_eq!(record.encode(), entry, "{record:?}");
    }
}

fn replies(piece: usize, stream: &[u8]) {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let mut watched = Watched::default();
    for piece in stream.chunks(piece) {
        input.extend_from_slice(piece);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(reply)) => watched.take(&reply),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// A reader whose promise is checked: batches without holes between two resets.
struct Watched {
    reader: Reader,
    id: EntryId,
    last: Option<u64>,
}

impl Default for Watched {
    fn default() -> Self {
        let mut reader = Reader::new(None);
        reader.set_connected(true);
        Self { reader, id: EntryId { term: 1, number: 0 }, last: None }
    }
}

impl Watched {
    fn take(&mut self, reply: &Value) {
        match reply {
            Value::Array(values) => values.iter().for_each(|value| self.take(value)),
            // Ids go up, as the server sees to, with a step that may leave some out.
            Value::Integer(step) => {
                let step = step.unsigned_abs() % 4;
                self.id = match step {
                    3 => EntryId { term: self.id.term + 1, number: 0 },
                    _ => EntryId { number: self.id.number + step, ..self.id },
                };
            }
            Value::Text(entry) => {
                let record = Record::decode(entry).ok();
                let step = self.reader.entry(self.id, record, Instant::now());
                self.id.number += 1;
                if step == Step::Again {
                    assert_eq!(self.reader.after(), EntryId::default());
                }
                self.check();
            }
            Value::Nil => self.reader.at_end(),
            Value::Error(_) => {
                self.reader.set_connected(false);
                self.reader.set_connected(true);
            }
        }
    }

    fn check(&mut self) {
        while let Some(update) = self.reader.next_update() {
            match update {
                RawUpdate::Reset { .. } => self.last = None,
                RawUpdate::Batch { message, .. } => {
                    if let Some(last) = self.last {
                        assert_eq!(Some(message.sequence), last.checked_add(1), "a hole");
                    }
                    self.last = Some(message.sequence);
                }
                RawUpdate::State(_) => {}
            }
        }
    }
}
