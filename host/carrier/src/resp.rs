//! RESP 2, the protocol of Valkey and Redis: commands out, replies in.
//!
//! Why not a library: what is needed is eight commands and their replies. Here a reply costs what
//! has arrived of it and no more than a limit, however much its lengths promise.
//!
//! Specification: <https://valkey.io/topics/protocol/>.

use bytes::{Buf, Bytes, BytesMut};

/// Longest reply. A read of many streams is the longest there is, and asks for less.
pub const MAX_REPLY_BYTES: usize = 256 << 20;
/// Longest line: a length, a number, or an error message.
const MAX_LINE_BYTES: usize = 4096;
/// Arrays within arrays: streams, entries, fields.
const MAX_DEPTH: usize = 8;
/// Values set aside for the announced length of an array before any has come.
const MAX_RESERVED: usize = 64;

/// A reply, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// No value: a null string or a null array.
    Nil,
    /// `:`
    Integer(i64),
    /// `$` or `+`
    Text(Bytes),
    /// `*`
    Array(Vec<Value>),
    /// `-`
    Error(String),
}

/// Bytes that are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// Not the protocol.
    #[error("not a reply of Valkey or Redis: {what}")]
    Protocol {
        /// What is wrong.
        what: &'static str,
    },
    /// More than can be waited for.
    #[error("reply of more than {MAX_REPLY_BYTES} bytes")]
    TooLarge,
}

/// Reads replies from bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Arrays that are not whole yet: how many values they miss, and those they have.
    open: Vec<(usize, Vec<Value>)>,
    /// Length of a string whose bytes have not all come.
    text: Option<usize>,
    /// Bytes of the reply so far.
    used: usize,
}

impl Decoder {
    /// The next whole reply; takes its bytes out of `input`.
    ///
    /// # Errors
    /// When the peer does not speak the protocol. Nothing can be read after that.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Value>, RespError> {
        while let Some(value) = self.value(input)? {
            if let Some(reply) = self.close(value) {
                self.used = 0;
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// A value that is whole, or `None` if bytes are missing. Opens arrays on the way.
    fn value(&mut self, input: &mut BytesMut) -> Result<Option<Value>, RespError> {
        loop {
            if let Some(length) = self.text {
                if input.len() < length + 2 {
                    return Ok(None);
                }
                let text = input.split_to(length).freeze();
                if !input.starts_with(b"\r\n") {
                    return Err(RespError::Protocol { what: "a string goes on after its end" });
                }
                input.advance(2);
                self.text = None;
                return Ok(Some(Value::Text(text)));
            }
            let Some(end) = input.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n')
            else {
                return match input.len() < MAX_LINE_BYTES {
                    true => Ok(None),
                    false => Err(RespError::Protocol { what: "a line does not end" }),
                };
            };
            let line = input.split_to(end + 1).freeze();
            self.count(line.len())?;
            let Some((&kind, rest)) = line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first)
            else {
                return Err(RespError::Protocol { what: "an empty line" });
            };
            match kind {
                b'+' => return Ok(Some(Value::Text(line.slice(1..line.len() - 2)))),
                b'-' => return Ok(Some(Value::Error(String::from_utf8_lossy(rest).into_owned()))),
                b':' => return Ok(Some(Value::Integer(number(rest)?))),
                b'$' => match length(rest)? {
                    None => return Ok(Some(Value::Nil)),
                    Some(length) => {
                        self.count(length)?;
                        self.text = Some(length);
                    }
                },
                b'*' => match length(rest)? {
                    None => return Ok(Some(Value::Nil)),
                    Some(0) => return Ok(Some(Value::Array(Vec::new()))),
                    Some(_) if self.open.len() == MAX_DEPTH => {
                        return Err(RespError::Protocol { what: "arrays too deep" });
                    }
                    Some(length) => {
                        self.open.push((length, Vec::with_capacity(length.min(MAX_RESERVED))));
                    }
                },
                _ => return Err(RespError::Protocol { what: "a value of an unknown kind" }),
            }
        }
    }

    /// Puts a value where it belongs; gives the reply if that was its last one.
    fn close(&mut self, mut value: Value) -> Option<Value> {
        while let Some((missing, mut values)) = self.open.pop() {
            values.push(value);
            if missing > 1 {
                self.open.push((missing - 1, values));
                return None;
            }
            value = Value::Array(values);
        }
        Some(value)
    }

    fn count(&mut self, bytes: usize) -> Result<(), RespError> {
        self.used = self.used.saturating_add(bytes);
        if self.used > MAX_REPLY_BYTES { Err(RespError::TooLarge) } else { Ok(()) }
    }
}

fn number(text: &[u8]) -> Result<i64, RespError> {
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok()).ok_or(RespError::Protocol { what: "not a number" })
}

fn length(text: &[u8]) -> Result<Option<usize>, RespError> {
    match number(text)? {
        -1 => Ok(None),
        length => usize::try_from(length)
            .map(Some)
            .map_err(|_| RespError::Protocol { what: "a negative length" }),
    }
}

/// Writes a command.
pub(crate) fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Value {
        Value::Text(Bytes::from_static(text.as_bytes()))
    }

    /// Whole, and byte by byte.
    fn check(bytes: &[u8], expected: &[Value]) {
        let mut decoder = Decoder::default();
        let mut input = BytesMut::from(bytes);
        let mut found = Vec::new();
        while let Some(value) = decoder.next(&mut input).expect("replies") {
            found.push(value);
        }
        assert_eq!(found, expected);
        let (mut decoder, mut input, mut found) = Default::default();
        let (decoder, input): (&mut Decoder, &mut BytesMut) = (&mut decoder, &mut input);
        let found: &mut Vec<Value> = &mut found;
        for byte in bytes {
            input.extend_from_slice(&[*byte]);
            found.extend(decoder.next(input).expect("replies"));
        }
        assert_eq!(found, expected);
        assert!(input.is_empty());
    }

    #[test]
    fn replies_are_read_as_the_specification_has_them() {
        check(
            b"+OK\r\n:-7\r\n$5\r\nhello\r\n$0\r\n\r\n$-1\r\n*-1\r\n*0\r\n",
            &[
                text("OK"),
                Value::Integer(-7),
                text("hello"),
                text(""),
                Value::Nil,
                Value::Nil,
                Value::Array(vec![]),
            ],
        );
        check(b"-ERR unknown command\r\n", &[Value::Error("ERR unknown command".to_owned())]);
        check(
            b"*2\r\n*2\r\n:1\r\n$2\r\n\r\n\r\n*1\r\n+a\r\n:9\r\n",
            &[
                Value::Array(vec![
                    Value::Array(vec![Value::Integer(1), text("\r\n")]),
                    Value::Array(vec![text("a")]),
                ]),
                Value::Integer(9),
            ],
        );
    }

    #[test]
    fn other_bytes_are_refused() {
        let refused = |bytes: &[u8]| {
            Decoder::default().next(&mut BytesMut::from(bytes)).expect_err("refused")
        };
        let protocol = |what| RespError::Protocol { what };
        assert_eq!(
            refused(b"HTTP/1.1 400 Bad Request\r\n"),
            protocol("a value of an unknown kind")
        );
        assert_eq!(refused(b"\r\n"), protocol("an empty line"));
        assert_eq!(refused(b":x\r\n"), protocol("not a number"));
        assert_eq!(refused(b"$-2\r\n"), protocol("a negative length"));
        assert_eq!(refused(b"$1\r\nabc"), protocol("a string goes on after its end"));
        assert_eq!(refused(&[b'+'; MAX_LINE_BYTES]), protocol("a line does not end"));
        assert_eq!(refused(&b"*1\r\n".repeat(MAX_DEPTH + 1)), protocol("arrays too deep"));
        assert_eq!(refused(b"$999999999999\r\n"), RespError::TooLarge);
        // Lengths that are promised cost nothing until they come.
        let promised = Decoder::default().next(&mut BytesMut::from(&b"*9999999999\r\n"[..]));
        assert_eq!(promised, Ok(None));
    }

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut out = Vec::new();
        command(&mut out, &[b"GET", b"a\r\n"]);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\n");
    }
}
