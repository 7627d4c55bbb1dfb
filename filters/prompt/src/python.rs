//! Methods of Python's `str` where `minijinja_contrib::pycompat` has none or differs, and Python's
//! idea of white space. Everything else goes to pycompat.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::source::SLICE_METHOD;

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
    if method == SLICE_METHOD {
        return slice(value, args);
    }
    if let Some(text) = value.as_str()
        && let Some(result) = call_str_method(text, method, args)
    {
        return result;
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// `value[start:stop:step]` of a string, list or tuple; anything else cannot be sliced.
fn slice(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(args)?;
    if let Some(text) = value.as_str() {
        if text.is_ascii() {
            let bytes = text.as_bytes();
            if step.is_none_or(|step| step == 1) {
                let (start, stop) = forward(start, stop, bytes.len());
                return Ok(Value::from(text.get(start..stop.max(start)).unwrap_or_default()));
            }
            let picked = sliced(bytes, start, stop, step)?;
            return Ok(Value::from(picked.into_iter().map(char::from).collect::<String>()));
        }
        let chars: Vec<char> = text.chars().collect();
        let picked = sliced(&chars, start, stop, step)?;
        return Ok(Value::from(picked.into_iter().collect::<String>()));
    }
    if value.kind() != ValueKind::Seq && value.kind() != ValueKind::Iterable {
        return Err(Error::new(ErrorKind::InvalidOperation, "value cannot be sliced"));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let picked = sliced(&items, start, stop, step)?;
    Ok(if value.is_tuple() { Value::from(Tuple::from(picked)) } else { Value::from(picked) })
}

/// Where a slice with step 1 starts and stops.
fn forward(start: Option<i64>, stop: Option<i64>, len: usize) -> (usize, usize) {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let at = |index: i64| {
        let index = if index < 0 { index.saturating_add(len) } else { index };
        usize::try_from(index.clamp(0, len)).unwrap_or(0)
    };
    (start.map_or(0, at), at(stop.unwrap_or(len)))
}

/// CPython's `PySlice_AdjustIndices`.
fn sliced<T: Clone>(
    items: &[T],
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Vec<T>, Error> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "slice step cannot be zero"));
    }
    let len = i64::try_from(items.len()).unwrap_or(i64::MAX);
    // The first and the last place from which a slice in this direction can take.
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let at = |index: i64| {
        let index = if index < 0 { index.saturating_add(len) } else { index };
        index.clamp(low, high)
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let mut index = start.map_or(first, at);
    let stop = stop.map_or(last, at);
    let mut picked = Vec::new();
    while (step > 0 && index < stop) || (step < 0 && index > stop) {
        picked.extend(usize::try_from(index).ok().and_then(|at| items.get(at)).cloned());
        index = index.saturating_add(step);
    }
    Ok(picked)
}

/// Jinja's `trim` filter: `str(value).strip(chars)`.
fn trim(value: &Value, chars: Option<&str>) -> String {
    let text = value.to_string();
    match chars {
        None => strip(&text).to_owned(),
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
    }
}

/// Jinja's `default` filter, whose second argument has a name.
fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (positional, kwargs): (&[Value], Kwargs) = from_args(&args)?;
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        match positional.get(index) {
            Some(value) => Ok(Some(value.clone())),
            None => kwargs.get::<Option<Value>>(name),
        }
    };
    let fallback = argument(0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let falsy_too = argument(1, "boolean")?.is_some_and(|flag| flag.is_true());
    kwargs.assert_all_used()?;
    let is_missing = value.is_undefined() || (falsy_too && !value.is_true());
    Ok(if is_missing { fallback } else { value.clone() })
}

/// `text.title()`: a letter behind another is lower, any other is upper.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_behind = false;
    for c in text.chars() {
        if is_behind {
            out.extend(c.to_lowercase());
        } else {
            push_title_case(&mut out, c);
        }
        is_behind = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// A letter that stands for several makes the first of them upper (`ß` is `Ss`).
fn push_title_case(out: &mut String, c: char) {
    let mut upper = c.to_uppercase();
    out.extend(upper.next());
    out.extend(upper.flat_map(char::to_lowercase));
}

/// `text.capitalize()`
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::with_capacity(text.len());
    if let Some(first) = chars.next() {
        push_title_case(&mut out, first);
    }
    out.push_str(&chars.as_str().to_lowercase());
    out
}

/// Jinja's `escape` filter, which is markupsafe's.
fn escape(value: &Value) -> String {
    let text = value.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Adds the filters that minijinja does not have or applies otherwise than Jinja.
pub(crate) fn add_filters(env: &mut Environment<'_>) {
    env.add_filter("trim", trim);
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_filter("capitalize", |value: &Value| capitalize(&value.to_string()));
}

/// Adds the tests that minijinja answers otherwise than Jinja.
pub(crate) fn add_tests(env: &mut Environment<'_>) {
    // `iter(value)` succeeds; Undefined has an empty iterator.
    env.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Undefined
                | ValueKind::String
                | ValueKind::Seq
                | ValueKind::Map
                | ValueKind::Iterable
        )
    });
    // `len(value)` and `value.__getitem__` are there.
    env.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map
        )
    });
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
        "title" => from_args::<()>(args).map(|()| Value::from(title(text))),
        "capitalize" => from_args::<()>(args).map(|()| Value::from(capitalize(text))),
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
    use super::*;

    /// Evaluates an expression over `s`. The expectations are CPython 3.11's.
    fn check(s: &str, expression: &str, expected: &str) {
        let mut env = Environment::new();
        env.set_unknown_method_callback(call_method);
        add_filters(&mut env);
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
    fn slices() {
        let slice = |s: &str, arguments: &str, expected: &str| {
            check(s, &format!("s.__slice__({arguments})"), expected);
            check(s, &format!("(s | list).__slice__({arguments}) | join"), expected);
        };
        slice("abcdef", "none, none", "\"abcdef\"");
        slice("abcdef", "1, 3", "\"bc\"");
        slice("abcdef", "-2, none", "\"ef\"");
        slice("abcdef", "4, 2", "\"\"");
        slice("abcdef", "-99, 99", "\"abcdef\"");
        slice("abcdef", "none, none, 4", "\"ae\"");
        slice("abcdef", "none, none, -1", "\"fedcba\"");
        slice("abcdef", "3, 0, -1", "\"dcb\"");
        slice("abcdef", "3, none, -2", "\"db\"");
        slice("abcdef", "99, -99, -2", "\"fdb\"");
        slice("", "none, none, -1", "\"\"");
        slice("", "1, -1, 2", "\"\"");
        slice("a\u{e9}b\u{1f600}", "1, none", "\"\u{e9}b\u{1f600}\"");
        slice("a\u{e9}b", "none, none, -1", "\"b\u{e9}a\"");
        check("", "(1, 2, 3).__slice__(1, none) | string", "\"(2, 3)\"");
        let env = {
            let mut env = Environment::new();
            env.set_unknown_method_callback(call_method);
            env
        };
        for bad in ["none", "missing", "1", "{}"] {
            let source = format!("{{{{ ({bad}).__slice__(0, 1) }}}}");
            assert!(env.render_str(&source, ()).is_err(), "{bad}");
        }
        assert!(env.render_str("{{ 'a'.__slice__(0, 1, 0) }}", ()).is_err());
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
        check("```they're a1b \u{e9}T", "s.title()", "\"```They'Re A1B \u{c9}t\"");
        check("\u{df}A", "s.capitalize()", "\"Ssa\"");
        check("\u{df}A", "s | capitalize", "\"Ssa\"");
        check("<&>'\"", "s | e", "\"&lt;&amp;&gt;&#39;&#34;\"");
        check("", "s | default('d', boolean=true)", "\"d\"");
        check("", "s | default('d')", "\"\"");
        check("", "missing | default(default_value=1)", "1");
    }
}
