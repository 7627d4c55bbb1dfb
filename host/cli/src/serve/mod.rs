//! The daemon.

/// Runs the daemon until it is told to stop.
pub async fn run(_config: crate::config::Config) -> anyhow::Result<()> {
    anyhow::bail!("serve is not in this build")
}
