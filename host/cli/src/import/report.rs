//! What is said of a file: per plugin what becomes of it, the traps, and whether it can be moved over
//! as it is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::Options;
use super::convert::Conversion;
use super::epp::Epp;

/// What became of a file.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file as it was named.
    pub file: PathBuf,
    /// The version that it says; empty for an empty file.
    pub api_version: String,
    /// In the order of the file, after those that llm-d adds by itself.
    pub rows: Vec<Row>,
    /// By line.
    pub traps: Vec<Trap>,
    /// Why requests will be treated otherwise; empty if they will not.
    pub differences: Vec<String>,
    /// Traps that nobody looked for, as a flag is missing.
    pub unchecked: Vec<&'static str>,
}

/// What became of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Its type.
    pub plugin: String,
    /// Its name.
    pub name: String,
    /// Where it is declared; 0 where it is not.
    pub line: u64,
    /// `supported`, `other name`, `approximated`, `not needed` or `not supported`.
    pub verdict: &'static str,
    /// Our plugin or key.
    pub ours: String,
    /// How, why, and what instead.
    pub remark: String,
}

/// Something in the file that does not do what it looks like, or will not for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Stable, for scripts.
    pub code: &'static str,
    /// Where; 0 where it is what is missing.
    pub line: u64,
    /// The sentence.
    pub text: String,
}

impl Conversion {
    pub(super) fn report(&self, file: &Path, epp: &Epp, options: &Options) -> Report {
        let mut unchecked = Vec::new();
        if options.engine_block_size.is_none() && epp.precise().next().is_some() {
            unchecked.push("the engines' block size (--engine-block-size)");
        }
        if options.model.is_none() && self.plan.engines.model.is_some() {
            unchecked.push("the model's name (--model)");
        }
        Report {
            file: file.to_owned(),
            api_version: epp.api_version.it.clone(),
            rows: self.rows.clone(),
            traps: self.traps.clone(),
            differences: self.differences.clone(),
            unchecked,
        }
    }
}

impl Report {
    /// Whether requests are treated as llm-d would, if with approximations.
    pub fn is_ok(&self) -> bool {
        self.differences.is_empty()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let version = match self.api_version.as_str() {
            "" => "empty: llm-d's default configuration",
            version => version,
        };
        let _ = writeln!(text, "{}: {version}\n", self.file.display());
        self.table(&mut text);
        if !self.traps.is_empty() {
            let _ = writeln!(text, "\ntraps");
            let line = |trap: &Trap| match trap.line {
                0 => "-".to_owned(),
                line => format!("line {line}"),
            };
            let places: Vec<String> = self.traps.iter().map(line).collect();
            let place_width = places.iter().map(String::len).max().unwrap_or(0);
            let code_width = self.traps.iter().map(|trap| trap.code.len()).max().unwrap_or(0);
            for (trap, place) in self.traps.iter().zip(&places) {
                let Trap { code, text: sentence, .. } = trap;
                let _ = writeln!(text, "{place:place_width$}  {code:code_width$}  {sentence}");
            }
        }
        text.push('\n');
        if !self.unchecked.is_empty() {
            let _ = writeln!(text, "not checked: {}", self.unchecked.join(", "));
        }
        let _ = writeln!(text, "{}", self.summary());
        text
    }

    fn table(&self, text: &mut String) {
        let header = ["plugin", "name", "verdict", "ours", "remark"].map(str::to_owned);
        let mut lines = vec![header];
        for row in &self.rows {
            let name = if row.name == row.plugin { "-" } else { &row.name };
            lines.push([
                row.plugin.clone(),
                name.to_owned(),
                row.verdict.to_owned(),
                row.ours.clone(),
                row.remark.clone(),
            ]);
        }
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2), width(3)];
        for line in &lines {
            let mut padded = String::new();
            for (cell, width) in line.iter().zip(widths) {
                let _ = write!(padded, "{cell:width$}  ");
            }
            padded.push_str(&line[4]);
            text.push_str(padded.trim_end());
            text.push('\n');
        }
    }

    fn summary(&self) -> String {
        let mut parts = Vec::new();
        for verdict in ["supported", "other name", "approximated", "not needed", "not supported"] {
            let count = self.rows.iter().filter(|row| row.verdict == verdict).count();
            if count > 0 {
                parts.push(format!("{count} {verdict}"));
            }
        }
        let counts = if parts.is_empty() { "no plugins".to_owned() } else { parts.join(", ") };
        let verdict = match self.differences.as_slice() {
            [] => "routes as llm-d does, with the remarks above".to_owned(),
            differences => format!("routes otherwise: {}", differences.join("; ")),
        };
        format!("{counts}; traps: {}\n{verdict}", self.traps.len())
    }

    /// For scripts.
    pub fn json(&self) -> Json {
        let plugins: Vec<Json> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "type": row.plugin,
                    "name": row.name,
                    "line": row.line,
                    "verdict": row.verdict,
                    "ours": row.ours,
                    "remark": row.remark,
                })
            })
            .collect();
        let traps: Vec<Json> = self
            .traps
            .iter()
            .map(|trap| json!({"code": trap.code, "line": trap.line, "text": trap.text}))
            .collect();
        json!({
            "file": self.file,
            "api_version": self.api_version,
            "plugins": plugins,
            "traps": traps,
            "differences": self.differences,
            "unchecked": self.unchecked,
            "ok": self.is_ok(),
        })
    }
}
