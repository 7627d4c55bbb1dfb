//! What a gateway's admin interface says of its filters.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use super::http::{Connection, HttpError};
use crate::config::FeedAddress;

/// Envoy's statistics that are asked for.
const FILTER: &str = "/stats?filter=%5E(extension_config_discovery%5C.http_filter%5C.|.*%5C.extension_config_discovery%5C.http_filter%5C.|server%5C.concurrency|wasmcustom%5C.wasm_epp_)";
const DISCOVERY: &str = "extension_config_discovery.http_filter.";
const COUNTERS: &str = "wasmcustom.wasm_epp_";

/// The statistics of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stats {
    /// Workers of the gateway.
    pub(super) workers: usize,
    /// By name of the filter.
    pub(super) filters: BTreeMap<String, FilterStats>,
    /// The router's counters, without `wasm_epp_` and `_total`.
    pub(super) counters: BTreeMap<String, u64>,
}

/// What became of a filter's updates.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FilterStats {
    /// `version_info` of the update that was accepted last.
    pub(super) version: String,
    /// Updates rejected so far.
    pub(super) rejected: u64,
}

impl Stats {
    pub(super) fn filter(&self, name: &str) -> FilterStats {
        self.filters.get(name).cloned().unwrap_or_default()
    }

    /// Zero while nothing was counted: Envoy's counters are made when they first count.
    pub(super) fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

/// Asks an admin interface.
pub(super) async fn stats(admin: SocketAddr) -> Result<Stats, HttpError> {
    let mut connection = Connection::open(&FeedAddress::Http(admin)).await?;
    let request = Request::get(FILTER).header("host", admin.to_string());
    let page = connection.ask(request.body(Full::<Bytes>::default())?).await?;
    Ok(parse(&String::from_utf8_lossy(&page)))
}

/// What an admin interface says of clusters and their hosts, as JSON.
pub(crate) async fn clusters(admin: SocketAddr) -> Result<Bytes, HttpError> {
    let mut connection = Connection::open(&FeedAddress::Http(admin)).await?;
    let request = Request::get("/clusters?format=json").header("host", admin.to_string());
    connection.ask(request.body(Full::<Bytes>::default())?).await
}

fn parse(page: &str) -> Stats {
    let mut stats = Stats::default();
    for (name, value) in page.lines().filter_map(|line| line.split_once(": ")) {
        let number = value.parse::<u64>().ok();
        if let Some(counter) = name.strip_prefix(COUNTERS) {
            let counter = counter.strip_suffix("_total").unwrap_or(counter);
            stats.counters.extend(number.map(|number| (counter.to_owned(), number)));
        } else if name == "server.concurrency" {
            stats.workers = number.and_then(|number| number.try_into().ok()).unwrap_or(0);
        } else if let Some((_, rest)) = name.split_once(DISCOVERY)
            && let Some((filter, field)) = rest.rsplit_once('.')
        {
            let filter = stats.filters.entry(filter.to_owned()).or_default();
            match (field, number) {
                ("version_text", _) => filter.version = value.trim_matches('"').to_owned(),
                ("update_rejected", Some(number)) => filter.rejected = number,
                _ => {}
            }
        }
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of an Envoy 1.40 with two workers, lines left out.
    const PAGE: &str = "\
extension_config_discovery.http_filter.picker.version_text: \"b4e945144526f25b\"
extension_config_discovery.http_filter.scorer-0.version_text: \"\"
extension_config_discovery.http_filter.picker.config_fail: 0
extension_config_discovery.http_filter.picker.update_rejected: 0
extension_config_discovery.http_filter.picker.version: 10918784286363540454
extension_config_discovery.http_filter.scorer-0.update_rejected: 3
server.concurrency: 2
wasmcustom.wasm_epp_scores_absent_my-scorer_total: 17
extension_config_discovery.http_filter.picker.update_duration: No recorded values
";

    #[test]
    fn a_page_of_statistics_says_versions_rejections_workers_and_counters() {
        let stats = parse(PAGE);
        let filter = |version: &str, rejected| FilterStats { version: version.into(), rejected };
        assert_eq!(stats.filter("picker"), filter("b4e945144526f25b", 0));
        assert_eq!(stats.filter("scorer-0"), filter("", 3));
        assert_eq!(stats.filter("intake"), FilterStats::default());
        assert_eq!((stats.workers, stats.counter("scores_absent_my-scorer")), (2, 17));
        assert_eq!(stats.counter("requests_picked"), 0);
    }
}
