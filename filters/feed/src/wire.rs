//! Checked little-endian reading and writing.

/// Why bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The record ends before its content does.
    #[error("record ends at byte {at}, {needed} more needed")]
    Truncated {
        /// Offset of the read.
        at: usize,
        /// Bytes missing from there.
        needed: usize,
    },
    /// Bytes are left after the record's content.
    #[error("{count} bytes after the end of the record")]
    Trailing {
        /// Bytes left over.
        count: usize,
    },
    /// Not the expected magic or kind.
    #[error("unknown magic or kind")]
    Magic,
    /// A version this build does not read.
    #[error("feed format {0}, and this build speaks {ours}", ours = crate::FORMAT_VERSION)]
    Version(u8),
    /// A field is outside its range.
    #[error("field `{0}` is out of range")]
    Range(&'static str),
    /// A text field is not UTF-8.
    #[error("field `{0}` is not UTF-8")]
    Utf8(&'static str),
}

pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let end = self.at.checked_add(len);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += len;
                Ok(taken)
            }
            None => Err(self.truncated(len)),
        }
    }

    #[cold]
    fn truncated(&self, len: usize) -> WireError {
        WireError::Truncated { at: self.at, needed: len.saturating_sub(self.remaining()) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| WireError::Truncated { at: self.at, needed: N })
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// LEB128, at most 5 bytes.
    pub(crate) fn varint(&mut self) -> Result<u32, WireError> {
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| WireError::Range("varint"));
            }
        }
        Err(WireError::Range("varint"))
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'a str, WireError> {
        let len = self.u16()?;
        std::str::from_utf8(self.take(usize::from(len))?).map_err(|_| WireError::Utf8(field))
    }

    /// Two bytes and `N` numbers, with one look at what is left.
    pub(crate) fn words<const N: usize>(&mut self) -> Result<([u8; 2], [u32; N]), WireError> {
        let (head, rest) =
            self.take(2 + 4 * N)?.split_first_chunk().ok_or(WireError::Range("words"))?;
        let (words, _) = rest.as_chunks::<4>();
        let words: &[[u8; 4]; N] = words.try_into().map_err(|_| WireError::Range("words"))?;
        Ok((*head, words.map(u32::from_le_bytes)))
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub(crate) fn finish(self) -> Result<(), WireError> {
        match self.remaining() {
            0 => Ok(()),
            count => Err(WireError::Trailing { count }),
        }
    }

    /// Kind and version byte that start every record.
    pub(crate) fn preamble(&mut self, kind: u8) -> Result<(), WireError> {
        if self.u8()? != kind {
            return Err(WireError::Magic);
        }
        match self.u8()? {
            crate::FORMAT_VERSION => Ok(()),
            other => Err(WireError::Version(other)),
        }
    }
}

/// Writer over a growing buffer; never fails, texts longer than a u16 are cut by the callers' checks.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn with_preamble(kind: u8, capacity: usize) -> Self {
        let mut writer = Self(Vec::with_capacity(capacity));
        writer.u8(kind).u8(crate::FORMAT_VERSION);
        writer
    }
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    pub(crate) fn varint(&mut self, mut value: u32) -> &mut Self {
        while value >= 0x80 {
            self.u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.u8(value as u8)
    }
    /// At most 65535 bytes of `text`, cut at a character.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        let cut = text.floor_char_boundary(usize::from(u16::MAX).min(text.len()));
        let text = text.get(..cut).unwrap_or_default();
        self.u16(text.len() as u16).raw(text.as_bytes())
    }
    /// Two bytes and `N` numbers at once.
    pub(crate) fn words<const N: usize>(&mut self, head: [u8; 2], words: [u32; N]) -> &mut Self {
        self.0.reserve(2 + 4 * N);
        self.raw(&head).raw(words.map(u32::to_le_bytes).as_flattened())
    }
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
}
