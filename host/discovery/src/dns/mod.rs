//! Endpoints in DNS: the addresses of a name with one port, or the targets and ports of its SRV records.
//! Asked again when an answer's time is over.
//!
//! The name is whole: no search list, and no file of hosts. A name that does not exist, or has no such
//! record, is no endpoints; a server that does not answer, or fails, changes nothing.

mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::backoff::Backoff;
use crate::view::{Found, Publisher};
pub use wire::is_name;
use wire::{Answer, Data, Kind, WireError};

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Attempts with each server before the question counts as failed: a datagram may be lost.
const ATTEMPTS: u32 = 2;
/// However short an answer's time, it is not asked more often.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Most targets of SRV records.
const MAX_TARGETS: usize = 256;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The whole name, with or without the last dot.
    pub name: String,
    /// What of it.
    pub record: Record,
    /// The server; those of `/etc/resolv.conf` if none.
    pub server: Option<SocketAddr>,
    /// Longest time between two questions, however long an answer's time.
    pub max_interval: Duration,
}

/// Records that endpoints are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A and AAAA.
    Address {
        /// The endpoints' port.
        port: u16,
    },
    /// SRV.
    Srv,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// No server is known.
    #[error("no name server in {RESOLV_CONF}")]
    NoServer,
    /// The file of servers cannot be read.
    #[error("reading {RESOLV_CONF}: {0}")]
    Servers(std::io::Error),
    /// A server cannot be reached, or does not answer in time.
    #[error("name server {server}, asked for {name}: {why}")]
    Server {
        /// Who was asked.
        server: SocketAddr,
        /// For what.
        name: String,
        /// What went wrong.
        why: String,
    },
}

type Endpoints = BTreeMap<SocketAddr, Found>;

/// Follows the name. Never ends.
pub async fn follow(config: DnsConfig, publisher: Publisher) {
    let mut backoff = Backoff::new(Duration::from_millis(500), config.max_interval);
    loop {
        let wait = match endpoints(&config).await {
            Ok((endpoints, ttl)) => {
                backoff.reset();
                publisher.listed();
                publisher.set(endpoints);
                ttl.clamp(MIN_INTERVAL, config.max_interval)
            }
            Err(error) => {
                tracing::warn!(%error, "discovery in DNS");
                publisher.failed(error.to_string());
                backoff.next_wait()
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The endpoints as they are now, and how long they may be taken to be.
async fn endpoints(config: &DnsConfig) -> Result<(Endpoints, Duration), DnsError> {
    let servers = match config.server {
        Some(server) => vec![server],
        None => servers().await?,
    };
    let mut ttl = config.max_interval;
    let mut endpoints = Endpoints::new();
    match config.record {
        Record::Address { port } => {
            let ips = addresses(&servers, &config.name, &mut ttl).await?;
            endpoints.extend(ips.map(|ip| found(ip, port, &config.name)));
        }
        Record::Srv => {
            let answer = ask(&servers, &config.name, Kind::Srv).await?;
            ttl = ttl.min(answer.ttl(config.max_interval));
            let targets = answer.records.into_iter().filter_map(|record| match record.data {
                Data::Srv { port, target } if port != 0 && !target.is_empty() => {
                    Some((port, target))
                }
                _ => None,
            });
            for (port, target) in targets.take(MAX_TARGETS) {
                let ips = addresses(&servers, &target, &mut ttl).await?;
                endpoints.extend(ips.map(|ip| found(ip, port, &target)));
            }
        }
    }
    Ok((endpoints, ttl))
}

fn found(ip: IpAddr, port: u16, name: &str) -> (SocketAddr, Found) {
    let found = Found { name: name.to_owned(), is_ready: true, ..Found::default() };
    (SocketAddr::new(ip, port), found)
}

async fn addresses(
    servers: &[SocketAddr],
    name: &str,
    ttl: &mut Duration,
) -> Result<impl Iterator<Item = IpAddr> + use<>, DnsError> {
    let mut ips = Vec::new();
    for kind in [Kind::A, Kind::Aaaa] {
        let answer = ask(servers, name, kind).await?;
        *ttl = (*ttl).min(answer.ttl(*ttl));
        ips.extend(answer.records.iter().filter_map(|record| match record.data {
            Data::Ip(ip) if !ip.is_unspecified() && !ip.is_multicast() => Some(ip),
            _ => None,
        }));
    }
    Ok(ips.into_iter())
}

/// The first server's answer that is one.
async fn ask(servers: &[SocketAddr], name: &str, kind: Kind) -> Result<Answer, DnsError> {
    let mut last = DnsError::NoServer;
    for server in servers {
        for _ in 0..ATTEMPTS {
            let asked = tokio::time::timeout(TIMEOUT, ask_one(*server, name, kind)).await;
            let why = match asked {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(why)) => why,
                Err(_) => format!("no answer within {TIMEOUT:?}"),
            };
            last = DnsError::Server { server: *server, name: name.to_owned(), why };
        }
    }
    Err(last)
}

async fn ask_one(server: SocketAddr, name: &str, kind: Kind) -> Result<Answer, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|error| error.to_string())?;
    let id = u16::from_be_bytes(id);
    let question = wire::question(id, name, kind).map_err(|error| error.to_string())?;
    let own: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await.map_err(text)?;
    // Only what the server sends is received then.
    socket.connect(server).await.map_err(text)?;
    socket.send(&question).await.map_err(text)?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(text)?;
        match wire::answer(&buffer[..length], id, name, kind) {
            Ok(answer) => return Ok(answer),
            // Not the answer to this question: the server's own may still come.
            Err(WireError::Other) => {}
            Err(WireError::Truncated) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    let mut stream = TcpStream::connect(server).await.map_err(text)?;
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(&question);
    stream.write_all(&framed).await.map_err(text)?;
    let length = stream.read_u16().await.map_err(text)?;
    let mut whole = vec![0; usize::from(length)];
    stream.read_exact(&mut whole).await.map_err(text)?;
    wire::answer(&whole, id, name, kind).map_err(|error| error.to_string())
}

/// The machine's servers; read for each question, as they change with the network.
async fn servers() -> Result<Vec<SocketAddr>, DnsError> {
    let text = tokio::fs::read_to_string(RESOLV_CONF).await.map_err(DnsError::Servers)?;
    let servers = text.lines().filter_map(|line| {
        let ip: IpAddr = line.trim().strip_prefix("nameserver")?.trim().parse().ok()?;
        Some(SocketAddr::new(ip, 53))
    });
    Ok(servers.collect())
}
