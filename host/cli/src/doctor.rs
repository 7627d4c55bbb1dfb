//! `wasm-epp doctor`: is precise routing active?
//!
//! Everything is read from the daemon's own `/readyz`, so the answer is about what runs, not about
//! what the configuration hopes for.

mod judge;
mod vms;

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;

/// A daemon that does not answer by then does not answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is read: a thousand endpoints take about 1.5 MB.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// What was found of one engine or gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// `engine` or `gateway`.
    pub kind: &'static str,
    /// Address or name.
    pub name: String,
    /// State in a word.
    pub state: String,
    /// What is wrong; one sentence each.
    pub problems: Vec<String>,
    /// What is worth knowing and not wrong; one sentence each.
    pub remarks: Vec<String>,
    /// Figures for a person; one line each, the first on the finding's own.
    pub notes: Vec<String>,
    /// What it was judged by, as the daemon says it.
    pub evidence: Value,
}

/// All findings.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Engines first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// True when every engine and gateway is as it should be.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.problems.is_empty())
    }

    /// An aligned table; further figures, problems and remarks below their line.
    pub fn text(&self) -> String {
        let width = |of: fn(&Finding) -> usize| self.findings.iter().map(of).max().unwrap_or(0);
        let (names, states) = (width(|f| f.name.len()), width(|f| f.state.len()));
        let mut text = String::new();
        for f in &self.findings {
            let mark = if f.problems.is_empty() { "ok " } else { "BAD" };
            let (first, more) = match f.notes.split_first() {
                Some((first, more)) => (first.as_str(), more),
                None => ("", &[][..]),
            };
            let line =
                format!("{mark} {:<8} {:<names$}  {:<states$}  {first}", f.kind, f.name, f.state);
            text.push_str(line.trim_end());
            text.push('\n');
            more.iter().for_each(|note| text.push_str(&format!("      {note}\n")));
            f.problems.iter().for_each(|problem| text.push_str(&format!("      ! {problem}\n")));
            f.remarks.iter().for_each(|remark| text.push_str(&format!("      ({remark})\n")));
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|f| {
                json!({
                    "kind": f.kind,
                    "name": f.name,
                    "state": f.state,
                    "problems": f.problems,
                    "remarks": f.remarks,
                    "notes": f.notes,
                    "evidence": f.evidence,
                })
            })
            .collect();
        json!({"ok": self.is_well(), "findings": findings})
    }
}

/// Asks the daemon of this configuration.
///
/// # Errors
/// When no daemon answers at the configured admin address.
pub async fn examine(config: &Config) -> Result<Report> {
    let details = tokio::time::timeout(LIMIT, ask(config))
        .await
        .with_context(|| format!("no answer from {} within 5 s", config.admin))??;
    Ok(judge::judge(&details))
}

async fn ask(config: &Config) -> Result<Value> {
    let what = || format!("ask the daemon at {}: is `wasm-epp serve` running?", config.admin);
    let mut stream = TcpStream::connect(config.admin).await.with_context(what)?;
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.with_context(what)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await.with_context(what)?;
    let text = String::from_utf8_lossy(&answer);
    let (_, body) = text.split_once("\r\n\r\n").with_context(what)?;
    serde_json::from_str(body).with_context(what)
}
