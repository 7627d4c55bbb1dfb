//! What a source says before its batches are decoded.

use crate::cursor::{Message, Position, ResetReason, SourceState, fingerprint};
use crate::decode::{DecodeError, decode};
use crate::source::SourceUpdate;

/// A [`SourceUpdate`] whose batch is as the engine wrote it, for whoever passes it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawUpdate {
    /// A batch, in sequence order, without holes since the last [`Reset`](Self::Reset).
    Batch {
        /// The batch.
        message: Message,
        /// The state of the source when it was passed on.
        state: SourceState,
        /// The start of the history was not available.
        is_partial: bool,
    },
    /// Everything known of this source is void. What follows starts over.
    Reset {
        /// Why.
        reason: ResetReason,
    },
    /// The source changed its state.
    State(SourceState),
}

impl RawUpdate {
    /// With its events read.
    pub fn decode(self) -> SourceUpdate {
        match self {
            Self::Batch { message, .. } => decoded(message),
            Self::Reset { reason } => SourceUpdate::Reset { reason },
            Self::State(state) => SourceUpdate::State(state),
        }
    }
}

impl Message {
    /// The position after this batch.
    pub fn position(&self) -> Position {
        Position { sequence: self.sequence, fingerprint: fingerprint(&self.payload) }
    }
}

fn decoded(message: Message) -> SourceUpdate {
    let Position { sequence, fingerprint } = message.position();
    let Message { payload, cut_from, received_at, .. } = message;
    let batch = match cut_from {
        Some(bytes) => {
            Err(DecodeError::TooLarge { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) })
        }
        None => decode(&payload),
    };
    match batch {
        Ok(batch) => SourceUpdate::Batch { sequence, fingerprint, batch, received_at },
        Err(error) => SourceUpdate::Undecodable { sequence, fingerprint, error },
    }
}
