//! The change itself: all gateways or none.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::admin::{self, Stats};
use super::http::HttpError;
use super::installed::{Installed, steps};
use super::probe::{Answer, Expected, ProbeError, Prober, Unverified};
use super::report::{GatewayReport, Outcome, Report};
use super::store::{Store, StoreError};
use super::{Options, SelectError, Target, select};
use crate::config::Config;
use crate::render::{self, RenderError, Resource};

/// Between two looks at the statistics.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a gateway was not changed, or not as it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the configuration names.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// Its admin interface.
    #[error("the admin interface at {admin}: {source}")]
    Admin {
        /// Where it was looked for.
        admin: SocketAddr,
        /// What happened.
        source: HttpError,
    },
    /// No decision to judge by, before anything was changed.
    #[error("{0}; --no-probe goes by the gateway's statistics alone")]
    Probe(#[source] ProbeError),
    /// A swap cannot do it.
    #[error("{what}: that takes effect at a restart; render, and restart the gateway")]
    Restart {
        /// What differs.
        what: String,
    },
    /// Nothing to go back to.
    #[error("{} keeps no state from before a swap", path.display())]
    NoHistory {
        /// The folder.
        path: PathBuf,
    },
    /// Envoy refused it.
    #[error("Envoy rejects {filter} {version}; the reason is in its log")]
    Rejected {
        /// The filter.
        filter: String,
        /// What was refused.
        version: String,
    },
    /// Envoy did not take it.
    #[error("Envoy has not taken {filter} {version} within {} s (it runs {runs})", timeout.as_secs())]
    Late {
        /// The filter.
        filter: String,
        /// What was not taken.
        version: String,
        /// What it runs.
        runs: String,
        /// The limit.
        timeout: Duration,
    },
    /// Its workers decide otherwise.
    #[error(transparent)]
    Unverified(#[from] Unverified),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// What the configuration file says.
    File,
    /// What was before the last swap.
    Before,
}

/// Brings the gateways to what the configuration says.
///
/// # Errors
/// When the gateways asked for are not those of the configuration. What fails later is in the report.
pub async fn swap(config: &Config, options: &Options) -> Result<Report, SelectError> {
    change_all(config, options, Goal::File).await
}

/// Brings the gateways back to what they ran before the last swap.
///
/// # Errors
/// As [`swap`].
pub async fn rollback(config: &Config, options: &Options) -> Result<Report, SelectError> {
    change_all(config, options, Goal::Before).await
}

async fn change_all(config: &Config, options: &Options, goal: Goal) -> Result<Report, SelectError> {
    let targets = select(config, &options.gateways)?;
    let (mut changes, mut reports) = (Vec::new(), Vec::new());
    for target in targets {
        let mut report = GatewayReport {
            name: target.name.clone(),
            outcome: Outcome::Untouched,
            workers: None,
            changed: Vec::new(),
            problems: Vec::new(),
            remarks: Vec::new(),
        };
        match Change::prepare(config, options, target, goal).await {
            Ok((change, remarks)) => {
                report.remarks = remarks;
                changes.push(change);
            }
            Err(failure) => report.problems.push(failure.to_string()),
        }
        reports.push(report);
    }
    let mut report = Report { gateways: reports };
    if report.gateways.iter().any(|gateway| !gateway.problems.is_empty()) {
        return Ok(report);
    }
    let mut failed = None;
    for (i, (change, report)) in changes.iter_mut().zip(&mut report.gateways).enumerate() {
        tracing::info!(gateway = report.name, filters = change.steps.join(" "), "changing");
        match change.run(options).await {
            Ok(silent) => {
                let is_changed = !change.steps.is_empty();
                report.outcome = if is_changed { Outcome::Swapped } else { Outcome::Unchanged };
                report.workers = change.prober.as_ref().map(Prober::workers);
                report.changed = change.steps.clone();
                report.remarks.extend(silent.into_iter().map(|name| {
                    format!(
                        "{name} does not tell its revision: that it scores is all that was verified"
                    )
                }));
            }
            Err(failure) => {
                report.problems.push(failure.to_string());
                failed = Some(i);
                break;
            }
        }
    }
    let Some(failed) = failed else {
        for (change, report) in changes.iter().zip(&mut report.gateways) {
            if let Err(error) = change.settle(true) {
                report.remarks.push(error.to_string());
            }
        }
        return Ok(report);
    };
    // One gateway that routes otherwise than the others would be a riddle to whoever looks: all go
    // back, the last one changed first.
    let changed = changes.iter_mut().zip(&mut report.gateways).take(failed + 1);
    for (change, report) in changed.collect::<Vec<_>>().into_iter().rev() {
        if change.steps.is_empty() {
            report.outcome = Outcome::Untouched;
            continue;
        }
        tracing::warn!(gateway = report.name, "rolling back");
        report.outcome = match change.undo(options).await {
            Ok(()) => Outcome::RolledBack,
            Err(failure) => {
                report.problems.push(format!("rolling back: {failure}"));
                Outcome::Broken
            }
        };
    }
    Ok(report)
}

/// One gateway's change.
struct Change {
    target: Target,
    store: Store,
    from: Installed,
    to: Installed,
    /// Filters whose file is not what the gateway runs: it refused them once.
    stale: BTreeSet<String>,
    steps: Vec<String>,
    prober: Option<Prober>,
    /// What the workers decided before.
    before: Vec<Answer>,
    goal: Goal,
    /// Number under which is kept what a swap replaces, or what a rollback installs.
    kept: Option<u64>,
}

impl Change {
    /// All that can fail before something is changed.
    async fn prepare(
        config: &Config,
        options: &Options,
        target: Target,
        goal: Goal,
    ) -> Result<(Self, Vec<String>), Failure> {
        let mut store = Store::open(&target.resources)?;
        let stats = stats(&target).await?;
        let from = store.installed();
        let (to, kept, remarks) = match goal {
            Goal::File => {
                let (to, remarks) = of_file(config, &target, &mut store)?;
                (to, None, remarks)
            }
            Goal::Before => {
                let none = || Failure::NoHistory { path: target.resources.clone() };
                let (number, to) = store.last()?.ok_or_else(none)?;
                (to, Some(number), Vec::new())
            }
        };
        same_chain(&from, &to)?;
        let (prober, before) = match options.probes {
            false => (None, Vec::new()),
            true => {
                let opened = Prober::open(config, &target.feed, stats.workers).await;
                let (prober, answers) = opened.map_err(Failure::Probe)?;
                (Some(prober), answers)
            }
        };
        let stale = stale(&from, &stats);
        let steps = steps(&from, &to, &stale);
        Ok((Self { target, store, from, to, stale, steps, prober, before, goal, kept }, remarks))
    }

    /// Changes the gateway; gives the modules whose revision cannot be told.
    async fn run(&mut self, options: &Options) -> Result<Vec<String>, Failure> {
        if self.kept.is_none() && !self.steps.is_empty() {
            self.kept = Some(self.store.remember(&self.from)?);
        }
        for name in &self.steps {
            if let Some(resource) = self.to.0.get(name) {
                install(&mut self.store, &self.target, (name, resource), options.timeout).await?;
            }
        }
        let mut expected = Expected::of(&self.to, &self.steps, &self.before);
        if self.from.router() != self.to.router() {
            let vms = self.before.iter().filter_map(|answer| answer.vm.clone());
            expected.replaced = vms.collect();
        }
        let Some(prober) = &mut self.prober else { return Ok(Vec::new()) };
        let answers = prober.verify(&expected, Instant::now() + options.timeout).await?;
        let untold = |name: &String| {
            answers.iter().any(|answer| answer.revisions.get(name) == Some(&Some(0)))
        };
        Ok(expected.modules.into_keys().filter(untold).collect())
    }

    /// Installs again what was there.
    async fn undo(&mut self, options: &Options) -> Result<(), Failure> {
        let now = self.store.installed();
        let stale = stale(&self.from, &stats(&self.target).await?);
        for name in steps(&now, &self.from, &stale) {
            let Some(resource) = self.from.0.get(&name) else { continue };
            if self.stale.contains(&name) {
                // The gateway had refused it before; what it runs is what it took before that.
                self.store.install(&name, resource)?;
                continue;
            }
            install(&mut self.store, &self.target, (&name, resource), options.timeout).await?;
        }
        if let Some(prober) = &mut self.prober {
            let expected = Expected::of(&self.from, &[], &self.before);
            prober.verify(&expected, Instant::now() + options.timeout).await?;
        }
        Ok(self.settle(false)?)
    }

    /// Forgets what is not to be gone back to: what a rollback installed, or what a swap was to
    /// replace and did not.
    fn settle(&self, is_done: bool) -> Result<(), StoreError> {
        let forgets = match self.goal {
            Goal::File => !is_done,
            Goal::Before => is_done,
        };
        if let Some(number) = self.kept.filter(|_| forgets) {
            self.store.forget(number)?;
        }
        self.store.tidy()
    }
}

/// What the configuration makes of the gateway's folder, as far as a swap can.
fn of_file(
    config: &Config,
    target: &Target,
    store: &mut Store,
) -> Result<(Installed, Vec<String>), Failure> {
    let restart = |what: &str| Failure::Restart { what: what.to_owned() };
    if target.feed == config.envoy.feed {
        let file = store.dir().join("envoy.yaml");
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        if !same_yaml(&written, &render::bootstrap(config, store.dir())?) {
            return Err(restart(&format!("{} would change", file.display())));
        }
    }
    let mut filters = std::collections::BTreeMap::new();
    for (name, text) in render::prepare(config, store.output())? {
        let resource = Resource::parse(text)
            .map_err(|message| RenderError::Yaml { path: name.clone().into(), message })?;
        filters.insert(name, resource);
    }
    let held = render::read_filters(&store.dir().join("ecds"));
    if held.contains_key("meter") != filters.contains_key("meter") {
        return Err(restart("the meter comes or goes"));
    }
    let others = ["feeder", "meter"].into_iter();
    let others = others.filter(|name| filters.get(*name) != held.get(*name));
    let remark = |name: &str| {
        format!(
            "{name} is another one than the configuration's, and stays: `wasm-epp render` loads it"
        )
    };
    let remarks = others.map(remark).collect();
    Ok((Installed::of(filters), remarks))
}

/// A swap changes what stands in the chain, not the chain.
fn same_chain(from: &Installed, to: &Installed) -> Result<(), Failure> {
    let (held, wanted) = (from.names(), to.names());
    if held != wanted {
        let places = |names: &BTreeSet<&str>| {
            names.iter().filter(|name| name.starts_with("scorer-")).count()
        };
        let what = format!(
            "routing.modulePlaces is {}, the gateway has {}",
            places(&wanted),
            places(&held)
        );
        return Err(Failure::Restart { what });
    }
    if from.pools() != to.pools() {
        return Err(Failure::Restart {
            what: "the pools are others than the gateway's".to_owned(),
        });
    }
    Ok(())
}

fn same_yaml(a: &str, b: &str) -> bool {
    let value = |text| serde_saphyr::from_str::<serde_json::Value>(text).ok();
    value(a).is_some_and(|a| Some(a) == value(b))
}

/// Filters whose file is not what the gateway runs.
fn stale(set: &Installed, stats: &Stats) -> BTreeSet<String> {
    let differs =
        |(name, resource): &(&String, &Resource)| stats.filter(name).version != resource.version;
    set.0.iter().filter(differs).map(|(name, _)| name.clone()).collect()
}

async fn stats(target: &Target) -> Result<Stats, Failure> {
    let admin = target.admin;
    admin::stats(admin).await.map_err(|source| Failure::Admin { admin, source })
}

/// Renames one filter's file into place and waits until Envoy runs it.
async fn install(
    store: &mut Store,
    target: &Target,
    (name, resource): (&str, &Resource),
    timeout: Duration,
) -> Result<(), Failure> {
    let before = stats(target).await?.filter(name).rejected;
    store.install(name, resource)?;
    let (filter, version) = (name.to_owned(), resource.version.clone());
    let until = Instant::now() + timeout;
    loop {
        let now = stats(target).await;
        match &now {
            Ok(stats) if stats.filter(name).rejected != before => {
                return Err(Failure::Rejected { filter, version });
            }
            Ok(stats) if stats.filter(name).version == version => return Ok(()),
            _ => {}
        }
        if Instant::now() >= until {
            let runs = now?.filter(name).version;
            return Err(Failure::Late { filter, version, runs, timeout });
        }
        tokio::time::sleep(PAUSE).await;
    }
}
