//! What the meter reads: answers of engines in pieces, and bodies it adds an option to.

use meter::{
    MeterConfig, NoEdit, Passed, TAIL_BYTES, Tail, UsageRemover, ask_for_usage, find_usage,
};
use rewrite::{Kind, Renamer};

/// The first byte is the size of the pieces; the rest is an answer, and a request.
pub fn read(bytes: &[u8]) {
    let (piece, bytes) =
        bytes.split_first().map_or((1, bytes), |(piece, rest)| (usize::from(*piece).max(1), rest));
    let mut tail = Tail::default();
    let mut remover = UsageRemover::default();
    let mut passed = Vec::new();
    let count = bytes.len().div_ceil(piece);
    for (number, chunk) in bytes.chunks(piece).enumerate() {
        tail.push(chunk, 0);
        match remover.pass(chunk, number + 1 == count) {
            Passed::Same => passed.extend_from_slice(chunk),
            Passed::Instead(bytes) => passed.extend_from_slice(&bytes),
        }
    }
    assert!(bytes.ends_with(tail.bytes()) && tail.bytes().len() <= 2 * TAIL_BYTES);
    // How an answer is cut changes neither what it says nor what is taken out of it.
    if !tail.is_cut() {
        assert_eq!(find_usage(tail.bytes()), find_usage(bytes));
    }
    if bytes.len() < 16 << 10 {
        let whole = match UsageRemover::default().pass(bytes, true) {
            Passed::Same => bytes.to_vec(),
            Passed::Instead(bytes) => bytes,
        };
        assert!(passed == whole, "cut otherwise, passed otherwise");
        assert!(remover.has_found() || passed == bytes, "nothing found, something taken");
    }
    for kind in [Kind::Object, Kind::Events] {
        let renamer = || Renamer::new(kind, b"\"asked\"".to_vec());
        let whole = renamer().pass(bytes).unwrap_or_else(|| bytes.to_vec());
        let mut one = renamer();
        let pieces =
            bytes.chunks(piece).map(|chunk| one.pass(chunk).unwrap_or_else(|| chunk.to_vec()));
        let pieces: Vec<u8> = pieces.flatten().collect();
        assert!(pieces == whole, "cut otherwise, renamed otherwise");
        assert!(one.replaced() > 0 || whole == bytes, "nothing renamed, something changed");
    }
    if let Ok(edit) = ask_for_usage(bytes) {
        let sent = edit.apply(bytes);
        let (take, front) = edit.front(bytes);
        assert!(sent == [front.as_slice(), &bytes[take..]].concat());
        // Asked once, it need not be asked again.
        assert_eq!(ask_for_usage(&sent), Err(NoEdit::Asked));
    }
    let _ = MeterConfig::parse(bytes);
}
