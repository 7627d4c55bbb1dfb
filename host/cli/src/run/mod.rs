//! `wasm-epp run`: the filters of a gateway without the gateway, on wasmtime.
//!
//! One-shot, a file of requests goes through a chain, and each request's decision, answer, headers and
//! logs are shown, with what every callback used. With `--watch` that is done again whenever a file
//! changes. With `--gateway` the chain stands in front of real engines, over HTTP/1.1 and HTTP/2.
//!
//! A chain is either a file that lists modules or our own configuration file; then it is what `render`
//! would have Envoy load.

mod chain;
mod error;
mod gateway;
mod layout;
mod once;
mod report;
mod requests;
mod routes;
mod stand;
mod state;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use wasm_host::LogLevel;

pub use error::RunError;
use layout::Layout;
use stand::{Modules, StandOptions};
use state::State;

/// Flags of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// YAML list of modules, or wasm-epp's own configuration file
    chain: PathBuf,
    /// Send the requests of this file through the chain: JSON lines, or a YAML list
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "gateway",
        conflicts_with = "gateway"
    )]
    requests: Option<PathBuf>,
    /// What engines say and hold, for our own configuration file
    #[arg(long, value_name = "FILE", conflicts_with = "gateway")]
    state: Option<PathBuf>,
    /// One JSON object on the last line
    #[arg(long, conflicts_with = "gateway")]
    json: bool,
    /// Run again when a module, the chain, the state or the requests change, and show what differs
    #[arg(long, conflicts_with_all = ["gateway", "json"])]
    watch: bool,
    /// Serve HTTP/1.1 and HTTP/2 on this address through the chain, until Ctrl-C
    #[arg(long, value_name = "IP:PORT")]
    gateway: Option<SocketAddr>,
    /// Workers, each with virtual machines of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: u64,
    /// What random numbers of modules come from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Least important log lines that are shown, and that modules are asked for
    #[arg(long, value_enum, default_value_t = Level::Debug)]
    log_level: Level,
}

/// Levels of log lines.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Level {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Trace => Self::Trace,
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warning => Self::Warn,
            Level::Error => Self::Error,
            Level::Critical => Self::Critical,
        }
    }
}

/// Runs the command; whether everything is as it should be.
///
/// # Errors
/// When a file is not accepted, a module does not load, or a listener cannot be bound.
pub fn run(flags: &Flags) -> Result<bool, RunError> {
    let options = StandOptions {
        workers: usize::try_from(flags.workers).unwrap_or(1),
        seed: flags.seed,
        log_level: flags.log_level.into(),
        start_ns: None,
    };
    if let Some(address) = flags.gateway {
        let layout = load(&flags.chain)?;
        gateway::run(layout, address, options)?;
        return Ok(true);
    }
    let Some(requests) = &flags.requests else {
        return Err(RunError::Usage("either --requests or --gateway is needed".to_owned()));
    };
    let files =
        Files { chain: &flags.chain, state: flags.state.as_deref(), requests: requests.as_path() };
    let mut modules = Modules::new()?;
    if flags.watch {
        watch::watch(&files, &mut modules, options)?;
        return Ok(true);
    }
    let report = files.run(&mut modules, options)?.1;
    print!("{}", report.text());
    if flags.json {
        println!("{}", report.json());
    }
    Ok(report.is_ok())
}

/// The files of a one-shot run.
#[derive(Clone, Copy, Debug)]
struct Files<'f> {
    chain: &'f Path,
    state: Option<&'f Path>,
    requests: &'f Path,
}

impl Files<'_> {
    fn run(
        &self,
        modules: &mut Modules,
        options: StandOptions,
    ) -> Result<(Arc<Layout>, report::Report), RunError> {
        let layout = Arc::new(load(self.chain)?);
        let requests = requests::load(self.requests)?;
        let state = match (self.state, &layout.own) {
            (None, _) => None,
            (Some(file), Some(config)) => Some((file, State::load(file, config)?)),
            (Some(file), None) => {
                let expected = "no --state, which is for wasm-epp's own configuration file";
                return Err(RunError::value(self.chain, "--state", file, expected));
            }
        };
        let state = state.as_ref().map(|(file, state)| (*file, state));
        let report = once::run(&layout, modules, options, state, &requests)?;
        Ok((layout, report))
    }
}

/// What a file is, by its keys.
#[derive(Deserialize)]
struct Kind {
    modules: Option<serde::de::IgnoredAny>,
    pools: Option<serde::de::IgnoredAny>,
}

fn load(file: &Path) -> Result<Layout, RunError> {
    let text = error::read(file, "the chain")?;
    let kind: Kind = error::parse(file, &text)?;
    match (kind.modules, kind.pools) {
        (Some(_), None) => chain::read(file, &text),
        (None, Some(_)) => {
            let config = crate::config::load(file)?;
            if let Some(i) = config.pools.iter().position(|pool| pool.discovery.is_some()) {
                let expected = "endpoints: nothing is discovered here";
                return Err(RunError::value(
                    file,
                    format!("pools[{i}].discovery"),
                    "a section",
                    expected,
                ));
            }
            for warning in &config.warnings {
                tracing::warn!(file = %file.display(), warning, "configuration");
            }
            layout::of_config(config)
        }
        (Some(_), Some(_)) => {
            let expected = "modules (a chain) or pools (wasm-epp's own configuration), not both";
            Err(RunError::value(file, "the file", "modules and pools", expected))
        }
        (None, None) => {
            let expected = "modules (a chain) or pools (wasm-epp's own configuration)";
            Err(RunError::value(file, "the file", "neither", expected))
        }
    }
}
