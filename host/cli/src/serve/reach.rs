//! Whether this daemon still hears the engines. One that hears none of them, where others may, is to feed no
//! gateway: what it would tell is of the past.

use std::sync::Arc;
use std::time::Duration;

use routing::SourceState;
use tokio::sync::watch;

use super::scope::{Engine, Scope};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Tells whether no engine is heard.
pub(crate) async fn watch(scopes: Vec<Arc<Scope>>, down_after: u32, aside: watch::Sender<bool>) {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        let is_cut_off = is_cut_off(&scopes, down_after);
        let is_news =
            aside.send_if_modified(|held| std::mem::replace(held, is_cut_off) != is_cut_off);
        match is_cut_off {
            true if is_news => tracing::warn!("no engine is heard any more, by events or metrics"),
            false if is_news => tracing::info!("engines are heard again"),
            _ => {}
        }
    }
}

fn is_cut_off(scopes: &[Arc<Scope>], down_after: u32) -> bool {
    let mut count = 0;
    let all = scopes.iter().all(|scope| {
        let live = scope.live();
        let listed = scope.roster.listed();
        count += listed.len();
        let mut engines =
            listed.iter().filter_map(|(slot, _)| live.engines.get(usize::from(*slot)));
        engines.all(|engine| is_unheard(engine, down_after))
    });
    all && count > 0
}

/// Neither its events nor its page come.
fn is_unheard(engine: &Engine, down_after: u32) -> bool {
    let has_stream = matches!(engine.stream, SourceState::Live | SourceState::Resyncing);
    !has_stream && engine.failures >= down_after
}
