//! `wasm-epp follow`: follows engines for all daemons, by way of a carrier.

use std::str::FromStr;
use std::sync::Arc;

use carrier::{EngineName, PublishCounters, publish};
use kv_events::{Counters, SourceConfig, Timing};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::serve::carried;

mod page;

/// Which of several shares of the engines to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    number: usize,
    of: usize,
}

impl Share {
    /// All engines.
    pub const ALL: Self = Self { number: 1, of: 1 };
    /// Most shares.
    const MAX: usize = 1024;

    fn has(self, engine: usize) -> bool {
        engine % self.of == self.number - 1
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let share = parts.and_then(|(number, of)| {
            Some(Self { number: number.parse().ok()?, of: of.parse().ok()? })
        });
        share
            .filter(|share| (1..=Self::MAX).contains(&share.of))
            .filter(|share| (1..=share.of).contains(&share.number))
            .ok_or_else(|| format!("{text:?} is not I/N: N in 1..={}, I from 1 to N", Self::MAX))
    }
}

/// One engine and what is counted of it.
struct Followed {
    name: EngineName,
    engine: Arc<Counters>,
    carrier: Arc<PublishCounters>,
}

/// Follows a share of the configured engines until it is told to stop (SIGTERM, SIGINT). Where another
/// process follows an engine already it waits, to replace that one.
///
/// # Errors
/// When the configuration has no carrier, its password cannot be read, the address of the page
/// cannot be bound, or a task dies.
pub async fn run(
    config: Config,
    share: Share,
    admin: Option<std::net::SocketAddr>,
) -> anyhow::Result<()> {
    let Some(section) = &config.carrier else {
        return Err(crate::config::ConfigError::Value {
            file: config.file.clone(),
            key: "carrier".to_owned(),
            value: "nothing".to_owned(),
            expected: "a section that names the server to publish to".to_owned(),
        }
        .into());
    };
    let settings = carried::settings(section)?;
    let mut tasks = JoinSet::new();
    let mut followed = Vec::new();
    for (name, replay) in engines(&config, share) {
        let of = Followed { name: name.clone(), engine: Arc::default(), carrier: Arc::default() };
        let source =
            SourceConfig { endpoint: name.endpoint, replay, topic: name.topic, resume: None };
        let (engine, counters) = (Arc::clone(&of.engine), Arc::clone(&of.carrier));
        let settings = Arc::clone(&settings);
        tasks.spawn(async move {
            match publish(settings, source, Timing::default(), engine, counters).await {}
        });
        followed.push(of);
    }
    tracing::info!(server = section.server, engines = followed.len(), "publishing");
    let followed = Arc::new(followed);
    if let Some(address) = admin {
        let listener = page::bind(address).await?;
        tasks.spawn(page::serve(listener, Arc::clone(&followed)));
    }
    let outcome = tokio::select! {
        signal = crate::serve::stop_signal() => {
            signal.map(|name| tracing::info!(signal = name, "stopping"))
        }
        Some(ended) = tasks.join_next() => Err(crate::serve::died(ended)),
    };
    tasks.shutdown().await;
    outcome
}

/// Those of the share, each once, with their replay sockets. In the order of the file, so that all
/// followers divide them alike.
fn engines(config: &Config, share: Share) -> Vec<(EngineName, Option<String>)> {
    let mut engines: Vec<(EngineName, Option<String>)> = Vec::new();
    for endpoint in config.pools.iter().flat_map(|pool| &pool.endpoints) {
        let Some(name) = carried::name_of(endpoint) else { continue };
        if !engines.iter().any(|(known, _)| *known == name) {
            engines.push((name, endpoint.replay.clone()));
        }
    }
    let mut number = 0..;
    engines.retain(|_| number.next().is_some_and(|number| share.has(number)));
    engines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_disjoint_and_cover_everything() {
        let of = |text: &str| text.parse::<Share>().expect(text);
        let shares = [of("1/3"), of("2/3"), of("3/3")];
        for engine in 0..10 {
            assert_eq!(shares.iter().filter(|share| share.has(engine)).count(), 1);
            assert!(Share::ALL.has(engine));
        }
        for wrong in ["", "1", "0/1", "2/1", "1/0", "a/b", "1/1025", "-1/2"] {
            let error = wrong.parse::<Share>().expect_err(wrong);
            assert_eq!(error, format!("{wrong:?} is not I/N: N in 1..=1024, I from 1 to N"));
        }
    }
}
