//! A batch: whole values that follow one another, pushed by the daemon in one POST.

use crate::wire::{Reader, Writer};
use crate::{Key, WireError};

/// Largest batch a feeder accepts. The feed listener buffers 16 MiB.
pub const MAX_BATCH_BYTES: usize = 8 << 20;
/// Most entries of a batch. A POST of 1000 entries holds its worker for about 0.6 ms.
pub const MAX_BATCH_ENTRIES: u32 = 65_536;

const MAGIC: &[u8; 4] = b"EPPB";
const COMPLETE: u8 = 1;

/// Who wrote a batch and what it follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BatchHeader {
    /// Gateway process it is meant for; 0 asks for the held head (answered as a conflict).
    pub instance: u64,
    /// Writer's epoch.
    pub epoch: u64,
    /// Position in that epoch, from 1.
    pub sequence: u64,
    /// With this batch the epoch's snapshot is whole.
    pub completes: bool,
}

/// A decoded batch, checked as a whole before any of it is applied.
pub struct Batch<'a> {
    /// Header.
    pub header: BatchHeader,
    /// Entries in order: encoded key, its meaning, value.
    pub entries: Vec<(Key, &'a [u8])>,
}

impl<'a> Batch<'a> {
    /// Reads a batch. Every key must be writable by a batch, every value must be of the key's kind,
    /// this format version, the batch's epoch and the key's size limit.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_BATCH_BYTES {
            return Err(WireError::Range("batch size"));
        }
        let mut reader = Reader::new(bytes);
        if reader.take(4)? != MAGIC {
            return Err(WireError::Magic);
        }
        match reader.u8()? {
            crate::FORMAT_VERSION => {}
            other => return Err(WireError::Version(other)),
        }
        let flags = reader.u8()?;
        if flags & !COMPLETE != 0 {
            return Err(WireError::Range("batch flags"));
        }
        let header = BatchHeader {
            instance: reader.u64()?,
            epoch: reader.u64()?,
            sequence: reader.u64()?,
            completes: flags & COMPLETE != 0,
        };
        let count = reader.u32()?;
        if count > MAX_BATCH_ENTRIES {
            return Err(WireError::Range("entry count"));
        }
        // An entry takes at least 5 bytes, so a lying count cannot reserve more than the batch.
        let mut entries = Vec::with_capacity((count as usize).min(reader.remaining() / 5));
        for _ in 0..count {
            let key_len = usize::from(reader.u8()?);
            let value_len = reader.u32()? as usize;
            let key = Key::parse_writable(reader.take(key_len)?)?;
            let value = reader.take(value_len)?;
            if value.len() > key.max_value_bytes() {
                return Err(WireError::Range("value size"));
            }
            let mut check = Reader::new(value);
            check.preamble(key.value_kind())?;
            if check.u64()? != header.epoch {
                return Err(WireError::Range("value epoch"));
            }
            if let Key::Directory(odd)
            | Key::OtherGateways(odd)
            | Key::Table(odd, _)
            | Key::Load(odd, _)
            | Key::Model(odd, _) = key
                && odd != Key::parity(header.epoch)
            {
                return Err(WireError::Range("parity"));
            }
            entries.push((key, value));
        }
        reader.finish()?;
        Ok(Self { header, entries })
    }
}

/// Builds a batch.
pub struct BatchBuilder {
    writer: Writer,
    count: u32,
}

const FLAGS_AT: usize = 4 + 1;
const COUNT_AT: usize = 4 + 1 + 1 + 24;

impl BatchBuilder {
    /// An empty batch, which is a heartbeat.
    pub fn new(header: BatchHeader) -> Self {
        let mut writer = Writer::default();
        writer.raw(MAGIC).u8(crate::FORMAT_VERSION).u8(if header.completes { COMPLETE } else { 0 });
        writer.u64(header.instance).u64(header.epoch).u64(header.sequence).u32(0);
        Self { writer, count: 0 }
    }

    /// Appends a whole value.
    pub fn push(&mut self, key: Key, value: &[u8]) {
        let key = key.encode();
        self.writer.u8(key.as_ref().len() as u8).u32(value.len() as u32);
        self.writer.raw(key.as_ref()).raw(value);
        self.count += 1;
    }

    /// Entries so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes so far.
    pub fn len_bytes(&self) -> usize {
        self.writer.0.len()
    }

    /// The batch's bytes, declared to complete the epoch's snapshot: known only once it is filled.
    pub fn finish_completing(mut self) -> Vec<u8> {
        if let Some(flags) = self.writer.0.get_mut(FLAGS_AT) {
            *flags |= COMPLETE;
        }
        self.finish()
    }

    /// The batch's bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = self.writer.0;
        for (slot, byte) in bytes.iter_mut().skip(COUNT_AT).zip(self.count.to_le_bytes()) {
            *slot = byte;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(kind: u8, epoch: u64, extra: &[u8]) -> Vec<u8> {
        let mut writer = Writer::with_preamble(kind, 16);
        writer.u64(epoch).raw(extra);
        writer.0
    }

    fn header(epoch: u64) -> BatchHeader {
        BatchHeader { instance: 1, epoch, sequence: 2, completes: true }
    }

    fn decode_one(epoch: u64, key: Key, value: &[u8]) -> Result<usize, WireError> {
        let mut builder = BatchBuilder::new(header(epoch));
        builder.push(key, value);
        Batch::decode(&builder.finish()).map(|batch| batch.entries.len())
    }

    #[test]
    fn round_trip() {
        let bucket = value(b'B', 9, b"xyz");
        let mut builder = BatchBuilder::new(header(9));
        builder.push(Key::Bucket(3, 4), &bucket);
        builder.push(Key::Directory(true), &value(b'D', 9, b""));
        let bytes = builder.finish();
        let batch = Batch::decode(&bytes).unwrap();
        assert_eq!(batch.header, header(9));
        assert_eq!(batch.entries[0], (Key::Bucket(3, 4), bucket.as_slice()));
        assert_eq!(batch.entries.len(), 2);
        assert_eq!(&bytes[..6], b"EPPB\x01\x01");
    }

    #[test]
    fn what_is_not_understood_is_refused_whole() {
        assert_eq!(decode_one(9, Key::Bucket(0, 0), &value(b'B', 9, b"")), Ok(1));
        assert_eq!(decode_one(9, Key::Bucket(0, 0), &value(b'T', 9, b"")), Err(WireError::Magic));
        assert_eq!(
            decode_one(9, Key::Bucket(0, 0), &value(b'B', 8, b"")),
            Err(WireError::Range("value epoch"))
        );
        assert_eq!(decode_one(9, Key::Head, &value(b'H', 9, b"")), Err(WireError::Magic));
        assert_eq!(
            decode_one(9, Key::Table(false, 1), &value(b'T', 9, b"")),
            Err(WireError::Range("parity"))
        );
        assert_eq!(decode_one(9, Key::Bucket(0, 0), &[b'B', 2]), Err(WireError::Version(2)));
        let big = value(b'B', 9, &vec![0; crate::MAX_BUCKET_BYTES]);
        assert_eq!(decode_one(9, Key::Bucket(0, 0), &big), Err(WireError::Range("value size")));
    }

    #[test]
    fn a_lying_count_is_refused_without_reserving_for_it() {
        let mut bytes = BatchBuilder::new(header(9)).finish();
        bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&60_000u32.to_le_bytes());
        assert!(matches!(Batch::decode(&bytes), Err(WireError::Truncated { .. })));
        bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Batch::decode(&bytes).err(), Some(WireError::Range("entry count")));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Batch::decode(&bytes);
            let mut framed = BatchBuilder::new(header(9)).finish();
            framed[COUNT_AT] = 3;
            framed.extend(bytes);
            let _ = Batch::decode(&framed);
        }
    }
}
