//! `bench freshness`: from an event's publication until every worker of a gateway routes by it, while
//! other engines publish too.
//!
//! The bench is the publisher of the events measured, so it knows when a batch left, and asks each
//! worker's probe listener, so it sees what each would decide. Of two endpoints the one with events says
//! that requests wait: it is picked for the prompt once its blocks are in the gateway, and never before.

pub(crate) mod engines;
mod point;
pub(crate) mod probes;
pub(crate) mod prompts;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub(crate) use engines::{Flags as PublishFlags, run as publish};
use point::{Measured, Point, measure};

use crate::plot::{self, Axes, Series};
use crate::report::Report;
use crate::table::{aligned, rounded};

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Events measured per row
    #[arg(long, default_value_t = 100)]
    events: usize,
    /// Longest time for them; a row that takes it has fewer
    #[arg(long, default_value_t = 20)]
    row_seconds: u64,
    /// Blocks of 16 tokens per event, of those that are measured and of the others
    #[arg(long, default_value_t = 32)]
    blocks: usize,
    /// Seed of the prompts and pauses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Blocks stored and removed per second by other engines
    #[arg(long, value_delimiter = ',', default_values_t = [0, 100_000, 300_000, 1_000_000])]
    rates: Vec<u64>,
    /// Other engines
    #[arg(long, default_value_t = 8)]
    engines: usize,
    /// Blocks that the other engines hold in all
    #[arg(long, default_value_t = 200_000)]
    held: usize,
    /// Workers of each gateway
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// The rate at which growth with engines and with gateways is measured
    #[arg(long, default_value_t = 100_000)]
    growth_rate: u64,
    /// Up to 256 engines and 16 gateways
    #[arg(long)]
    full: bool,
    /// Nothing of growth
    #[arg(long, conflicts_with = "full")]
    rates_only: bool,
}

impl Flags {
    /// Rows by rate, by engines, by gateways.
    fn points(&self) -> [Vec<Point>; 3] {
        let point = |rate, engines, gateways| Point { rate, engines, gateways };
        let (engines, gateways): (&[usize], &[usize]) = match (self.full, self.rates_only) {
            (true, _) => (&[1, 4, 16, 64, 256], &[1, 2, 4, 8, 16]),
            (_, true) => (&[], &[]),
            _ => (&[1, 64], &[1, 2]),
        };
        let of = |rate: &u64| point(*rate, if *rate > 0 { self.engines } else { 0 }, 1);
        let rates = self.rates.iter().map(of).collect();
        let engines = engines.iter().map(|engines| point(self.growth_rate, *engines, 1)).collect();
        let gateways =
            gateways.iter().map(|count| point(self.growth_rate, self.engines, *count)).collect();
        [rates, engines, gateways]
    }
}

pub(crate) async fn run(flags: &Flags) -> Result<Report> {
    ensure!(flags.events > 0 && flags.blocks >= 8, "at least 1 event of at least 8 blocks");
    ensure!(flags.engines > 0 && flags.workers > 0, "at least 1 engine and 1 worker");
    let mut groups = Vec::new();
    for points in flags.points() {
        let mut rows = Vec::new();
        for point in points {
            eprintln!("{point} ...");
            let measured = measure(point, flags).await?;
            eprintln!("  seen by all workers in {} ms p50", in_ms(measured.visible_ms(0.5)));
            rows.push(measured);
        }
        groups.push(rows);
    }
    let [rates, engines, gateways] = &groups[..] else { anyhow::bail!("three groups of rows") };
    let all = || groups.iter().flatten();
    let table = format!(
        "From publishing an event of {} blocks until each of {} workers routes by it; at most {} events \
         per row, seed {}\n{}",
        flags.blocks,
        flags.workers,
        flags.events,
        flags.seed,
        table_of(all())
    );
    let json_of = |rows: &[Measured]| rows.iter().map(Measured::json).collect::<Vec<Value>>();
    let result = json!({
        "bench": "freshness", "events": flags.events, "blocks_per_event": flags.blocks,
        "workers": flags.workers, "held_blocks": flags.held, "seed": flags.seed,
        "by_rate": json_of(rates), "by_engines": json_of(engines), "by_gateways": json_of(gateways),
    });
    let mut plots = Vec::new();
    let axes = |title, x| Axes { title, x, y: "published to seen by every worker (ms)" };
    let of = |rows: &[Measured], x: fn(&Measured) -> f64| {
        [("p50", 0.5), ("p99", 0.99)].map(|(name, share)| Series {
            name: name.to_owned(),
            points: rows.iter().filter_map(|row| Some((x(row), row.visible_ms(share)?))).collect(),
        })
    };
    // A rate of 0 has no place on a logarithmic axis.
    let loaded: Vec<Measured> = rates.iter().filter(|row| row.point.rate > 0).cloned().collect();
    let more = [
        ("rate", "Freshness by load", "blocks per second applied", &loaded[..]),
        ("engines", "Freshness by engines", "engines", engines),
        ("gateways", "Freshness by gateways", "gateways", gateways),
    ];
    for (name, title, x, rows) in more {
        if rows.len() < 2 {
            continue;
        }
        let pick: fn(&Measured) -> f64 = match name {
            "rate" => |row| row.applied_per_s,
            "engines" => |row| row.point.engines as f64,
            _ => |row| row.point.gateways as f64,
        };
        let mut curves = Vec::from(of(rows, pick));
        curves.retain(|curve| !curve.points.is_empty());
        if !curves.is_empty() {
            plots.push((name, plot::lines(&axes(title, x), &curves)?));
        }
    }
    Ok(Report { table, result, plots })
}

/// A time, or what is known of one that did not end.
fn in_ms(time: Option<f64>) -> String {
    match time {
        Some(ms) => format!("{ms:.2}"),
        None => format!("> {}", point::PATIENCE.as_millis()),
    }
}

fn table_of<'m>(rows: impl Iterator<Item = &'m Measured>) -> String {
    let head = [
        "blocks/s offered",
        "applied",
        "engines",
        "gateways",
        "events",
        "p50 ms",
        "p90",
        "p99",
        "max",
        "not seen",
        "daemon cores",
        "gateway cores",
        "publishers' cores",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let ms = |share| in_ms(row.visible_ms(share));
        table.push(vec![
            row.point.rate.to_string(),
            format!("{:.0}", row.applied_per_s),
            row.point.engines.to_string(),
            row.point.gateways.to_string(),
            row.events().to_string(),
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(1.0),
            row.unseen.to_string(),
            format!("{:.2}", row.daemon_cores),
            format!("{:.2}", row.gateway_cores),
            format!("{:.2}", row.publisher_cores),
        ]);
    }
    aligned(&table)
}

impl Measured {
    fn json(&self) -> Value {
        let quantiles = |of: &dyn Fn(f64) -> Option<f64>| {
            let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| of(share).map(rounded));
            json!({"p50": p50, "p90": p90, "p99": p99, "max": max})
        };
        json!({
            "offered_blocks_per_s": self.point.rate,
            "events": self.events(),
            "applied_blocks_per_s": self.applied_per_s.round(),
            "engines": self.point.engines,
            "gateways": self.point.gateways,
            "visible_ms": quantiles(&|share| self.visible_ms(share)),
            "not_yet_visible_ms": quantiles(&|share| self.unseen_before_ms(share)),
            "probe_ms": quantiles(&|share| self.probe_ms(share)),
            "not_seen": self.unseen,
            "daemon_cores": rounded(self.daemon_cores),
            "gateway_cores": rounded(self.gateway_cores),
            "publisher_cores": rounded(self.publisher_cores),
            "pending_buckets_at_end": self.pending,
        })
    }
}
