//! Numbers and strings of an exported index, read with every bound checked.

use crate::node::EngineHash;

/// Why an exported index is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It ends too early.
    #[error("ends at byte {at}, within {what}")]
    Ended {
        /// Bytes there are.
        at: usize,
        /// What was being read.
        what: &'static str,
    },
    /// It says what no index says.
    #[error("{what} at byte {at} cannot be")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// It is written in a way this build does not know.
    #[error("format {found} of an index is not known, only {known}")]
    Format {
        /// What it says it is.
        found: u8,
        /// What this build reads.
        known: u8,
    },
    /// Its keys are of text where they should be of token ids, or the other way round.
    #[error("keys are of another kind")]
    KeySpace,
    /// It counts the copies of an endpoint's blocks, or does not, unlike this index.
    #[error("endpoint {slot} counts its blocks in another way")]
    Presence {
        /// The endpoint's slot in the export.
        slot: usize,
    },
    /// The endpoint it would be taken for holds something already.
    #[error("endpoint {slot} is in use")]
    InUse {
        /// The endpoint's slot in this index.
        slot: u16,
    },
}

pub(crate) struct Writer<'a>(pub(crate) &'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn word(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Seven bits a byte, lowest first.
    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn count(&mut self, value: usize) {
        self.number(value as u64);
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.0.extend_from_slice(value);
    }

    /// `None` is 0, else one more than the length.
    pub(crate) fn text(&mut self, value: Option<&str>) {
        match value {
            None => self.byte(0),
            Some(text) => {
                self.count(text.len() + 1);
                self.0.extend_from_slice(text.as_bytes());
            }
        }
    }
}

pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn malformed(&self, what: &'static str) -> ImportError {
        ImportError::Malformed { at: self.at, what }
    }

    fn ended(&self, what: &'static str) -> ImportError {
        ImportError::Ended { at: self.bytes.len(), what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(crate) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], ImportError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..len).ok_or_else(|| self.ended(what))?;
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self, what: &'static str) -> Result<u8, ImportError> {
        self.take(1, what).map(|bytes| bytes[0])
    }

    pub(crate) fn word(&mut self, what: &'static str) -> Result<u64, ImportError> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_le_bytes(word))
    }

    pub(crate) fn hash(&mut self, what: &'static str) -> Result<EngineHash, ImportError> {
        self.word(what).map(EngineHash)
    }

    pub(crate) fn number(&mut self, what: &'static str) -> Result<u64, ImportError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(self.malformed(what));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed(what))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, ImportError> {
        u32::try_from(self.number(what)?).map_err(|_| self.malformed(what))
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, ImportError> {
        u16::try_from(self.number(what)?).map_err(|_| self.malformed(what))
    }

    /// A count of things that take `bytes_each` at least: more than there is room for are refused
    /// before anything is reserved for them.
    pub(crate) fn count(
        &mut self,
        bytes_each: usize,
        what: &'static str,
    ) -> Result<usize, ImportError> {
        let count = usize::try_from(self.number(what)?).map_err(|_| self.malformed(what))?;
        match count.checked_mul(bytes_each) {
            Some(bytes) if bytes <= self.bytes.len() - self.at => Ok(count),
            _ => Err(self.ended(what)),
        }
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<Option<&'a str>, ImportError> {
        let Some(len) = self.number(what)?.checked_sub(1) else { return Ok(None) };
        let len = usize::try_from(len).map_err(|_| self.malformed(what))?;
        let text = std::str::from_utf8(self.take(len, what)?);
        text.map(Some).map_err(|_| self.malformed(what))
    }
}
