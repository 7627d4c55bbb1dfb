//! Features from intake to picker within a VM, so that they need not be read out of the property again.
//!
//! The property is the truth: it belongs to the stream, and what is kept here only to the VM. Features
//! are handed over to who shows the very bytes that they were published as.

use feed::{Features, WireError};

/// What intake published last.
#[derive(Default)]
pub struct Handover {
    last: Option<(Vec<u8>, Features)>,
}

impl Handover {
    /// Keeps features that were published as `bytes`.
    pub fn put(&mut self, bytes: Vec<u8>, features: Features) {
        self.last = Some((bytes, features));
    }

    /// The features of a property's value: those kept, or as read.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Features, WireError> {
        match self.last.take() {
            Some((known, features)) if is_same(&known, bytes) => Ok(features),
            _ => Features::decode(bytes),
        }
    }
}

/// Equality by words: the comparison of slices goes by bytes in wasm.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let ((a_words, a_rest), (b_words, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let is_equal = |(a, b): (&[u8; 8], &[u8; 8])| u64::from_ne_bytes(*a) == u64::from_ne_bytes(*b);
    a.len() == b.len() && a_words.iter().zip(b_words).all(is_equal) && a_rest == b_rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(scope: u16) -> (Vec<u8>, Features) {
        Features { scope, ..Features::default() }.publish()
    }

    #[test]
    fn only_the_very_bytes_get_what_is_kept() {
        let mut handover = Handover::default();
        let (bytes, features) = published(1);
        // Kept are others than the bytes say, so that it shows which are given.
        let kept = Features { epoch: 77, ..features.clone() };
        handover.put(bytes.clone(), kept.clone());
        assert_eq!(handover.take(&bytes), Ok(kept.clone()));
        assert_eq!(handover.take(&bytes), Ok(features), "once");

        for at in 0..bytes.len() {
            handover.put(bytes.clone(), kept.clone());
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(handover.take(&other), Ok(kept.clone()), "byte {at} differs");
        }
        handover.put(bytes.clone(), kept);
        assert!(handover.take(&bytes[..bytes.len() - 1]).is_err(), "a part of it");
        let (bytes, features) = published(2);
        assert_eq!(handover.take(&bytes), Ok(features), "of another stream");
    }
}
