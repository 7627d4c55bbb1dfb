//! A bucket: the strides of one scope whose keys share their lower bits.

use std::borrow::Cow;
use std::ops::Range;

use prefix::{Holder, Listed, Stride};

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

/// A stride found in a bucket value, which it keeps: its holders are compared as they are written
/// and read only when asked for. Values of one epoch compare right; the caller checks it.
#[derive(Clone, Debug)]
pub struct FoundStride<B> {
    bucket: B,
    tokens: u32,
    gpu: u32,
    offloaded: u32,
    /// Where the holders' slots are, GPU before offloaded.
    slots: Range<usize>,
    resumes: Range<usize>,
}

/// Finds the stride of `fingerprint` in a bucket value. `Ok(None)` when it is not there.
/// Holders come sorted, as [`prefix::match_prefix`] wants them. The caller checks the epoch.
pub fn find_stride<B: AsRef<[u8]>>(
    bucket: B,
    fingerprint: u32,
) -> Result<Option<FoundStride<B>>, WireError> {
    let value = bucket.as_ref();
    let mut reader = Reader::new(value);
    reader.preamble(b'B')?;
    reader.u64()?;
    let mut at = reader.position();
    while at < value.len() {
        let (found, body) = entry_at(value, at)?;
        at = body.end;
        if found == fingerprint {
            let mut stride =
                FoundStride { bucket, tokens: 0, gpu: 0, offloaded: 0, slots: 0..0, resumes: 0..0 };
            stride.locate(body)?;
            return Ok(Some(stride));
        }
    }
    Ok(None)
}

/// Fingerprint of the entry at `at`, and where its body is.
fn entry_at(value: &[u8], at: usize) -> Result<(u32, Range<usize>), WireError> {
    // Most bodies are short enough for a length of one byte, and most entries are not looked for.
    if let Some([a, b, c, d, len @ 0..0x80]) = value.get(at..).and_then(|rest| rest.first_chunk()) {
        let start = at + 5;
        let end = start + usize::from(*len);
        if end <= value.len() {
            return Ok((u32::from_le_bytes([*a, *b, *c, *d]), start..end));
        }
    }
    let mut reader = Reader::new(value);
    reader.take(at)?;
    let fingerprint = reader.u32()?;
    let len = reader.varint()? as usize;
    let start = reader.position();
    reader.take(len)?;
    Ok((fingerprint, start..reader.position()))
}

fn read_slot(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    u16::try_from(reader.varint()?).map_err(|_| WireError::Range("slot"))
}

impl<B: AsRef<[u8]>> FoundStride<B> {
    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.bucket.as_ref().get(range.clone()).unwrap_or_default()
    }

    /// Checks an entry's body and says where its parts are.
    fn locate(&mut self, body: Range<usize>) -> Result<(), WireError> {
        let bytes = self.part(&body);
        let mut reader = Reader::new(bytes);
        let (tokens, gpu, offloaded) = (reader.varint()?, reader.varint()?, reader.varint()?);
        let from = reader.position();
        let count = gpu.saturating_add(offloaded);
        let short = bytes.get(from..).and_then(|rest| rest.get(..count as usize));
        let to = match short {
            // A slot takes a byte nearly always.
            Some(slots) if slots.iter().fold(0, |all, byte| all | byte) < 0x80 => {
                from + slots.len()
            }
            _ => {
                for _ in 0..count {
                    read_slot(&mut reader)?;
                }
                reader.position()
            }
        };
        let mut reader = Reader::new(bytes.get(to..).unwrap_or_default());
        while reader.remaining() > 0 {
            read_slot(&mut reader)?;
            reader.varint()?;
        }
        (self.tokens, self.gpu, self.offloaded) = (tokens, gpu, offloaded);
        self.slots = body.start + from..body.start + to;
        self.resumes = body.start + to..body.end;
        Ok(())
    }
}

impl<B: AsRef<[u8]>> Listed for FoundStride<B> {
    fn has_same_holders(&self, other: &Self) -> bool {
        // The writer sorts the slots, so equal sets are equal bytes.
        (self.gpu, self.offloaded) == (other.gpu, other.offloaded)
            && self.part(&self.slots) == other.part(&other.slots)
    }

    fn is_unheld(&self) -> bool {
        self.gpu == 0 && self.offloaded == 0
    }

    fn read(&self) -> Cow<'_, Stride> {
        let slots = self.part(&self.slots);
        let gpu = self.gpu as usize;
        let count = gpu.saturating_add(self.offloaded as usize);
        // A holder takes at least a byte, so a lying count cannot reserve more than the value has.
        let mut holders = Vec::with_capacity(slots.len());
        if slots.len() == count {
            let all = slots.iter().enumerate();
            holders.extend(
                all.map(|(i, slot)| Holder { slot: u16::from(*slot), offloaded: i >= gpu }),
            );
        } else {
            let mut reader = Reader::new(slots);
            // What was read when it was found can be read again.
            while let Ok(slot) = read_slot(&mut reader) {
                holders.push(Holder { slot, offloaded: holders.len() >= gpu });
            }
        }
        if !holders.is_sorted() {
            holders.sort_unstable();
        }
        let mut resumes = Vec::new();
        let mut reader = Reader::new(self.part(&self.resumes));
        while let (Ok(slot), Ok(tokens)) = (read_slot(&mut reader), reader.varint()) {
            resumes.push((slot, tokens));
        }
        Cow::Owned(Stride { tokens: self.tokens, holders, resumes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bucket: &[u8], fingerprint: u32) -> Option<Stride> {
        let found = find_stride(bucket, fingerprint).unwrap()?;
        Some(found.read().into_owned())
    }

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
        let stride = read(&bytes, 0xAABBCCDD).unwrap();
        let holder = |slot, offloaded| Holder { slot, offloaded };
        assert_eq!(
            stride,
            Stride {
                tokens: 300,
                holders: vec![holder(1, true), holder(2, false), holder(200, false)],
                resumes: vec![(2, 256)]
            }
        );
        assert_eq!(read(&bytes, 1), None);
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
        assert!(read(&bytes, 2999 - dropped).is_some());
    }

    #[test]
    fn holders_compare_by_slot_and_tier_and_not_by_what_else_is_said() {
        let mut writer = BucketWriter::new(1);
        let mut push = |fingerprint, gpu: &[u16], offloaded: &[u16], resumes: &[(u16, u32)]| {
            let tokens = 16 * fingerprint;
            writer.push(BucketEntry { fingerprint, tokens, gpu, offloaded, resumes });
        };
        push(0, &[1, 300], &[], &[]);
        push(1, &[1, 300], &[], &[(300, 64)]);
        push(2, &[1], &[300], &[]);
        push(3, &[1, 301], &[], &[]);
        push(4, &[], &[], &[]);
        let bytes = writer.finish();
        let stride = |fingerprint| find_stride(&bytes, fingerprint).unwrap().unwrap();
        assert!(stride(0).has_same_holders(&stride(1)));
        for other in [2, 3, 4] {
            assert!(!stride(0).has_same_holders(&stride(other)), "{other}");
        }
        assert!(stride(4).is_unheld() && !stride(2).is_unheld());
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
                let stride = read(&bytes, *fingerprint).unwrap();
                prop_assert_eq!(stride.tokens, *tokens);
                let found = find_stride(&bytes, *fingerprint).unwrap().unwrap();
                for other in strides.keys() {
                    let other = find_stride(&bytes, *other).unwrap().unwrap();
                    let is_same = stride.holders == other.read().holders;
                    prop_assert_eq!(found.has_same_holders(&other), is_same);
                }
                prop_assert!(stride.holders.iter().map(|h| h.slot).eq(gpu.iter().copied()));
                if !strides.contains_key(&u32::from(*absent)) {
                    prop_assert_eq!(read(&bytes, u32::from(*absent)), None);
                }
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = b"B\x01".to_vec();
            framed.extend(bytes);
            if let Ok(Some(stride)) = find_stride(&framed, 7) {
                stride.read();
            }
        }
    }
}
