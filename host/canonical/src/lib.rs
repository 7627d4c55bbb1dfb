//! Whether generated tokens are the ones their text would be tokenized to.
//!
//! What a model generates need not be tokenized as the tokenizer would: sent back as text, such
//! tokens are not found in the engine's cache, though the text matches. [`Checker::check`] judges
//! one block with a little left context, without re-encoding whole texts:
//!
//! - A sequence is canonical BPE iff each two neighbours within a pre-token are what the merges make
//!   of their joined text (github.com/github/rust-gems, crate `bpe`; Berglund and van der Merwe,
//!   "Formalizing BPE Tokenization", 2023). Pairs repeat, so they are remembered.
//! - Pre-tokens come from the tokenizer's own pre-tokenizer. Its place in a slice of text depends on
//!   where the slice starts (digits in threes), so every token of the context is tried as a start,
//!   and only what all of them find wrong is wrong.
//! - The last two tokens are left to the next block: what follows may change their pre-token. What
//!   is wrong with them is then said of both blocks.
//!
//! The dummy prefix of Llama 2 is part of the tokens' bytes, so slices are cut without it being put
//! before them; a re-encoding that forgets this flags every slice.

mod bpe;
mod checker;
mod pre_tokens;
mod segment;

pub use checker::{CONTEXT_TOKENS, Checker, CheckerError, LOOKAHEAD_TOKENS, Verdict};
