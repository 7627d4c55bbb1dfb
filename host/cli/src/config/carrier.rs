//! The section `carrier`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address;
use super::check::{filled, within};
use super::error::Refused;
use super::raw::RawCarrier;
use super::{EngineKind, Pool};

/// Most batches that vLLM keeps for replay by default: a carrier that keeps fewer forgets what its
/// engines still know.
const MIN_ENTRIES: i64 = 10_000;
const DEFAULT_ENTRIES: i64 = 65_536;
const DEFAULT_LEASE_MS: i64 = 5_000;

/// A server of Valkey or Redis through whose streams engines' events come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// `HOST:PORT`.
    pub server: String,
    /// User of the server's access list; its default one if none.
    pub username: Option<String>,
    /// File with the user's password.
    pub password_file: Option<PathBuf>,
    /// What all keys begin with.
    pub name: String,
    /// Entries kept per engine, about.
    pub max_entries: u64,
    /// Without a sign of life for so long a follower is replaced.
    pub lease: Duration,
}

pub(super) fn check(
    raw: RawCarrier,
    pools: &[Pool],
    has_listener: bool,
    base: &Path,
) -> Result<Carrier, Refused> {
    let server = raw.server.unwrap_or_default();
    if !address::is_host_and_port(&server) {
        let expected = "HOST:PORT of a Valkey or Redis server, a port in 1..=65535";
        return Err(Refused::new("carrier.server", server, expected));
    }
    if has_listener {
        let expected = "nothing beside kvEventsListen: engines that connect are not followed";
        return Err(Refused::new("carrier.server", server, expected));
    }
    if pools.iter().any(|pool| pool.discovery.is_some()) {
        let expected =
            "nothing beside pools[].discovery: engines that come and go are followed directly";
        return Err(Refused::new("carrier.server", server, expected));
    }
    let mut endpoints = pools.iter().flat_map(|pool| &pool.endpoints);
    let is_carried = |kind| kind != EngineKind::Trtllm;
    if !endpoints.any(|endpoint| endpoint.kv_events.is_some() && is_carried(endpoint.engine)) {
        let expected = "an endpoint with kvEvents of vllm or sglang: no other is carried";
        return Err(Refused::new("carrier.server", server, expected));
    }
    if let (Some(username), None) = (&raw.username, &raw.password_file) {
        let expected = "nothing, or passwordFile beside it";
        return Err(Refused::new("carrier.username", username, expected));
    }
    let password_file = match raw.password_file {
        Some(text) => Some(address::resolve(base, &filled("carrier.passwordFile", text)?)),
        None => None,
    };
    let entries = raw.max_entries.unwrap_or(DEFAULT_ENTRIES);
    let lease = raw.lease_ms.unwrap_or(DEFAULT_LEASE_MS);
    Ok(Carrier {
        server,
        username: raw.username.map(|text| filled("carrier.username", text)).transpose()?,
        password_file,
        name: filled("carrier.name", raw.name.unwrap_or_else(|| "wasm-epp".to_owned()))?,
        max_entries: within("carrier.maxEntries", entries, MIN_ENTRIES, 100_000_000)?,
        lease: Duration::from_millis(within("carrier.leaseMs", lease, 500, 60_000)?),
    })
}
