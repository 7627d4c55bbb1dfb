//! The end of an answer.

/// Bytes of an answer that are kept: room for the events that end a stream, and for what engines
/// write behind the usage of a whole answer (a few hundred bytes without logprobs).
pub const TAIL_BYTES: usize = 8 << 10;

/// The last bytes of an answer that comes in chunks.
#[derive(Default)]
pub struct Tail {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Tail {
    /// Takes the next bytes in. `skipped`: bytes before them that were not even read.
    pub fn push(&mut self, chunk: &[u8], skipped: usize) {
        let from = chunk.len().saturating_sub(TAIL_BYTES);
        if skipped > 0 || from > 0 {
            self.is_cut = true;
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(chunk.get(from..).unwrap_or_default());
        // At twice the size, so that a byte is moved once and not with every chunk.
        if self.bytes.len() > 2 * TAIL_BYTES {
            let cut = self.bytes.len() - TAIL_BYTES;
            self.bytes.drain(..cut);
            self.is_cut = true;
        }
    }

    /// What is kept: at least the last [`TAIL_BYTES`] bytes of the answer, or all of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether something came before what is kept.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
}
