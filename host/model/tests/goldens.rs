//! The table against ids that Python `tokenizers` computed, and against downloaded tokenizers.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::Read;
use std::path::{Path, PathBuf};

use model::ModelFolder;
use prompt::{SegmentPrefix, TextMode};
use serde::Deserialize;
use tokenizers::{Normalizer as _, Tokenizer};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
}

fn goldens() -> Vec<Golden> {
    let path = workspace().join("tests/golden/tokens/tiny-model.jsonl");
    let file = std::fs::read_to_string(path).unwrap();
    file.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn nfc(text: &str) -> String {
    let mut normalized = tokenizers::NormalizedString::from(text);
    tokenizers::normalizers::NFC.normalize(&mut normalized).unwrap();
    normalized.get().to_owned()
}

#[test]
fn bytes_of_the_ids_are_the_nfc_text() {
    let folder = ModelFolder::load(&workspace().join("tests/golden/tiny-model")).unwrap();
    assert!(matches!(folder.spec.normalizer, prompt::Normalizer::Nfc));
    let goldens = goldens();
    assert_eq!(goldens.len(), 200);
    for golden in goldens {
        let bytes = folder.tokens.text(&golden.ids).unwrap();
        assert_eq!(bytes, nfc(&golden.text).as_bytes(), "text {:?}", golden.text);
    }
}

#[test]
fn tiny_model_spec() {
    let folder = ModelFolder::load(&workspace().join("tests/golden/tiny-model")).unwrap();
    let spec = &folder.spec;
    assert!(spec.chat_template.as_ref().unwrap().starts_with("{%- if tools %}"));
    assert_eq!(spec.special_tokens["eos_token"], "<|im_end|>");
    assert_eq!(spec.special_tokens["pad_token"], "<|endoftext|>");
    assert!(!spec.special_tokens.contains_key("bos_token"), "an explicit null is none");
    assert_eq!(spec.completions_prefix, "");
    assert_eq!(folder.tokens.len(), 8003);
    assert_eq!(folder.tokens.bytes(8001), Some(&b"<|im_start|>"[..]));
    assert_eq!(folder.tokens.bytes(8003), None);
}

/// Unpacks `name`/tokenizer.json of the shared data. `None` (with a word) where it is missing,
/// which is a failure on CI.
fn shared_tokenizer(name: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let folder = workspace().join("../shared/data/tokenizers").join(name);
    let Ok(packed) = std::fs::File::open(folder.join("tokenizer.json.gz")) else {
        assert!(std::env::var_os("CI").is_none(), "{} is missing on CI", folder.display());
        println!("skipped: {} is missing", folder.display());
        return None;
    };
    let unpacked = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    let path = unpacked.path().join("tokenizer.json");
    std::fs::write(&path, bytes).unwrap();
    let config = std::fs::read(folder.join("tokenizer_config.json"));
    std::fs::write(
        unpacked.path().join("tokenizer_config.json"),
        config.unwrap_or_else(|_| b"{}".to_vec()),
    )
    .unwrap();
    Some((unpacked, path))
}

#[test]
fn qwen3_texts_survive() {
    let Some((folder, path)) = shared_tokenizer("qwen3") else { return };
    let model = ModelFolder::load(folder.path()).unwrap();
    let tokenizer = Tokenizer::from_file(path).unwrap();
    assert_eq!(model.tokens.len(), tokenizer.get_vocab_size(true));
    for golden in goldens() {
        let encoding = tokenizer.encode_fast(golden.text.as_str(), false).unwrap();
        let bytes = model.tokens.text(encoding.get_ids()).unwrap();
        assert_eq!(bytes, nfc(&golden.text).as_bytes(), "text {:?}", golden.text);
    }
}

#[test]
fn tinyllama_texts_survive_behind_the_dummy_prefix() {
    let Some((folder, path)) = shared_tokenizer("tinyllama") else { return };
    let model = ModelFolder::load(folder.path()).unwrap();
    assert_eq!(model.spec.segment_prefix, SegmentPrefix::Each);
    assert_eq!(model.spec.completions_prefix, "<s>");
    let tokenizer = Tokenizer::from_file(path).unwrap();
    assert_eq!(model.tokens.len(), tokenizer.get_vocab_size(true));
    assert_eq!(model.tokens.bytes(13), Some(&b"\n"[..]), "<0x0A>");
    let mode = TextMode::new(&model.spec);
    for golden in goldens() {
        for text in [golden.text.clone(), format!("<s>{}</s><s> {}", golden.text, golden.text)] {
            let encoding = tokenizer.encode_fast(text.as_str(), false).unwrap();
            let bytes = model.tokens.text(encoding.get_ids()).unwrap();
            assert_eq!(String::from_utf8(bytes).unwrap(), mode.apply(text));
        }
    }
}
