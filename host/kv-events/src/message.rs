//! Messages of a publisher and of its replay socket.

use bytes::Bytes;
use tokio::time::Instant;

use crate::cursor::Message;
use crate::zmtp::Frame;

/// Sequence number that marks the end of a replay.
pub(crate) const END_OF_REPLAY: u64 = u64::MAX;

/// Reads the frames of a message. The last two are the sequence number and the payload, live and
/// replayed; what is before them (topic, delimiter) differs between releases. The end marker of a
/// replay reads as a batch of number `u64::MAX`.
pub(crate) fn batch(frames: &[Frame], received_at: Instant) -> Option<Message> {
    let [.., sequence, payload] = frames else { return None };
    let sequence = u64::from_be_bytes(sequence.bytes.as_ref().try_into().ok()?);
    let cut_from = (!payload.is_whole()).then_some(payload.wire_bytes);
    Some(Message { sequence, payload: payload.bytes.clone(), cut_from, received_at })
}

/// [`batch`] of a subscription, where nothing ends.
pub(crate) fn live(frames: &[Frame], received_at: Instant) -> Option<Message> {
    batch(frames, received_at).filter(|message| message.sequence != END_OF_REPLAY)
}

/// First frame of a message of a subscription.
pub(crate) fn topic(frames: &[Frame]) -> Option<&Bytes> {
    let [topic, _, _] = frames else { return None };
    topic.is_whole().then_some(&topic.bytes)
}
