//! What the fuzz targets do with an input, apart from libFuzzer, so that a test on stable can
//! replay the seeds through the same functions. Each must return, whatever the bytes are.

pub mod carried;
pub mod events;
pub mod feed_bytes;
pub mod meter;
pub mod page;
pub mod prompts;
pub mod smoke;
pub mod snapshots;
pub mod tokenizer;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 10] = [
    ("events", events::decode),
    ("framing", events::framing),
    ("trtllm", events::trtllm),
    ("page", page::parse),
    ("tokenizer", tokenizer::load),
    ("feed", feed_bytes::decode),
    ("prompt", prompts::render),
    ("snapshot", snapshots::read),
    ("meter", meter::read),
    ("carrier", carried::read),
];
