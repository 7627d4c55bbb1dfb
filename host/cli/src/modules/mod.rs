//! `wasm-epp modules`: what each gateway runs, and its scorers exchanged while it runs.
//!
//! The configuration file says what is to be. `swap` brings the filters that decide (places, picker,
//! intake) of each gateway to it, one gateway after the other, and proves it: by Envoy's own
//! statistics, and by a decision of every worker. What cannot be proved is taken back, in all
//! gateways.

mod admin;
mod explain;
mod http;
mod installed;
mod list;
mod probe;
mod report;
mod store;
mod swap;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::admin::clusters;
pub use self::explain::{ExplainError, Explanation, Request, explain};
pub use self::http::HttpError;
pub use self::list::{Listing, list};
pub use self::probe::{ProbeError, Unverified};
pub use self::report::{GatewayReport, Outcome, Report};
pub use self::store::StoreError;
pub use self::swap::{Failure, rollback, swap};
use crate::config::{Config, FeedAddress, Gateway};

/// How a swap is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of gateways; all that can be swapped if empty.
    pub gateways: Vec<String>,
    /// Time for each change to be accepted, and for the decisions to follow.
    pub timeout: Duration,
    /// Whether a decision of every worker is asked for.
    pub probes: bool,
}

/// The command line or the configuration is wrong.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// No such gateway.
    #[error("no gateway is named {0:?}; there are {1}")]
    Unknown(String, String),
    /// It cannot be reached.
    #[error("{}: gateway {name} has no {key}, which the command needs", file.display())]
    Key {
        /// The configuration file.
        file: PathBuf,
        /// The gateway.
        name: String,
        /// `admin` or `resources`.
        key: &'static str,
    },
    /// None can be reached.
    #[error("{}: no gateway has both admin and resources, which the command needs: {lacking}", file.display())]
    None {
        /// The configuration file.
        file: PathBuf,
        /// What each gateway lacks.
        lacking: String,
    },
}

/// A gateway that can be swapped.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    feed: FeedAddress,
    admin: SocketAddr,
    resources: PathBuf,
}

/// The named gateways, or all that have what it takes.
fn select(config: &Config, names: &[String]) -> Result<Vec<Target>, SelectError> {
    let target = |gateway: &Gateway| {
        let (file, name) = (&config.file, &gateway.name);
        let lacks = |key| SelectError::Key { file: file.clone(), name: name.clone(), key };
        Ok(Target {
            name: gateway.name.clone(),
            feed: gateway.feed.clone(),
            admin: gateway.admin.ok_or_else(|| lacks("admin"))?,
            resources: gateway.resources.clone().ok_or_else(|| lacks("resources"))?,
        })
    };
    if names.is_empty() {
        let targets: Vec<Target> =
            config.gateways.iter().filter_map(|gateway| target(gateway).ok()).collect();
        if targets.is_empty() {
            let lacking = config.gateways.iter().map(lacking).collect::<Vec<_>>().join("; ");
            return Err(SelectError::None { file: config.file.clone(), lacking });
        }
        return Ok(targets);
    }
    let known = config.gateways.iter().map(|gateway| gateway.name.as_str());
    let known = known.collect::<Vec<_>>().join(", ");
    let mut targets: Vec<Target> = Vec::new();
    for name in names {
        let gateway = config.gateways.iter().find(|gateway| gateway.name == *name);
        let gateway = gateway.ok_or_else(|| SelectError::Unknown(name.clone(), known.clone()))?;
        if targets.iter().all(|target| target.name != *name) {
            targets.push(target(gateway)?);
        }
    }
    Ok(targets)
}

/// What keeps a gateway from being swapped.
fn lacking(gateway: &Gateway) -> String {
    let keys = [("admin", gateway.admin.is_none()), ("resources", gateway.resources.is_none())];
    let keys: Vec<&str> = keys.iter().filter(|(_, lacks)| *lacks).map(|(key, _)| *key).collect();
    format!("{} has no {}", gateway.name, keys.join(" and no "))
}
