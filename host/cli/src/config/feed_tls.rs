//! The feed over a network: both sides show a certificate.

use std::path::Path;

use super::address::{TlsOf, is_dns_name, resolve};
use super::check::filled;
use super::error::Refused;
use super::raw::{RawFeedTls, RawListenerTls};
use super::{FeedAddress, FeedTls, Gateway};

/// The daemon's files, at top level.
pub(super) const DAEMON: &str = "feedTls";
/// The gateway's, where they are in its pod or on its machine.
pub(super) const LISTENER: &str = "envoy.feedTls";

pub(super) fn daemon(raw: RawFeedTls, base: &Path) -> Result<FeedTls, Refused> {
    let RawFeedTls { ca, certificate, key, server_name } = raw;
    let peer_name = name(format!("{DAEMON}.serverName"), server_name)?;
    files(DAEMON, [ca, certificate, key], peer_name, base)
}

pub(super) fn listener(raw: RawListenerTls, base: &Path) -> Result<FeedTls, Refused> {
    let RawListenerTls { ca, certificate, key, client_name } = raw;
    let peer_name = name(format!("{LISTENER}.clientName"), client_name)?;
    files(LISTENER, [ca, certificate, key], peer_name, base)
}

fn files(
    section: &str,
    [ca, certificate, key]: [String; 3],
    peer_name: Option<String>,
    base: &Path,
) -> Result<FeedTls, Refused> {
    let file = |name: &str, path| {
        Ok::<_, Refused>(resolve(base, &filled(&format!("{section}.{name}"), path)?))
    };
    Ok(FeedTls {
        ca: file("ca", ca)?,
        certificate: file("certificate", certificate)?,
        key: file("key", key)?,
        peer_name,
    })
}

fn name(key: String, name: Option<String>) -> Result<Option<String>, Refused> {
    match name {
        Some(name) if !is_dns_name(&name) => {
            Err(Refused::new(key, name, "a DNS name that stands in the certificate, no pattern"))
        }
        name => Ok(name),
    }
}

/// Files that nothing would read are a mistake about what is protected.
pub(super) fn are_of_use(
    daemons: Option<&FeedTls>,
    gateways: &[Gateway],
    listeners: Option<&FeedTls>,
    feed: &FeedAddress,
) -> Result<(), Refused> {
    let is_https = |feed: &FeedAddress| matches!(feed, FeedAddress::Https(_));
    let unused = |TlsOf { key, tls }: TlsOf<'_>, at: &str| match tls {
        Some(tls) => Err(Refused::new(
            format!("{key}.ca"),
            &tls.ca,
            format!("nothing, as {at} is not https://HOST:PORT"),
        )),
        None => Ok(()),
    };
    if !gateways.iter().any(|gateway| is_https(&gateway.feed)) {
        unused(TlsOf { key: DAEMON, tls: daemons }, "the feed of any gateway")?;
    }
    if !is_https(feed) {
        unused(TlsOf { key: LISTENER, tls: listeners }, "envoy.feed")?;
    }
    Ok(())
}
