//! The rate at which a way collapses.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Flags, offered};
use crate::arms::{Arm, Arms};
use crate::load::{self, Shot};
use crate::open_loop::Offer;
use crate::table::{aligned, quantile, rounded};
use crate::usage::Usage;

/// Connections of the closed loop that finds where to look.
const CONNECTIONS: usize = 32;
/// Halvings of what is between 0 and the highest rate looked at: to 4 % of it.
const STEPS: usize = 5;
/// The highest rate looked at, by what the closed loop carried.
const HIGHEST: f64 = 1.2;

pub(super) struct Row {
    arm: &'static str,
    tokens: usize,
    /// Highest rate that was carried with the 99th percentile in bounds; 0 if none was.
    carried_per_s: f64,
    p99_ms: f64,
    /// In a closed loop.
    closed_per_s: f64,
    cpu_us: f64,
}

impl Row {
    pub(super) fn json(&self) -> Value {
        json!({
            "arm": self.arm, "tokens": self.tokens, "carried_per_s": rounded(self.carried_per_s),
            "p99_ms": rounded(self.p99_ms), "closed_loop_per_s": rounded(self.closed_per_s),
            "cpu_us": rounded(self.cpu_us),
        })
    }
}

pub(super) async fn run(
    arms: &Arms,
    tokens: usize,
    shots: &Arc<Vec<Shot>>,
    flags: &Flags,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for arm in &arms.all {
        let row = search(arm, tokens, shots, flags).await?;
        eprintln!("{tokens} tokens, {}: {:.0} requests/s carried", arm.name, row.carried_per_s);
        rows.push(row);
    }
    Ok(rows)
}

async fn search(arm: &Arm, tokens: usize, shots: &Arc<Vec<Shot>>, flags: &Flags) -> Result<Row> {
    let before = Usage::of(&arm.processes)?;
    let closed = load::run_for(arm.address, shots, CONNECTIONS, flags.window()).await?;
    let cpu_s = Usage::of(&arm.processes)?.since(&before);
    let closed_per_s = closed.rate_per_s();
    let (mut low, mut high, mut p99_ms) = (0.0, closed_per_s * HIGHEST, 0.0);
    for step in 0..STEPS {
        let rate = (low + high) / 2.0;
        // A second try, as others' work on the machine ends a first one too.
        let mut carried = carry(arm, shots, rate, step as u64, flags).await?;
        if carried.is_none() {
            carried = carry(arm, shots, rate, (STEPS + step) as u64, flags).await?;
        }
        match carried {
            Some(p99) => (low, p99_ms) = (rate, p99),
            None => high = rate,
        }
    }
    let cpu_us = cpu_s * 1e6 / closed.latencies_ms.len() as f64;
    Ok(Row { arm: arm.name, tokens, carried_per_s: low, p99_ms, closed_per_s, cpu_us })
}

/// The 99th percentile at a rate that is carried: all is answered, in bounds, and no backlog is left.
async fn carry(
    arm: &Arm,
    shots: &Arc<Vec<Shot>>,
    rate_per_s: f64,
    seed: u64,
    flags: &Flags,
) -> Result<Option<f64>> {
    let requests = ((rate_per_s * flags.window().as_secs_f64()) as usize).max(1);
    let (outcome, _) = offered(arm, shots, Offer { rate_per_s, requests, seed }).await?;
    let p99_ms = quantile(&outcome.latencies_ms(), 0.99);
    let is_whole = outcome.answered.len() == requests;
    let bound = Duration::from_secs_f64(flags.bound_ms / 1e3);
    Ok((is_whole && p99_ms <= flags.bound_ms && outcome.drain() <= bound).then_some(p99_ms))
}

pub(super) fn table(rows: &[Row], bound_ms: f64) -> String {
    let head = ["tokens", "way", "carried", "p99 there", "closed loop", "CPU per request"];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let cpu = match row.arm {
            "direct" => "-".to_owned(),
            _ => format!("{:.0} us", row.cpu_us),
        };
        cells.push(vec![
            row.tokens.to_string(),
            row.arm.to_owned(),
            format!("{:.0}/s", row.carried_per_s),
            format!("{:.1} ms", row.p99_ms),
            format!("{:.0}/s", row.closed_per_s),
            cpu,
        ]);
    }
    format!(
        "Collapse: highest rate whose p99 stays within {bound_ms} ms without a backlog; client and \
         backends are on the same cores; closed loop: {CONNECTIONS} connections\n{}",
        aligned(&cells)
    )
}
