//! ZMTP 3.x over TCP and Unix sockets: the reading end of PUB/SUB and DEALER/ROUTER, without
//! security (the NULL mechanism).
//!
//! Why not a library: the peer is not trusted with our memory. The `zeromq` crate (0.7) reserves
//! whatever length a frame announces before any of it has arrived, and has neither keepalive nor
//! heartbeat. Here a frame costs what has arrived of it and no more than a limit, and a peer that
//! is gone without a sign is noticed.
//!
//! Specification: <https://rfc.zeromq.org/spec/23/> (3.0) and <https://rfc.zeromq.org/spec/37/> (3.1).

mod connection;
mod wire;

pub(crate) use connection::{Accepted, Connection, Endpoint, Listener, Role};
pub use wire::{Decoder, Frame, Item, MAX_MESSAGE_BYTES, MAX_MESSAGE_FRAMES, MAX_SKIPPED_BYTES};

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ZmtpError {
    /// Not `tcp://HOST:PORT` or `ipc://PATH`.
    #[error("not an endpoint: {endpoint}")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The connection could not be made, or broke.
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    /// The peer closed the connection.
    #[error("closed by the peer")]
    Closed,
    /// The peer did not finish the handshake in time.
    #[error("no handshake in time")]
    HandshakeTimeout,
    /// The peer did not answer a PING.
    #[error("no answer to a heartbeat")]
    Silent,
    /// Not ZMTP 3, or not as it must be.
    #[error("peer violates the protocol: {what}")]
    Protocol {
        /// What is wrong.
        what: &'static str,
    },
    /// A frame so long that waiting for its end is no use.
    #[error("frame of {bytes} bytes")]
    FrameTooLarge {
        /// What the peer announced.
        bytes: u64,
    },
    /// More frames than any message of ours has.
    #[error("message of more than {} frames", wire::MAX_MESSAGE_FRAMES)]
    TooManyFrames,
}

impl ZmtpError {
    /// The peer announced more than anybody should.
    pub(crate) fn is_oversized(&self) -> bool {
        matches!(self, Self::FrameTooLarge { .. } | Self::TooManyFrames)
    }
}
