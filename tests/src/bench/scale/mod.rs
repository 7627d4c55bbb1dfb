//! `bench scale`: a real daemon and a real gateway at millions of strides: memory of both, the time
//! until an empty gateway has all of it, what a decision costs, and the law by which each grows.

mod fit;
mod publisher;
mod row;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use fit::Line;
use row::{Measured, Point, measure};

use crate::plot::{self, Axes, Series};
use crate::report::Report;
use crate::table::{aligned, rounded};

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Distinct strides, a row each
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 10_000_000])]
    strides: Vec<u64>,
    /// Engines, among which the strides are spread
    #[arg(long, default_value_t = 64)]
    endpoints: usize,
    /// Holders of each stride in one more row of the least strides; 1 leaves it out
    #[arg(long, default_value_t = 4)]
    holders: usize,
    /// The gateway's workers
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Decisions per row
    #[arg(long, default_value_t = 2000)]
    questions: u64,
    /// Seed of the prompts
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Flags {
    fn points(&self) -> Vec<Point> {
        let mut sizes = self.strides.clone();
        sizes.sort_unstable();
        let alone = sizes.iter().map(|strides| Point { strides: *strides, holders: 1 });
        let shared = sizes.first().filter(|_| self.holders > 1);
        let shared = shared.map(|strides| Point { strides: *strides, holders: self.holders });
        alone.chain(shared).collect()
    }
}

pub(crate) async fn run(flags: &Flags) -> Result<Report> {
    ensure!(flags.strides.iter().all(|count| *count >= 1024), "at least 1024 strides per row");
    ensure!(
        (1..=flags.endpoints).contains(&flags.holders) && flags.endpoints <= 60_000,
        "between 1 and 60000 endpoints, and no more holders than those"
    );
    ensure!(flags.workers > 0 && flags.questions > 0, "at least 1 worker and 1 question");
    let mut rows = Vec::new();
    for point in flags.points() {
        eprintln!("{point} ...");
        let row = measure(point, flags).await?;
        eprintln!(
            "  daemon {} MiB, gateway {} MiB, snapshot {:.1} s",
            row.daemon_bytes >> 20,
            row.gateway_bytes >> 20,
            row.snapshot_s
        );
        rows.push(row);
    }
    let alone: Vec<&Measured> = rows.iter().filter(|row| row.point.holders == 1).collect();
    let laws = Laws::of(&alone);
    let further = Further::of(&rows);
    let table = format!(
        "{} endpoints, {} workers, {} decisions of prompts of {} strides per row, seed {}\n{}{laws}{}",
        flags.endpoints,
        flags.workers,
        flags.questions,
        row::CHAIN,
        flags.seed,
        table_of(&rows),
        further.as_ref().map(ToString::to_string).unwrap_or_default(),
    );
    let result = json!({
        "bench": "scale", "endpoints": flags.endpoints, "workers": flags.workers,
        "questions": flags.questions, "seed": flags.seed,
        "rows": rows.iter().map(Measured::json).collect::<Vec<Value>>(),
        "laws": laws.json(),
        "per_further_holder": further.map(|further| further.json()),
    });
    let plots = if alone.len() < 2 { Vec::new() } else { plots_of(&alone)? };
    Ok(Report { table, result, plots })
}

/// Straight lines through the rows whose strides have one holder each; `None` of one row.
struct Laws {
    daemon: Option<Line>,
    gateway: Option<Line>,
    snapshot: Option<Line>,
    decision: Option<Line>,
}

impl Laws {
    fn of(rows: &[&Measured]) -> Self {
        let line = |pick: &dyn Fn(&Measured) -> f64| {
            let points: Vec<(f64, f64)> =
                rows.iter().map(|row| (row.point.strides as f64, pick(row))).collect();
            Line::through(&points)
        };
        Self {
            daemon: line(&|row| row.daemon_bytes as f64),
            gateway: line(&|row| row.gateway_bytes as f64),
            snapshot: line(&|row| row.snapshot_s),
            decision: line(&|row| row.decision_us),
        }
    }

    fn json(&self) -> Value {
        let of = |line: &Option<Line>, unit: f64| {
            line.as_ref().map(|line| {
                json!({"at_none": rounded(line.at_none), "per_stride": rounded(line.slope * unit)})
            })
        };
        json!({
            "daemon_bytes": of(&self.daemon, 1.0),
            "gateway_bytes": of(&self.gateway, 1.0),
            "snapshot_s_and_us": of(&self.snapshot, 1e6),
            "decision_us_and_us_per_million": of(&self.decision, 1e6),
        })
    }
}

impl std::fmt::Display for Laws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { daemon: Some(daemon), gateway: Some(gateway), .. } = self else { return Ok(()) };
        let (Some(snapshot), Some(decision)) = (&self.snapshot, &self.decision) else {
            return Ok(());
        };
        writeln!(
            f,
            "per stride: daemon {:.0} B, gateway {:.0} B, snapshot {:.2} us; per decision {:.1} us and {:.2} us \
             per further million strides",
            daemon.slope,
            gateway.slope,
            snapshot.slope * 1e6,
            decision.at_none,
            decision.slope * 1e6,
        )?;
        let fit = |line: &Line| line.reaches(16.0 * f64::from(1 << 30)) / 1e6;
        writeln!(
            f,
            "16 GiB are full at {:.0} M strides in the daemon, {:.0} M in each gateway process",
            fit(daemon),
            fit(gateway)
        )
    }
}

/// What one more holder of a stride takes.
struct Further {
    daemon: f64,
    gateway: f64,
}

impl Further {
    fn of(rows: &[Measured]) -> Option<Self> {
        let shared = rows.iter().find(|row| row.point.holders > 1)?;
        let alone = rows
            .iter()
            .find(|row| row.point.holders == 1 && row.point.strides == shared.point.strides)?;
        let pairs = (shared.point.holders - 1) as f64 * shared.strides as f64;
        let per_pair = |of: fn(&Measured) -> u64| (of(shared) as f64 - of(alone) as f64) / pairs;
        Some(Self {
            daemon: per_pair(|row| row.daemon_bytes),
            gateway: per_pair(|row| row.gateway_bytes),
        })
    }

    fn json(&self) -> Value {
        json!({"daemon_bytes": rounded(self.daemon), "gateway_bytes": rounded(self.gateway)})
    }
}

impl std::fmt::Display for Further {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { daemon, gateway } = self;
        writeln!(f, "per further holder of a stride: daemon {daemon:.1} B, gateway {gateway:.1} B")
    }
}

fn table_of(rows: &[Measured]) -> String {
    let head = [
        "strides",
        "holders",
        "daemon MiB",
        "gateway MiB",
        "daemon B/stride",
        "gateway B/stride",
        "applied blocks/s",
        "behind s",
        "snapshot s",
        "of it daemon CPU s",
        "decision us",
        "with no strides us",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let per_stride = |bytes: u64| format!("{:.0}", bytes as f64 / row.strides as f64);
        table.push(vec![
            row.strides.to_string(),
            row.point.holders.to_string(),
            (row.daemon_bytes >> 20).to_string(),
            (row.gateway_bytes >> 20).to_string(),
            per_stride(row.daemon_bytes),
            per_stride(row.gateway_bytes),
            format!("{:.0}", row.applied_per_s),
            format!("{:.1}", row.behind_s),
            format!("{:.1}", row.snapshot_s),
            format!("{:.1}", row.snapshot_daemon_cpu_s),
            format!("{:.0}", row.decision_us),
            format!("{:.0}", row.decision_without_us),
        ]);
    }
    aligned(&table)
}

fn plots_of(rows: &[&Measured]) -> Result<Vec<(&'static str, String)>> {
    let series = |name: &str, pick: &dyn Fn(&Measured) -> f64| Series {
        name: name.to_owned(),
        points: rows.iter().map(|row| (row.strides as f64, pick(row))).collect(),
    };
    let mib = f64::from(1 << 20);
    let picture =
        |title, y, series: &[Series]| plot::lines(&Axes { title, x: "strides", y }, series);
    Ok(vec![
        (
            "memory",
            picture(
                "Memory by strides",
                "resident memory beyond that of none (MiB)",
                &[
                    series("daemon", &|row| row.daemon_bytes as f64 / mib),
                    series("gateway", &|row| row.gateway_bytes as f64 / mib),
                ],
            )?,
        ),
        (
            "snapshot",
            picture(
                "Snapshot to an empty gateway by strides",
                "until all is there (s)",
                &[series("snapshot", &|row| row.snapshot_s)],
            )?,
        ),
        (
            "decision",
            picture(
                "Decision by strides",
                "worker CPU per decision (us)",
                &[
                    series("with them", &|row| row.decision_us),
                    series("before them", &|row| row.decision_without_us),
                ],
            )?,
        ),
    ])
}
