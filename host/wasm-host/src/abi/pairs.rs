//! Serialisation of header maps: a count, the lengths, then every name and value with a zero byte
//! after it.

/// Most bytes of serialised pairs that a guest may hand over (`limits.h` of the C++ host).
pub const MAX_BYTES: usize = 1024 * 1024;
/// Most pairs that a guest may hand over (`limits.h` of the C++ host).
pub const MAX_COUNT: usize = 1024;

/// Names and values in order.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The bytes of `pairs`. No pairs at all are the four bytes of a zero count.
pub fn encode<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone) -> Vec<u8> {
    let count = pairs.clone().count();
    let text: usize = pairs.clone().map(|(name, value)| name.len() + value.len() + 2).sum();
    let mut bytes = Vec::with_capacity(4 + 8 * count + text);
    bytes.extend_from_slice(&length(count));
    for (name, value) in pairs.clone() {
        bytes.extend_from_slice(&length(name.len()));
        bytes.extend_from_slice(&length(value.len()));
    }
    for (name, value) in pairs {
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    bytes
}

fn length(n: usize) -> [u8; 4] {
    // A guest's memory is below 4 GiB, and nothing longer is ever handed to one.
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

/// The pairs of `bytes`; none at all if anything about them is wrong, as in Envoy: too many, too
/// long, a length past the end, a missing zero byte, or bytes left over.
pub fn decode(bytes: &[u8]) -> Pairs {
    if bytes.len() > MAX_BYTES {
        return Pairs::new();
    }
    try_decode(bytes).unwrap_or_default()
}

fn try_decode(bytes: &[u8]) -> Option<Pairs> {
    let (count, rest) = take_u32(bytes)?;
    if count > MAX_COUNT {
        return None;
    }
    let mut lengths = rest.get(..count * 8)?;
    let mut text = rest.get(count * 8..)?;
    let mut pairs = Pairs::with_capacity(count);
    for _ in 0..count {
        let (name_len, rest) = take_u32(lengths)?;
        let (value_len, rest) = take_u32(rest)?;
        lengths = rest;
        let (name, rest) = take_text(text, name_len)?;
        let (value, rest) = take_text(rest, value_len)?;
        text = rest;
        pairs.push((name.to_vec(), value.to_vec()));
    }
    text.is_empty().then_some(pairs)
}

fn take_u32(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*head)).ok()?, rest))
}

fn take_text(bytes: &[u8], len: usize) -> Option<(&[u8], &[u8])> {
    let text = bytes.get(..len)?;
    match bytes.get(len..)?.split_first()? {
        (0, rest) => Some((text, rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(pairs: &Pairs) -> Vec<u8> {
        encode(pairs.iter().map(|(n, v)| (n.as_slice(), v.as_slice())))
    }

    #[test]
    fn layout_is_the_one_of_the_abi() {
        // struct.pack('<IIIII', 2, 1, 2, 3, 0) + b'a\0bc\0' + b'def\0\0', by hand.
        let golden = b"\x02\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0a\0bc\0def\0\0";
        let pairs = vec![(b"a".to_vec(), b"bc".to_vec()), (b"def".to_vec(), vec![])];
        assert_eq!(encoded(&pairs), golden);
        assert_eq!(decode(golden), pairs);
    }

    #[test]
    fn anything_wrong_is_no_pairs() {
        let good = encoded(&vec![(b"a".to_vec(), b"b".to_vec())]);
        assert_eq!(decode(&good).len(), 1);
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_empty(), "cut at {cut}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(decode(&longer).is_empty());
        let mut unterminated = good;
        unterminated[13] = b'x';
        assert!(decode(&unterminated).is_empty());
    }

    #[test]
    fn limits_are_those_of_the_host() {
        let many: Pairs = (0..MAX_COUNT).map(|_| (b"k".to_vec(), vec![])).collect();
        assert_eq!(decode(&encoded(&many)).len(), MAX_COUNT);
        let more: Pairs = (0..=MAX_COUNT).map(|_| (b"k".to_vec(), vec![])).collect();
        assert!(decode(&encoded(&more)).is_empty());
        let long = vec![(b"k".to_vec(), vec![b'v'; MAX_BYTES])];
        assert!(decode(&encoded(&long)).is_empty());
    }

    proptest! {
        #[test]
        fn round_trip(pairs in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..20), proptest::collection::vec(any::<u8>(), 0..20)), 0..20)) {
            prop_assert_eq!(decode(&encoded(&pairs)), pairs);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&bytes);
        }
    }
}
