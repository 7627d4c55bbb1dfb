//! A file, read again whenever it is another.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Larger files are refused.
const MAX_BYTES: u64 = 4 << 20;

/// Which file, and how often it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// The file. May be a link that is changed, as in a mounted ConfigMap.
    pub path: PathBuf,
    /// Time between two looks.
    pub interval: Duration,
}

/// Follows the file's text; an error says why it cannot be read. Ends when nobody reads.
///
/// The text itself is compared: a file's times are not told apart within a file system's tick, and a
/// mounted ConfigMap changes by a link.
pub async fn follow(config: FileConfig, text: watch::Sender<Result<String, String>>) {
    let mut ticks = tokio::time::interval(config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = read(&config.path).await;
        text.send_if_modified(|held| {
            let is_new = *held != now;
            *held = now;
            is_new
        });
        if text.is_closed() {
            return;
        }
    }
}

/// The text of `path`.
async fn read(path: &std::path::Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("reading {}: {error}", path.display());
    let bytes = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if bytes > MAX_BYTES {
        return Err(format!("{} has {bytes} bytes: at most {MAX_BYTES}", path.display()));
    }
    tokio::fs::read_to_string(path).await.map_err(failed)
}
