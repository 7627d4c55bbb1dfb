//! DNS messages (RFC 1035, SRV by RFC 2782): one question, and what is needed of its answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;
/// Pointers followed within one name.
const MAX_JUMPS: usize = 32;
/// Aliases followed within one answer.
const MAX_ALIASES: usize = 16;

const INTERNET: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;

/// Kinds of records that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    A = 1,
    Aaaa = 28,
    Srv = 33,
}

/// Why a message is not the answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum WireError {
    #[error("not a name")]
    Name,
    /// To another question.
    #[error("not the answer")]
    Other,
    #[error("cut off")]
    Truncated,
    #[error("malformed answer")]
    Malformed,
    #[error("the server fails with code {0}")]
    Failed(u8),
}

/// A record of the kind that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordOf {
    pub(super) data: Data,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Ip(IpAddr),
    Srv { port: u16, target: String },
}

/// What was answered; no records also where there is no such name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) records: Vec<RecordOf>,
    /// The shortest time of what was used, in seconds; of an empty answer what its SOA says.
    ttl_s: Option<u32>,
}

impl Answer {
    /// How long it may be used, if it says so.
    pub(super) fn ttl(&self, default: Duration) -> Duration {
        self.ttl_s.map_or(default, |seconds| Duration::from_secs(u64::from(seconds)))
    }
}

/// Whether a name can be asked for.
pub fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    name.len() <= MAX_NAME_BYTES && name.split('.').all(is_label)
}

/// A message that asks for records of a name, recursively.
pub(super) fn question(id: u16, name: &str, kind: Kind) -> Result<Vec<u8>, WireError> {
    if !is_name(name) {
        return Err(WireError::Name);
    }
    let mut out = id.to_be_bytes().to_vec();
    // Recursion desired; one question, nothing else.
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&(kind as u16).to_be_bytes());
    out.extend_from_slice(&INTERNET.to_be_bytes());
    Ok(out)
}

/// Reads the answer to a question.
pub(super) fn answer(message: &[u8], id: u16, name: &str, kind: Kind) -> Result<Answer, WireError> {
    let mut from = Reader { message, at: 0 };
    if from.u16()? != id {
        return Err(WireError::Other);
    }
    let flags = from.u16()?;
    let is_response = flags >> 15 == 1;
    let [questions, answers, authorities, _] = [from.u16()?, from.u16()?, from.u16()?, from.u16()?];
    if !is_response || questions != 1 {
        return Err(WireError::Other);
    }
    let asked = lower(name);
    let is_same = from.name()? == asked && from.u16()? == kind as u16 && from.u16()? == INTERNET;
    if !is_same {
        return Err(WireError::Other);
    }
    if flags >> 9 & 1 == 1 {
        return Err(WireError::Truncated);
    }
    match flags & 0xF {
        // No error, and no such name.
        0 | 3 => {}
        code => return Err(WireError::Failed(code as u8)),
    }
    let mut all = Vec::new();
    for _ in 0..answers {
        all.push(from.record()?);
    }
    let mut at = asked;
    let mut ttl_s: Option<u32> = None;
    let mut shortest = |ttl: u32| ttl_s = Some(ttl_s.map_or(ttl, |held| held.min(ttl)));
    for _ in 0..MAX_ALIASES {
        let Some(alias) = all.iter().find(|r| r.kind == CNAME && r.owner == at) else { break };
        shortest(alias.ttl_s);
        at = Reader { message, at: alias.start }.name()?;
    }
    let mut records = Vec::new();
    for record in all.iter().filter(|r| r.kind == kind as u16 && r.owner == at) {
        shortest(record.ttl_s);
        records.push(RecordOf { data: data(message, record, kind)? });
    }
    for _ in 0..authorities {
        let record = from.record()?;
        if record.kind == SOA && records.is_empty() {
            // Its last number is how long nothing is nothing (RFC 2308).
            let bytes = message.get(record.end.saturating_sub(4)..record.end);
            let minimum = bytes.and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
            shortest(record.ttl_s.min(minimum.ok_or(WireError::Malformed)?));
        }
    }
    Ok(Answer { records, ttl_s })
}

fn data(message: &[u8], record: &Raw, kind: Kind) -> Result<Data, WireError> {
    let bytes = message.get(record.start..record.end).ok_or(WireError::Malformed)?;
    match kind {
        Kind::A => {
            let octets: [u8; 4] = bytes.try_into().map_err(|_| WireError::Malformed)?;
            Ok(Data::Ip(Ipv4Addr::from(octets).into()))
        }
        Kind::Aaaa => {
            let octets: [u8; 16] = bytes.try_into().map_err(|_| WireError::Malformed)?;
            Ok(Data::Ip(Ipv6Addr::from(octets).into()))
        }
        Kind::Srv => {
            // After priority and weight, by which others balance: here every endpoint is a candidate.
            let mut from = Reader { message, at: record.start + 4 };
            let port = from.u16()?;
            let target = from.name()?;
            if from.at > record.end {
                return Err(WireError::Malformed);
            }
            Ok(Data::Srv { port, target })
        }
    }
}

fn lower(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

struct Raw {
    owner: String,
    kind: u16,
    ttl_s: u32,
    /// Place of its data.
    start: usize,
    end: usize,
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, WireError> {
        let byte = self.message.get(self.at).copied().ok_or(WireError::Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// A name in lower case, without the last dot.
    fn name(&mut self) -> Result<String, WireError> {
        let mut name = String::new();
        let (mut at, mut end) = (self.at, None);
        let mut jumps = 0;
        loop {
            let mut here = Reader { message: self.message, at };
            let length = here.byte()?;
            match length >> 6 {
                0 if length == 0 => {
                    self.at = end.unwrap_or(here.at);
                    return Ok(name);
                }
                0 => {
                    let label = self.message.get(here.at..here.at + usize::from(length));
                    let label = label.ok_or(WireError::Malformed)?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    // A byte beyond ASCII becomes some other name, which is nobody's.
                    name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                    if name.len() > 2 * MAX_NAME_BYTES {
                        return Err(WireError::Malformed);
                    }
                    at = here.at + usize::from(length);
                }
                3 => {
                    let low = here.byte()?;
                    end.get_or_insert(here.at);
                    at = usize::from(length & 0x3F) << 8 | usize::from(low);
                    jumps += 1;
                    if jumps > MAX_JUMPS {
                        return Err(WireError::Malformed);
                    }
                }
                _ => return Err(WireError::Malformed),
            }
        }
    }

    fn record(&mut self) -> Result<Raw, WireError> {
        let owner = self.name()?;
        let (kind, _class) = (self.u16()?, self.u16()?);
        let ttl_s = u32::from(self.u16()?) << 16 | u32::from(self.u16()?);
        let length = usize::from(self.u16()?);
        let start = self.at;
        let end = start + length;
        if end > self.message.len() {
            return Err(WireError::Malformed);
        }
        self.at = end;
        Ok(Raw { owner, kind, ttl_s, start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A captured shape: the answer of RFC 1035's example with a pointer that points at itself.
    #[test]
    fn loops_and_ends_are_refused() {
        let mut message = question(7, "a.b", Kind::A).unwrap();
        message[2] = 0x81;
        message[7] = 1;
        for tail in [
            &[0xC0, 21][..],
            &[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 9, 1],
            &[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 3, 1, 2, 3],
            &[64, 1],
            &[],
        ] {
            let message = [&message, tail].concat();
            assert_eq!(answer(&message, 7, "a.b", Kind::A), Err(WireError::Malformed), "{tail:?}");
        }
        let good = [&message[..], &[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4]].concat();
        let read = answer(&good, 7, "A.B.", Kind::A).unwrap();
        assert_eq!(read.records, [RecordOf { data: Data::Ip(Ipv4Addr::new(1, 2, 3, 4).into()) }]);
        assert_eq!(read.ttl(Duration::MAX), Duration::from_secs(9));
        for (id, name, kind) in [(8, "a.b", Kind::A), (7, "a.c", Kind::A), (7, "a.b", Kind::Srv)] {
            assert_eq!(answer(&good, id, name, kind), Err(WireError::Other));
        }
    }

    #[test]
    fn names_are_whole_labels() {
        let long = format!("{}.a", "x".repeat(64));
        let all = ["a", "_x._tcp.a-b.local.", "A.1"].map(is_name);
        let none = ["", ".", "a..b", "a b", "ä", &long, &"a.".repeat(130)].map(is_name);
        assert_eq!((all, none), ([true; 3], [false; 7]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), keep in any::<bool>()) {
            let mut message = bytes;
            if keep {
                let mut head = question(7, "a.b", Kind::Srv).unwrap();
                (head[2], head[7], head[9]) = (0x80, 2, 1);
                head.extend(message);
                message = head;
            }
            let _ = answer(&message, 7, "a.b", Kind::Srv);
        }
    }
}
