//! The requests of a one-shot run: JSON lines, or a YAML list.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value as Json;
use wasm_host::HeaderMap;

use super::error::{RunError, parse, read};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRequest {
    name: Option<String>,
    method: Option<String>,
    path: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, OneOrMore>,
    body: Option<Json>,
    chunks: Option<Vec<String>>,
    trailers: Option<BTreeMap<String, OneOrMore>>,
    #[serde(default)]
    after_ms: i64,
    #[serde(default)]
    response: RawResponse,
    #[serde(default)]
    expect: Expected,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawResponse {
    status: Option<i64>,
    headers: BTreeMap<String, OneOrMore>,
    body: Option<Json>,
    chunks: Option<Vec<String>>,
}

/// What a request is to come to; what is not said is not asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Expected {
    /// Status that the client gets.
    pub(super) status: Option<u16>,
    /// First destination; "" is none.
    pub(super) endpoint: Option<String>,
}

/// A request, and what its upstream would answer.
#[derive(Clone, Debug)]
pub(super) struct Scripted {
    pub(super) name: String,
    pub(super) headers: HeaderMap,
    pub(super) chunks: Vec<Vec<u8>>,
    pub(super) trailers: Option<HeaderMap>,
    /// Virtual time that passes before it.
    pub(super) after: Duration,
    pub(super) response: (HeaderMap, Vec<Vec<u8>>),
    pub(super) expect: Expected,
}

/// Longest wait between two requests: a day of virtual time.
const MAX_AFTER_MS: i64 = 86_400_000;

/// Reads a file of requests.
pub(super) fn load(file: &Path) -> Result<Vec<Scripted>, RunError> {
    let text = read(file, "the requests")?;
    let is_lines = text.trim_start().starts_with('{');
    let raw: Vec<RawRequest> = if is_lines { lines(file, &text)? } else { parse(file, &text)? };
    if raw.is_empty() {
        return Err(RunError::value(file, "the file", "no request", "at least one request"));
    }
    raw.into_iter().enumerate().map(|(n, raw)| scripted(file, n, raw)).collect()
}

fn lines(file: &Path, text: &str) -> Result<Vec<RawRequest>, RunError> {
    let lines = (1u64..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| RunError::Shape {
                file: file.to_owned(),
                line: number,
                message: error.to_string(),
            })
        })
        .collect()
}

fn scripted(file: &Path, n: usize, raw: RawRequest) -> Result<Scripted, RunError> {
    let key = |name: &str| format!("[{n}].{name}");
    let path = raw.path.unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') {
        return Err(RunError::value(file, key("path"), path, "a path that begins with /"));
    }
    if !(0..=MAX_AFTER_MS).contains(&raw.after_ms) {
        let expected = format!("0 to {MAX_AFTER_MS}");
        return Err(RunError::value(file, key("afterMs"), raw.after_ms, expected));
    }
    let is_json = matches!(&raw.body, Some(body) if !body.is_string());
    let chunks = pieces(file, &key("body"), raw.body, raw.chunks)?;
    let has_body = !chunks.is_empty();
    let method = raw.method.unwrap_or_else(|| if has_body { "POST" } else { "GET" }.to_owned());
    let mut headers = HeaderMap::from([
        (":method", method.as_str()),
        (":scheme", "http"),
        (":authority", "gateway"),
        (":path", path.as_str()),
    ]);
    if has_body && raw.trailers.is_none() {
        headers.add("content-length", chunks.iter().map(Vec::len).sum::<usize>().to_string());
    }
    if is_json {
        headers.add("content-type", "application/json");
    }
    put(&mut headers, &raw.headers);
    let RawResponse { status, headers: told, body, chunks: told_chunks } = raw.response;
    let status = status.unwrap_or(200);
    if !(200..=599).contains(&status) {
        return Err(RunError::value(file, key("response.status"), status, "200 to 599"));
    }
    let mut answer = HeaderMap::from([(":status", status.to_string())]);
    put(&mut answer, &told);
    let answered = pieces(file, &key("response.body"), body, told_chunks)?;
    let trailers = raw.trailers.map(|named| {
        let mut trailers = HeaderMap::new();
        put(&mut trailers, &named);
        trailers
    });
    Ok(Scripted {
        name: raw.name.unwrap_or_else(|| format!("#{} {method} {path}", n + 1)),
        headers,
        chunks,
        trailers,
        after: Duration::from_millis(raw.after_ms.unsigned_abs()),
        response: (answer, answered),
        expect: raw.expect,
    })
}

/// A name given once replaces what stands there.
fn put(headers: &mut HeaderMap, named: &BTreeMap<String, OneOrMore>) {
    for (name, values) in named {
        headers.remove(name);
        match values {
            OneOrMore::One(value) => headers.add(name, value),
            OneOrMore::More(values) => values.iter().for_each(|value| headers.add(name, value)),
        }
    }
}

fn pieces(
    file: &Path,
    key: &str,
    body: Option<Json>,
    chunks: Option<Vec<String>>,
) -> Result<Vec<Vec<u8>>, RunError> {
    match (body, chunks) {
        (Some(_), Some(chunks)) => {
            let expected = "either a body or chunks";
            Err(RunError::value(file, key, format!("also {} chunks", chunks.len()), expected))
        }
        (None, chunks) => Ok(chunks.into_iter().flatten().map(String::into_bytes).collect()),
        (Some(Json::String(text)), None) if text.is_empty() => Ok(Vec::new()),
        (Some(Json::String(text)), None) => Ok(vec![text.into_bytes()]),
        (Some(json), None) => Ok(vec![json.to_string().into_bytes()]),
    }
}
