//! The renderer's text rules against the reference: for every kind of tokenizer and text, the
//! bytes of the ids that `tokenizers` gives are the text that the filter would hash.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use model::ModelFolder;
use prompt::TextMode;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

struct Case {
    name: &'static str,
    model: ModelFolder,
    mode: TextMode,
    tokenizer: Tokenizer,
}

fn case(name: &'static str, tokenizer_json: &Value) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer_json.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    let model = ModelFolder::load(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mode = TextMode::new(&model.spec);
    Case { name, model, mode, tokenizer: Tokenizer::from_file(path).unwrap() }
}

impl Case {
    fn check(&self, text: &str) {
        let ids = self.tokenizer.encode_fast(text, false).unwrap();
        let bytes = self.model.tokens.text(ids.get_ids()).unwrap();
        let expected = String::from_utf8_lossy(&bytes);
        let got = self.mode.apply(text.to_owned());
        assert_eq!(got, expected, "{}: {text:?} is {:?}", self.name, ids.get_ids());
    }
}

fn added(entries: &[(&str, &str)], first: u64) -> Value {
    let flags = |flags: &str, name: &str| flags.contains(name);
    let entry = |(i, (content, f)): (u64, &(&str, &str))| {
        json!({"id": first + i, "content": content, "special": !flags(f, "text"), "single_word": false,
               "lstrip": flags(f, "left"), "rstrip": flags(f, "right"), "normalized": flags(f, "normal")})
    };
    (0u64..).zip(entries).map(entry).collect()
}

/// The byte-level tokenizer of the tests with other rules around it.
fn byte_level(tokens: &[(&str, &str)], normalizer: &Value, add_prefix_space: bool) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-model");
    let text = std::fs::read_to_string(path.join("tokenizer.json")).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    file["added_tokens"] = added(tokens, 8000);
    file["normalizer"] = normalizer.clone();
    if add_prefix_space {
        file["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    }
    file
}

/// A small SentencePiece type vocabulary with byte fallback.
fn sentence_piece(tokens: &[(&str, &str)], normalizer: &Value, pre_tokenizer: &Value) -> Value {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    pieces.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    for piece in ["▁", "a", "b", "s", "<", ">", "\n", "▁a", "ab", "▁▁", "▁<", "é", "▁ab"]
    {
        pieces.push(piece.to_owned());
    }
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(i, piece)| (piece.clone(), json!(i))).collect();
    let merges = [["▁", "▁"], ["a", "b"], ["▁", "ab"], ["▁", "a"], ["▁", "<"]];
    let mut all = added(&[("<unk>", ""), ("<s>", ""), ("</s>", "")], 0);
    all.as_array_mut().unwrap().extend(added(tokens, 272).as_array().unwrap().clone());
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": all,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                  "vocab": vocab, "merges": merges},
    })
}

fn cases() -> Vec<Case> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    let nfc = json!({"type": "NFC"});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let old = json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true});
    let strip = [("<l>", "left"), ("<r>", "right"), ("<b>", "left right"), ("<n>", "normal")];
    let runs = [("\u{2581}\u{2581}\u{2581}", "text"), ("<r>", "right")];
    let blanks = [("   ", ""), ("<r>", "right"), ("<nl>", "normal left"), ("<nr>", "normal right")];
    vec![
        case("byte level, strips", &byte_level(&strip, &Value::Null, false)),
        case("byte level, NFC", &byte_level(&strip, &nfc, false)),
        case("byte level, blanks", &byte_level(&blanks, &nfc, false)),
        case("byte level, prefix space", &byte_level(&strip, &Value::Null, true)),
        case("Llama 2", &sentence_piece(&strip, &both, &Value::Null)),
        case("Gemma", &sentence_piece(&runs, &replace, &Value::Null)),
        case("metaspace always", &sentence_piece(&strip, &Value::Null, &metaspace("always"))),
        case("metaspace first", &sentence_piece(&strip, &Value::Null, &metaspace("first"))),
        case("metaspace never", &sentence_piece(&strip, &Value::Null, &metaspace("never"))),
        case("metaspace of old files", &sentence_piece(&strip, &Value::Null, &old)),
    ]
}

thread_local! {
    static CASES: Vec<Case> = cases();
}

const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    " a",
    "  a ",
    "\u{2581}",
    "a\u{2581}b",
    "<s>",
    "<s>a",
    "a<s>",
    "<s> a</s><s>b",
    "a <l> b",
    "a <r> b",
    " <b>  <b> ",
    "<r>   a",
    "<n>a<n>",
    " <n> a",
    "a\n<l>\n<r>\nb",
    "<l><r><b><n>",
    "e\u{301}<n>",
    "<s>\u{338}",
    "\u{2581}\u{2581}\u{2581}\u{2581}a",
    "<r>\u{2581}a",
    "<unk>a",
    "<nl> a <nr> b",
    "日本\u{3000}<l>\u{a0}語",
    "<s><s>",
    "<",
    "<s",
    "😀<r> 😀",
];

#[test]
fn bytes_of_the_ids_are_the_text_by_the_rules() {
    CASES.with(|cases| {
        for case in cases {
            TEXTS.iter().for_each(|text| case.check(text));
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_text(parts in proptest::collection::vec(prop_oneof![
        "[ab \u{2581}\n\t\u{a0}e\u{301}\u{338}日😀<>]{0,5}",
        Just("<s>".to_owned()), Just("<l>".to_owned()), Just("<r>".to_owned()), Just("<b>".to_owned()),
        Just("<n>".to_owned()), Just("<nl>".to_owned()), Just("<nr>".to_owned()), Just("   ".to_owned()),
    ], 0..8)) {
        CASES.with(|cases| cases.iter().for_each(|case| case.check(&parts.concat())));
    }
}
