//! What a swap did.

use serde_json::{Value, json};

/// What became of one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs what it is to run, and did not before.
    Swapped,
    /// It ran it already.
    Unchanged,
    /// It was not changed.
    Untouched,
    /// It was changed, and runs again what it ran before.
    RolledBack,
    /// It was changed, and what it ran before could not be installed again.
    Broken,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Swapped => "swapped",
            Self::Unchanged => "unchanged",
            Self::Untouched => "untouched",
            Self::RolledBack => "rolled back",
            Self::Broken => "NOT ROLLED BACK",
        }
    }
}

/// One gateway.
#[derive(Clone, Debug)]
pub struct GatewayReport {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Workers that were seen to decide as they should; `None` when they were not asked.
    pub workers: Option<usize>,
    /// Filters that were changed, in order.
    pub changed: Vec<String>,
    /// What went wrong, in sentences.
    pub problems: Vec<String>,
    /// What is worth knowing and not wrong.
    pub remarks: Vec<String>,
}

/// All gateways.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order of their names on the command line, or of the configuration.
    pub gateways: Vec<GatewayReport>,
}

impl Report {
    /// True when every gateway runs what it is to run.
    pub fn is_done(&self) -> bool {
        let is_done = |gateway: &GatewayReport| {
            matches!(gateway.outcome, Outcome::Swapped | Outcome::Unchanged)
        };
        self.gateways.iter().all(is_done)
    }

    /// A line per gateway, problems and remarks below it.
    pub fn text(&self) -> String {
        let names = self.gateways.iter().map(|gateway| gateway.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for gateway in &self.gateways {
            let outcome = gateway.outcome.name();
            let mut line = format!("{:<names$}  {outcome:<9}", gateway.name);
            if !gateway.changed.is_empty() {
                line.push_str(&format!("  {}", gateway.changed.join(" ")));
            }
            if let Some(workers) = gateway.workers {
                line.push_str(&format!(", in {workers} of {workers} workers"));
            }
            text.push_str(line.trim_end());
            text.push('\n');
            gateway.problems.iter().for_each(|problem| text.push_str(&format!("  ! {problem}\n")));
            gateway.remarks.iter().for_each(|remark| text.push_str(&format!("  ({remark})\n")));
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let gateway = |gateway: &GatewayReport| {
            json!({
                "name": gateway.name,
                "outcome": gateway.outcome.name().to_lowercase().replace(' ', "_"),
                "workers": gateway.workers,
                "changed": gateway.changed,
                "problems": gateway.problems,
                "remarks": gateway.remarks,
            })
        };
        let gateways: Vec<Value> = self.gateways.iter().map(gateway).collect();
        json!({"ok": self.is_done(), "gateways": gateways})
    }
}
