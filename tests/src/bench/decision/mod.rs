//! `bench decision`: what one decision costs: in wasmtime as instructions, which are the same on every
//! machine, and in Envoy's V8 as CPU of its worker, over the prompt's size, the number of endpoints, the
//! scorers and the depth of the match.
//!
//! In both the same steps without a router, the *floor* (`tests/guests/floor`), are measured beside it:
//! on this machine and in this run, so that the ratio to it is of the code and not of the machine.

mod case;
mod fuel;
mod targets;
mod worker;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::case::{BYTES_PER_TOKEN, Case, Depth, Scorers};
use self::fuel::{Runtime, Taken};
use self::worker::{ARMS, Worker};
use crate::plot::{self, Axes, Series};
use crate::report::Report;
use crate::table::{aligned, median, rounded};

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Sizes of prompts, with 8 endpoints, the default scorers and half of the prompt held
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [64, 200, 2048, 8192, 16_384, 131_072])]
    tokens: Vec<usize>,
    /// Numbers of endpoints, with 2048 tokens, all scorers and half of the prompt held
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_values_t = [1, 10, 100, 1000])]
    endpoints: Vec<u16>,
    /// Sizes of prompts with 100 endpoints and all scorers
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [16_384, 131_072])]
    wide_tokens: Vec<usize>,
    /// Measured rounds in Envoy; one more goes before them and is dropped
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Decisions per case in wasmtime
    #[arg(long, default_value_t = 9)]
    decisions: usize,
    /// Only instructions and time in wasmtime
    #[arg(long)]
    no_envoy: bool,
}

impl Flags {
    fn cases(&self) -> Vec<Case> {
        let usual = Case {
            bytes: 2048 * BYTES_PER_TOKEN,
            endpoints: 100,
            scorers: Scorers::All,
            depth: Depth::Half,
        };
        let narrow = Case { endpoints: 8, scorers: Scorers::Default, ..usual };
        let bytes = |tokens: &usize| tokens * BYTES_PER_TOKEN;
        let mut all: Vec<Case> =
            self.tokens.iter().map(|tokens| Case { bytes: bytes(tokens), ..narrow }).collect();
        all.extend(self.endpoints.iter().map(|endpoints| Case { endpoints: *endpoints, ..usual }));
        all.extend(self.wide_tokens.iter().map(|tokens| Case { bytes: bytes(tokens), ..usual }));
        all.extend(Scorers::EACH.map(|scorers| Case { scorers, ..usual }));
        all.extend([Depth::None, Depth::Half, Depth::Full].map(|depth| Case { depth, ..usual }));
        // An Envoy per set of scorers.
        all.sort_by_key(|case| case.scorers);
        let mut cases: Vec<Case> = Vec::new();
        for case in all {
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }
}

/// What a case took.
struct Row {
    case: Case,
    body_bytes: usize,
    wasmtime: Taken,
    /// Microseconds by arm and round.
    envoy: Option<[Vec<f64>; 4]>,
}

impl Row {
    /// Median of the differences to an arm, by round.
    fn over(&self, arm: usize, base: usize) -> Option<f64> {
        let rounds = self.envoy.as_ref()?;
        let each: Vec<f64> = rounds[arm].iter().zip(&rounds[base]).map(|(a, b)| a - b).collect();
        Some(median(&each))
    }

    /// The router's own cost as a multiple of the floor's, both over a filter that only waits. `None`
    /// where the machine's noise has swallowed the floor.
    fn times_floor(&self) -> Option<f64> {
        let floor = self.over(FLOOR, NOOP).filter(|us| *us >= 1.0)?;
        Some(self.over(ROUTER, NOOP)? / floor)
    }

    fn json(&self) -> Value {
        let Taken { fuel, us } = self.wasmtime;
        let mut row = self.case.json();
        row["body_bytes"] = json!(self.body_bytes);
        row["wasmtime"] = json!({
            "fuel": fuel.0, "floor_fuel": fuel.1, "us": rounded(us.0), "floor_us": rounded(us.1),
        });
        if let Some(rounds) = &self.envoy {
            let of = |arm: usize| rounds[arm].iter().copied().map(rounded).collect::<Vec<_>>();
            row["envoy"] = json!({
                "plain_us": rounded(median(&rounds[PLAIN])),
                "router_over_plain_us": self.over(ROUTER, PLAIN).map(rounded),
                "router_over_noop_us": self.over(ROUTER, NOOP).map(rounded),
                "floor_over_noop_us": self.over(FLOOR, NOOP).map(rounded),
                "times_floor": self.times_floor().map(rounded),
                "rounds": {"plain": of(PLAIN), "noop": of(NOOP), "floor": of(FLOOR), "router": of(ROUTER)},
            });
        }
        row
    }
}

const PLAIN: usize = 0;
const NOOP: usize = 1;
const FLOOR: usize = 2;
const ROUTER: usize = 3;

pub(crate) async fn run(flags: &Flags) -> Result<Report> {
    let spec = model::ModelFolder::load(&testbed::root().join("tests/golden/tiny-model"))?.spec;
    let runtime = Runtime::load()?;
    let mut rows: Vec<Row> = Vec::new();
    for scorers in Scorers::EACH {
        let cases: Vec<Case> =
            flags.cases().into_iter().filter(|case| case.scorers == scorers).collect();
        if cases.is_empty() {
            continue;
        }
        let mut worker = Worker::prepare(scorers).await?;
        let configurations = worker.configurations()?;
        if !flags.no_envoy {
            worker.start().await?;
        }
        for case in cases {
            let ready = case.ready(&spec)?;
            let body_bytes = ready.body.len();
            let wasmtime = runtime
                .measure(&ready, &configurations, flags.decisions)
                .with_context(|| format!("{case} in wasmtime"))?;
            let envoy = if flags.no_envoy {
                None
            } else {
                let shots = worker.hold(ready).await.with_context(|| format!("{case}"))?;
                let mut rounds: [Vec<f64>; 4] = Default::default();
                for round in 0..=flags.rounds {
                    for turn in 0..ARMS.len() {
                        let arm = (turn + round) % ARMS.len();
                        let us = worker.measure(arm, &shots).await?;
                        if round > 0 {
                            rounds[arm].push(us);
                        }
                    }
                }
                Some(rounds)
            };
            let row = Row { case, body_bytes, wasmtime, envoy };
            eprintln!(
                "{case}: fuel {}, over noop {:?} us",
                row.wasmtime.fuel.0,
                row.over(ROUTER, NOOP)
            );
            rows.push(row);
        }
    }
    report(flags, &rows)
}

fn report(flags: &Flags, rows: &[Row]) -> Result<Report> {
    let head = [
        "prompt",
        "endpoints",
        "scorers",
        "held",
        "fuel",
        "floor",
        "wasmtime",
        "plain",
        "over plain",
        "over noop",
        "floor",
        "x floor",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let us = |value: Option<f64>| value.map_or("-".to_owned(), |us| format!("{us:.1} us"));
        let mut line = row.case.cells();
        line.push(row.wasmtime.fuel.0.to_string());
        line.push(row.wasmtime.fuel.1.to_string());
        line.push(us(Some(row.wasmtime.us.0)));
        line.push(us(row.envoy.as_ref().map(|rounds| median(&rounds[PLAIN]))));
        line.push(us(row.over(ROUTER, PLAIN)));
        line.push(us(row.over(ROUTER, NOOP)));
        line.push(us(row.over(FLOOR, NOOP)));
        line.push(row.times_floor().map_or("-".to_owned(), |times| format!("{times:.2}")));
        cells.push(line);
    }
    let targets = targets::judge(rows);
    let table = format!(
        "One decision: instructions in wasmtime; CPU of Envoy's worker, median of {} rounds, \
         differences by round\n{}\n{}",
        flags.rounds,
        aligned(&cells),
        targets::table(&targets),
    );
    let result = json!({
        "bench": "decision", "rounds": flags.rounds,
        "cases": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "targets": targets.iter().map(targets::Target::json).collect::<Vec<_>>(),
    });
    let plots = if flags.no_envoy { Vec::new() } else { plots(rows)? };
    Ok(Report { table, result, plots })
}

fn plots(rows: &[Row]) -> Result<Vec<(&'static str, String)>> {
    let curve = |name: &str, x: fn(&Row) -> f64, arm: usize, base: usize, of: &[&Row]| Series {
        name: name.to_owned(),
        // What the machine's noise makes less than nothing has no place on a logarithmic axis.
        points: of
            .iter()
            .filter_map(|row| Some((x(row), row.over(arm, base)?)))
            .filter(|point| point.1 > 0.0)
            .collect(),
    };
    let mut plots = Vec::new();
    let pick = |fits: &dyn Fn(&Case) -> bool| {
        rows.iter().filter(|row| fits(&row.case)).collect::<Vec<&Row>>()
    };
    let sizes = pick(&|case| case.scorers == Scorers::Default && case.endpoints == 8);
    let bytes = |row: &Row| row.body_bytes as f64;
    if sizes.len() > 1 {
        let axes = Axes {
            title: "CPU of a decision, 8 endpoints, default scorers, half held",
            x: "request body (bytes)",
            y: "CPU over a no-op filter (us)",
        };
        let curves = [
            curve("router", bytes, ROUTER, NOOP, &sizes),
            curve("floor", bytes, FLOOR, NOOP, &sizes),
        ];
        plots.push(("size", plot::lines(&axes, &curves)?));
    }
    let mut endpoints = pick(&|case| {
        case.scorers == Scorers::All
            && case.depth == Depth::Half
            && case.bytes == 2048 * BYTES_PER_TOKEN
    });
    endpoints.sort_by_key(|row| row.case.endpoints);
    if endpoints.len() > 1 {
        let axes = Axes {
            title: "CPU of a decision, prompt of 8 KiB, all scorers, half held",
            x: "endpoints",
            y: "CPU over a no-op filter (us)",
        };
        let count = |row: &Row| f64::from(row.case.endpoints);
        let curves = [curve("router", count, ROUTER, NOOP, &endpoints)];
        plots.push(("endpoints", plot::lines(&axes, &curves)?));
    }
    Ok(plots)
}
