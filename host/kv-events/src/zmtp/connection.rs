//! One connection: handshake, reading with a heartbeat, and the little we have to say.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::ZmtpError;
use super::wire::{
    Decoder, Frame, GREETING_BYTES, Item, greeting, peer_minor, property, put_command, put_message,
};

/// Read at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Largest buffer that is kept after a long message.
const KEPT_BYTES: usize = 1 << 20;
/// Answers to PINGs that the peer has not taken yet. A peer that asks without reading gets no
/// more.
const MAX_UNSENT_BYTES: usize = 64 << 10;

/// Keepalive of the kernel, for peers older than ZMTP 3.1, which have no heartbeat: gone after
/// about half a minute of silence.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3)
}

/// Which end we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reads a PUB.
    Sub,
    /// Asks a ROUTER.
    Dealer,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Sub => "SUB",
            Self::Dealer => "DEALER",
        }
    }

    fn fits(self, peer: &[u8]) -> bool {
        match self {
            Self::Sub => matches!(peer, b"PUB" | b"XPUB"),
            Self::Dealer => matches!(peer, b"ROUTER" | b"REP" | b"DEALER"),
        }
    }
}

/// An address as ZMQ writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `HOST:PORT`.
    Tcp(String),
    /// A path.
    Ipc(String),
}

impl Endpoint {
    pub(crate) fn parse(endpoint: &str) -> Result<Self, ZmtpError> {
        match endpoint.split_once("://") {
            Some(("tcp", address)) if address.contains(':') => {
                // `*` is ZMQ's word for every interface.
                Ok(Self::Tcp(match address.strip_prefix("*:") {
                    Some(port) => format!("0.0.0.0:{port}"),
                    None => address.to_owned(),
                }))
            }
            Some(("ipc", path)) if !path.is_empty() => Ok(Self::Ipc(path.to_owned())),
            _ => Err(ZmtpError::Endpoint { endpoint: endpoint.to_owned() }),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A bound socket that peers connect to.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Ipc(UnixListener, String),
}

/// A peer that has connected and not yet said anything.
pub(crate) struct Accepted(Box<dyn Stream>);

impl Listener {
    pub(crate) async fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        Ok(match endpoint {
            Endpoint::Tcp(address) => Self::Tcp(TcpListener::bind(address.as_str()).await?),
            Endpoint::Ipc(path) => {
                let bound = match UnixListener::bind(path) {
                    // What a process left behind that did not end in an orderly way.
                    Err(error)
                        if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await =>
                    {
                        std::fs::remove_file(path)?;
                        UnixListener::bind(path)
                    }
                    bound => bound,
                };
                Self::Ipc(bound?, path.clone())
            }
        })
    }

    /// The endpoint with the port that was taken.
    pub(crate) fn endpoint(&self) -> io::Result<String> {
        Ok(match self {
            Self::Tcp(listener) => format!("tcp://{}", listener.local_addr()?),
            Self::Ipc(_, path) => format!("ipc://{path}"),
        })
    }

    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        Ok(Accepted(match self {
            Self::Tcp(listener) => Box::new(prepared(listener.accept().await?.0)?),
            Self::Ipc(listener, _) => Box::new(listener.accept().await?.0),
        }))
    }
}

/// Whether nobody listens at a socket's path. Another kind of file is left alone.
async fn is_stale(path: &str) -> bool {
    let connected = UnixStream::connect(path).await;
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|data| std::os::unix::fs::FileTypeExt::is_socket(&data.file_type()));
    is_socket && connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Accepted {
    /// Shakes hands within `limit`, then reads with `heartbeat`.
    pub(crate) async fn greet(
        self,
        role: Role,
        limit: Duration,
        heartbeat: Duration,
    ) -> Result<Connection, ZmtpError> {
        timeout(limit, Connection::handshake(self.0, role, heartbeat))
            .await
            .unwrap_or(Err(ZmtpError::HandshakeTimeout))
    }
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
    Ok(stream)
}

/// A connection after the handshake.
pub(crate) struct Connection {
    read: ReadHalf<Box<dyn Stream>>,
    write: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    output: BytesMut,
    decoder: Decoder,
    peer_minor: u8,
    heartbeat: Duration,
    /// When something was last received.
    heard: Instant,
    /// When a PING was sent that nothing was received after.
    asked: Option<Instant>,
}

impl Connection {
    /// Connects and shakes hands within `limit`. After `heartbeat` without a word the peer is
    /// asked for a sign, and left after as long again, if it is one that can answer.
    pub(crate) async fn connect(
        endpoint: &str,
        role: Role,
        limit: Duration,
        heartbeat: Duration,
    ) -> Result<Self, ZmtpError> {
        let endpoint = Endpoint::parse(endpoint)?;
        let connecting = async {
            let stream: Box<dyn Stream> = match &endpoint {
                Endpoint::Tcp(address) => {
                    Box::new(prepared(TcpStream::connect(address.as_str()).await?)?)
                }
                Endpoint::Ipc(path) => Box::new(UnixStream::connect(path).await?),
            };
            Self::handshake(stream, role, heartbeat).await
        };
        timeout(limit, connecting).await.unwrap_or(Err(ZmtpError::HandshakeTimeout))
    }

    async fn handshake(
        mut stream: Box<dyn Stream>,
        role: Role,
        heartbeat: Duration,
    ) -> Result<Self, ZmtpError> {
        let mut output = BytesMut::from(&greeting()[..]);
        stream.write_all(&output).await?;
        output.clear();
        let mut theirs = [0; GREETING_BYTES];
        stream.read_exact(&mut theirs).await.map_err(closed)?;
        let peer_minor = peer_minor(&theirs)?;
        put_command(&mut output, "READY", &[b"\x0bSocket-Type", &socket_type(role)]);
        let (read, write) = split(stream);
        let mut connection = Self {
            read,
            write,
            input: BytesMut::with_capacity(CHUNK_BYTES),
            output,
            decoder: Decoder::default(),
            peer_minor,
            heartbeat,
            heard: Instant::now(),
            asked: None,
        };
        match connection.item().await? {
            Item::Command(name, body) if name == "READY" => {
                let peer = property(&body, "Socket-Type").unwrap_or_default();
                if role.fits(&peer) {
                    Ok(connection)
                } else {
                    Err(ZmtpError::Protocol { what: "peer is another kind of socket" })
                }
            }
            Item::Command(name, _) if name == "ERROR" => {
                Err(ZmtpError::Protocol { what: "peer refuses the handshake" })
            }
            _ => Err(ZmtpError::Protocol { what: "no READY after the greeting" }),
        }
    }

    /// Asks for the messages whose topic starts with `topic`.
    pub(crate) fn subscribe(&mut self, topic: &str) {
        if self.peer_minor >= 1 {
            put_command(&mut self.output, "SUBSCRIBE", &[topic.as_bytes()]);
        } else {
            put_message(&mut self.output, &[&[b"\x01", topic.as_bytes()].concat()]);
        }
    }

    /// Sends a message, with the next [`recv`](Self::recv).
    pub(crate) fn send(&mut self, frames: &[&[u8]]) {
        put_message(&mut self.output, frames);
    }

    /// The next message. Can be dropped and called again without loss.
    pub(crate) async fn recv(&mut self) -> Result<Vec<Frame>, ZmtpError> {
        loop {
            match self.item().await? {
                Item::Message(frames) => return Ok(frames),
                Item::Command(name, body) if name == "PING" => self.pong(&body),
                Item::Command(..) => {}
            }
        }
    }

    /// Answers with the context, which follows two bytes of time to live.
    fn pong(&mut self, ping: &[u8]) {
        if self.output.len() < MAX_UNSENT_BYTES {
            put_command(&mut self.output, "PONG", &[ping.get(2..).unwrap_or_default()]);
        }
    }

    async fn item(&mut self) -> Result<Item, ZmtpError> {
        loop {
            if let Some(item) = self.decoder.decode(&mut self.input)? {
                return Ok(item);
            }
            if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
                self.input = BytesMut::new();
            }
            self.input.reserve(CHUNK_BYTES);
            let alarm = self.asked.unwrap_or(self.heard) + self.heartbeat;
            tokio::select! {
                biased;
                // What waits in the socket counts as heard, however late we come to read it.
                read = self.read.read_buf(&mut self.input) => {
                    if read? == 0 {
                        return Err(ZmtpError::Closed);
                    }
                    self.heard = Instant::now();
                    self.asked = None;
                }
                written = self.write.write_buf(&mut self.output), if !self.output.is_empty() => {
                    if written? == 0 {
                        return Err(ZmtpError::Closed);
                    }
                }
                () = sleep_until(alarm), if self.peer_minor >= 1 => match self.asked {
                    None => {
                        // No time to live: it is for us to leave, not for the peer.
                        put_command(&mut self.output, "PING", &[&[0, 0]]);
                        self.asked = Some(Instant::now());
                    }
                    Some(_) => return Err(ZmtpError::Silent),
                },
            }
        }
    }
}

/// A `Socket-Type` value with its length.
fn socket_type(role: Role) -> Vec<u8> {
    let name = role.name().as_bytes();
    let mut value = (name.len() as u32).to_be_bytes().to_vec();
    value.extend_from_slice(name);
    value
}

fn closed(error: io::Error) -> ZmtpError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ZmtpError::Closed,
        _ => ZmtpError::Io(error),
    }
}

#[cfg(test)]
mod tests;
