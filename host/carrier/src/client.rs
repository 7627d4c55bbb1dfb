//! A connection to the server.

use std::fmt;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::reader::EntryId;
use crate::resp::{Decoder, RespError, Value, command};

/// For a connection to be made, and for a reply that waits for nothing.
pub(crate) const REPLY: Duration = Duration::from_secs(5);

/// A server, and who to be there.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// `HOST:PORT`.
    pub server: String,
    /// User of the server's access list; its default one if none.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("server", &self.server)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "..."))
            .finish()
    }
}

/// Why a connection to the carrier cannot be used, or a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// The connection could not be made, or broke.
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    /// The server closed the connection.
    #[error("closed by the server")]
    Closed,
    /// No reply in time.
    #[error("no reply within {} s", REPLY.as_secs())]
    Silent,
    /// Not the protocol.
    #[error(transparent)]
    Resp(#[from] RespError),
    /// The server refused a command.
    #[error("{command} refused: {message}")]
    Refused {
        /// The command's name.
        command: &'static str,
        /// What the server says.
        message: String,
    },
    /// A reply of another shape than the command has.
    #[error("unexpected reply to {command}")]
    Unexpected {
        /// The command's name.
        command: &'static str,
    },
}

impl CarrierError {
    /// With what caused it, for one line of a log.
    pub(crate) fn in_full(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

pub(crate) struct Client {
    stream: TcpStream,
    input: BytesMut,
    decoder: Decoder,
    output: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: &Address) -> Result<Self, CarrierError> {
        let stream = timeout(REPLY, TcpStream::connect(&address.server))
            .await
            .map_err(|_| CarrierError::Silent)??;
        stream.set_nodelay(true)?;
        let (input, output) = (BytesMut::new(), Vec::new());
        let mut client = Self { stream, input, decoder: Decoder::default(), output };
        if let Some(password) = &address.password {
            let password = password.as_bytes();
            match &address.username {
                Some(user) => client.ask("AUTH", &[user.as_bytes(), password]).await?,
                None => client.ask("AUTH", &[password]).await?,
            };
        }
        Ok(client)
    }

    /// Adds a command to those that [`flush`](Self::flush) sends.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) {
        command(&mut self.output, parts);
    }

    /// Sends what was pushed. A server that takes nothing is given up.
    pub(crate) async fn flush(&mut self) -> Result<(), CarrierError> {
        let sent = timeout(REPLY, self.stream.write_all(&self.output)).await;
        self.output.clear();
        sent.map_err(|_| CarrierError::Silent)??;
        Ok(())
    }

    /// The next reply. Can be dropped and called again.
    pub(crate) async fn reply(&mut self) -> Result<Value, CarrierError> {
        loop {
            if let Some(value) = self.decoder.next(&mut self.input)? {
                return Ok(value);
            }
            // What a reply needs at once is left to the allocator's growth; what it promises is not.
            self.input.reserve(16 << 10);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(CarrierError::Closed);
            }
        }
    }

    /// The next reply, within a time.
    pub(crate) async fn reply_within(&mut self, limit: Duration) -> Result<Value, CarrierError> {
        timeout(limit, self.reply()).await.map_err(|_| CarrierError::Silent)?
    }

    /// One command and its reply, refusals as errors.
    pub(crate) async fn ask(
        &mut self,
        name: &'static str,
        arguments: &[&[u8]],
    ) -> Result<Value, CarrierError> {
        let parts: Vec<&[u8]> =
            std::iter::once(name.as_bytes()).chain(arguments.iter().copied()).collect();
        self.push(&parts);
        self.flush().await?;
        match self.reply_within(REPLY).await? {
            Value::Error(message) => Err(CarrierError::Refused { command: name, message }),
            value => Ok(value),
        }
    }

    /// Up to `count` entries of a stream from `from` backwards; from the last one if `None`.
    pub(crate) async fn backwards(
        &mut self,
        key: &str,
        from: Option<EntryId>,
        count: usize,
    ) -> Result<Vec<Entry>, CarrierError> {
        let from = from.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let count = count.to_string();
        let arguments = [key.as_bytes(), from.as_bytes(), b"-", b"COUNT", count.as_bytes()];
        let reply = self.ask("XREVRANGE", &arguments).await?;
        entries(reply).ok_or(CarrierError::Unexpected { command: "XREVRANGE" })
    }
}

/// Name of the one field of an entry.
pub(crate) const FIELD: &[u8] = b"r";

/// An entry and the value of its field; `None` if it has others.
pub(crate) type Entry = (EntryId, Option<bytes::Bytes>);

/// The entries of a stream as replies have them.
pub(crate) fn entries(value: Value) -> Option<Vec<Entry>> {
    let Value::Array(list) = value else { return None };
    let entry = |value| {
        let Value::Array(parts) = value else { return None };
        let [Value::Text(id), fields] = <[Value; 2]>::try_from(parts).ok()? else { return None };
        let id: EntryId = std::str::from_utf8(&id).ok()?.parse().ok()?;
        let field = match fields {
            Value::Array(fields) => match <[Value; 2]>::try_from(fields) {
                Ok([Value::Text(name), Value::Text(value)]) if name == FIELD => Some(value),
                _ => None,
            },
            _ => None,
        };
        Some((id, field))
    };
    list.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_not_there_is_an_error_that_says_why() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let server = port.expect("a port").to_string();
        let address = Address { server, username: None, password: None };
        let error = Client::connect(&address).await.err().expect("nobody listens").in_full();
        assert!(error.starts_with("connection failed: Connection refused"), "{error}");
    }
}
