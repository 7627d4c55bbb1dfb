//! What a run says: text for a person, one JSON object for a program.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

/// What callbacks of one kind used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fuel {
    pub(super) calls: u64,
    pub(super) traps: u64,
    /// Units of wasmtime, about one per instruction.
    pub(super) total: u64,
    pub(super) most: u64,
}

/// A header that is not as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) name: String,
    pub(super) before: Vec<String>,
    pub(super) after: Vec<String>,
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Requested {
    pub(super) name: String,
    pub(super) status: Option<u16>,
    pub(super) is_local_reply: bool,
    pub(super) local_body: Option<String>,
    pub(super) details: Option<String>,
    pub(super) is_reset: bool,
    /// Plugins that hold it for ever.
    pub(super) held_by: Vec<String>,
    pub(super) destinations: Vec<String>,
    pub(super) request_changes: Vec<Change>,
    pub(super) response_changes: Vec<Change>,
    /// The body that goes on, if it is another than was sent.
    pub(super) new_body: Option<String>,
    pub(super) warnings: Vec<String>,
    pub(super) logs: Vec<String>,
    pub(super) trapped: Vec<String>,
    /// Expectations that were not met.
    pub(super) unmet: Vec<String>,
}

/// Of a whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) start_logs: Vec<String>,
    pub(super) requests: Vec<Requested>,
    /// By module and callback.
    pub(super) fuel: BTreeMap<(String, &'static str), Fuel>,
    /// How machines ended, with their backtraces.
    pub(super) failures: Vec<String>,
}

/// Characters of a body that a person is shown.
const SHOWN_CHARS: usize = 200;

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} ... ({} bytes)", &text[..end], text.len()),
    }
}

impl Requested {
    /// Lines about it, the first at the margin.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", self.name);
        let mut line = |label: &str, value: &str| {
            let _ = writeln!(text, "  {label:<11} {value}");
        };
        match self.destinations.as_slice() {
            [] => {}
            list => line("endpoint", &list.join(", then ")),
        }
        let status = self.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        match (self.is_reset, self.is_local_reply) {
            (true, _) => line("answer", "the stream was reset"),
            (false, true) => {
                let details = self.details.as_deref().unwrap_or_default();
                let body = shown(self.local_body.as_deref().unwrap_or_default());
                line("answer", &format!("{status} by the chain ({details}) {body}"));
            }
            (false, false) => line("answer", &status),
        }
        for name in &self.held_by {
            line("held", &format!("by {name}, which nothing wakes"));
        }
        for (label, changes) in
            [("request", &self.request_changes), ("response", &self.response_changes)]
        {
            for Change { name, before, after } in changes {
                let change = match (before.is_empty(), after.is_empty()) {
                    (true, _) => format!("+ {name}: {}", after.join(" | ")),
                    (_, true) => format!("- {name}: {}", before.join(" | ")),
                    _ => format!("~ {name}: {} -> {}", before.join(" | "), after.join(" | ")),
                };
                line(label, &change);
            }
        }
        if let Some(body) = &self.new_body {
            line("new body", &shown(body));
        }
        self.warnings.iter().for_each(|warning| line("warning", warning));
        self.trapped.iter().for_each(|trapped| line("trapped", trapped));
        self.logs.iter().for_each(|log| line("log", log));
        self.unmet.iter().for_each(|unmet| line("NOT AS EXPECTED", unmet));
        text
    }

    fn json(&self) -> Value {
        let changes = |changes: &[Change]| -> Vec<Value> {
            let change = |change: &Change| json!({"name": change.name, "before": change.before, "after": change.after});
            changes.iter().map(change).collect()
        };
        json!({
            "name": self.name,
            "status": self.status,
            "endpoints": self.destinations,
            "localReply": self.is_local_reply,
            "body": self.local_body,
            "details": self.details,
            "reset": self.is_reset,
            "heldBy": self.held_by,
            "requestHeaders": changes(&self.request_changes),
            "responseHeaders": changes(&self.response_changes),
            "newBody": self.new_body,
            "warnings": self.warnings,
            "trapped": self.trapped,
            "logs": self.logs,
            "unmet": self.unmet,
        })
    }
}

impl Report {
    /// Whether nothing trapped, and everything is as expected.
    pub(super) fn is_ok(&self) -> bool {
        self.failures.is_empty()
            && self.requests.iter().all(|r| r.unmet.is_empty() && r.trapped.is_empty())
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.start_logs {
            let _ = writeln!(text, "{line}");
        }
        self.requests.iter().for_each(|request| text.push_str(&request.text()));
        text.push_str(&self.failed());
        text.push_str(&self.table());
        text
    }

    /// Only what is not as in `before`, and the table.
    pub(super) fn difference(&self, before: &Self) -> String {
        let mut text = String::new();
        for request in &self.requests {
            let old = before.requests.iter().find(|old| old.name == request.name);
            match old {
                Some(old) if old == request => {}
                Some(old) => {
                    let _ = writeln!(text, "{}", request.name);
                    let (old, new) = (old.text(), request.text());
                    let lines = |text: &str| text.lines().skip(1).map(str::to_owned).collect();
                    let (old, new): (Vec<String>, Vec<String>) = (lines(&old), lines(&new));
                    for line in old.iter().filter(|line| !new.contains(line)) {
                        let _ = writeln!(text, "- {}", line.trim_start());
                    }
                    for line in new.iter().filter(|line| !old.contains(line)) {
                        let _ = writeln!(text, "+ {}", line.trim_start());
                    }
                }
                None => text.push_str(&request.text()),
            }
        }
        for old in &before.requests {
            if !self.requests.iter().any(|request| request.name == old.name) {
                let _ = writeln!(text, "{}\n- no longer asked", old.name);
            }
        }
        if text.is_empty() {
            text.push_str("nothing differs\n");
        }
        text.push_str(&self.failed());
        text.push_str(&self.table());
        text
    }

    fn failed(&self) -> String {
        self.failures.iter().map(|failure| format!("FAILED {failure}\n")).collect()
    }

    /// Fuel by module and callback.
    pub(super) fn table(&self) -> String {
        let head = ["module", "callback", "calls", "fuel", "per call", "most"].map(str::to_owned);
        let rows = self.fuel.iter().map(|((module, callback), fuel)| {
            let trapped =
                if fuel.traps > 0 { format!(" ({} trapped)", fuel.traps) } else { String::new() };
            [
                module.clone(),
                (*callback).to_owned(),
                format!("{}{trapped}", fuel.calls),
                fuel.total.to_string(),
                (fuel.total / fuel.calls.max(1)).to_string(),
                fuel.most.to_string(),
            ]
        });
        let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        let mut text = String::from("\n");
        for row in &rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let fuel = self.fuel.iter().map(|((module, callback), fuel)| {
            json!({
                "module": module,
                "callback": callback,
                "calls": fuel.calls,
                "trapped": fuel.traps,
                "fuel": fuel.total,
                "most": fuel.most,
            })
        });
        json!({
            "ok": self.is_ok(),
            "requests": self.requests.iter().map(Requested::json).collect::<Vec<_>>(),
            "fuel": fuel.collect::<Vec<_>>(),
            "failures": self.failures,
            "log": self.start_logs,
        })
    }
}
