//! The bytes that cross from the daemon to the filters and from filter to filter.
//!
//! No other crate serialises shared state. All integers are little-endian; every record starts with
//! a magic or kind and a version, and readers refuse what they do not know. `README.md` beside this
//! crate is the wire specification.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod accuracy;
mod ack;
mod adapters;
mod batch;
mod bucket;
mod directory;
mod extras;
mod features;
mod head;
mod key;
mod labels;
mod matrix;
mod prediction;
mod probe;
mod row;
mod scores;
mod sent;
mod sessions;
mod speed;
mod values;
mod wire;

pub use accuracy::{
    ACCURACY_PATH, Accuracy, AccuracyReport, Outcome, SlotAccuracy, WINDOW_ANSWERS,
};
pub use ack::{Ack, AckStatus, Counters};
pub use adapters::{EngineAdapters, MAX_ENGINE_ADAPTERS};
pub use batch::{Batch, BatchBuilder, BatchHeader, MAX_BATCH_BYTES, MAX_BATCH_ENTRIES};
pub use bucket::{BucketEntry, BucketWriter, FoundStride, MAX_BUCKET_BYTES, find_stride};
pub use directory::{Directory, DirectoryEntry, MAX_ADAPTERS};
pub use features::{FEATURES_PROPERTY, Features, MAX_FEATURES_BYTES};
pub use head::{Head, Transition};
pub use key::{Key, KeyBytes, MAX_KEY_BYTES};
pub use labels::{MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS};
pub use matrix::{
    Cell, EndpointHash, FoundTrail, MAX_CELLS, MAX_TRAIL, MAX_TRAILS, MatrixRow, OtherGateways,
    Trail, add_cells, find_cell, find_trails, join_trails, trail_depths,
};
pub use prediction::{PREDICTION_PROPERTY, Predicted, Prediction};
pub use probe::{EXPLANATION_PROPERTY, PROBE_ROUTE_PREFIX};
pub use row::{MAX_ROW_SCORERS, MAX_ROWS, ScorerRow, WorkerRow};
pub use scores::{MAX_SCORES_BYTES, SCORE_PROPERTY_PREFIX, Scores};
pub use sent::{
    MAX_SENT_BUCKET_BYTES, MAX_SENT_DEPTHS, MAX_SENT_ENDPOINTS, SENT_BUCKETS, SENT_PROPERTY,
    SentBucket, SentClock, SentClocks, SentEndpoint, SentPlan, find_sent, sent_depths,
};
pub use sessions::{MAX_SESSIONS, SESSION_BUCKETS, Session, SessionHash, Sessions};
pub use speed::{MIN_SPEED_ANSWERS, Speed};
pub use values::{
    EndpointEntry, LoadRecord, LoadTable, MAX_SINGLETON_BYTES, ModelValue, Picks, Table,
    value_epoch,
};
pub use wire::WireError;

/// Version of every format in this crate. Readers refuse any other.
pub const FORMAT_VERSION: u8 = 1;
