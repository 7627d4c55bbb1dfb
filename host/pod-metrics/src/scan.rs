//! The Prometheus text format, line by line: just enough to read a few known series out of a
//! page of several hundred.

use std::borrow::Cow;

/// Why a page cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Larger than [`MAX_PAGE_BYTES`](crate::MAX_PAGE_BYTES).
    #[error("page of {bytes} bytes exceeds {}", crate::MAX_PAGE_BYTES)]
    TooLarge {
        /// Size of the page.
        bytes: usize,
    },
    /// A series that matters is not written as the format wants it. Others are not looked at.
    #[error("malformed {part} in line {line}")]
    Line {
        /// Number of the line, from one.
        line: usize,
        /// What could not be read.
        part: &'static str,
    },
}

/// Name of the series of a line, and what follows it; `None` for comments and empty lines.
pub(crate) fn series(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches(BLANK);
    let end = line.find(|c| c == '{' || BLANK.contains(&c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    (!name.is_empty() && !name.starts_with('#')).then_some((name, rest))
}

const BLANK: &[char] = &[' ', '\t', '\r'];

/// Reads the labels at the start of `rest` into `label`, then the value. The timestamp and
/// whatever follows it are not looked at.
pub(crate) fn sample<'a>(
    rest: &'a str,
    mut label: impl FnMut(&'a str, Cow<'a, str>),
) -> Result<f64, &'static str> {
    let mut rest = rest.trim_start_matches(BLANK);
    if let Some(labels) = rest.strip_prefix('{') {
        rest = labels.trim_start_matches(BLANK);
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (name, after) = rest.split_once('=').ok_or("label")?;
            let after = after.trim_start_matches(BLANK).strip_prefix('"').ok_or("label value")?;
            let (value, after) = quoted(after).ok_or("label value")?;
            label(name.trim_matches(BLANK), value);
            rest = after.trim_start_matches(BLANK);
            if let Some(after) = rest.strip_prefix(',') {
                rest = after.trim_start_matches(BLANK);
            } else if !rest.starts_with('}') {
                return Err("label list");
            }
        }
    }
    let value = rest.split(BLANK).find(|word| !word.is_empty()).ok_or("value")?;
    value.parse().map_err(|_| "value")
}

/// The text up to the closing quote, and what follows the quote. A backslash stands before a
/// backslash, a quote and the `n` of a line feed; before anything else it is itself.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find(['"', '\\'])?;
    let (plain, rest) = text.split_at(end);
    if let Some(rest) = rest.strip_prefix('"') {
        return Some((Cow::Borrowed(plain), rest));
    }
    let mut value = plain.to_owned();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return Some((Cow::Owned(value), chars.as_str())),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Result<(&str, &str, f64), &'static str>) {
        let (name, rest) = series(line).expect("a series");
        let mut labels = Vec::new();
        let got = sample(rest, |name, value| labels.push(format!("{name}={value}")));
        assert_eq!(
            got.map(|value| (name.to_owned(), labels.join(";"), value)),
            expected.map(|(name, labels, value)| (name.to_owned(), labels.to_owned(), value)),
            "{line}"
        );
    }

    #[test]
    fn a_sample_is_name_labels_value() {
        check("a 1", Ok(("a", "", 1.0)));
        check("a{} 1.5", Ok(("a", "", 1.5)));
        check("  a\t2e3 1700000000", Ok(("a", "", 2000.0)));
        check("a:b{x=\"1\",y=\"2\"} 3\r", Ok(("a:b", "x=1;y=2", 3.0)));
        check("a{ x = \"1\" , y=\"2\", } 3", Ok(("a", "x=1;y=2", 3.0)));
        check("a{x=\"1\"} 3 # {id=\"7\"} 0.5", Ok(("a", "x=1", 3.0)));
    }

    #[test]
    fn label_values_may_hold_anything() {
        check(r#"a{x="{},=\"\\n",y="é\n"} 1"#, Ok(("a", "x={},=\"\\n;y=é\n", 1.0)));
        check(r#"a{x="\q\\"} 1"#, Ok(("a", "x=\\q\\", 1.0)));
    }

    #[test]
    fn malformed_samples_are_refused() {
        check("a", Err("value"));
        check("a x", Err("value"));
        check("a{x=\"1\"}", Err("value"));
        check("a{x=\"1} 1", Err("label value"));
        check("a{x=1} 1", Err("label value"));
        check("a{x} 1", Err("label"));
        check("a{x=\"1\" y=\"2\"} 1", Err("label list"));
        check("a{x=\"1\\", Err("label value"));
    }

    #[test]
    fn comments_and_empty_lines_are_no_series() {
        assert_eq!(["", "  ", "# HELP a b", "#", " # x", "\r"].map(series), [None; 6]);
    }
}
