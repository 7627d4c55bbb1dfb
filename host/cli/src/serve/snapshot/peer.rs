//! A peer's snapshot, fetched over plain HTTP: it is sealed.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::config::is_host_and_port;

/// For a connection. A peer that is gone must not keep its partner from starting.
const CONNECT: Duration = Duration::from_secs(2);
/// Between two pieces of an answer, which first has to be taken.
const SILENCE: Duration = Duration::from_secs(10);
/// For everything.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest head of an answer.
const MAX_HEAD_BYTES: u64 = 16 << 10;

/// The admin address of another daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress(String);

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_host_and_port(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not HOST:PORT, a port in 1..=65535"))
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The bytes of a peer's snapshot, as they come. Blocks.
pub(super) fn fetch(peer: &PeerAddress) -> anyhow::Result<Box<dyn Read>> {
    let until = Instant::now() + LIMIT;
    let mut stream = connect(peer).context("cannot be fetched")?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    // HTTP/1.0: the answer ends with the connection, and has no framing of its own.
    write!(stream, "GET /snapshot HTTP/1.0\r\nHost: {peer}\r\n\r\n")
        .context("cannot be asked for")?;
    let mut answer = BufReader::new(stream);
    let mut head = answer.by_ref().take(MAX_HEAD_BYTES);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        head.read_line(&mut line).context("is not answered")?;
        ensure!(line.ends_with('\n'), "is not answered in HTTP");
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line);
    }
    let status = lines.first().map(|line| line.trim_end()).unwrap_or_default();
    ensure!(
        status.starts_with("HTTP/1.") && status.split(' ').nth(1) == Some("200"),
        "is answered {status:?}"
    );
    Ok(Box::new(Until { answer, until }))
}

fn connect(peer: &PeerAddress) -> anyhow::Result<TcpStream> {
    let mut last = None;
    for address in peer.0.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => bail!("no address of that name"),
    }
}

/// Fails when its time is over, however slowly it trickles.
struct Until<R> {
    answer: R,
    until: Instant,
}

impl<R: Read> Read for Until<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() > self.until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "not whole within 60 s"));
        }
        self.answer.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:9400", "[::1]:9400", "epp-1.epp:9400"] {
            assert_eq!(good.parse::<PeerAddress>().map(|peer| peer.to_string()), Ok(good.into()));
        }
        for wrong in ["", "127.0.0.1", ":9400", "a:0", "a:65536", "http://a:1/", "a b:1", "a:1/x"] {
            let error = wrong.parse::<PeerAddress>().expect_err(wrong);
            assert_eq!(error, format!("{wrong:?} is not HOST:PORT, a port in 1..=65535"));
        }
    }

    /// What is read of a peer that answers so.
    fn answered(answer: &'static [u8]) -> Result<Vec<u8>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = PeerAddress(listener.local_addr().expect("an address").to_string());
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a peer");
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {}
            assert!(line.starts_with("GET /snapshot HTTP/1.0\r\n"));
            reader.into_inner().write_all(answer).expect("written");
        });
        let mut body = Vec::new();
        let read = fetch(&peer).and_then(|mut from| Ok(from.read_to_end(&mut body)?));
        server.join().expect("no panic");
        read.map(|_| body).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let answer = b"HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\nthe\r\nbody";
        assert_eq!(answered(answer), Ok(b"the\r\nbody".to_vec()));
    }

    #[test]
    fn another_answer_is_an_error_in_words() {
        let refused = |answer: &'static [u8]| answered(answer).expect_err("refused");
        assert_eq!(
            refused(b"HTTP/1.1 404 Not Found\r\n\r\n"),
            "is answered \"HTTP/1.1 404 Not Found\""
        );
        assert_eq!(refused(b"HTTP/1.1 200 OK\r\n"), "is not answered in HTTP");
        assert_eq!(refused(b"SSH-2.0\r\n\r\n"), "is answered \"SSH-2.0\"");
    }

    #[test]
    fn a_peer_that_is_not_there_is_an_error_in_words() {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let peer = PeerAddress(port.expect("a port").to_string());
        let error = format!("{:#}", fetch(&peer).err().expect("nobody listens"));
        assert!(error.starts_with("cannot be fetched: Connection refused"), "{error}");
    }
}
