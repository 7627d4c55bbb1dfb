//! `*.tiktoken` and `tekken.json` against ids from PyPI's tiktoken and mistral-common.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use model::{ModelFolder, Special, TokenTable};
use prompt::{Api, Renderer, Request};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokens").join(name)
}

fn goldens(name: &str) -> Vec<Golden> {
    let file = std::fs::read_to_string(golden(name)).unwrap();
    let goldens: Vec<Golden> =
        file.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(goldens.len(), 121);
    goldens
}

fn special() -> Vec<(u32, Special)> {
    let text = |text: &str| Special::Text(text.to_owned());
    vec![(340, text("<|endoftext|>")), (341, text("<|im_start|>")), (342, text("<|im_end|>"))]
}

#[test]
fn bytes_of_tiktoken_ids_are_the_text() {
    let table = TokenTable::read_tiktoken(&golden("tiny.tiktoken"), &special()).unwrap();
    assert_eq!(table.len(), 343);
    for golden in goldens("tiny-tiktoken.jsonl") {
        assert_eq!(table.text(&golden.ids).unwrap(), golden.text.as_bytes(), "{:?}", golden.text);
    }
    let control = [(342, Special::Control)];
    let table = TokenTable::read_tiktoken(&golden("tiny.tiktoken"), &control).unwrap();
    assert_eq!(table.bytes(342), Some(&[0xff, 0x56, 1, 0, 0][..]));
    assert_eq!(table.bytes(341), None);
}

#[test]
fn tekken_prompts_are_what_the_renderer_writes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden("tiny-tekken.json"), dir.path().join("tekken.json")).unwrap();
    let model = ModelFolder::load(dir.path()).unwrap();
    assert_eq!(model.tokens.len(), 330, "the vocabulary is cut at its configured size");
    assert_eq!(model.tokens.bytes(9), Some(&[0xff, 9, 0, 0, 0][..]), "a filler is a control token");
    let renderer = Renderer::new(&model.spec).unwrap();
    for golden in goldens("tiny-tekken.jsonl") {
        let body = json!({"prompt": golden.text}).to_string();
        let request = Request::parse(Api::Completions, body.as_bytes()).unwrap();
        let prompt = renderer.render(&request).unwrap();
        assert_eq!(prompt.bytes, model.tokens.text(&golden.ids).unwrap(), "{:?}", golden.text);
    }
}

#[test]
fn a_tiktoken_folder_takes_its_special_tokens_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden("tiny.tiktoken"), dir.path().join("x.tiktoken")).unwrap();
    let config = json!({"tokenizer_class": "QWenTokenizer", "added_tokens_decoder":
        {"341": {"content": "<|im_start|>"}}, "bos_token": "<|im_start|>"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let model = ModelFolder::load(dir.path()).unwrap();
    assert_eq!(model.tokens.bytes(341), Some(&b"<|im_start|>"[..]));
    assert_eq!(model.tokens.bytes(340), None);
    assert_eq!(model.spec.normalizer, prompt::Normalizer::Nfc);
    assert_eq!(model.spec.added_tokens[0].content, "<|im_start|>");
    assert_eq!(model.spec.special_tokens["bos_token"], "<|im_start|>");
}

#[test]
fn refusals_name_the_line_or_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let check = |file: &str, text: &str, words: &[&str]| {
        let path = dir.path().join(file);
        std::fs::write(&path, text).unwrap();
        let table = if file == "tekken.json" {
            TokenTable::read_tekken(&path)
        } else {
            TokenTable::read_tiktoken(&path, &special())
        };
        let error = table.unwrap_err().to_string();
        for word in [&[file], words].concat() {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    };
    check("a.tiktoken", "YQ== 0\nYg= 1\n", &["line 2", "Yg= 1"]);
    check("a.tiktoken", "YQ== 0\nYg== x\n", &["line 2"]);
    check("a.tiktoken", "YQ== 0\nYg== 0\n", &["line 2", "share"]);
    check("a.tiktoken", "YQ== 341\n", &["special token 341", "share"]);
    check("a.tiktoken", "YQ== 99999999999\n", &["line 1", "out of range"]);
    let tekken = |size: u64, control: u64, bytes: &str| {
        json!({"config": {"default_vocab_size": size, "default_num_special_tokens": control},
               "vocab": [{"rank": 0, "token_bytes": bytes}]})
        .to_string()
    };
    check("tekken.json", &tekken(3, 1, "YQ=="), &["default_vocab_size", "3"]);
    check("tekken.json", &tekken(1, 2, "YQ=="), &["default_vocab_size", "1"]);
    check("tekken.json", &tekken(2, 1, "YQ"), &["vocab[0].token_bytes", "base64"]);
    check("tekken.json", &tekken(5_000_000, 5_000_000, "YQ=="), &["out of range"]);
    check("tekken.json", "{}", &["config.default_vocab_size", "missing"]);
}
