//! A bucket: the strides of one scope whose keys share their lower bits.

use prefix::{Holder, Stride};

use crate::WireError;
use crate::wire::{Reader, Writer};

/// Largest bucket value. A get up to this size costs what a small one costs, within a microsecond.
pub const MAX_BUCKET_BYTES: usize = 16 << 10;

/// One stride of a bucket, for writing.
#[derive(Clone, Copy, Debug)]
pub struct BucketEntry<'a> {
    /// [`prefix::fingerprint_of`] its key.
    pub fingerprint: u32,
    /// Tokens wholly before the stride's end.
    pub tokens: u32,
    /// Slots whose blocks up to here are all on the GPU.
    pub gpu: &'a [u16],
    /// Slots that hold them in some tier only.
    pub offloaded: &'a [u16],
    /// Slots with windowed KV groups, and the tokens up to here after which they can resume.
    pub resumes: &'a [(u16, u32)],
}

/// Writes a bucket value: kind, version, epoch, then per stride fingerprint (u32), and varints:
/// body length, tokens, number of GPU holders, of offloaded holders, their slots, then slot and tokens
/// per resume.
pub struct BucketWriter {
    writer: Writer,
    body: Writer,
    /// Strides left out because the value would exceed [`MAX_BUCKET_BYTES`].
    pub dropped: u32,
}

impl BucketWriter {
    /// An empty bucket of `epoch`.
    pub fn new(epoch: u64) -> Self {
        let mut writer = Writer::with_preamble(b'B', 128);
        writer.u64(epoch);
        Self { writer, body: Writer::default(), dropped: 0 }
    }

    /// Appends a stride, or counts it as dropped when the bucket is full.
    pub fn push(&mut self, entry: BucketEntry<'_>) {
        let body = &mut self.body;
        body.0.clear();
        body.varint(entry.tokens);
        body.varint(entry.gpu.len() as u32).varint(entry.offloaded.len() as u32);
        for slot in entry.gpu.iter().chain(entry.offloaded) {
            body.varint(u32::from(*slot));
        }
        for (slot, tokens) in entry.resumes {
            body.varint(u32::from(*slot)).varint(*tokens);
        }
        if self.writer.0.len() + 4 + 5 + body.0.len() > MAX_BUCKET_BYTES {
            self.dropped += 1;
            return;
        }
        self.writer.u32(entry.fingerprint).varint(body.0.len() as u32).raw(&body.0);
    }

    /// The value's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.writer.0
    }
}

/// Finds the stride of `fingerprint` in a bucket value. `Ok(None)` when it is not there.
/// Holders come sorted, as [`prefix::match_prefix`] wants them. The caller checks the epoch.
pub fn find_stride(bucket: &[u8], fingerprint: u32) -> Result<Option<Stride>, WireError> {
    let mut reader = Reader::new(bucket);
    reader.preamble(b'B')?;
    reader.u64()?;
    while reader.remaining() > 0 {
        let found = reader.u32()?;
        let len = reader.varint()? as usize;
        let body = reader.take(len)?;
        if found == fingerprint {
            return read_body(body).map(Some);
        }
    }
    Ok(None)
}

fn read_body(body: &[u8]) -> Result<Stride, WireError> {
    let mut reader = Reader::new(body);
    let tokens = reader.varint()?;
    let (gpu, offloaded) = (reader.varint()?, reader.varint()?);
    let mut slot = || u16::try_from(reader.varint()?).map_err(|_| WireError::Range("slot"));
    let count = gpu.saturating_add(offloaded);
    // A holder takes at least a byte, so a lying count cannot reserve more than the value has.
    let mut holders = Vec::with_capacity((count as usize).min(body.len()));
    for i in 0..count {
        holders.push(Holder { slot: slot()?, offloaded: i >= gpu });
    }
    holders.sort_unstable();
    let mut resumes = Vec::new();
    while reader.remaining() > 0 {
        let slot = u16::try_from(reader.varint()?).map_err(|_| WireError::Range("slot"))?;
        resumes.push((slot, reader.varint()?));
    }
    Ok(Stride { tokens, holders, resumes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let mut writer = BucketWriter::new(0x0807060504030201);
        writer.push(BucketEntry {
            fingerprint: 0xAABBCCDD,
            tokens: 300,
            gpu: &[2, 200],
            offloaded: &[1],
            resumes: &[(2, 256)],
        });
        let bytes = writer.finish();
        let expected = b"B\x01\x01\x02\x03\x04\x05\x06\x07\x08\xDD\xCC\xBB\xAA\x0B\xAC\x02\x02\x01\x02\xC8\x01\x01\x02\x80\x02";
        assert_eq!(bytes, expected);
        let stride = find_stride(&bytes, 0xAABBCCDD).unwrap().unwrap();
        let holder = |slot, offloaded| Holder { slot, offloaded };
        assert_eq!(
            stride,
            Stride {
                tokens: 300,
                holders: vec![holder(1, true), holder(2, false), holder(200, false)],
                resumes: vec![(2, 256)]
            }
        );
        assert_eq!(find_stride(&bytes, 1), Ok(None));
    }

    #[test]
    fn a_full_bucket_drops_and_counts() {
        let mut writer = BucketWriter::new(1);
        for fingerprint in 0..3000 {
            writer.push(BucketEntry {
                fingerprint,
                tokens: 16,
                gpu: &[1],
                offloaded: &[],
                resumes: &[],
            });
        }
        assert!(writer.dropped > 0);
        let dropped = writer.dropped;
        let bytes = writer.finish();
        assert!(bytes.len() <= MAX_BUCKET_BYTES);
        assert!(find_stride(&bytes, 2999 - dropped).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn every_stride_is_found(strides in proptest::collection::btree_map(any::<u32>(), (any::<u32>(), proptest::collection::btree_set(any::<u16>(), 0..9), any::<u16>()), 0..30)) {
            let mut writer = BucketWriter::new(3);
            for (fingerprint, (tokens, gpu, _)) in &strides {
                let gpu: Vec<u16> = gpu.iter().copied().collect();
                writer.push(BucketEntry { fingerprint: *fingerprint, tokens: *tokens, gpu: &gpu, offloaded: &[], resumes: &[] });
            }
            let bytes = writer.finish();
            for (fingerprint, (tokens, gpu, absent)) in &strides {
                let stride = find_stride(&bytes, *fingerprint).unwrap().unwrap();
                prop_assert_eq!(stride.tokens, *tokens);
                prop_assert!(stride.holders.iter().map(|h| h.slot).eq(gpu.iter().copied()));
                if !strides.contains_key(&u32::from(*absent)) {
                    prop_assert_eq!(find_stride(&bytes, u32::from(*absent)), Ok(None));
                }
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = b"B\x01".to_vec();
            framed.extend(bytes);
            let _ = find_stride(&framed, 7);
        }
    }
}
