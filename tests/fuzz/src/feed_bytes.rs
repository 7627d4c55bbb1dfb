//! What crosses between daemon and filters.

use feed::{
    Accuracy, AccuracyReport, Ack, Batch, Directory, Features, Head, Key, LoadTable, MatrixRow,
    ModelValue, OtherGateways, Picks, Prediction, Scores, SentBucket, SentClocks, SentPlan,
    Sessions, Table, WorkerRow, find_sent, find_stride, find_trails, value_epoch,
};
use prefix::Listed;

/// Every decoder is offered the bytes; what one accepts it must accept again as it writes it.
pub fn decode(bytes: &[u8]) {
    if let Ok(batch) = Batch::decode(bytes) {
        assert!(batch.entries.len() <= bytes.len());
    }
    if let Some((fingerprint, bucket)) = bytes.split_first_chunk()
        && let Ok(Some(stride)) = find_stride(bucket, u32::from_le_bytes(*fingerprint))
    {
        assert!(stride.read().holders.len() <= bucket.len());
    }
    let _ = (find_stride(bytes, 0).is_ok(), Key::parse_writable(bytes), value_epoch(bytes));
    again(bytes, Ack::decode, Ack::encode);
    again(bytes, Features::decode, Features::encode);
    again(bytes, Prediction::decode, Prediction::encode);
    again(bytes, Accuracy::decode, Accuracy::encode);
    again(bytes, AccuracyReport::decode, AccuracyReport::encode);
    again(bytes, Scores::decode, Scores::encode);
    again(bytes, Sessions::decode, Sessions::encode);
    again(bytes, Table::decode, Table::encode);
    again(bytes, LoadTable::decode, LoadTable::encode);
    again(bytes, MatrixRow::decode, MatrixRow::encode);
    again(bytes, OtherGateways::decode, OtherGateways::encode);
    again(bytes, SentBucket::decode, SentBucket::encode);
    again(bytes, SentClocks::decode, SentClocks::encode);
    again(bytes, SentPlan::decode, SentPlan::encode);
    assert!(find_sent(bytes, 0).is_ok() == SentBucket::decode(bytes).is_ok());
    let mut trails = 0;
    let _ = find_trails(bytes, &[7, 8], |_| trails += 1);
    assert!(trails <= bytes.len());
    let _ = Head::decode(bytes);
    let _ = (Directory::decode(bytes).is_ok(), ModelValue::decode(bytes).is_ok());
    let _ = (Picks::decode(bytes).is_ok(), WorkerRow::decode(bytes).is_ok());
}

fn again<T, E>(bytes: &[u8], decode: fn(&[u8]) -> Result<T, E>, encode: fn(&T) -> Vec<u8>) {
    if let Ok(value) = decode(bytes) {
        let written = encode(&value);
        // Compared as bytes: a number that is none is not equal to itself.
        let read = decode(&written).ok().map(|value| encode(&value));
        assert!(read == Some(written), "written and not read back");
    }
}
