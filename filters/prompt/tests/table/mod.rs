//! The table template × conversation: what vLLM renders beside what this crate renders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prompt::{Api, ModelSpec, Renderer, Request};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// How one cell came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The same bytes.
    Exact,
    /// Not rendered here: the reason, and whether the reference refuses too.
    Refused(String, bool),
    /// Other bytes, or bytes where the reference refuses.
    Wrong(String),
}

/// One cell of the table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub(crate) template: String,
    pub(crate) conversation: String,
    pub(crate) outcome: Outcome,
}

/// A request body and its API.
pub(crate) struct Conversation {
    pub(crate) api: Api,
    pub(crate) body: Vec<u8>,
}

/// `tests/golden` of the repository.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// The templates of others, which are read where they are.
pub(crate) fn shared_templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/chat-templates")
}

/// The model that the reference renders with, but for its template.
fn model(chat_template: Option<String>) -> ModelSpec {
    let path = golden().join("tiny-model/tokenizer_config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let special_tokens: BTreeMap<String, String> = ["bos_token", "eos_token", "pad_token"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), config[name].as_str()?.to_owned())))
        .collect();
    let own = config["chat_template"].as_str().map(str::to_owned);
    ModelSpec {
        chat_template: chat_template.or(own),
        special_tokens,
        // `SPECIAL_PREFIX` of reference.py.
        completions_prefix: "<|bos|>".to_owned(),
        ..ModelSpec::default()
    }
}

/// The model with the template in `path`, or with its own.
pub(crate) fn model_of(path: Option<&Path>) -> ModelSpec {
    model(path.map(|path| std::fs::read_to_string(path).unwrap()))
}

fn api(name: &str) -> Api {
    match name {
        "messages" => Api::Messages,
        "responses" => Api::Responses,
        _ => Api::ChatCompletions,
    }
}

/// The committed conversations.
pub(crate) fn committed_conversations() -> BTreeMap<String, Conversation> {
    let mut found = BTreeMap::new();
    let root = golden().join("prompt/conversations");
    for folder in ["", "messages", "responses"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let name = if folder.is_empty() { stem } else { format!("{folder}.{stem}") };
            let body = std::fs::read(&path).unwrap();
            found.insert(name, Conversation { api: api(folder), body });
        }
    }
    found
}

/// The conversations that `generate.py --out` wrote.
#[allow(dead_code, reason = "the test reads only committed ones")]
pub(crate) fn conversations_in(folder: &Path) -> BTreeMap<String, Conversation> {
    let mut found = BTreeMap::new();
    for api_folder in sorted(folder) {
        let api = api(api_folder.file_name().unwrap().to_str().unwrap());
        for path in sorted(&api_folder) {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            found.insert(stem, Conversation { api, body: std::fs::read(&path).unwrap() });
        }
    }
    found
}

pub(crate) fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// One row of the table. `expected` holds the reference's text, its digest or its error by
/// conversation.
pub(crate) fn row(
    template: &str,
    spec: &ModelSpec,
    expected: &Value,
    conversations: &BTreeMap<String, Conversation>,
) -> Vec<Cell> {
    let renderer = Renderer::new(spec);
    let cell = |(name, expected): (&String, &Value)| {
        let conversation = &conversations[name];
        let got = match &renderer {
            Err(err) => Err(format!("{}: {err:?}", err.reason())),
            Ok(renderer) => Request::parse(conversation.api, &conversation.body)
                .map_err(|err| format!("{}: {err}", err.reason()))
                .and_then(|request| {
                    let prompt = renderer.render(&request);
                    prompt.map_err(|refusal| format!("{}: {refusal}", refusal.reason()))
                }),
        };
        Cell {
            template: template.to_owned(),
            conversation: name.clone(),
            outcome: compare(expected, got.map(|prompt| prompt.bytes)),
        }
    };
    expected.as_object().unwrap().iter().map(cell).collect()
}

fn compare(expected: &Value, got: Result<Vec<u8>, String>) -> Outcome {
    let error = expected.get("error").and_then(Value::as_str);
    let got = match (error, got) {
        (_, Err(reason)) => return Outcome::Refused(reason, error.is_some()),
        (Some(error), Ok(_)) => return Outcome::Wrong(format!("the reference refuses: {error}")),
        (None, Ok(got)) => got,
    };
    match expected.as_str() {
        Some(text) if text.as_bytes() == got => Outcome::Exact,
        Some(text) => Outcome::Wrong(first_difference(text.as_bytes(), &got)),
        None => {
            let digest: String = Sha256::digest(&got).iter().map(|b| format!("{b:02x}")).collect();
            if expected["sha256"].as_str() == Some(&digest) {
                Outcome::Exact
            } else {
                Outcome::Wrong(format!("{} bytes, expected {}", got.len(), expected["bytes"]))
            }
        }
    }
}

fn first_difference(expected: &[u8], got: &[u8]) -> String {
    let same = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    let around = |text: &[u8]| {
        let (from, to) = (same.saturating_sub(20), text.len().min(same + 40));
        String::from_utf8_lossy(&text[from..to]).into_owned()
    };
    format!("byte {same}: expected {:?}, got {:?}", around(expected), around(got))
}

/// The committed table of this project's own templates.
pub(crate) fn own_table() -> Vec<Cell> {
    let conversations = committed_conversations();
    let mut cells = Vec::new();
    for entry in sorted(&golden().join("prompt/expected")) {
        let name = entry.file_stem().unwrap().to_str().unwrap();
        let path = golden().join(format!("prompt/templates/{name}.jinja"));
        let spec = model_of((name != "tiny-model").then_some(&path));
        cells.extend(row(name, &spec, &read_json(&entry), &conversations));
    }
    cells
}

/// The committed table of others' templates; `None` where those are not there. The digests are
/// of exactly the files whose hash they carry.
pub(crate) fn others_table() -> Option<Vec<Cell>> {
    let folder = shared_templates();
    if !folder.exists() {
        return None;
    }
    let conversations = committed_conversations();
    let mut cells = Vec::new();
    for (file, digests) in read_json(&golden().join("prompt/digests.json")).as_object().unwrap() {
        let path = folder.join(file);
        let source = std::fs::read(&path).unwrap();
        let digest: String = Sha256::digest(&source).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digests["sha256"], digest, "{file} is another one");
        let spec = model_of(Some(&path));
        let name = file.trim_end_matches(".jinja");
        cells.extend(row(name, &spec, &digests["cells"], &conversations));
    }
    Some(cells)
}

pub(crate) fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}
