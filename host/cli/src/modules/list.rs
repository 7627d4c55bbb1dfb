//! What each gateway runs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::admin::{self, Stats};
use super::installed::{Installed, Scorer};
use super::probe::{Answer, Prober};
use super::{Options, SelectError, Target, select, store};
use scorers::spec::MODULE;

use crate::config::Config;

/// All gateways.
#[derive(Clone, Debug)]
pub struct Listing {
    gateways: Vec<Gateway>,
}

#[derive(Clone, Debug)]
struct Gateway {
    name: String,
    stats: Stats,
    installed: Installed,
    /// One per worker; empty when they were not asked or did not answer.
    answers: Vec<Answer>,
    problems: Vec<String>,
}

/// Asks the gateways. What cannot be asked is a problem in the listing.
///
/// # Errors
/// When the gateways asked for are not those of the configuration.
pub async fn list(config: &Config, options: &Options) -> Result<Listing, SelectError> {
    let mut gateways = Vec::new();
    for target in select(config, &options.gateways)? {
        gateways.push(look(config, options, target).await);
    }
    Ok(Listing { gateways })
}

async fn look(config: &Config, options: &Options, target: Target) -> Gateway {
    let installed = store::installed(&target.resources);
    let (mut problems, mut stats, mut answers) = (Vec::new(), Stats::default(), Vec::new());
    if installed.0.is_empty() {
        problems.push(format!("{} has no rendered filters", target.resources.display()));
    }
    match admin::stats(target.admin).await {
        Err(error) => problems.push(format!("the admin interface at {}: {error}", target.admin)),
        Ok(found) if options.probes => {
            match Prober::open(config, &target.feed, found.workers).await {
                Ok((_, found)) => answers = found,
                Err(error) => problems.push(error.to_string()),
            }
            stats = found;
        }
        Ok(found) => stats = found,
    }
    for (name, resource) in &installed.0 {
        let runs = stats.filter(name);
        // Without an answer the admin interface is the problem.
        if stats.workers > 0 && runs.version != resource.version {
            let (written, runs) = (&resource.version, runs.version);
            problems.push(format!("it runs {name} {runs:?} and not {written:?} as written"));
        }
    }
    Gateway { name: target.name, stats, installed, answers, problems }
}

impl Gateway {
    /// Workers whose decision has this module's scores, by the configuration that is installed.
    fn running(&self, scorer: &Scorer) -> Option<usize> {
        let revision = scorer.place.as_ref().and_then(|place| place.revision);
        let runs = |answer: &&Answer| match answer.revisions.get(&scorer.name) {
            Some(Some(told)) => *told == 0 || revision.is_none_or(|revision| revision == *told),
            _ => false,
        };
        (!self.answers.is_empty()).then(|| self.answers.iter().filter(runs).count())
    }

    /// What a module's scores did: absent, incomplete, and of the decisions of a shadow those that
    /// it would have changed, and the others.
    fn counts(&self, name: &str) -> BTreeMap<&'static str, u64> {
        let of = |counter: &str| self.stats.counter(&format!("{counter}_{name}"));
        [
            ("absent", of("scores_absent")),
            ("incomplete", of("scores_incomplete")),
            ("differs", of("shadow_differs")),
            ("agrees", of("shadow_agrees")),
        ]
        .into()
    }

    fn row(&self, scorer: &Scorer) -> Vec<String> {
        let dash = || "-".to_owned();
        let mut row = vec![self.name.clone()];
        row.push(scorer.place.as_ref().map_or_else(dash, |place| place.number.to_string()));
        row.push(scorer.name.clone());
        row.push(scorer.weight.map_or_else(|| "filter".to_owned(), |weight| weight.to_string()));
        if scorer.kind != MODULE {
            row.extend(["built in"].map(str::to_owned));
            row.extend(std::iter::repeat_with(dash).take(8));
            return row;
        }
        row.push(if scorer.is_shadow { "shadow" } else { "counts" }.to_owned());
        let place = scorer.place.as_ref();
        row.push(place.map_or_else(dash, |place| place.file.clone()));
        let revision = place.and_then(|place| place.revision);
        row.push(revision.map_or_else(dash, |revision| format!("{revision:08x}")));
        let filter = place.map(|place| (self.stats.filter(&place.filter), place));
        row.push(filter.as_ref().map_or_else(dash, |(filter, _)| filter.version.clone()));
        row.push(filter.as_ref().map_or_else(dash, |(filter, _)| filter.rejected.to_string()));
        let workers = self.running(scorer);
        row.push(
            workers.map_or_else(dash, |running| format!("{running} of {}", self.stats.workers)),
        );
        let counts = self.counts(&scorer.name);
        let count = |key: &str| counts.get(key).copied().unwrap_or(0);
        row.push(count("absent").to_string());
        row.push(count("incomplete").to_string());
        let (differs, all) = (count("differs"), count("differs") + count("agrees"));
        row.push(match all {
            0 => dash(),
            _ => format!("{differs} of {all} ({:.1} %)", differs as f64 / all as f64 * 100.0),
        });
        row
    }

    fn json(&self) -> Value {
        let scorers = self.installed.scorers().into_iter().map(|scorer| {
            let mut value =
                json!({"type": scorer.kind, "name": scorer.name, "weight": scorer.weight});
            if scorer.kind == MODULE {
                let place = scorer.place.as_ref();
                let filter =
                    place.map(|place| self.stats.filter(&place.filter)).unwrap_or_default();
                let written = place.and_then(|place| self.installed.0.get(&place.filter));
                value["shadow"] = json!(scorer.is_shadow);
                value["place"] = json!(place.map(|place| place.number));
                value["module"] = json!(place.map(|place| &place.file));
                value["revision"] = json!(place.and_then(|place| place.revision));
                value["version"] = json!(filter.version);
                value["version_written"] = json!(written.map(|written| &written.version));
                value["update_rejected"] = json!(filter.rejected);
                value["workers"] = json!(self.running(&scorer));
                for (key, count) in self.counts(&scorer.name) {
                    value[key] = json!(count);
                }
            }
            value
        });
        json!({
            "name": self.name,
            "workers": self.stats.workers,
            "router": self.installed.router(),
            "requests": self.stats.counter("requests_picked"),
            "scorers": scorers.collect::<Vec<_>>(),
            "problems": self.problems,
        })
    }
}

impl Listing {
    /// True when everything could be asked, and runs as it is written.
    pub fn is_well(&self) -> bool {
        self.gateways.iter().all(|gateway| gateway.problems.is_empty())
    }

    /// A line per gateway, then an aligned table of all scorers, then the problems.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for gateway in &self.gateways {
            let router = gateway.installed.router().unwrap_or_else(|| "no router".to_owned());
            let (workers, picked) =
                (gateway.stats.workers, gateway.stats.counter("requests_picked"));
            text.push_str(&format!(
                "{}: {router}, {workers} workers, {picked} requests decided\n",
                gateway.name
            ));
        }
        let head = [
            "GATEWAY",
            "PLACE",
            "SCORER",
            "WEIGHT",
            "MODE",
            "MODULE",
            "REVISION",
            "VERSION",
            "REJECTED",
            "WORKERS",
            "ABSENT",
            "INCOMPLETE",
            "WOULD DIFFER",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for gateway in &self.gateways {
            rows.extend(gateway.installed.scorers().iter().map(|scorer| gateway.row(scorer)));
        }
        text.push_str(&aligned(&rows));
        for gateway in &self.gateways {
            for problem in &gateway.problems {
                text.push_str(&format!("! {}: {problem}\n", gateway.name));
            }
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let gateways: Vec<Value> = self.gateways.iter().map(Gateway::json).collect();
        json!({"ok": self.is_well(), "gateways": gateways})
    }
}

pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
