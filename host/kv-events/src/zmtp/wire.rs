//! The bytes: greeting, frames, commands. No I/O.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ZmtpError;
use crate::decode::MAX_FRAME_BYTES;

/// Bytes of one message that are kept, over all its frames: a payload of the largest size that is
/// decoded, with its topic and number.
pub const MAX_MESSAGE_BYTES: usize = MAX_FRAME_BYTES + 4096;
/// Most frames of a message. A replayed batch has four.
pub const MAX_MESSAGE_FRAMES: usize = 8;
/// Longest frame whose end is waited for. What is longer than the message may be is read and
/// thrown away, so that one oversized batch costs one batch and not the connection (where a replay
/// would bring the same batch again). Beyond this no engine's batch can be, and the peer is left.
pub const MAX_SKIPPED_BYTES: u64 = 1 << 30;
/// What is kept of a frame that is thrown away: enough to tell two batches apart, since a batch
/// starts with its time.
const CUT_BYTES: usize = 64;
/// Longest command: a READY with a few properties.
const MAX_COMMAND_BYTES: u64 = 4096;

pub(super) const GREETING_BYTES: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Our greeting: version 3.1, NULL.
pub(super) fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    bytes[10] = 3;
    bytes[11] = 1;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

/// Minor version of the peer's greeting.
pub(super) fn peer_minor(greeting: &[u8; GREETING_BYTES]) -> Result<u8, ZmtpError> {
    let protocol = |what| Err(ZmtpError::Protocol { what });
    if greeting[0] != 0xff || greeting[9] & 1 != 1 {
        return protocol("not ZMTP");
    }
    if greeting[10] < 3 {
        return protocol("version before 3.0");
    }
    if !greeting[12..32].starts_with(b"NULL\0") {
        return protocol("mechanism other than NULL");
    }
    Ok(greeting[11])
}

/// Appends a frame.
pub(super) fn put_frame(out: &mut BytesMut, flags: u8, body: &[&[u8]]) {
    let len: usize = body.iter().map(|part| part.len()).sum();
    match u8::try_from(len) {
        Ok(len) => {
            out.put_u8(flags);
            out.put_u8(len);
        }
        Err(_) => {
            out.put_u8(flags | LONG);
            out.put_u64(len as u64);
        }
    }
    body.iter().for_each(|part| out.put_slice(part));
}

/// Appends a message.
pub(super) fn put_message(out: &mut BytesMut, frames: &[&[u8]]) {
    for (i, frame) in frames.iter().enumerate() {
        let flags = if i + 1 < frames.len() { MORE } else { 0 };
        put_frame(out, flags, &[frame]);
    }
}

/// Appends a command. `name` has at most 255 bytes.
pub(super) fn put_command(out: &mut BytesMut, name: &str, body: &[&[u8]]) {
    let len = [u8::try_from(name.len()).unwrap_or(u8::MAX)];
    let head: [&[u8]; 2] = [&len, name.as_bytes()];
    put_frame(out, COMMAND, &[&head, body].concat());
}

/// One frame of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The frame, or its first bytes if it was too long.
    pub bytes: Bytes,
    /// Its length as sent.
    pub wire_bytes: u64,
}

impl Frame {
    /// Whether [`bytes`](Self::bytes) is all of it.
    pub fn is_whole(&self) -> bool {
        self.wire_bytes == self.bytes.len() as u64
    }
}

/// What comes after the greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A message with all its frames, at least one.
    Message(Vec<Frame>),
    /// A command: its name and what follows.
    Command(Bytes, Bytes),
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Body { flags: u8, len: usize },
    Cut { flags: u8, len: u64 },
    Skip { flags: u8, left: u64 },
}

/// Takes messages and commands out of a stream of bytes. Holds at most [`MAX_MESSAGE_BYTES`] and
/// reserves nothing that was only announced.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    frames: Vec<Frame>,
    held: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Header, frames: Vec::new(), held: 0 }
    }
}

impl Decoder {
    /// The next item of `input`, or `None` if more has to be read first. Consumes what it
    /// understood. After an error the stream is of no use.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Item>, ZmtpError> {
        loop {
            match self.state {
                State::Header => {
                    let Some((flags, len, header)) = header(input)? else { return Ok(None) };
                    input.advance(header);
                    self.state = self.frame(flags, len)?;
                }
                State::Body { flags, len } => {
                    if input.len() < len {
                        return Ok(None);
                    }
                    // A copy: a slice would keep all that was read with it alive.
                    let bytes = Bytes::copy_from_slice(&input[..len]);
                    input.advance(len);
                    self.state = State::Header;
                    if flags & COMMAND != 0 {
                        return command(&bytes).map(Some);
                    }
                    let frame = Frame { wire_bytes: len as u64, bytes };
                    if let Some(message) = self.push(flags, frame) {
                        return Ok(Some(message));
                    }
                }
                State::Cut { flags, len } => {
                    if input.len() < CUT_BYTES {
                        return Ok(None);
                    }
                    let bytes = Bytes::copy_from_slice(&input[..CUT_BYTES]);
                    input.advance(CUT_BYTES);
                    self.state = State::Skip { flags, left: len - CUT_BYTES as u64 };
                    self.held += CUT_BYTES;
                    self.frames.push(Frame { bytes, wire_bytes: len });
                }
                State::Skip { flags, left } => {
                    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    input.advance(skipped);
                    let left = left - skipped as u64;
                    self.state = State::Skip { flags, left };
                    if left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    if flags & MORE == 0 {
                        return Ok(Some(self.finish()));
                    }
                }
            }
        }
    }

    /// How to read the frame that was announced.
    fn frame(&self, flags: u8, len: u64) -> Result<State, ZmtpError> {
        if flags & COMMAND != 0 {
            if flags & MORE != 0 || len > MAX_COMMAND_BYTES {
                return Err(ZmtpError::Protocol { what: "malformed command" });
            }
        } else if self.frames.len() >= MAX_MESSAGE_FRAMES {
            return Err(ZmtpError::TooManyFrames);
        }
        let room = MAX_MESSAGE_BYTES.saturating_sub(self.held);
        match usize::try_from(len) {
            Ok(len) if len <= room.max(CUT_BYTES) => Ok(State::Body { flags, len }),
            _ if len <= MAX_SKIPPED_BYTES => Ok(State::Cut { flags, len }),
            _ => Err(ZmtpError::FrameTooLarge { bytes: len }),
        }
    }

    fn push(&mut self, flags: u8, frame: Frame) -> Option<Item> {
        self.held += frame.bytes.len();
        self.frames.push(frame);
        (flags & MORE == 0).then(|| self.finish())
    }

    fn finish(&mut self) -> Item {
        self.held = 0;
        Item::Message(std::mem::take(&mut self.frames))
    }
}

/// Flags and length of the next frame, and the length of its header.
fn header(input: &[u8]) -> Result<Option<(u8, u64, usize)>, ZmtpError> {
    let Some((&flags, rest)) = input.split_first() else { return Ok(None) };
    if flags & !(MORE | LONG | COMMAND) != 0 {
        return Err(ZmtpError::Protocol { what: "reserved flags" });
    }
    if flags & LONG == 0 {
        return Ok(rest.first().map(|len| (flags, u64::from(*len), 2)));
    }
    Ok(rest.first_chunk().map(|len| (flags, u64::from_be_bytes(*len), 9)))
}

fn command(body: &Bytes) -> Result<Item, ZmtpError> {
    let end = body.first().map_or(0, |len| 1 + usize::from(*len));
    if end < 2 || end > body.len() {
        return Err(ZmtpError::Protocol { what: "command without a name" });
    }
    Ok(Item::Command(body.slice(1..end), body.slice(end..)))
}

/// The value of a property in the body of a READY; names are case-insensitive.
pub(super) fn property(mut body: &[u8], wanted: &str) -> Option<Vec<u8>> {
    while let Some((&len, rest)) = body.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(len))?;
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) =
            rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        if name.eq_ignore_ascii_case(wanted.as_bytes()) {
            return Some(value.to_vec());
        }
        body = rest;
    }
    None
}

#[cfg(test)]
mod tests;
