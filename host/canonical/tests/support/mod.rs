//! Tokenizers and texts of the tests here.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests, each using some")]

use std::io::Read;
use std::path::{Path, PathBuf};

use canonical::{CONTEXT_TOKENS, Checker, Verdict};
use model::ModelFolder;
use prompt::TextMode;
use tokenizers::Tokenizer;

pub(crate) const BLOCK: usize = 16;

pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) checker: Checker,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) folder: ModelFolder,
    pub(crate) mode: TextMode,
}

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn load(name: &'static str, folder: &Path) -> Model {
    let model = ModelFolder::load(folder).unwrap();
    Model {
        name,
        checker: Checker::load(folder).unwrap(),
        tokenizer: Tokenizer::from_file(folder.join("tokenizer.json")).unwrap(),
        mode: TextMode::new(&model.spec),
        folder: model,
    }
}

pub(crate) fn tiny() -> Model {
    load("tiny-model", &workspace().join("tests/golden/tiny-model"))
}

/// The tiny model with digits cut in threes, as Llama 3 does, and some tokens of several digits.
fn digits_in_threes() -> Model {
    let path = workspace().join("tests/golden/tiny-model/tokenizer.json");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace(r"|\\p{N}|", r"|\\p{N}{1,3}|");
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(file["pre_tokenizer"].to_string().contains("{1,3}"));
    for (i, (left, right)) in
        [("1", "2"), ("12", "3"), ("4", "5"), ("45", "6"), ("5", "6")].iter().enumerate()
    {
        file["model"]["vocab"][format!("{left}{right}")] = (8000 + i).into();
        file["model"]["merges"].as_array_mut().unwrap().push(serde_json::json!([left, right]));
    }
    // The reference numbers added tokens from the vocabulary's end on, whatever the file says.
    for (token, id) in file["added_tokens"].as_array_mut().unwrap().iter_mut().zip(8005..) {
        token["id"] = id.into();
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    load("digits in threes", folder.path())
}

/// The tiny model and a variant, and the shared ones where they are.
pub(crate) fn models() -> Vec<Model> {
    let mut models = vec![tiny(), digits_in_threes()];
    for name in ["qwen3", "tinyllama"] {
        let folder = workspace().join("../shared/data/tokenizers").join(name);
        let Ok(packed) = std::fs::File::open(folder.join("tokenizer.json.gz")) else {
            assert!(std::env::var_os("CI").is_none(), "{} is missing on CI", folder.display());
            println!("skipped: {} is missing", folder.display());
            continue;
        };
        let unpacked = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        std::fs::write(unpacked.path().join("tokenizer.json"), bytes).unwrap();
        std::fs::write(unpacked.path().join("tokenizer_config.json"), "{}").unwrap();
        models.push(load(name, unpacked.path()));
    }
    models
}

/// Texts of every sort: goldens, code and prose of this repository, chats, runs.
pub(crate) fn texts() -> Vec<String> {
    let root = workspace();
    let mut texts = Vec::new();
    for file in
        ["README.md", "host/canonical/src/segment.rs", "tests/golden/tokens/generate_ranks.py"]
    {
        texts.push(std::fs::read_to_string(root.join(file)).unwrap());
    }
    let goldens =
        std::fs::read_to_string(root.join("tests/golden/tokens/tiny-model.jsonl")).unwrap();
    let mut joined = String::new();
    for line in goldens.lines().skip(1) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        joined += value["text"].as_str().unwrap();
    }
    texts.push(joined);
    for (i, unit) in [
        " ",
        "\n",
        "\n   ",
        "ab",
        "1234567",
        "=",
        "日本語の",
        "😀",
        "e\u{301}",
        "aGVsbG8",
        "<|im_start|>x",
    ]
    .iter()
    .enumerate()
    {
        texts.push(format!("{}and then{}", unit.repeat(150 + 7 * i), unit.repeat(90)));
    }
    if let Ok(trees) =
        std::fs::read_to_string(root.join("../shared/data/oasst/en_tree_000-059.jsonl"))
    {
        texts.extend(trees.lines().take(12).map(|line| line.chars().take(6000).collect()));
    }
    texts
}

/// Verdicts of a chain's whole blocks.
pub(crate) fn verdicts(checker: &Checker, ids: &[u32]) -> Vec<Verdict> {
    (0..ids.len() / BLOCK)
        .map(|i| {
            let at = i * BLOCK;
            let context = &ids[at.saturating_sub(CONTEXT_TOKENS)..at];
            checker.check(context, &ids[at..at + BLOCK])
        })
        .collect()
}

/// Small and seeded; the seed is the test's own.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}
