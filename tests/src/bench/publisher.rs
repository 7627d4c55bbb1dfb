//! An event publisher that knows when it published.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use rmp::encode;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};

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

/// `[ts, [BlockStored], 0]` as vLLM from 0.24 writes it. The hashes are unique by sequence.
fn batch(tokens: &[u32], block_size: usize, sequence: u64) -> Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    // The first batch is repeated, and must be the same each time.
    let time = if sequence == 0 { 0.0 } else { now };
    let blocks = (tokens.len() / block_size) as u32;
    let mut out = Vec::with_capacity(tokens.len() * 3 + 512);
    encode::write_array_len(&mut out, 3)?;
    encode::write_f64(&mut out, time)?;
    encode::write_array_len(&mut out, 1)?;
    encode::write_map_len(&mut out, 8)?;
    encode::write_str(&mut out, "type")?;
    encode::write_str(&mut out, "BlockStored")?;
    encode::write_str(&mut out, "block_hashes")?;
    encode::write_array_len(&mut out, blocks)?;
    for block in 0..u64::from(blocks) {
        encode::write_u64(&mut out, (sequence + 1) << 32 | block)?;
    }
    encode::write_str(&mut out, "token_ids")?;
    encode::write_array_len(&mut out, blocks * block_size as u32)?;
    for token in &tokens[..blocks as usize * block_size] {
        encode::write_uint(&mut out, u64::from(*token))?;
    }
    encode::write_str(&mut out, "block_size")?;
    encode::write_uint(&mut out, block_size as u64)?;
    encode::write_str(&mut out, "medium")?;
    encode::write_str(&mut out, "GPU")?;
    for name in ["parent_block_hash", "lora_id", "lora_name"] {
        encode::write_str(&mut out, name)?;
        encode::write_nil(&mut out)?;
    }
    encode::write_uint(&mut out, 0)?;
    Ok(out)
}
