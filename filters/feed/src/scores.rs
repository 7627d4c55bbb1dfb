//! The stream property that a scorer module sets and the picker reads.

use crate::WireError;
use crate::wire::{Reader, Writer};

/// Name of a scorer's property without the scorer's name, which follows it.
pub const SCORE_PROPERTY_PREFIX: &str = "wasm_epp.score.";
/// Largest value; a module that wrote more is not read.
pub const MAX_SCORES_BYTES: usize = 16 << 10;

/// What one scorer module says of the candidates.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Scores {
    /// Epoch of the features that were scored.
    pub epoch: u64,
    /// The `revision` of the configuration that scored, 0 if it has none.
    pub revision: u32,
    /// Slots and their scores, 1 best, in any order. Not finite: no score.
    pub scores: Vec<(u16, f32)>,
}

impl Scores {
    /// The property's value.
    pub fn encode(&self) -> Vec<u8> {
        let count = self.scores.len().min(usize::from(u16::MAX));
        let mut writer = Writer::with_preamble(b'S', 16 + 6 * count);
        writer.u64(self.epoch).u32(self.revision).u16(count as u16);
        for (slot, score) in self.scores.iter().take(count) {
            writer.u16(*slot).u32(score.to_bits());
        }
        writer.0
    }

    /// Reads the property's value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_SCORES_BYTES {
            return Err(WireError::Range("scores"));
        }
        let mut reader = Reader::new(bytes);
        reader.preamble(b'S')?;
        let (epoch, revision) = (reader.u64()?, reader.u32()?);
        let mut scores = Vec::new();
        for _ in 0..reader.u16()? {
            scores.push((reader.u16()?, f32::from_bits(reader.u32()?)));
        }
        reader.finish()?;
        Ok(Self { epoch, revision, scores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_record_is_refused() {
        let good =
            Scores { epoch: 7, revision: 1, scores: vec![(0, 0.5), (9, f32::INFINITY)] }.encode();
        assert!(Scores::decode(&good).is_ok());
        for cut in 0..good.len() {
            assert!(Scores::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(
            Scores::decode(&[&good[..], b"x"].concat()),
            Err(WireError::Trailing { count: 1 })
        );
        assert_eq!(Scores::decode(b"F"), Err(WireError::Magic));
        assert_eq!(Scores::decode(b"S\x02"), Err(WireError::Version(2)));
        let long = Scores { epoch: 7, revision: 1, scores: vec![(0, 0.5); 4000] }.encode();
        assert_eq!(Scores::decode(&long), Err(WireError::Range("scores")));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = vec![b'S', 1];
            framed.extend(bytes);
            let _ = Scores::decode(&framed);
        }
    }
}
