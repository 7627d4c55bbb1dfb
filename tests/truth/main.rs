//! The daemon as a whole against the truth: real frames over real sockets, and the index that
//! reaches a gateway equals a naive twin that is told what each engine holds.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod hybrid;
mod listen;
mod mishaps;
mod presence;
mod random;
mod releases;
mod restarts;
mod support;

/// The bytes that hexadecimal digits stand for.
fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}
