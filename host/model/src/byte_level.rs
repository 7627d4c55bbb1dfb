//! The byte <-> character table of GPT-2's byte-level BPE.
//!
//! Origin: `bytes_to_unicode` of openai/gpt-2 `src/encoder.py`, unchanged in tokenizers 0.23.2
//! (`pre_tokenizers/byte_level.rs`). Printable Latin-1 bytes stand for themselves, the other 68
//! are numbered from U+0100 in ascending order.

/// The byte a character stands for.
pub(crate) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x143 => {
            // The n-th byte that is not printable: 0..=0x20, then 0x7f..=0xa0, then 0xad.
            let n = code - 0x100;
            let byte = match n {
                0..=32 => n,
                33..=66 => n - 33 + 0x7f,
                _ => 0xad,
            };
            u8::try_from(byte).ok()
        }
        _ => None,
    }
}

/// The bytes of a vocabulary piece. A piece with a character outside the table is its own UTF-8,
/// as in the reference decoder (`decoders/byte_level`); no text can produce it.
pub(crate) fn piece_bytes(piece: &str) -> Vec<u8> {
    piece
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| piece.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_256_characters_are_a_bijection_onto_bytes() {
        let mut bytes: Vec<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        bytes.dedup();
        assert_eq!(bytes.len(), 256);
    }

    #[test]
    fn known_pieces() {
        let check = |piece: &str, bytes: &[u8]| assert_eq!(piece_bytes(piece), bytes, "{piece}");
        check("Ġhello", b" hello");
        check("ĊĊ", b"\n\n");
        check("Ã©", "é".as_bytes());
        check("ł", &[0xa0]);
        check("Ń", &[0xad]);
        check("ġ", &[0x7f]);
        check("<｜x｜>", "<｜x｜>".as_bytes());
    }
}
