//! Bodies of 220 KB at concurrency 150: the cell in which llm-d's picker was reported to plateau
//! (llm-d-router issue 1109: 1,096 ms, 129 requests/s).

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Flags;
use crate::arms::{Arms, ENVOY};
use crate::load::{self, Shot};
use crate::table::{aligned, median, quantile, rounded};
use crate::usage::Usage;

pub(super) const BYTES: usize = 220_000;
const CONCURRENCY: usize = 150;

pub(super) struct Row {
    arm: &'static str,
    p50_ms: f64,
    p99_ms: f64,
    added_p50_ms: f64,
    per_s: f64,
    cpu_us: f64,
    added_cpu_us: f64,
}

impl Row {
    pub(super) fn json(&self) -> Value {
        let per_core = |us: f64| (us > 0.0).then(|| rounded(1e6 / us));
        json!({
            "arm": self.arm, "p50_ms": rounded(self.p50_ms), "p99_ms": rounded(self.p99_ms),
            "added_p50_ms": rounded(self.added_p50_ms), "per_s": rounded(self.per_s),
            "cpu_us": rounded(self.cpu_us), "added_cpu_us": rounded(self.added_cpu_us),
            "per_s_and_core": per_core(self.cpu_us),
            "per_s_and_core_of_what_is_added": per_core(self.added_cpu_us),
        })
    }
}

#[derive(Default)]
struct Rounds {
    p50s: Vec<f64>,
    p99s: Vec<f64>,
    per_s: Vec<f64>,
    cpu_us: Vec<f64>,
}

pub(super) async fn run(arms: &Arms, shots: &Arc<Vec<Shot>>, flags: &Flags) -> Result<Vec<Row>> {
    let mut rounds: Vec<Rounds> = arms.all.iter().map(|_| Rounds::default()).collect();
    for round in 0..=flags.rounds {
        for turn in 0..arms.all.len() {
            let which = (turn + round) % arms.all.len();
            let arm = &arms.all[which];
            let before = Usage::of(&arm.processes)?;
            let closed = load::run_for(arm.address, shots, CONCURRENCY, flags.window()).await;
            let closed = closed.with_context(|| format!("{} at 220 KB", arm.name))?;
            let cpu_s = Usage::of(&arm.processes)?.since(&before);
            eprintln!("220 KB, round {round}, {}: {:.0} requests/s", arm.name, closed.rate_per_s());
            if round > 0 {
                let of = &mut rounds[which];
                of.p50s.push(median(&closed.latencies_ms));
                of.p99s.push(quantile(&closed.latencies_ms, 0.99));
                of.per_s.push(closed.rate_per_s());
                of.cpu_us.push(cpu_s * 1e6 / closed.latencies_ms.len() as f64);
            }
        }
    }
    let envoy = arms.all.iter().position(|arm| arm.name == ENVOY).context("no Envoy")?;
    let base = &rounds[envoy];
    let over = |values: &[f64], base: &[f64]| {
        median(&values.iter().zip(base).map(|(value, base)| value - base).collect::<Vec<_>>())
    };
    let rows = arms.all.iter().zip(&rounds).map(|(arm, of)| Row {
        arm: arm.name,
        p50_ms: median(&of.p50s),
        p99_ms: median(&of.p99s),
        added_p50_ms: over(&of.p50s, &base.p50s),
        per_s: median(&of.per_s),
        cpu_us: median(&of.cpu_us),
        added_cpu_us: over(&of.cpu_us, &base.cpu_us),
    });
    Ok(rows.collect())
}

pub(super) fn table(rows: &[Row]) -> String {
    let head = [
        "way",
        "p50",
        "p99",
        "added p50",
        "requests/s",
        "CPU",
        "per core",
        "added CPU",
        "per core of it",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let ms = |value: f64| format!("{value:.1} ms");
        let cpu = |us: f64| match row.arm {
            "direct" => ["-", "-"].map(str::to_owned),
            _ if us > 0.0 => [format!("{us:.0} us"), format!("{:.0}/s", 1e6 / us)],
            _ => [format!("{us:.0} us"), "-".to_owned()],
        };
        let mut line = vec![
            row.arm.to_owned(),
            ms(row.p50_ms),
            ms(row.p99_ms),
            ms(row.added_p50_ms),
            format!("{:.0}/s", row.per_s),
        ];
        line.extend(cpu(row.cpu_us));
        line.extend(cpu(row.added_cpu_us));
        cells.push(line);
    }
    format!(
        "220 KB bodies at concurrency {CONCURRENCY}, closed loop: latency is {CONCURRENCY} over the \
         rate, and client and backends are on the same cores (reported of llm-d's picker on its own \
         machines: 1,096 ms, 129/s)\n{}",
        aligned(&cells)
    )
}
