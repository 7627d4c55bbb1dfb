//! Small folders: which files and fields win, and what a refusal says.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use model::{ModelError, ModelFolder};
use prompt::PromptFormat;
use serde_json::{Value, json};

fn byte_level() -> Value {
    json!({
        "added_tokens": [{"id": 2, "content": "<s>", "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"Ġa": 0, "Ã": 1}, "merges": []},
    })
}

fn sentence_piece() -> Value {
    json!({
        "added_tokens": [
            {"id": 0, "content": "<bos▁x>", "special": true},
            {"id": 3, "content": "▁▁", "special": false},
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]},
        "model": {"type": "Unigram", "byte_fallback": true,
                  "vocab": [["<bos▁x>", 0.0], ["<0xE2>", -1.0], ["▁the", -2.0], ["▁▁", -2.0]]},
    })
}

/// A folder of files; text as it is, anything else as JSON.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn load(tokenizer: Value, config: Value) -> Result<ModelFolder, ModelError> {
    let dir = folder(&[("tokenizer.json", tokenizer), ("tokenizer_config.json", config)]);
    ModelFolder::load(dir.path())
}

/// `base` with the value at a JSON pointer's parent set.
fn with(mut base: Value, parent: &str, name: &str, value: Value) -> Value {
    base.pointer_mut(parent).unwrap()[name] = value;
    base
}

#[test]
fn byte_level_table() {
    let tokens = load(byte_level(), json!({})).unwrap().tokens;
    assert_eq!(tokens.bytes(0), Some(&b" a"[..]));
    assert_eq!(tokens.bytes(1), Some(&[0xc3][..]), "half a character stays half");
    assert_eq!(tokens.bytes(2), Some(&b"<s>"[..]));
}

#[test]
fn sentence_piece_table() {
    let tokens = load(sentence_piece(), json!({})).unwrap().tokens;
    assert_eq!(tokens.bytes(0), Some("<bos▁x>".as_bytes()), "a control token is its name");
    assert_eq!(tokens.bytes(1), Some(&[0xe2][..]));
    assert_eq!(tokens.bytes(2), Some(&b" the"[..]));
    assert_eq!(tokens.bytes(3), Some(&b"  "[..]));
}

#[test]
fn formats_that_are_no_template_are_recognised() {
    let check = |config: Value, expected: PromptFormat| {
        let files = [
            ("tokenizer.json", byte_level()),
            ("tokenizer_config.json", json!({"chat_template": "x"})),
            ("config.json", config.clone()),
        ];
        let dir = folder(&files);
        let spec = ModelFolder::load(dir.path()).unwrap().spec;
        assert_eq!(spec.prompt_format, expected, "{config}");
    };
    check(json!({}), PromptFormat::Template);
    check(
        json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}),
        PromptFormat::Template,
    );
    check(
        json!({"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}),
        PromptFormat::Harmony,
    );
    check(json!({"architectures": ["DeepseekV3ForCausalLM"]}), PromptFormat::Template);
    check(json!({"architectures": ["DeepseekV32ForCausalLM"]}), PromptFormat::Deepseek);
    check(json!({"architectures": ["DeepseekV4ForCausalLM"]}), PromptFormat::Deepseek);
    check(json!({"architectures": ["KimiK3ForConditionalGeneration"]}), PromptFormat::KimiK3);
    check(json!({"architectures": ["InklingForCausalLM"]}), PromptFormat::Inkling);
}

#[test]
fn mistrals_own_tokenizer_wins_where_the_engine_takes_it() {
    let tekken = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tokens/tiny-tekken.json"
    ))
    .unwrap();
    let check =
        |files: &[&str], expected: PromptFormat, from_tekken: bool| {
            let mut all = vec![
                ("tokenizer.json", byte_level()),
                ("tokenizer_config.json", json!({"chat_template": "x"})),
            ];
            all.extend(files.iter().map(|name| {
                (*name, if *name == "tekken.json" { json!(tekken) } else { json!("") })
            }));
            let dir = folder(&all);
            let spec = ModelFolder::load(dir.path()).unwrap().spec;
            assert_eq!(spec.prompt_format, expected, "{files:?}");
            assert_eq!(!spec.control_prefix.is_empty(), from_tekken, "{files:?}");
        };
    check(&[], PromptFormat::Template, false);
    check(&["tekken.json"], PromptFormat::Mistral, true);
    check(
        &["tekken.json", "consolidated.safetensors", "model-1.safetensors"],
        PromptFormat::Mistral,
        true,
    );
    check(&["tekken.json", "model.safetensors"], PromptFormat::Template, false);
    check(&["tokenizer.model.v3", "consolidated.safetensors"], PromptFormat::Mistral, false);
    check(&["tokenizer.model.v3"], PromptFormat::Template, false);
}

#[test]
fn chat_template_sources() {
    let template = |files: &[(&str, Value)]| {
        let mut all = vec![("tokenizer.json", byte_level())];
        all.extend_from_slice(files);
        ModelFolder::load(folder(&all).path()).map(|model| model.spec.chat_template)
    };
    let string = ("tokenizer_config.json", json!({"chat_template": "A"}));
    let list = json!({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    let no_default = json!({"chat_template": [{"name": "tool_use", "template": "T"}]});
    assert_eq!(template(std::slice::from_ref(&string)).unwrap().as_deref(), Some("A"));
    assert_eq!(template(&[("tokenizer_config.json", list)]).unwrap().as_deref(), Some("D"));
    assert_eq!(template(&[("tokenizer_config.json", json!({}))]).unwrap(), None);
    let jinja = ("chat_template.jinja", json!("J\n"));
    assert_eq!(template(&[string, jinja]).unwrap().as_deref(), Some("J\n"));
    let error = template(&[("tokenizer_config.json", no_default)]).unwrap_err().to_string();
    assert!(error.contains("chat_template[name=default]"), "{error}");
}

#[test]
fn special_tokens_come_from_the_config_then_the_map() {
    let dir = folder(&[
        ("tokenizer.json", byte_level()),
        (
            "tokenizer_config.json",
            json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null}),
        ),
        (
            "special_tokens_map.json",
            json!({"bos_token": "<no>", "eos_token": "<no>", "pad_token": {"content": "<p>"}}),
        ),
    ]);
    let tokens = ModelFolder::load(dir.path()).unwrap().spec.special_tokens;
    let expected = [("bos_token", "<s>"), ("pad_token", "<p>")];
    assert_eq!(tokens, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn completions_prefix_sources() {
    let template = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel"},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A"}},
                    {"SpecialToken": {"id": "E", "type_id": 0}}],
         "special_tokens": {"B": {"id": "B", "ids": [2], "tokens": ["<s>"]}}},
    ]});
    let prefix = |post: &Value, config: Value| {
        load(with(byte_level(), "", "post_processor", post.clone()), config)
            .unwrap()
            .spec
            .completions_prefix
    };
    assert_eq!(prefix(&template, json!({})), "<s>");
    assert_eq!(prefix(&Value::Null, json!({})), "");
    let llama = |add: bool| json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": add, "bos_token": "<b>"});
    assert_eq!(prefix(&template, llama(false)), "", "the class rebuilds the post-processor");
    assert_eq!(prefix(&Value::Null, llama(true)), "<b>");
    let qwen = json!({"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": false});
    assert_eq!(prefix(&template, qwen), "<s>", "other classes take the file's");
    let roberta = json!({"type": "RobertaProcessing", "cls": ["<c>", 1], "sep": ["</s>", 2]});
    assert_eq!(prefix(&roberta, json!({})), "<c>");
}

#[test]
fn normalizers() {
    let normalizer = |n: Value| {
        load(with(byte_level(), "", "normalizer", n), json!({})).unwrap().spec.normalizer
    };
    let nfc = json!({"type": "NFC"});
    let sequence = json!({"type": "Sequence", "normalizers": [nfc]});
    assert!(matches!(normalizer(Value::Null), prompt::Normalizer::None));
    assert!(matches!(normalizer(nfc), prompt::Normalizer::Nfc));
    assert!(matches!(normalizer(sequence), prompt::Normalizer::Nfc));
}

#[test]
fn refusals_name_file_field_and_value() {
    let check = |tokenizer: Value, words: &[&str]| {
        let error = load(tokenizer, json!({})).unwrap_err().to_string();
        for word in [&["tokenizer.json"], words].concat() {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    };
    let b = byte_level;
    let s = sentence_piece;
    check(with(b(), "/model", "type", json!("WordPiece")), &["model.type", "WordPiece"]);
    check(with(b(), "/model", "vocab", Value::Null), &["model.vocab"]);
    check(with(b(), "/model/vocab", "b", json!(0)), &["model.vocab", "share"]);
    check(with(b(), "/model/vocab", "b", json!(1u64 << 40)), &["model.vocab", "1099511627776"]);
    check(
        with(b(), "/model", "end_of_word_suffix", json!("</w>")),
        &["end_of_word_suffix", "</w>"],
    );
    check(with(b(), "", "decoder", json!({"type": "WordPiece"})), &["decoder", "WordPiece"]);
    check(with(b(), "", "normalizer", json!({"type": "Lowercase"})), &["normalizer", "Lowercase"]);
    check(
        with(b(), "/added_tokens/0", "single_word", json!(true)),
        &["added_tokens[0].single_word", "<s>"],
    );
    let prefix = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits"}, {"type": "ByteLevel", "add_prefix_space": true}]});
    check(with(b(), "", "pre_tokenizer", prefix), &["pre_tokenizer.pretokenizers[1]", "second"]);
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    check(with(b(), "", "normalizer", prepend.clone()), &["normalizer", "Prepend"]);
    let always = json!({"type": "Metaspace", "replacement": "▁"});
    let twice = with(with(s(), "", "normalizer", prepend), "", "pre_tokenizer", always.clone());
    check(twice, &["pre_tokenizer", "second"]);
    let normal_blank = json!([{"id": 4, "content": "a b", "normalized": true}]);
    let late = with(with(s(), "", "pre_tokenizer", always), "", "added_tokens", normal_blank);
    check(late, &["added_tokens[0]", "a b", "only after"]);
    let eats = json!([{"id": 3, "content": "▁▁", "normalized": true, "lstrip": true}]);
    check(with(s(), "", "added_tokens", eats), &["added_tokens[0]", "blanks"]);
    check(with(b(), "/added_tokens/0", "id", json!(0)), &["added_tokens[0].content", "<s>"]);
    check(
        with(
            s(),
            "",
            "pre_tokenizer",
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "x"}),
        ),
        &["pre_tokenizer.prepend_scheme"],
    );
    check(
        with(s(), "/decoder", "decoders", json!([{"type": "Metaspace", "replacement": "▁"}])),
        &["decoder", "ByteFallback"],
    );
    let fallback = with(b(), "/model", "byte_fallback", json!(true));
    check(with(fallback, "/model/vocab", "<0x0A>", json!(5)), &["model.byte_fallback", "true"]);
}

#[test]
fn missing_files_are_named() {
    let error = ModelFolder::load(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/tokenizer.json"), "{error}");
    let dir = folder(&[("tokenizer.json", byte_level())]);
    let error = ModelFolder::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}
