//! Where the fields of a JSON object stand. Nothing is decoded or allocated, and the module stays a
//! third of the size it has with a JSON library.

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 128;

/// A field of an object.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    /// The bytes between its quotes, as written: an escape is not resolved.
    pub(crate) key: &'a [u8],
    /// Where its value starts.
    pub(crate) at: usize,
    /// Its value as written.
    pub(crate) value: &'a [u8],
}

/// Visits the fields of the object that starts at `at`, and returns where it ends. `None` if it is
/// no object or does not end; then some fields may have been visited.
pub(crate) fn object<'a>(
    bytes: &'a [u8],
    at: usize,
    mut visit: impl FnMut(Field<'a>),
) -> Option<usize> {
    let mut at = skip_blanks(bytes, expect(bytes, at, b'{')?);
    if bytes.get(at) == Some(&b'}') {
        return Some(at + 1);
    }
    loop {
        let (key, start) = key(bytes, at)?;
        let end = value_end(bytes, start)?;
        visit(Field { key, at: start, value: bytes.get(start..end)? });
        at = skip_blanks(bytes, end);
        match bytes.get(at)? {
            b',' => at = skip_blanks(bytes, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Whether `bytes` are one object and nothing else but blanks; its fields are visited.
pub(crate) fn whole_object<'a>(bytes: &'a [u8], visit: impl FnMut(Field<'a>)) -> Option<()> {
    let end = object(bytes, skip_blanks(bytes, 0), visit)?;
    (skip_blanks(bytes, end) == bytes.len()).then_some(())
}

/// The first byte at or behind `at` that is no blank.
pub(crate) fn skip_blanks(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| b" \t\r\n".contains(byte)).count()
}

/// A value that is a whole number.
pub(crate) fn number(value: &[u8]) -> Option<u64> {
    let is_digits = value.first()?.is_ascii_digit();
    std::str::from_utf8(value).ok().filter(|_| is_digits)?.parse().ok()
}

fn expect(bytes: &[u8], at: usize, expected: u8) -> Option<usize> {
    (bytes.get(at) == Some(&expected)).then_some(at + 1)
}

/// The key at `at`, and where its value starts.
fn key(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = string_end(bytes, at)?;
    let key = bytes.get(at + 1..end - 1)?;
    let colon = expect(bytes, skip_blanks(bytes, end), b':')?;
    Some((key, skip_blanks(bytes, colon)))
}

/// Behind the closing quote of the string at `at`.
fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = expect(bytes, at, b'"')?;
    loop {
        let rest = bytes.get(at..)?;
        at += rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))? + 1;
        if bytes.get(at - 1) == Some(&b'"') {
            return Some(at);
        }
        // What is escaped is passed over, a quote too.
        at += 1;
    }
}

/// Behind the value at `at`.
fn value_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    // Closing brackets of what is open.
    let mut open: Vec<u8> = Vec::new();
    loop {
        at = skip_blanks(bytes, at);
        let close = match bytes.get(at)? {
            b'{' => b'}',
            b'[' => b']',
            b'"' => {
                at = string_end(bytes, at)?;
                0
            }
            _ => {
                at = scalar_end(bytes, at)?;
                0
            }
        };
        if close != 0 {
            at = skip_blanks(bytes, at + 1);
            if bytes.get(at) == Some(&close) {
                at += 1;
            } else if open.len() >= MAX_DEPTH {
                return None;
            } else {
                open.push(close);
                if close == b'}' {
                    at = key(bytes, at)?.1;
                }
                continue;
            }
        }
        // A value has ended: so may those around it.
        loop {
            let Some(close) = open.last().copied() else { return Some(at) };
            at = skip_blanks(bytes, at);
            let next = *bytes.get(at)?;
            at += 1;
            if next == close {
                open.pop();
            } else if next == b',' {
                if close == b'}' {
                    at = key(bytes, skip_blanks(bytes, at))?.1;
                }
                break;
            } else {
                return None;
            }
        }
    }
}

/// Behind the number or word at `at`.
fn scalar_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let words: [&[u8]; 3] = [b"true", b"false", b"null"];
    if let Some(word) = words.iter().find(|word| rest.starts_with(word)) {
        return Some(at + word.len());
    }
    let is_part = |byte: &&u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let len = rest.iter().take_while(is_part).count();
    let is_number = rest.first().is_some_and(|first| first.is_ascii_digit() || *first == b'-');
    is_number.then_some(at + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            "[\\\\\"{}\\[\\],: \\PC]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map("[a-z\\\\\"{}:,]{0,6}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Against serde_json, which the module is too small for.
        #[test]
        fn fields_stand_where_a_parser_finds_them(value in any_json(), pretty: bool, rest in "[ \n]{0,3}") {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap() + &rest;
            let mut fields = Vec::new();
            let is_object = whole_object(text.as_bytes(), |field| {
                assert_eq!(&text.as_bytes()[field.at..][..field.value.len()], field.value);
                let key = format!("\"{}\"", std::str::from_utf8(field.key).unwrap());
                let key: String = serde_json::from_str(&key).unwrap();
                fields.push((key, serde_json::from_slice::<Value>(field.value).unwrap()));
            });
            prop_assert_eq!(is_object.is_some(), value.is_object());
            if let Value::Object(map) = value {
                let mut expected: Vec<_> = map.into_iter().collect();
                expected.sort_by(|a, b| a.0.cmp(&b.0));
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                let texts = |list: &[(String, Value)]| list.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>();
                prop_assert_eq!(texts(&fields), texts(&expected));
            }
        }

        #[test]
        fn what_is_cut_is_no_object(value in any_json(), at in any::<prop::sample::Index>()) {
            let text = serde_json::json!({"a": value}).to_string();
            let cut = &text.as_bytes()[..at.index(text.len())];
            let found = whole_object(cut, |_| {});
            prop_assert!(found.is_none());
        }

        #[test]
        fn any_bytes_never_panic(bytes in "[\\[\\]{}\",:\\\\a1 ]{0,40}") {
            let _ = whole_object(format!("{{{bytes}").as_bytes(), |_| {});
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(whole_object(nested(MAX_DEPTH).as_bytes(), |_| {}).is_some());
        assert!(whole_object(nested(MAX_DEPTH + 2).as_bytes(), |_| {}).is_none());
        assert!(whole_object(&b"{\"a\":[".repeat(100_000), |_| {}).is_none());
    }

    #[test]
    fn numbers_are_whole() {
        for (text, expected) in [
            ("0", Some(0)),
            ("123", Some(123)),
            ("-1", None),
            ("+1", None),
            ("1.0", None),
            ("", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(number(b"18446744073709551616"), None);
    }
}
