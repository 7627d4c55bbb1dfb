//! Taking the usage event out of a stream of server-sent events that was asked for it.

use crate::json::{skip_blanks, whole_object};

/// Longest event that is kept back to see what it is. A usage event has about 400 bytes.
const MAX_HELD_BYTES: usize = 16 << 10;

/// What becomes of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Passed {
    /// It goes on as it is.
    Same,
    /// These bytes go on in its place.
    Instead(Vec<u8>),
}

/// Passes a stream on without the event whose `choices` are empty and whose `usage` is not.
///
/// Only the begun event at the end of a chunk is kept back, which is of no use to a client before
/// its end has come. When the event has been found, or an event is longer than any usage, all the
/// rest passes as it is.
#[derive(Default)]
pub struct UsageRemover {
    held: Vec<u8>,
    is_done: bool,
}

impl UsageRemover {
    /// Whether chunks pass without being looked at.
    pub fn is_done(&self) -> bool {
        self.is_done && self.held.is_empty()
    }

    /// Whether the event was found.
    pub fn has_found(&self) -> bool {
        self.is_done
    }

    /// The next chunk; with `is_last` nothing is kept back.
    pub fn pass(&mut self, chunk: &[u8], is_last: bool) -> Passed {
        if self.is_done() {
            return Passed::Same;
        }
        let had_held = !self.held.is_empty();
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(chunk);
        let mut passed = Vec::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while !self.is_done
            && let Some(end) = event_end(rest)
        {
            let (event, later) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            rest = later;
            if is_usage(event) {
                self.is_done = true;
            } else {
                passed.extend_from_slice(event);
            }
        }
        if self.is_done || is_last || rest.len() > MAX_HELD_BYTES {
            self.is_done |= rest.len() > MAX_HELD_BYTES;
            passed.extend_from_slice(rest);
        } else {
            self.held = rest.to_vec();
        }
        if !had_held && passed == chunk { Passed::Same } else { Passed::Instead(passed) }
    }
}

/// Where the first event ends: behind its empty line.
fn event_end(bytes: &[u8]) -> Option<usize> {
    let mut line_start = 0;
    loop {
        let rest = bytes.get(line_start..)?;
        let line = rest.iter().position(|byte| *byte == b'\n')?;
        let next = line_start + line + 1;
        let is_empty = matches!(rest.get(..line), Some(b"" | b"\r"));
        if is_empty && line_start > 0 {
            return Some(next);
        }
        line_start = next;
    }
}

/// Whether the event is one line of data, and the data what an engine sends for `include_usage`.
fn is_usage(event: &[u8]) -> bool {
    let Some(data) = event.strip_prefix(b"data:") else { return false };
    let data = data.trim_ascii();
    if data.contains(&b'\n') || !data.windows(7).any(|window| window == b"\"usage\"") {
        return false;
    }
    let (mut has_choices, mut has_usage) = (true, false);
    let is_object = whole_object(data, |field| match field.key {
        b"choices" => has_choices = !is_empty_array(field.value),
        b"usage" => has_usage = field.value.starts_with(b"{"),
        _ => {}
    });
    is_object.is_some() && !has_choices && has_usage
}

fn is_empty_array(value: &[u8]) -> bool {
    value.starts_with(b"[") && value.get(skip_blanks(value, 1)) == Some(&b']')
}

#[cfg(test)]
mod tests;
