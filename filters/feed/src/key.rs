//! Keys of the shared data: a bounded space, since keys can never be deleted.

use crate::WireError;
use crate::wire::Reader;

/// Longest key. Short keys stay inside the proxy's string object.
pub const MAX_KEY_BYTES: usize = 9;

/// A key of the gateway's shared data.
///
/// `scope` numbers a (pool, model) pair in the [`crate::Directory`]. Singletons exist twice, by the
/// parity of the epoch that wrote them: a writer that takes over fills the other half while readers
/// go on with the old one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// [`crate::Head`]; written by the feeder, never by a batch.
    Head,
    /// [`crate::WorkerRow`] of one worker VM; written by the router.
    Row(u8),
    /// [`crate::MatrixRow`] of one worker VM, by the slot of its row; written by the router.
    Matrix(u8),
    /// [`crate::join_trails`] of one worker VM, by the slot of its row; written by the router.
    Trails(u8),
    /// [`crate::OtherGateways`].
    OtherGateways(bool),
    /// [`crate::Picks`] of a scope; written by the router.
    Picks(u16),
    /// [`crate::Accuracy`] of a scope; written by the meter.
    Accuracy(u16),
    /// [`crate::SentClocks`] of a scope; written by the router.
    SentClocks(u16),
    /// [`crate::SentBucket`] of a scope, below [`crate::SENT_BUCKETS`]; written by the router.
    Sent(u16, u32),
    /// [`crate::Sessions`] of a bucket; written by the router.
    Sessions(u16),
    /// [`crate::Directory`] of the epochs of a parity.
    Directory(bool),
    /// [`crate::Table`] of a scope.
    Table(bool, u16),
    /// [`crate::LoadTable`] of a scope.
    Load(bool, u16),
    /// [`crate::ModelValue`] of a scope.
    Model(bool, u16),
    /// A bucket of strides of a scope.
    Bucket(u16, u32),
}

/// An encoded key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyBytes {
    bytes: [u8; MAX_KEY_BYTES],
    len: u8,
}

impl AsRef<[u8]> for KeyBytes {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

const HEAD: &[u8; 9] = b"feed/head";

impl Key {
    /// Parity that singletons of `epoch` are stored under.
    pub fn parity(epoch: u64) -> bool {
        epoch & 1 == 1
    }

    /// The key's bytes.
    pub fn encode(self) -> KeyBytes {
        let mut bytes = [0u8; MAX_KEY_BYTES];
        let mut len = 0u8;
        let mut put = |part: &[u8]| {
            for (slot, byte) in bytes.iter_mut().skip(usize::from(len)).zip(part) {
                *slot = *byte;
            }
            len += part.len() as u8;
        };
        let singleton = |kind: u8, odd: bool, scope: u16| {
            let [low, high] = scope.to_le_bytes();
            [kind, u8::from(odd), low, high]
        };
        match self {
            Self::Head => put(HEAD),
            Self::Row(slot) => put(&[b'R', slot]),
            Self::Matrix(slot) => put(&[b'I', slot]),
            Self::Trails(slot) => put(&[b'W', slot]),
            Self::OtherGateways(odd) => put(&[b'O', u8::from(odd)]),
            Self::Picks(scope) => {
                put(b"P");
                put(&scope.to_le_bytes());
            }
            Self::Accuracy(scope) => {
                put(b"C");
                put(&scope.to_le_bytes());
            }
            Self::Sessions(bucket) => {
                put(b"E");
                put(&bucket.to_le_bytes());
            }
            Self::SentClocks(scope) => {
                put(b"Y");
                put(&scope.to_le_bytes());
            }
            Self::Sent(scope, bucket) => {
                put(b"X");
                put(&scope.to_le_bytes());
                put(&bucket.to_le_bytes());
            }
            Self::Directory(odd) => put(&[b'D', u8::from(odd)]),
            Self::Table(odd, scope) => put(&singleton(b'T', odd, scope)),
            Self::Load(odd, scope) => put(&singleton(b'L', odd, scope)),
            Self::Model(odd, scope) => put(&singleton(b'M', odd, scope)),
            Self::Bucket(scope, bucket) => {
                put(b"B");
                put(&scope.to_le_bytes());
                put(&bucket.to_le_bytes());
            }
        }
        KeyBytes { bytes, len }
    }

    /// Reads a key that a batch may write; `feed/head` and what the router writes are not among them.
    pub fn parse_writable(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        let mut odd = || match reader.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Range("parity")),
        };
        let key = match kind {
            b'D' => Self::Directory(odd()?),
            b'O' => Self::OtherGateways(odd()?),
            b'T' => Self::Table(odd()?, reader.u16()?),
            b'L' => Self::Load(odd()?, reader.u16()?),
            b'M' => Self::Model(odd()?, reader.u16()?),
            b'B' => Self::Bucket(reader.u16()?, reader.u32()?),
            _ => return Err(WireError::Magic),
        };
        reader.finish()?;
        Ok(key)
    }

    /// First byte of this key's values.
    pub fn value_kind(self) -> u8 {
        match self {
            Self::Head => b'H',
            Self::Row(_) => b'R',
            Self::Matrix(_) => b'I',
            Self::Trails(_) => b'W',
            Self::OtherGateways(_) => b'O',
            Self::Picks(_) => b'P',
            Self::Accuracy(_) => b'C',
            Self::SentClocks(_) => b'Y',
            Self::Sent(..) => b'X',
            Self::Sessions(_) => b'E',
            Self::Directory(_) => b'D',
            Self::Table(..) => b'T',
            Self::Load(..) => b'L',
            Self::Model(..) => b'M',
            Self::Bucket(..) => b'B',
        }
    }

    /// Largest value of this key, in bytes.
    pub fn max_value_bytes(self) -> usize {
        match self {
            Self::Bucket(..) => crate::MAX_BUCKET_BYTES,
            Self::Sent(..) => crate::MAX_SENT_BUCKET_BYTES,
            _ => crate::MAX_SINGLETON_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_keys() {
        let check = |key: Key, expected: &[u8]| assert_eq!(key.encode().as_ref(), expected);
        check(Key::Head, b"feed/head");
        check(Key::Directory(true), b"D\x01");
        check(Key::Table(false, 0x0102), b"T\x00\x02\x01");
        check(Key::Bucket(1, 0x01020304), b"B\x01\x00\x04\x03\x02\x01");
        check(Key::Picks(2), b"P\x02\x00");
        check(Key::Row(3), b"R\x03");
        check(Key::Accuracy(0x0102), b"C\x02\x01");
        check(Key::Sessions(0x0102), b"E\x02\x01");
        check(Key::Matrix(3), b"I\x03");
        check(Key::Trails(3), b"W\x03");
        check(Key::OtherGateways(true), b"O\x01");
        check(Key::SentClocks(0x0102), b"Y\x02\x01");
        check(Key::Sent(0x0102, 0x01020304), b"X\x02\x01\x04\x03\x02\x01");
    }

    proptest! {
        #[test]
        fn writable_keys_round_trip(odd: bool, scope: u16, bucket: u32) {
            for key in [Key::Directory(odd), Key::OtherGateways(odd), Key::Table(odd, scope), Key::Load(odd, scope), Key::Model(odd, scope), Key::Bucket(scope, bucket)] {
                prop_assert_eq!(Key::parse_writable(key.encode().as_ref()), Ok(key));
            }
        }

        #[test]
        fn a_batch_cannot_write_what_the_filters_own(scope: u16, slot: u8) {
            for key in [
                Key::Head,
                Key::Row(slot),
                Key::Matrix(slot),
                Key::Trails(slot),
                Key::Picks(scope),
                Key::Accuracy(scope),
                Key::SentClocks(scope),
                Key::Sent(scope, u32::from(slot)),
                Key::Sessions(scope),
            ] {
                prop_assert!(Key::parse_writable(key.encode().as_ref()).is_err());
            }
        }

        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            if let Ok(key) = Key::parse_writable(&bytes) {
                let encoded = key.encode();
                prop_assert_eq!(encoded.as_ref(), bytes.as_slice());
            }
        }
    }
}
