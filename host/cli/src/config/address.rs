//! Addresses in the configuration file: parsed once, kept in the form Envoy compares.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
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
        }
    }
}

impl fmt::Display for FeedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(address) => write!(f, "http://{address}"),
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

/// `unix:PATH` or `http://LOOPBACK:PORT`; a relative path is relative to `base`.
pub(super) fn feed(key: &str, text: &str, base: &Path) -> Result<FeedAddress, Refused> {
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
    let Some(address) = text.strip_prefix("http://") else {
        return Err(Refused::new(key, text, "unix:PATH or http://127.0.0.1:PORT"));
    };
    let address = loopback(key, address, "whoever posts to the feed decides the routing")?;
    if matches!(address.port(), 0 | u16::MAX) {
        return Err(Refused::new(
            key,
            text,
            "a port in 1..=65534, and the next one free for probes",
        ));
    }
    Ok(FeedAddress::Http(address))
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
