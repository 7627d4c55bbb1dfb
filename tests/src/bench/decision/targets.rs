//! What was asked for, beside what was measured.

use serde_json::{Value, json};

use super::case::{BYTES_PER_TOKEN, Scorers};
use super::{FLOOR, NOOP, PLAIN, ROUTER, Row};
use crate::table::{aligned, rounded};

/// A budget of the design.
pub(super) struct Target {
    what: &'static str,
    limit: f64,
    unit: &'static str,
    /// `None` when no case of this run tells.
    measured: Option<f64>,
}

impl Target {
    fn is_met(&self) -> Option<bool> {
        self.measured.map(|measured| measured <= self.limit)
    }

    fn verdict(&self) -> &'static str {
        match self.is_met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not measured",
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "what": self.what, "limit": self.limit, "unit": self.unit,
            "measured": self.measured.map(rounded), "is_met": self.is_met(),
        })
    }
}

/// All of them.
pub(super) fn judge(rows: &[Row]) -> Vec<Target> {
    let find = |tokens: usize, endpoints: u16, scorers: Scorers| {
        rows.iter().find(|row| {
            let case = &row.case;
            (case.bytes, case.endpoints, case.scorers)
                == (tokens * BYTES_PER_TOKEN, endpoints, scorers)
        })
    };
    let wide = |tokens| find(tokens, 100, Scorers::All).and_then(|row| row.over(ROUTER, NOOP));
    let chat = find(8192, 8, Scorers::Default);
    let module = |name: &str| {
        let path = testbed::root().join(format!("target/wasm/{name}.wasm"));
        std::fs::metadata(path).ok().map(|data| data.len() as f64 / 1e6)
    };
    let target = |what, limit, unit, measured| Target { what, limit, unit, measured };
    vec![
        target(
            "chat of 32 KiB over a no-op filter, as a multiple of the floor in this run",
            2.0,
            "x",
            chat.and_then(Row::times_floor),
        ),
        target(
            "chat of 32 KiB over a no-op filter",
            100.0,
            "us",
            chat.and_then(|row| row.over(ROUTER, NOOP)),
        ),
        target("floor of that chat", 50.0, "us", chat.and_then(|row| row.over(FLOOR, NOOP))),
        target(
            "200 tokens over plain Envoy",
            60.0,
            "us",
            find(200, 8, Scorers::Default).and_then(|row| row.over(ROUTER, PLAIN)),
        ),
        target("8 KiB, 100 endpoints, all scorers over a no-op filter", 120.0, "us", wide(2048)),
        target("64 KiB, 100 endpoints, all scorers over a no-op filter", 200.0, "us", wide(16_384)),
        target(
            "512 KiB, 100 endpoints, all scorers over a no-op filter",
            900.0,
            "us",
            wide(131_072),
        ),
        target("router.wasm", 1.0, "MB", module("router")),
    ]
}

/// For people.
pub(super) fn table(targets: &[Target]) -> String {
    let mut rows = vec![["target", "at most", "measured", ""].map(str::to_owned).to_vec()];
    rows.extend(targets.iter().map(|target| {
        vec![
            target.what.to_owned(),
            format!("{} {}", target.limit, target.unit),
            target.measured.map_or("-".into(), |value| format!("{value:.2} {}", target.unit)),
            target.verdict().to_owned(),
        ]
    }));
    aligned(&rows)
}
