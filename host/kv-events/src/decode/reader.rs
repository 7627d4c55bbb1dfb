//! A MessagePack reader over a slice that knows where it is. Nothing it returns is larger than
//! what is left of the input.

use rmp::Marker;

use super::DecodeError;
use crate::release::Encoding;

pub(super) struct Reader<'a> {
    input: &'a [u8],
    offset: usize,
    /// What the input showed of its writer.
    pub(super) seen: Encoding,
}

/// An integer of either sign.
#[derive(Clone, Copy)]
pub(super) enum Int {
    Unsigned(u64),
    Negative(i64),
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, offset: 0, seen: Encoding::default() }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Goes back to an offset that was seen before.
    pub(super) fn rewind(&mut self, offset: usize) {
        self.offset = offset;
    }

    pub(super) fn remaining(&self) -> usize {
        self.input.len().saturating_sub(self.offset)
    }

    pub(super) fn peek(&self) -> Result<Marker, DecodeError> {
        match self.input.get(self.offset) {
            Some(byte) => Ok(Marker::from_u8(*byte)),
            None => Err(DecodeError::Truncated { offset: self.offset }),
        }
    }

    fn marker(&mut self) -> Result<Marker, DecodeError> {
        let marker = self.peek()?;
        self.offset += 1;
        Ok(marker)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let rest = self.input.get(self.offset..).unwrap_or_default();
        let taken = rest.get(..len).ok_or(DecodeError::Truncated { offset: self.offset })?;
        self.offset += len;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = self.input.get(self.offset..).unwrap_or_default();
        let taken = rest.first_chunk().ok_or(DecodeError::Truncated { offset: self.offset })?;
        self.offset += N;
        Ok(*taken)
    }

    /// A big-endian number of `width` bytes: 1, 2, 4 or 8.
    fn number(&mut self, width: usize) -> Result<u64, DecodeError> {
        Ok(match width {
            1 => u64::from(u8::from_be_bytes(self.bytes()?)),
            2 => u64::from(u16::from_be_bytes(self.bytes()?)),
            4 => u64::from(u32::from_be_bytes(self.bytes()?)),
            _ => u64::from_be_bytes(self.bytes()?),
        })
    }

    fn len(&mut self, width: usize) -> Result<usize, DecodeError> {
        Ok(usize::try_from(self.number(width)?).unwrap_or(usize::MAX))
    }

    /// An unsigned integer of up to 32 bits in the width that encoders choose for it; `None`, with
    /// nothing consumed, for whatever else is next, which is for [`Self::u32`] to judge. Nearly all
    /// bytes of a payload are token ids.
    pub(super) fn plain_u32(&mut self) -> Option<u32> {
        let rest = self.input.get(self.offset..)?;
        let (number, width) = match rest {
            [n @ 0..=0x7f, ..] => (u32::from(*n), 1),
            [0xcd, a, b, ..] => (u32::from(u16::from_be_bytes([*a, *b])), 3),
            [0xce, a, b, c, d, ..] => (u32::from_be_bytes([*a, *b, *c, *d]), 5),
            [0xcc, n, ..] => (u32::from(*n), 2),
            _ => return None,
        };
        self.offset += width;
        Some(number)
    }

    /// Consumes a nil, if one is next.
    pub(super) fn nil(&mut self) -> Result<bool, DecodeError> {
        let nil = self.peek()? == Marker::Null;
        self.offset += usize::from(nil);
        Ok(nil)
    }

    pub(super) fn int(&mut self, field: &'static str) -> Result<Int, DecodeError> {
        let offset = self.offset;
        Ok(match self.marker()? {
            Marker::FixPos(n) => Int::Unsigned(u64::from(n)),
            Marker::U8 => Int::Unsigned(self.number(1)?),
            Marker::U16 => Int::Unsigned(self.number(2)?),
            Marker::U32 => Int::Unsigned(self.number(4)?),
            Marker::U64 => Int::Unsigned(self.number(8)?),
            Marker::FixNeg(n) => Int::signed(i64::from(n)),
            Marker::I8 => Int::signed(i64::from(self.number(1)? as u8 as i8)),
            Marker::I16 => Int::signed(i64::from(self.number(2)? as u16 as i16)),
            Marker::I32 => Int::signed(i64::from(self.number(4)? as u32 as i32)),
            Marker::I64 => Int::signed(self.number(8)? as i64),
            found => return Err(unexpected(offset, field, found)),
        })
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        let offset = self.offset;
        match self.int(field)? {
            Int::Unsigned(n) => {
                u32::try_from(n).map_err(|_| DecodeError::OutOfRange { offset, field })
            }
            Int::Negative(_) => Err(DecodeError::OutOfRange { offset, field }),
        }
    }

    pub(super) fn float(&mut self, field: &'static str) -> Result<f64, DecodeError> {
        match self.peek()? {
            Marker::F64 => {
                self.offset += 1;
                Ok(f64::from_bits(self.number(8)?))
            }
            Marker::F32 => {
                self.offset += 1;
                Ok(f64::from(f32::from_bits(self.number(4)? as u32)))
            }
            _ => Ok(match self.int(field)? {
                Int::Unsigned(n) => n as f64,
                Int::Negative(n) => n as f64,
            }),
        }
    }

    pub(super) fn str(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let offset = self.offset;
        let len = match self.marker()? {
            Marker::FixStr(len) => usize::from(len),
            Marker::Str8 => self.len(1)?,
            Marker::Str16 => self.len(2)?,
            Marker::Str32 => self.len(4)?,
            found => return Err(unexpected(offset, field, found)),
        };
        std::str::from_utf8(self.take(len)?).map_err(|_| DecodeError::Utf8 { offset, field })
    }

    pub(super) fn bin(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let offset = self.offset;
        let len = match self.marker()? {
            Marker::Bin8 => self.len(1)?,
            Marker::Bin16 => self.len(2)?,
            Marker::Bin32 => self.len(4)?,
            found => return Err(unexpected(offset, field, found)),
        };
        self.take(len)
    }

    /// Length of an array, no more than the bytes left: every element has at least one.
    pub(super) fn array(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let offset = self.offset;
        let len = match self.marker()? {
            Marker::FixArray(len) => usize::from(len),
            Marker::Array16 => self.len(2)?,
            Marker::Array32 => self.len(4)?,
            found => return Err(unexpected(offset, field, found)),
        };
        if len > self.remaining() {
            return Err(DecodeError::Truncated { offset });
        }
        Ok(len)
    }

    /// Number of entries of a map, no more than half the bytes left.
    pub(super) fn map(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let offset = self.offset;
        let len = match self.marker()? {
            Marker::FixMap(len) => usize::from(len),
            Marker::Map16 => self.len(2)?,
            Marker::Map32 => self.len(4)?,
            found => return Err(unexpected(offset, field, found)),
        };
        if len > self.remaining() / 2 {
            return Err(DecodeError::Truncated { offset });
        }
        Ok(len)
    }

    /// Passes over `count` values, however deep they nest, without recursion.
    pub(super) fn skip(&mut self, count: usize) -> Result<(), DecodeError> {
        let mut left = count;
        while left > 0 {
            left -= 1;
            let offset = self.offset;
            let (payload, values) = match self.marker()? {
                Marker::Null | Marker::True | Marker::False => (0, 0),
                Marker::FixPos(_) | Marker::FixNeg(_) => (0, 0),
                Marker::U8 | Marker::I8 => (1, 0),
                Marker::U16 | Marker::I16 => (2, 0),
                Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
                Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
                Marker::FixStr(len) => (usize::from(len), 0),
                Marker::Str8 | Marker::Bin8 => (self.len(1)?, 0),
                Marker::Str16 | Marker::Bin16 => (self.len(2)?, 0),
                Marker::Str32 | Marker::Bin32 => (self.len(4)?, 0),
                Marker::FixArray(len) => (0, usize::from(len)),
                Marker::Array16 => (0, self.len(2)?),
                Marker::Array32 => (0, self.len(4)?),
                Marker::FixMap(len) => (0, usize::from(len) * 2),
                Marker::Map16 => (0, self.len(2)?.saturating_mul(2)),
                Marker::Map32 => (0, self.len(4)?.saturating_mul(2)),
                // An extension has a type byte before its data.
                Marker::FixExt1 => (2, 0),
                Marker::FixExt2 => (3, 0),
                Marker::FixExt4 => (5, 0),
                Marker::FixExt8 => (9, 0),
                Marker::FixExt16 => (17, 0),
                Marker::Ext8 => (self.len(1)?.saturating_add(1), 0),
                Marker::Ext16 => (self.len(2)?.saturating_add(1), 0),
                Marker::Ext32 => (self.len(4)?.saturating_add(1), 0),
                Marker::Reserved => return Err(unexpected(offset, "value", Marker::Reserved)),
            };
            self.take(payload)?;
            left = left.saturating_add(values);
            if left > self.remaining() {
                return Err(DecodeError::Truncated { offset });
            }
        }
        Ok(())
    }
}

impl Int {
    fn signed(n: i64) -> Self {
        u64::try_from(n).map_or(Self::Negative(n), Self::Unsigned)
    }
}

pub(super) fn unexpected(offset: usize, field: &'static str, found: Marker) -> DecodeError {
    let found = match found {
        Marker::Null => "nil",
        Marker::True | Marker::False => "boolean",
        Marker::F32 | Marker::F64 => "float",
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => "string",
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => "bytes",
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => "array",
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => "map",
        Marker::Reserved => "reserved marker",
        Marker::FixPos(_) | Marker::FixNeg(_) => "integer",
        Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 => "integer",
        Marker::I8 | Marker::I16 | Marker::I32 | Marker::I64 => "integer",
        _ => "extension",
    };
    DecodeError::Unexpected { offset, field, found }
}
