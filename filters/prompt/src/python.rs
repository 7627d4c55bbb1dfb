//! Methods of Python's `str` where `minijinja_contrib::pycompat` has none or differs, and Python's
//! idea of white space. Everything else goes to pycompat.

use minijinja::value::{Kwargs, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// What `str.isspace` accepts: Unicode white space and the four ASCII separators.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// `text.strip()`
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.rstrip()`
pub(crate) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Called for every method that is no attribute of its object.
pub(crate) fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = call_str_method(text, method, args)
    {
        return result;
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// Jinja's `trim` filter: `str(value).strip(chars)`.
pub(crate) fn trim(value: &Value, chars: Option<&str>) -> String {
    let text = value.to_string();
    match chars {
        None => strip(&text).to_owned(),
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
    }
}

fn call_str_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "strip" => stripped(args, |set| text.trim_matches(set)),
        "lstrip" => stripped(args, |set| text.trim_start_matches(set)),
        "rstrip" => stripped(args, |set| text.trim_end_matches(set)),
        "split" => split_args(args).and_then(|(sep, max)| match sep {
            None => Ok(split_space(text, max)),
            Some(sep) if sep.is_empty() => Err(empty_separator()),
            Some(sep) => Ok(match max {
                None => text.split(&sep).map(Value::from).collect(),
                Some(max) => text.splitn(max.saturating_add(1), &sep).map(Value::from).collect(),
            }),
        }),
        "rsplit" => split_args(args).and_then(|(sep, max)| {
            let mut parts: Vec<Value> = match (sep, max) {
                (None, max) => rsplit_space(text, max),
                (Some(sep), _) if sep.is_empty() => return Err(empty_separator()),
                (Some(sep), None) => text.rsplit(&sep).map(Value::from).collect(),
                (Some(sep), Some(max)) => {
                    text.rsplitn(max.saturating_add(1), &sep).map(Value::from).collect()
                }
            };
            parts.reverse();
            Ok(Value::from(parts))
        }),
        "splitlines" => split_lines(text, args),
        "partition" => partition(args, |sep| text.split_once(sep), (text, "")),
        "rpartition" => partition(args, |sep| text.rsplit_once(sep), ("", text)),
        "removeprefix" => from_args::<(&str,)>(args)
            .map(|(prefix,)| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => from_args::<(&str,)>(args)
            .map(|(suffix,)| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "isspace" => from_args::<()>(args)
            .map(|()| Value::from(!text.is_empty() && text.chars().all(is_space))),
        _ => return None,
    })
}

fn stripped<'t>(
    args: &[Value],
    strip: impl FnOnce(&dyn Fn(char) -> bool) -> &'t str,
) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    Ok(Value::from(match chars {
        None => strip(&is_space),
        Some(chars) => strip(&|c| chars.contains(c)),
    }))
}

/// `sep=None, maxsplit=-1`, both positional or by name.
fn split_args(args: &[Value]) -> Result<(Option<String>, Option<usize>), Error> {
    let (positional, kwargs): (&[Value], Kwargs) = from_args(args)?;
    let argument = |index: usize, name: &str| -> Result<Value, Error> {
        match positional.get(index) {
            Some(value) => Ok(value.clone()),
            None => Ok(kwargs.get::<Option<Value>>(name)?.unwrap_or_default()),
        }
    };
    let (sep, max) = (argument(0, "sep")?, argument(1, "maxsplit")?);
    kwargs.assert_all_used()?;
    let is_default = |value: &Value| value.is_none() || value.is_undefined();
    let sep = match sep.as_str() {
        Some(sep) => Some(sep.to_owned()),
        None if is_default(&sep) => None,
        None => return Err(Error::new(ErrorKind::InvalidOperation, "sep is not a string")),
    };
    let max = if is_default(&max) { None } else { usize::try_from(i64::try_from(max)?).ok() };
    Ok((sep, max))
}

fn empty_separator() -> Error {
    Error::new(ErrorKind::InvalidOperation, "empty separator")
}

fn split_space(text: &str, max: Option<usize>) -> Value {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if max.is_some_and(|max| parts.len() >= max) {
            parts.push(Value::from(rest));
            break;
        }
        let (word, tail) = rest.split_at(rest.find(is_space).unwrap_or(rest.len()));
        parts.push(Value::from(word));
        rest = tail.trim_start_matches(is_space);
    }
    Value::from(parts)
}

/// The parts from the last to the first.
fn rsplit_space(text: &str, max: Option<usize>) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = rstrip(text);
    while !rest.is_empty() {
        if max.is_some_and(|max| parts.len() >= max) {
            parts.push(Value::from(rest));
            break;
        }
        let head = rest.trim_end_matches(|c| !is_space(c));
        let word = rest.get(head.len()..).unwrap_or_default();
        parts.push(Value::from(word));
        rest = rstrip(head);
    }
    parts
}

fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (positional, kwargs): (&[Value], Kwargs) = from_args(args)?;
    let keep_ends = match positional.first() {
        Some(value) => value.is_true(),
        None => kwargs.get::<Option<bool>>("keepends")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
        let after = match tail.strip_prefix("\r\n") {
            Some(after) => after,
            None => {
                let mut chars = tail.chars();
                chars.next();
                chars.as_str()
            }
        };
        let with_end = rest.get(..rest.len() - after.len()).unwrap_or(line);
        lines.push(Value::from(if keep_ends { with_end } else { line }));
        rest = after;
    }
    Ok(Value::from(lines))
}

fn partition<'t>(
    args: &[Value],
    split: impl FnOnce(&str) -> Option<(&'t str, &'t str)>,
    whole: (&'t str, &'t str),
) -> Result<Value, Error> {
    let (sep,): (&str,) = from_args(args)?;
    if sep.is_empty() {
        return Err(empty_separator());
    }
    let parts = match split(sep) {
        Some((head, tail)) => [head, sep, tail],
        None => [whole.0, "", whole.1],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    /// Evaluates an expression over `s`. The expectations are CPython 3.11's.
    fn check(s: &str, expression: &str, expected: &str) {
        let mut env = Environment::new();
        env.set_unknown_method_callback(call_method);
        env.add_filter("trim", trim);
        env.add_filter("tojson", crate::tojson::tojson);
        let source = format!("{{{{ ({expression}) | tojson }}}}");
        let context = Value::from_pairs([("s", s)]);
        assert_eq!(env.render_str(&source, context).unwrap(), expected, "{expression}");
    }

    #[test]
    fn strip_knows_pythons_white_space() {
        check("\x1c a\u{a0}\u{85}", "s.strip()", "\"a\"");
        check("\x1c a\u{a0}", "s|trim", "\"a\"");
        check("\x1fa\x1f", "s.lstrip()", "\"a\\u001f\"");
        check("a\x1f", "s.rstrip()", "\"a\"");
        check("\u{200b}a", "s.strip()", "\"\u{200b}a\"");
        check("xyaxy", "s.strip('yx')", "\"a\"");
        check("xyaxy", "s|trim('x')", "\"yaxy\"");
    }

    #[test]
    fn split_and_rsplit() {
        check(" a  b c ", "s.split()", r#"["a", "b", "c"]"#);
        check(" a  b c ", "s.split(none, 1)", r#"["a", "b c "]"#);
        check(" a  b c ", "s.split(maxsplit=1)", r#"["a", "b c "]"#);
        check(" a  b c ", "s.rsplit(none, 1)", r#"[" a  b", "c"]"#);
        check("a,b,,c", "s.split(',')", r#"["a", "b", "", "c"]"#);
        check("a,b,,c", "s.split(',', 1)", r#"["a", "b,,c"]"#);
        check("a,b,,c", "s.split(sep=',', maxsplit=-1)", r#"["a", "b", "", "c"]"#);
        check("a,b,,c", "s.rsplit(',', 1)", r#"["a,b,", "c"]"#);
        check("a,b", "s.split(',')[-1]", "\"b\"");
        check("", "s.split()", "[]");
        check("", "s.split(',')", r#"[""]"#);
    }

    #[test]
    fn lines_prefixes_and_partitions() {
        check("a\r\nb\x0bc\r\rd\n", "s.splitlines()", r#"["a", "b", "c", "", "d"]"#);
        check("a\r\nb\n", "s.splitlines(true)", r#"["a\r\n", "b\n"]"#);
        check("a\n", "s.splitlines(keepends=true)", r#"["a\n"]"#);
        check("a=b=c", "s.partition('=')", r#"["a", "=", "b=c"]"#);
        check("a=b=c", "s.rpartition('=')", r#"["a=b", "=", "c"]"#);
        check("a", "s.partition('=')", r#"["a", "", ""]"#);
        check("a", "s.rpartition('=')", r#"["", "", "a"]"#);
        check("abab", "s.removeprefix('ab')", "\"ab\"");
        check("abab", "s.removesuffix('x')", "\"abab\"");
        check("\x1c", "s.isspace()", "true");
        check("abc", "s.upper()", "\"ABC\"");
    }
}
