//! What was seen of a script, in sections that are compared one by one.

use std::collections::BTreeMap;

use crate::script::{Pairs, Script};

/// Sections by name; lines in order.
pub(crate) type Record = BTreeMap<String, Vec<String>>;

/// A line that a guest wrote.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Place of the plugin in the chain.
    pub(crate) plugin: usize,
    /// Whether the main thread's machine, or the canary, wrote it.
    pub(crate) is_main: bool,
    /// In lower case.
    pub(crate) level: String,
    pub(crate) text: String,
}

/// A message at one of the two ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) headers: Option<Pairs>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<Pairs>,
    pub(crate) is_complete: bool,
}

impl Message {
    /// Lines of a section. Headers are sorted by name, for the order of different names is the
    /// protocol library's at the ends; guests see it, and say it in their logs.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |kind: &str, pairs: &Pairs| {
            let mut pairs: Vec<_> = pairs.iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            lines.extend(pairs.iter().map(|(name, value)| format!("{kind} {name}: {value}")));
        };
        if let Some(headers) = &self.headers {
            add("header", headers);
        }
        if let Some(trailers) = &self.trailers {
            add("trailer", trailers);
        }
        if self.headers.is_none() && !self.is_complete {
            lines.push("nothing".into());
            return lines;
        }
        let text = String::from_utf8_lossy(&self.body);
        if text.len() > 200 {
            let hash = text.bytes().fold(14_695_981_039_346_656_037_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
            });
            lines.push(format!("body of {} bytes, {hash:016x}", self.body.len()));
        } else {
            lines.push(format!("body {text:?}"));
        }
        lines.push(if self.is_complete { "complete" } else { "reset" }.into());
        lines
    }
}

/// Sorts the guests' lines into sections: one per callback, and one for the order of callbacks.
pub(crate) fn add_logs(record: &mut Record, script: &Script, lines: &[Line]) {
    let mut current: BTreeMap<(bool, usize), String> = BTreeMap::new();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for line in lines {
        assert!(line.plugin < script.plugins.len(), "{}: {line:?}", script.name);
        let thread = if line.is_main { "main" } else { "worker" };
        let place = (line.is_main, line.plugin);
        if let Some(header) = line.text.strip_prefix("> ") {
            let callback = header.split('(').next().unwrap_or(header);
            // What one configured once ticks as often as there is time, on the main thread unseen.
            let key = format!("{thread}/{}/{callback}", line.plugin);
            let nth = times.entry(key.clone()).or_default();
            let section = format!("{key} {nth}");
            *nth += 1;
            current.insert(place, section);
            if !line.is_main {
                let order = record.entry("order".into()).or_default();
                order.push(format!("{} {header}", line.plugin));
            }
        }
        let section =
            current.get(&place).cloned().unwrap_or_else(|| format!("{thread}/{}", line.plugin));
        if line.is_main && section.contains(" tick ") {
            continue;
        }
        let text = match line.level.as_str() {
            "info" => without_times(&line.text),
            level => format!("[{level}] {}", line.text),
        };
        record.entry(section).or_default().push(text);
    }
}

/// Header with the milliseconds that an upstream took, which Envoy adds to the answers of callouts.
pub(crate) const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

/// A guest's line without what the clock decides: the service time, and `date`, which Envoy's connection
/// manager adds behind the filters and guests see at the end.
fn without_times(text: &str) -> String {
    let mut text = text.to_owned();
    let quoted = format!("[\"{SERVICE_TIME}\",\"");
    if let Some(at) = text.find(&quoted).map(|at| at + quoted.len()) {
        let digits = text[at..].chars().take_while(char::is_ascii_digit).count();
        text.replace_range(at..at + digits, "0");
    }
    if let Some(at) = text.find(",[\"date\",\"") {
        let end = text[at..].find(']').map_or(text.len(), |end| at + end + 1);
        text.replace_range(at..end, "");
    }
    text
}

/// Sections that differ, with the lines that only one side has.
pub(crate) fn compare(envoy: &Record, host: &Record) -> Vec<(String, Vec<String>, Vec<String>)> {
    let mut sections: Vec<&String> = envoy.keys().chain(host.keys()).collect();
    sections.sort();
    sections.dedup();
    let none = Vec::new();
    let mut differences = Vec::new();
    for section in sections {
        let (a, b) = (envoy.get(section).unwrap_or(&none), host.get(section).unwrap_or(&none));
        if a == b {
            continue;
        }
        let (mut only_a, mut only_b) = (missing(a, b), missing(b, a));
        if only_a.is_empty() && only_b.is_empty() {
            // The same lines in another order.
            (only_a, only_b) = (a.clone(), b.clone());
        }
        differences.push((section.clone(), only_a, only_b));
    }
    differences
}

/// Lines of `these` beyond those of `others`.
fn missing(these: &[String], others: &[String]) -> Vec<String> {
    let mut others: Vec<&String> = others.iter().collect();
    let mut missing = Vec::new();
    for line in these {
        match others.iter().position(|other| *other == line) {
            Some(i) => {
                others.swap_remove(i);
            }
            None => missing.push(line.clone()),
        }
    }
    missing
}
