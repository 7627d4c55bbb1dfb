//! Mutual TLS to a feed listener: the daemon shows a certificate and holds the gateway to one.
//!
//! TLS 1.3 alone. The files are read for every connection, so that what replaces them takes effect at
//! the next one. Revocation lists are not looked at: whom a CA no longer vouches for is kept off by
//! certificates that expire, or by another CA.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig, RootCertStore, version};

/// A feed listener that is reached over the network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsTarget {
    /// DNS name or IP address (IPv6 without brackets) of one gateway.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// PEM file of the authorities that the gateway's certificate is held to.
    pub ca: PathBuf,
    /// PEM file of the certificate that is shown, followed by those that lead to its authority.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// Name that the gateway's certificate has to be for; `host` if none.
    pub server_name: Option<String>,
}

impl std::fmt::Display for TlsTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}

/// Why there is no TLS connection. Keys are named as in the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("feedTls.{key}: read {}", file.display())]
    Read {
        /// The key that names the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("feedTls.{key}: {}: {reason}", file.display())]
    Pem {
        /// The key that names the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No name that a certificate can be for.
    #[error("feedTls.serverName: {0:?} is no DNS name and no IP address")]
    ServerName(String),
    /// The host has no address.
    #[error("look up {host}")]
    Resolve {
        /// The host.
        host: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The host is several, of which each would get a part of what one has to hold.
    #[error(
        "{host} has {count} addresses: each gateway needs an entry of its own, with a name for it alone"
    )]
    SeveralAddresses {
        /// The host.
        host: String,
        /// Its addresses of one family.
        count: usize,
    },
    /// No TCP connection.
    #[error("connect to {address}")]
    Connect {
        /// The address that was tried last.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// One of the two does not take the other's certificate, or they have no protocol in common.
    #[error("TLS with the feed listener")]
    Handshake(#[source] std::io::Error),
}

impl TlsTarget {
    /// Reads the files, and connects.
    ///
    /// # Errors
    /// See [`TlsError`]. That the listener refuses the certificate shows at the first read, as TLS 1.3
    /// has the client finish first: see [`refusal`].
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>, TlsError> {
        let config = self.client_config().await?;
        let name = self.server_name.as_ref().unwrap_or(&self.host);
        let name =
            ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name.clone()))?;
        let stream = self.connect_tcp().await?;
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.map_err(TlsError::Handshake)
    }

    async fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca", &self.ca).await? {
            roots.add(certificate).map_err(|err| wrong("ca", &self.ca, err.to_string()))?;
        }
        let chain = certificates("certificate", &self.certificate).await?;
        let key = PrivateKeyDer::from_pem_slice(&read("key", &self.key).await?);
        let key = key.map_err(|err| wrong("key", &self.key, said("private key", &err)))?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|err| TlsError::Handshake(std::io::Error::other(err)))?;
        builder.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(|err| {
            let reason = match err {
                rustls::Error::InconsistentKeys(_) => {
                    format!("not the key of the certificate in {}", self.certificate.display())
                }
                other => other.to_string(),
            };
            wrong("key", &self.key, reason)
        })
    }

    async fn connect_tcp(&self) -> Result<TcpStream, TlsError> {
        let unresolved = |source| TlsError::Resolve { host: self.host.clone(), source };
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = found.map(Vec::from_iter).map_err(unresolved)?;
        let count = most_of_a_family(&addresses);
        if count > 1 {
            return Err(TlsError::SeveralAddresses { host: self.host.clone(), count });
        }
        let mut last = unresolved(std::io::ErrorKind::NotFound.into());
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream
                        .set_nodelay(true)
                        .map_err(|source| TlsError::Connect { address, source })?;
                    return Ok(stream);
                }
                Err(source) => last = TlsError::Connect { address, source },
            }
        }
        Err(last)
    }
}

/// A machine may have one address of each family; two of one are two machines.
fn most_of_a_family(addresses: &[SocketAddr]) -> usize {
    let count = |is_of: fn(&IpAddr) -> bool| {
        let of: std::collections::BTreeSet<IpAddr> =
            addresses.iter().map(SocketAddr::ip).filter(is_of).collect();
        of.len()
    };
    count(IpAddr::is_ipv4).max(count(IpAddr::is_ipv6))
}

async fn read(key: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    tokio::fs::read(file).await.map_err(|source| TlsError::Read {
        key,
        file: file.to_owned(),
        source,
    })
}

async fn certificates(
    key: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(key, file).await?;
    let list = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let list = list.map_err(|err| wrong(key, file, said("certificate", &err)))?;
    if list.is_empty() {
        return Err(wrong(key, file, said("certificate", &pem::Error::NoItemsFound)));
    }
    Ok(list)
}

fn wrong(key: &'static str, file: &Path, reason: String) -> TlsError {
    TlsError::Pem { key, file: file.to_owned(), reason }
}

fn said(what: &str, err: &pem::Error) -> String {
    match err {
        pem::Error::NoItemsFound => format!("no {what} in PEM"),
        other => format!("no {what} in PEM: {other}"),
    }
}

/// The alert by which the listener ended the connection, if that is what this error comes from: with TLS 1.3
/// it is how it says that it does not take the certificate.
pub fn refusal(err: &(dyn std::error::Error + 'static)) -> Option<AlertDescription> {
    let mut next = Some(err);
    while let Some(err) = next {
        if let Some(rustls::Error::AlertReceived(alert)) = err.downcast_ref() {
            return Some(*alert);
        }
        next = match err.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            // An I/O error is not the source of itself but of what the one in it has as its source.
            Some(inner) => Some(inner),
            None => err.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_of_each_family_is_one_machine() {
        let check = |addresses: &[&str], expected| {
            let addresses: Vec<SocketAddr> =
                addresses.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(most_of_a_family(&addresses), expected, "{addresses:?}");
        };
        check(&[], 0);
        check(&["10.0.0.1:1", "10.0.0.1:1", "[fd00::1]:1"], 1);
        check(&["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"], 2);
        check(&["[fd00::1]:1", "[fd00::2]:1", "[fd00::3]:1", "10.0.0.1:1"], 3);
    }

    #[test]
    fn an_alert_is_found_however_deep_it_is() {
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let deep = std::io::Error::other(std::io::Error::other(alert));
        assert_eq!(refusal(&TlsError::Handshake(deep)), Some(AlertDescription::UnknownCA));
        let other = std::io::Error::other(rustls::Error::HandshakeNotComplete);
        assert_eq!(refusal(&TlsError::Handshake(other)), None);
    }
}
