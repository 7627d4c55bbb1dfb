//! Addresses in the configuration file: parsed once, kept in the form Envoy compares.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use super::error::Refused;

/// What the name of a probe's socket has more than its feed's.
const PROBE_SUFFIX: &str = "-probe";

/// Longest path of a feed's Unix socket: Linux's `sun_path` holds 108 bytes with the final zero, and
/// the probe's is longer.
const MAX_SOCKET_PATH_BYTES: usize = 107 - PROBE_SUFFIX.len();

/// Where a feed listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedAddress {
    /// A Unix socket, as an absolute path when the configuration file's folder is known.
    Unix(PathBuf),
    /// Plain HTTP on a loopback address.
    Http(SocketAddr),
    /// Mutual TLS over a network.
    Https(Box<HttpsAddress>),
}

/// A feed listener on a network, and by what one of its two sides knows the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpsAddress {
    /// DNS name or IP address, IPv6 without brackets; of `envoy.feed` always an IP address.
    pub host: String,
    /// Port, below the last one.
    pub port: u16,
    /// The files of the side that this is configured for.
    pub tls: FeedTls,
}

/// What one side of the feed shows, and what it holds the other to: files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedTls {
    /// Authorities of the other side's certificate.
    pub ca: PathBuf,
    /// Own certificate, with those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Name that the other side's certificate has to be for. A gateway's is for its `host` if there is none, a
    /// daemon's may be for any.
    pub peer_name: Option<String>,
}

impl HttpsAddress {
    /// Where the daemon connects.
    pub(crate) fn target(&self) -> feed_push::TlsTarget {
        let FeedTls { ca, certificate, key, peer_name } = self.tls.clone();
        let (host, port) = (self.host.clone(), self.port);
        feed_push::TlsTarget { host, port, ca, certificate, key, server_name: peer_name }
    }
}

impl FeedAddress {
    /// Where the gateway of this feed answers probes: a socket beside the feed's, or the next port.
    pub fn probe(&self) -> Self {
        match self {
            Self::Unix(path) => {
                let mut name = path.file_stem().unwrap_or_default().to_owned();
                name.push(PROBE_SUFFIX);
                if let Some(extension) = path.extension() {
                    name.push(".");
                    name.push(extension);
                }
                Self::Unix(path.with_file_name(name))
            }
            // The port is below the last one: `feed` has checked.
            Self::Http(address) => {
                Self::Http(SocketAddr::new(address.ip(), address.port().saturating_add(1)))
            }
            Self::Https(address) => {
                let port = address.port.saturating_add(1);
                Self::Https(Box::new(HttpsAddress { port, ..(**address).clone() }))
            }
        }
    }
}

impl fmt::Display for FeedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => address.target().fmt(f),
        }
    }
}

/// Whether it is `HOST:PORT`, with a name or an address.
pub(crate) fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_host = !host.is_empty() && !host.contains(['/', ' ', '@', '\r', '\n']);
        is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// An `ip:port` in the one form Envoy compares, so that it can be matched as a string.
pub(super) fn canonical(key: &str, text: &str) -> Result<SocketAddr, Refused> {
    const FORM: &str = "ip:port or [ipv6]:port, no host name";
    let address: SocketAddr = text.parse().map_err(|_| Refused::new(key, text, FORM))?;
    if let SocketAddr::V6(v6) = address
        && v6.scope_id() != 0
    {
        return Err(Refused::new(key, text, "an address without a zone"));
    }
    let form = address.to_string();
    if form != text {
        let expected = format!("the canonical form {form:?}, which is what Envoy compares");
        return Err(Refused::new(key, text, expected));
    }
    Ok(address)
}

/// The address of one engine: one that a request can be sent to.
pub(super) fn endpoint(key: &str, text: &str) -> Result<SocketAddr, Refused> {
    let address = canonical(key, text)?;
    if address.port() == 0 {
        return Err(Refused::new(key, text, "a port in 1..=65535"));
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(Refused::new(key, text, "the address of one engine"));
    }
    Ok(address)
}

/// An address that only this machine reaches. `why` says what stands behind it.
pub(super) fn loopback(key: &str, text: &str, why: &str) -> Result<SocketAddr, Refused> {
    let address = canonical(key, text)?;
    if !is_loopback(address.ip()) {
        let expected = format!("a loopback address (127.0.0.0/8 or [::1]): {why}");
        return Err(Refused::new(key, text, expected));
    }
    Ok(address)
}

/// A key of files for TLS, and what it holds.
#[derive(Clone, Copy)]
pub(super) struct TlsOf<'a> {
    pub(super) key: &'a str,
    pub(super) tls: Option<&'a FeedTls>,
}

/// `unix:PATH`, `http://LOOPBACK:PORT` or `https://HOST:PORT`; a relative path is relative to `base`.
pub(super) fn feed(
    key: &str,
    text: &str,
    base: &Path,
    of: TlsOf<'_>,
) -> Result<FeedAddress, Refused> {
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.starts_with('@') {
            return Err(Refused::new(key, text, "unix: and the path of a socket"));
        }
        let path = resolve(base, path);
        let bytes = path.as_os_str().len();
        if bytes > MAX_SOCKET_PATH_BYTES {
            let expected = format!(
                "a path of at most {MAX_SOCKET_PATH_BYTES} bytes (here {bytes}: {})",
                path.display()
            );
            return Err(Refused::new(key, text, expected));
        }
        return Ok(FeedAddress::Unix(path));
    }
    if let Some(address) = text.strip_prefix("https://") {
        return Ok(FeedAddress::Https(Box::new(https(key, text, address, of)?)));
    }
    let Some(address) = text.strip_prefix("http://") else {
        let expected = "unix:PATH, http://127.0.0.1:PORT or https://HOST:PORT";
        return Err(Refused::new(key, text, expected));
    };
    let why = "whoever posts to the feed decides the routing; over a network by https://";
    let address = loopback(key, address, why)?;
    if matches!(address.port(), 0 | u16::MAX) {
        return Err(Refused::new(key, text, FEED_PORT));
    }
    Ok(FeedAddress::Http(address))
}

const FEED_PORT: &str = "a port in 1..=65534, and the next one free for probes";

fn https(key: &str, text: &str, address: &str, of: TlsOf<'_>) -> Result<HttpsAddress, Refused> {
    const FORM: &str = "https://HOST:PORT with a DNS name, an IPv4 address or [an IPv6 address]";
    let refused = || Refused::new(key, text, FORM);
    let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
    let (host, is_host) = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => (host, host.parse::<Ipv6Addr>().is_ok()),
        None => (host, is_dns_name(host) || host.parse::<Ipv4Addr>().is_ok()),
    };
    if !is_host {
        return Err(refused());
    }
    let port = port.parse().ok().filter(|port| !matches!(*port, 0 | u16::MAX));
    let port = port.ok_or_else(|| Refused::new(key, text, FEED_PORT))?;
    let Some(tls) = of.tls else {
        let expected = format!("{} too: both sides show a certificate", of.key);
        return Err(Refused::new(key, text, expected));
    };
    Ok(HttpsAddress { host: host.to_owned(), port, tls: tls.clone() })
}

/// A name that DNS has and a certificate can be for: its last part is no number, which would be an address.
pub(super) fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    text.len() <= 253
        && text.split('.').all(is_label)
        && !text.rsplit('.').next().is_some_and(is_number)
}

/// `tcp://HOST:PORT` or `ipc://PATH`, as ZMQ takes them.
pub(super) fn zmq(key: &str, text: &str) -> Result<String, Refused> {
    let ok = match text.split_once("://") {
        Some(("ipc", path)) => !path.is_empty(),
        Some(("tcp", rest)) => rest.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(['*', '/', ' '])
                && port.parse::<u16>().is_ok_and(|port| port != 0)
        }),
        _ => false,
    };
    if ok {
        Ok(text.to_owned())
    } else {
        Err(Refused::new(key, text, "tcp://HOST:PORT or ipc://PATH"))
    }
}

/// An address to listen at: as [`zmq`], and `*` for every interface.
pub(super) fn zmq_bind(key: &str, text: &str) -> Result<String, Refused> {
    let concrete = text.replacen("tcp://*:", "tcp://0.0.0.0:", 1);
    match zmq(key, &concrete) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(Refused::new(key, text, "tcp://*:PORT, tcp://HOST:PORT or ipc://PATH")),
    }
}

/// An `http://` URL with a host and a path.
pub(super) fn http_url(key: &str, text: &str) -> Result<String, Refused> {
    let refused = || Refused::new(key, text, "http://HOST:PORT/PATH");
    let uri: http::Uri = text.parse().map_err(|_| refused())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(host)) if !host.is_empty() && uri.port_u16() != Some(0) => {
            Ok(text.to_owned())
        }
        _ => Err(refused()),
    }
}

/// `path` seen from `base`, without `.` components; `..` is kept, as it may cross a link.
pub(super) fn resolve(base: &Path, path: &str) -> PathBuf {
    base.join(path).components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
