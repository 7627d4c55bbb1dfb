//! Token ids as they occur: public conversations, cut by a real vocabulary.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use model::TokenTable;
use serde_json::Value;

/// Longest piece that is looked for; longer ones are rare and blanks mostly.
const MAX_PIECE_BYTES: usize = 24;

/// A vocabulary and a text in its ids.
pub(crate) struct Corpus {
    pub(crate) table: TokenTable,
    /// What the ids are of.
    pub(crate) name: &'static str,
    pub(crate) ids: Vec<u32>,
}

impl Corpus {
    /// Qwen3's vocabulary over the shared conversations; without those files, the tiny model's over
    /// the project's own documents.
    pub(crate) fn load() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let shared = root.join("../shared/data");
        let qwen = shared.join("tokenizers/qwen3/tokenizer.json.gz");
        let conversations = shared.join("oasst/en_tree_000-059.jsonl");
        if qwen.exists() && conversations.exists() {
            let mut json = Vec::new();
            flate2::read::GzDecoder::new(std::fs::File::open(&qwen)?).read_to_end(&mut json)?;
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), json)?;
            let mut text = String::new();
            for line in std::fs::read_to_string(&conversations)?.lines() {
                collect_texts(&serde_json::from_str(line)?, &mut text);
            }
            return Self::of(TokenTable::read(file.path())?, "qwen3", &text);
        }
        let documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "filters/feed/README.md"];
        let read = |name: &str| std::fs::read_to_string(root.join(name));
        let texts: Vec<String> =
            documents.iter().map(|name| read(name)).collect::<std::io::Result<_>>()?;
        let tiny: PathBuf = root.join("tests/golden/tiny-model/tokenizer.json");
        Self::of(TokenTable::read(&tiny)?, "tiny-model", &texts.concat())
    }

    fn of(table: TokenTable, name: &'static str, text: &str) -> Result<Self> {
        let mut pieces: HashMap<Vec<u8>, u32> = HashMap::new();
        for id in 0..table.len() as u32 {
            if let Some(bytes) = table.bytes(id).filter(|bytes| !bytes.is_empty()) {
                // Special tokens come after the vocabulary, so the first of equal ones is the usual.
                pieces.entry(bytes.to_vec()).or_insert(id);
            }
        }
        let ids = greedy(&pieces, text.as_bytes()).context("text is not covered")?;
        ensure!(ids.len() > 4096, "{name}: {} ids are too few for a trace", ids.len());
        Ok(Self { table, name, ids })
    }

    pub(crate) fn bytes_per_token(&self) -> f64 {
        let bytes: usize =
            self.ids.iter().filter_map(|id| self.table.bytes(*id)).map(<[u8]>::len).sum();
        bytes as f64 / self.ids.len() as f64
    }
}

fn collect_texts(value: &Value, text: &mut String) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, text)),
        Value::Object(fields) => {
            if let Some(Value::String(said)) = fields.get("text") {
                text.push_str(said);
                text.push('\n');
            }
            fields.values().for_each(|field| collect_texts(field, text));
        }
        _ => {}
    }
}

/// The longest piece at each place: not what the tokenizer does, but its ids and their lengths.
fn greedy(pieces: &HashMap<Vec<u8>, u32>, mut text: &[u8]) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    while !text.is_empty() {
        let longest = (1..=text.len().min(MAX_PIECE_BYTES))
            .rev()
            .find_map(|len| Some((len, *pieces.get(text.get(..len)?)?)));
        let (len, id) = longest?;
        ids.push(id);
        text = text.get(len..)?;
    }
    Some(ids)
}
