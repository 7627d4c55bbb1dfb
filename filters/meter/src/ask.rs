//! Asking a stream for its usage, with one edit of the request's body.

use crate::json::{Field, object, skip_blanks, whole_object};

/// The option and its value.
const INCLUDE_USAGE: &str = r#""include_usage":true"#;

/// Bytes to put in the place of others; everything else of the body stays as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edit {
    /// Where.
    pub at: usize,
    /// Bytes that go.
    pub remove: usize,
    /// Bytes that come.
    pub insert: String,
}

impl Edit {
    /// The body as it is sent on.
    pub fn apply(&self, body: &[u8]) -> Vec<u8> {
        let (front, back) = (body.get(..self.at), body.get(self.at + self.remove..));
        [front.unwrap_or_default(), self.insert.as_bytes(), back.unwrap_or_default()].concat()
    }

    /// The front of the body up to where the edit ends: how long it is, and what comes instead.
    pub fn front(&self, body: &[u8]) -> (usize, Vec<u8>) {
        let kept = body.get(..self.at).unwrap_or_default();
        (self.at + self.remove, [kept, self.insert.as_bytes()].concat())
    }
}

/// Why a body is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoEdit {
    /// It is not a JSON object, names one of the fields twice, or spells a key with escapes: the
    /// engine's to judge.
    NotUnderstood,
    /// The answer will be no stream.
    NotStreamed,
    /// The client asks for the usage itself.
    Asked,
    /// With `continuous_usage_stats` every event would change.
    Continuous,
}

/// A value that stands at most once in its object, as written, and where.
type Once<'a> = Option<(usize, &'a [u8])>;

/// The edit by which a streamed completion or chat says its usage in an event of its own.
pub fn ask_for_usage(body: &[u8]) -> Result<Edit, NoEdit> {
    let (mut stream, mut options) = (None, None);
    let mut is_clear = true;
    whole_object(body, |field| match field.key {
        b"stream" => is_clear &= set(&mut stream, field),
        b"stream_options" => is_clear &= set(&mut options, field),
        key => is_clear &= !key.contains(&b'\\'),
    })
    .filter(|()| is_clear)
    .ok_or(NoEdit::NotUnderstood)?;
    if stream.is_none_or(|(_, value)| value != b"true") {
        return Err(NoEdit::NotStreamed);
    }
    match options {
        None => {
            let insert = format!(r#""stream_options":{{{INCLUDE_USAGE}}},"#);
            Ok(Edit { at: skip_blanks(body, 0) + 1, remove: 0, insert })
        }
        Some((at, b"null")) => Ok(Edit { at, remove: 4, insert: format!("{{{INCLUDE_USAGE}}}") }),
        Some((at, _)) => within(body, at),
    }
}

/// The edit of options that the client has set: the object at `at`.
fn within(body: &[u8], at: usize) -> Result<Edit, NoEdit> {
    let (mut include_usage, mut is_continuous, mut is_clear) = (None, false, true);
    let mut is_empty = true;
    object(body, at, |field| {
        is_empty = false;
        match field.key {
            b"include_usage" => is_clear &= set(&mut include_usage, field),
            b"continuous_usage_stats" => is_continuous = true,
            key => is_clear &= !key.contains(&b'\\'),
        }
    })
    .filter(|_| is_clear)
    .ok_or(NoEdit::NotUnderstood)?;
    match include_usage {
        _ if is_continuous => Err(NoEdit::Continuous),
        Some((_, b"true")) => Err(NoEdit::Asked),
        Some((at, value @ (b"false" | b"null"))) => {
            Ok(Edit { at, remove: value.len(), insert: "true".to_owned() })
        }
        Some(_) => Err(NoEdit::NotUnderstood),
        None => {
            let comma = if is_empty { "" } else { "," };
            Ok(Edit { at: at + 1, remove: 0, insert: format!("{INCLUDE_USAGE}{comma}") })
        }
    }
}

/// False when it was set before: which of two values holds is the engine's to say.
fn set<'a>(once: &mut Once<'a>, field: Field<'a>) -> bool {
    once.replace((field.at, field.value)).is_none()
}

#[cfg(test)]
mod tests;
