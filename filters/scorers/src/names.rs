//! Names that parameters hold.

use routing::OutOfRange;

/// Whether a header can have this name (RFC 9110 5.1: a token).
pub(crate) fn header_name(key: &'static str, name: &str) -> Result<(), OutOfRange> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let is_name = (1..=128).contains(&name.len()) && name.bytes().all(is_token);
    refuse_unless(is_name, key, name, "the name of a header, 1 to 128 characters")
}

/// Whether a label can have this name.
pub(crate) fn label_name(key: &'static str, name: &str) -> Result<(), OutOfRange> {
    refuse_unless(is_plain(name), key, name, "the name of a label, 1 to 253 characters")
}

/// Whether an attribute can have this name.
pub(crate) fn attribute_name(key: &'static str, name: &str) -> Result<(), OutOfRange> {
    refuse_unless(is_plain(name), key, name, "the name of an attribute, 1 to 253 characters")
}

/// Refuses a parameter.
pub(crate) fn refuse_unless(
    is_accepted: bool,
    key: &'static str,
    value: &str,
    accepted: &str,
) -> Result<(), OutOfRange> {
    if is_accepted {
        return Ok(());
    }
    Err(OutOfRange { key, value: format!("{value:?}"), accepted: accepted.to_owned() })
}

fn is_plain(name: &str) -> bool {
    (1..=253).contains(&name.len()) && !name.contains(char::is_control)
}
