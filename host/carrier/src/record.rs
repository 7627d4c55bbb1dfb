//! What stands in an entry of a stream.
//!
//! | offset | bytes | is |
//! |---|---|---|
//! | 0 | 4 | `KVC` and the version, 1 |
//! | 4 | 1 | kind: 1 term, 2 batch, 3 reset, 4 state |
//! | 5 | 1 | state of the source: 0 connecting, 1 resyncing, 2 live, 3 lost; of a reset: 0 |
//! | 6 | 1 | bit 0: the start of the history was not available |
//! | 7 | 1 | of a reset its reason: 1 restart, 2 gap; of a term 1 if it continues a position; else 0 |
//! | 8 | 8 | batch: its number; term that continues: number of the last batch before it |
//! | 16 | 8 | batch: length that its payload had if it was cut, else 0; term that continues: the batch's fingerprint |
//! | 24 | | batch: the payload as the engine wrote it |
//!
//! Numbers are little-endian. The other kinds end after 8 bytes. What is not listed is refused.

use bytes::{BufMut, Bytes, BytesMut};
use kv_events::{Message, Position, RawUpdate, ResetReason, SourceState};
use tokio::time::Instant;

/// Changes with anything that a reader of version 1 would misread.
const MAGIC: &[u8; 4] = b"KVC\x01";
const HEAD_BYTES: usize = 8;
/// Where the payload of a batch begins.
const PAYLOAD_AT: usize = 24;

/// What a follower writes into the stream of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A follower begins: the first record of a term.
    Term {
        /// The batch that it goes on from; `None` if it knows of nothing before.
        continues: Option<Position>,
        /// The history up to that batch has no start.
        is_partial: bool,
    },
    /// A batch.
    Batch {
        /// Number of the batch within the engine's run.
        sequence: u64,
        /// As the engine wrote it.
        payload: Bytes,
        /// Its length if it was too long to be kept, of which `payload` is the beginning.
        cut_from: Option<u64>,
        /// State of the follower's source.
        state: State,
        /// The start of the history was not available.
        is_partial: bool,
    },
    /// Everything before is void.
    Reset(ResetReason),
    /// The follower's source changed its state.
    State {
        /// Into this.
        state: State,
        /// The start of the history was not available.
        is_partial: bool,
    },
}

/// State of a follower's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not connected yet.
    Connecting,
    /// Batches are missing and asked for.
    Resyncing,
    /// Every batch was delivered.
    Live,
    /// The connection is gone.
    Lost,
}

/// Why an entry is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Of another format or version.
    #[error("does not begin with KVC and version 1")]
    Magic,
    /// Ends too early, or too late for its kind.
    #[error("has {bytes} bytes, which its kind has not")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// A value that has no meaning.
    #[error("has {value} at offset {offset}, which means nothing")]
    Value {
        /// Where.
        offset: usize,
        /// What.
        value: u8,
    },
}

impl Record {
    /// What a source said.
    pub fn of(update: RawUpdate) -> Self {
        match update {
            RawUpdate::Batch { message, state, is_partial } => Self::Batch {
                sequence: message.sequence,
                payload: message.payload,
                cut_from: message.cut_from,
                state: State::of(state),
                is_partial,
            },
            RawUpdate::Reset { reason } => Self::Reset(reason),
            RawUpdate::State(state) => Self::State {
                state: State::of(state),
                is_partial: matches!(state, SourceState::Live { partial: true }),
            },
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(PAYLOAD_AT + self.payload_bytes());
        out.put_slice(MAGIC);
        match self {
            Self::Term { continues, is_partial } => {
                let is_continued = u8::from(continues.is_some());
                out.put_slice(&[1, State::Connecting as u8, u8::from(*is_partial), is_continued]);
                if let Some(Position { sequence, fingerprint }) = continues {
                    out.put_u64_le(*sequence);
                    out.put_u64_le(*fingerprint);
                }
            }
            Self::Batch { sequence, payload, cut_from, state, is_partial } => {
                out.put_slice(&[2, *state as u8, u8::from(*is_partial), 0]);
                out.put_u64_le(*sequence);
                out.put_u64_le(cut_from.unwrap_or(0));
                out.put_slice(payload);
            }
            Self::Reset(reason) => {
                let reason = match reason {
                    ResetReason::Restart => 1,
                    ResetReason::Gap => 2,
                };
                out.put_slice(&[3, 0, 0, reason]);
            }
            Self::State { state, is_partial } => {
                out.put_slice(&[4, *state as u8, u8::from(*is_partial), 0]);
            }
        }
        out.freeze()
    }

    /// Reads an entry. The payload of a batch shares its memory.
    ///
    /// # Errors
    /// When it is not exactly what [`encode`](Self::encode) writes.
    pub fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let length = RecordError::Length { bytes: bytes.len() };
        let (Some(magic), Some(head)) = (bytes.get(..4), bytes.get(4..HEAD_BYTES)) else {
            return Err(if MAGIC.starts_with(bytes.get(..4).unwrap_or(bytes)) {
                length
            } else {
                RecordError::Magic
            });
        };
        if magic != MAGIC {
            return Err(RecordError::Magic);
        }
        let &[kind, state_byte, partial, detail] = head else { return Err(length) };
        let unknown = |offset, value| RecordError::Value { offset, value };
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or(length)
        };
        let state = State::of_byte(state_byte).ok_or(unknown(5, state_byte))?;
        let is_partial = match partial {
            0 | 1 => partial == 1,
            other => return Err(unknown(6, other)),
        };
        let (record, end) = match (kind, detail) {
            (1, 0) => (Self::Term { continues: None, is_partial }, HEAD_BYTES),
            (1, 1) => {
                let (sequence, fingerprint) = (number(8)?, number(16)?);
                let continues = Some(Position { sequence, fingerprint });
                (Self::Term { continues, is_partial }, PAYLOAD_AT)
            }
            (2, 0) => {
                let (sequence, cut) = (number(8)?, number(16)?);
                let cut_from = (cut != 0).then_some(cut);
                let payload = bytes.slice(PAYLOAD_AT..);
                let batch = Self::Batch { sequence, payload, cut_from, state, is_partial };
                (batch, bytes.len())
            }
            (3, 1 | 2) => {
                let reason = if detail == 1 { ResetReason::Restart } else { ResetReason::Gap };
                (Self::Reset(reason), HEAD_BYTES)
            }
            (4, 0) => (Self::State { state, is_partial }, HEAD_BYTES),
            (1..=4, other) => return Err(unknown(7, other)),
            (other, _) => return Err(unknown(4, other)),
        };
        match kind {
            // Every byte means something, so that nothing can be read two ways.
            1 | 3 if state_byte != 0 => Err(unknown(5, state_byte)),
            3 if is_partial => Err(unknown(6, partial)),
            _ if bytes.len() != end => Err(length),
            _ => Ok(record),
        }
    }

    fn payload_bytes(&self) -> usize {
        if let Self::Batch { payload, .. } = self { payload.len() } else { 0 }
    }

    /// Number and fingerprint of a batch.
    pub(crate) fn position(&self) -> Option<Position> {
        Some(self.clone().message(Instant::now())?.position())
    }

    /// A batch as its engine's source gives it.
    pub(crate) fn message(self, received_at: Instant) -> Option<Message> {
        let Self::Batch { sequence, payload, cut_from, .. } = self else { return None };
        Some(Message { sequence, payload, cut_from, received_at })
    }
}

impl State {
    fn of(state: SourceState) -> Self {
        match state {
            SourceState::Connecting => Self::Connecting,
            SourceState::Resyncing => Self::Resyncing,
            SourceState::Live { .. } => Self::Live,
            SourceState::Lost => Self::Lost,
        }
    }

    fn of_byte(byte: u8) -> Option<Self> {
        [Self::Connecting, Self::Resyncing, Self::Live, Self::Lost].get(usize::from(byte)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Bytes {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>().into()
    }

    /// The bytes are written out by hand from the table of this page.
    fn check(text: &str, record: Record) {
        assert_eq!(record.encode(), hex(text), "{record:?}");
        assert_eq!(Record::decode(&hex(text)), Ok(record));
    }

    #[test]
    fn records_have_the_bytes_of_the_table() {
        check("4b564301 01000000", Record::Term { continues: None, is_partial: false });
        let continues = Some(Position { sequence: 0x0102, fingerprint: 0x1122_3344_5566_7788 });
        check(
            "4b564301 01000101 0201000000000000 8877665544332211",
            Record::Term { continues, is_partial: true },
        );
        let batch = |cut_from, state, is_partial| Record::Batch {
            sequence: 7,
            payload: Bytes::from_static(b"\x93\x00"),
            cut_from,
            state,
            is_partial,
        };
        check(
            "4b564301 02020000 0700000000000000 0000000000000000 9300",
            batch(None, State::Live, false),
        );
        check(
            "4b564301 02010100 0700000000000000 0000000100000000 9300",
            batch(Some(1 << 24), State::Resyncing, true),
        );
        check("4b564301 03000001", Record::Reset(ResetReason::Restart));
        check("4b564301 03000002", Record::Reset(ResetReason::Gap));
        check("4b564301 04030000", Record::State { state: State::Lost, is_partial: false });
        check("4b564301 04020100", Record::State { state: State::Live, is_partial: true });
    }

    #[test]
    fn anything_else_is_refused_with_its_place() {
        let refused = |text: &str| Record::decode(&hex(text)).expect_err(text);
        assert_eq!(refused(""), RecordError::Length { bytes: 0 });
        assert_eq!(refused("4b56"), RecordError::Length { bytes: 2 });
        assert_eq!(refused("4b57"), RecordError::Magic);
        assert_eq!(refused("4b564302 04030000"), RecordError::Magic);
        assert_eq!(refused("4b564301 05000000"), RecordError::Value { offset: 4, value: 5 });
        assert_eq!(refused("4b564301 04040000"), RecordError::Value { offset: 5, value: 4 });
        assert_eq!(refused("4b564301 03020001"), RecordError::Value { offset: 5, value: 2 });
        assert_eq!(refused("4b564301 04000200"), RecordError::Value { offset: 6, value: 2 });
        assert_eq!(refused("4b564301 03000101"), RecordError::Value { offset: 6, value: 1 });
        assert_eq!(refused("4b564301 03000003"), RecordError::Value { offset: 7, value: 3 });
        assert_eq!(refused("4b564301 03000001 00"), RecordError::Length { bytes: 9 });
        assert_eq!(refused("4b564301 01000001 00"), RecordError::Length { bytes: 9 });
        assert_eq!(refused("4b564301 02000000 0700"), RecordError::Length { bytes: 10 });
        let message = refused("4b564301 04040000").to_string();
        assert_eq!(message, "has 4 at offset 5, which means nothing");
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(0u8..6, 0..40)) {
            let mut all = MAGIC.to_vec();
            all.extend(bytes);
            let all = Bytes::from(all);
            if let Ok(record) = Record::decode(&all) {
                prop_assert_eq!(record.encode(), all);
            }
        }
    }
}
