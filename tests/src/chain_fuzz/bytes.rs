//! What is given to callbacks: seeds, damaged seeds, and anything.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wasm_host::HeaderMap;

use super::PROMPT;

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`, which is at least 1.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// The committed seeds of the fuzz targets of single decoders.
pub struct Corpus {
    requests: Vec<Vec<u8>>,
    answers: Vec<Vec<u8>>,
    records: Vec<Vec<u8>>,
    batches: Vec<Vec<u8>>,
}

const PATHS: &[&str] = &[
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/responses",
    "/v1/embeddings",
    "/generate",
    "/v1/models",
    "/",
    "/v1/completions?a=b",
];

const NAMES: &[&str] = &[
    "x-llm-d-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-llm-d-slo-ttft-ms",
    "x-llm-d-slo-tpot-ms",
    "x-session-token",
    "x-session-id",
    "x-zone",
    "epp-profile",
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-subset",
    "x-llm-d-model-name-rewrite",
    "x-request-id",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "upgrade",
    "expect",
    "x-forwarded-for",
];

const VALUES: &[&str] = &[
    "",
    "m",
    "chat",
    "decode",
    "MTAuMC4wLjA6ODAwMA==",
    "10.0.0.0:8000,10.0.0.1:8000",
    "1.5",
    "-1e39",
    "NaN",
    "session-1",
    "application/json; charset=utf-8",
    "gzip",
    "100-continue",
    "websocket",
];

impl Corpus {
    /// What a request is of: mostly a completion or a chat.
    pub(crate) fn kind(random: &mut Random) -> usize {
        if random.below(2) == 0 { random.below(2) } else { random.below(PATHS.len()) }
    }

    /// Reads the seeds.
    ///
    /// # Errors
    /// If a folder is not there or empty.
    pub fn load() -> Result<Self> {
        let seeds = crate::root().join("tests/fuzz/seeds");
        let (requests, answers) = (all(&seeds.join("prompt"))?, all(&seeds.join("meter"))?);
        let records = all(&seeds.join("feed"))?;
        let batches = vec![fs::read(seeds.join("feed/batch")).context("seeds/feed/batch")?];
        Ok(Self { requests, answers, records, batches })
    }

    /// A record of the feed, of any kind, or nearly one.
    pub(crate) fn record(&self, random: &mut Random) -> Vec<u8> {
        let record = random.one_of(&self.records);
        self.damaged(random, record)
    }

    /// Any bytes: mostly few.
    pub(crate) fn any(&self, random: &mut Random) -> Vec<u8> {
        let n = [0, 1, 9, 40, 3_000][random.below(5)];
        let n = random.below(n + 1);
        random.bytes(n)
    }

    /// The bytes with one to four places changed, cut, doubled, or filled with a seed.
    pub(crate) fn damaged(&self, random: &mut Random, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() + 1);
            match random.below(8) {
                0 => bytes.truncate(at),
                1 => {
                    let more = self.any(random);
                    bytes.splice(at..at, more);
                }
                2 => {
                    let end = (at + random.below(64)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                3 => {
                    let end = (at + random.below(8)).min(bytes.len());
                    bytes.drain(at..end);
                }
                // Numbers at the ends of their ranges.
                4 => {
                    let number = *random.one_of(&[0u8, 0x7F, 0x80, 0xFF]);
                    let end = (at + 1 + random.below(8)).min(bytes.len());
                    bytes[at..end].fill(number);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << random.below(8);
                    }
                }
            }
        }
        bytes.truncate(1 << 20);
        bytes
    }

    /// Headers of a request, whose `kind` is the place of its path in the list.
    pub(crate) fn request(&self, random: &mut Random, is_feed: bool, kind: usize) -> HeaderMap {
        let post = if random.below(10) == 0 { "GET" } else { "POST" };
        let path = match random.below(12) {
            0 => String::from_utf8_lossy(&self.any(random)).into_owned(),
            _ if is_feed => (*random.one_of(&["/feed", "/feed", "/feed", "/accuracy"])).to_owned(),
            _ => PATHS[kind].to_owned(),
        };
        let mut headers = HeaderMap::from([
            (":method", post),
            (":path", &path),
            (":scheme", "http"),
            (":authority", "gateway"),
        ]);
        self.more(random, &mut headers);
        headers
    }

    fn more(&self, random: &mut Random, headers: &mut HeaderMap) {
        for _ in 0..random.below(4) {
            let name = *random.one_of(NAMES);
            match random.below(3) {
                0 => headers.add(name, self.any(random)),
                _ => headers.add(name, random.one_of(VALUES)),
            }
        }
    }

    pub(crate) fn request_body(&self, random: &mut Random, is_feed: bool, kind: usize) -> Vec<u8> {
        if is_feed {
            let batch = random.one_of(&self.batches);
            return if random.below(3) == 0 { batch.clone() } else { self.damaged(random, batch) };
        }
        let text = PROMPT.repeat(1 + random.below(8));
        let model =
            *random.one_of(&["m", "m", "m", "alias", "m:sql", "sql", "chat-latest", "none"]);
        // Mostly what the path takes.
        let kind = if random.below(8) == 0 { random.below(3) } else { kind };
        let whole = match kind {
            0 => json!({"model": model, "prompt": text, "stream": true}).to_string().into_bytes(),
            1 => {
                let messages = json!([{"role": "user", "content": text}]);
                json!({"model": model, "messages": messages}).to_string().into_bytes()
            }
            _ => random.one_of(&self.requests).clone(),
        };
        match random.below(16) {
            0 => self.any(random),
            1..=5 => self.damaged(random, &whole),
            _ => whole,
        }
    }

    pub(crate) fn trailers(&self, random: &mut Random) -> HeaderMap {
        let mut trailers = HeaderMap::default();
        self.more(random, &mut trailers);
        trailers
    }

    pub(crate) fn response(&self, random: &mut Random) -> HeaderMap {
        let status = *random.one_of(&["200", "200", "200", "204", "404", "500", "503", "x", ""]);
        let kind = *random.one_of(&["application/json", "text/event-stream", "text/plain"]);
        let mut headers = HeaderMap::from([(":status", status), ("content-type", kind)]);
        self.more(random, &mut headers);
        headers
    }

    pub(crate) fn response_body(&self, random: &mut Random) -> Vec<u8> {
        let body = random.one_of(&self.answers);
        match random.below(8) {
            0 => self.any(random),
            1..=4 => self.damaged(random, body),
            _ => body.clone(),
        }
    }
}

/// The files of a folder, in the order of their names.
fn all(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    ensure!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| Ok(fs::read(path)?)).collect()
}
