//! An event publisher that knows when it published.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

use crate::events::{self, Event};

/// A PUB socket with vLLM's frames.
pub(crate) struct Publisher {
    socket: PubSocket,
    /// Where it is bound.
    pub(crate) endpoint: String,
    sequence: u64,
}

impl Publisher {
    pub(crate) async fn bind() -> Result<Self> {
        let mut socket = PubSocket::new();
        let endpoint = socket.bind("tcp://127.0.0.1:0").await.context("bind the publisher")?;
        Ok(Self { socket, endpoint: endpoint.to_string(), sequence: 0 })
    }

    /// Publishes the blocks of one prompt as one batch; gives the time just before it left.
    pub(crate) async fn store(&mut self, tokens: &[u32], block_size: usize) -> Result<Instant> {
        let payload = batch(tokens, block_size, self.sequence)?;
        let at = self.send(payload).await?;
        self.sequence += 1;
        Ok(at)
    }

    /// Publishes the first batch, with number 0 each time: a subscriber that has it already takes
    /// no notice, and one that was not there yet starts with it.
    pub(crate) async fn greet(&mut self, tokens: &[u32], block_size: usize) -> Result<()> {
        self.sequence = 0;
        self.store(tokens, block_size).await.map(drop)
    }

    async fn send(&mut self, payload: Vec<u8>) -> Result<Instant> {
        let mut message = ZmqMessage::from(Bytes::new());
        message.push_back(Bytes::copy_from_slice(&self.sequence.to_be_bytes()));
        message.push_back(payload.into());
        let at = Instant::now();
        self.socket.send(message).await.context("publish")?;
        Ok(at)
    }
}

/// The blocks of one prompt. The hashes are unique by sequence.
fn batch(tokens: &[u32], block_size: usize, sequence: u64) -> Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    // The first batch is repeated, and must be the same each time.
    let time = if sequence == 0 { 0.0 } else { now };
    let hashes: Vec<u64> =
        (0..(tokens.len() / block_size) as u64).map(|i| (sequence + 1) << 32 | i).collect();
    let tokens = &tokens[..hashes.len() * block_size];
    events::batch(time, &[Event::Stored { parent: None, hashes: &hashes, tokens }])
}
