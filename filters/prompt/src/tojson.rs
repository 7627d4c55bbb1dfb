//! The `tojson` filter of transformers: `json.dumps(x, ensure_ascii=False, indent=None,
//! separators=None, sort_keys=False)`, without Jinja's HTML escapes.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

use crate::number::{OddFloat, float_repr};

/// Deeper values are refused. Client JSON has at most 128 levels, templates add a few.
const MAX_DEPTH: usize = 160;

struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter; positional arguments are in the order of transformers' function.
pub(crate) fn tojson(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let style = Style::parse(&args.into_values())?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

impl Style {
    fn parse(args: &[Value]) -> Result<Style, Error> {
        let (positional, kwargs): (&[Value], Kwargs) = from_args(args)?;
        let argument = |index: usize, name: &str| -> Result<Value, Error> {
            match positional.get(index) {
                Some(value) => Ok(value.clone()),
                None => Ok(kwargs.get::<Option<Value>>(name)?.unwrap_or_default()),
            }
        };
        let ensure_ascii = argument(0, "ensure_ascii")?.is_true();
        let indent = argument(1, "indent")?;
        let separators = argument(2, "separators")?;
        let sort_keys = argument(3, "sort_keys")?.is_true();
        kwargs.assert_all_used()?;

        let indent = match indent.kind() {
            ValueKind::Undefined | ValueKind::None => None,
            ValueKind::String => indent.as_str().map(str::to_owned),
            _ => {
                let width = indent.as_i64().filter(|width| *width <= 64);
                let width = width.ok_or_else(|| invalid("indent is not a small number"))?;
                Some(" ".repeat(usize::try_from(width).unwrap_or(0)))
            }
        };
        let (item_separator, key_separator) = match separators.kind() {
            ValueKind::Undefined | ValueKind::None if indent.is_some() => (",".into(), ": ".into()),
            ValueKind::Undefined | ValueKind::None => (", ".into(), ": ".into()),
            _ => {
                let pair: Vec<Value> = separators.try_iter()?.collect();
                match pair.as_slice() {
                    [item, key] => (item.to_string(), key.to_string()),
                    _ => return Err(invalid("separators is not a pair")),
                }
            }
        };
        Ok(Style { ensure_ascii, indent, item_separator, key_separator, sort_keys })
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.write_number(out, value)?,
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let mut sequence = self.open(out, '[', ']', depth);
                for item in value.try_iter()? {
                    sequence.next(out);
                    self.write(out, &item, depth + 1)?;
                }
                sequence.close(out);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let mut map = self.open(out, '{', '}', depth);
                for key in keys {
                    map.next(out);
                    self.write_key(out, &key)?;
                    out.push_str(&self.key_separator);
                    self.write(out, &value.get_item(&key)?, depth + 1)?;
                }
                map.close(out);
            }
            kind => {
                if let Some(OddFloat(value)) = value.downcast_object_ref() {
                    out.push_str(&float_repr(*value));
                    return Ok(());
                }
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("object of type {kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn write_number(&self, out: &mut String, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            let _ = write!(out, "{value}");
            return Ok(());
        }
        let text = float_repr(f64::try_from(value.clone())?);
        out.push_str(match text.as_str() {
            "nan" => "NaN",
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            text => text,
        });
        Ok(())
    }

    fn write_key(&self, out: &mut String, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.write_text(out, key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                out.push('"');
                self.write(out, key, 0)?;
                out.push('"');
            }
            _ => return Err(invalid("keys must be str, int, float, bool or None")),
        }
        Ok(())
    }

    fn write_text(&self, out: &mut String, text: &str) {
        out.push('"');
        let mut rest = text;
        while let Some(at) = rest.find(|c| self.is_escaped(c)) {
            let (plain, tail) = rest.split_at(at);
            out.push_str(plain);
            let mut chars = tail.chars();
            if let Some(c) = chars.next() {
                escape(out, c);
            }
            rest = chars.as_str();
        }
        out.push_str(rest);
        out.push('"');
    }

    fn is_escaped(&self, c: char) -> bool {
        matches!(c, '"' | '\\' | '\0'..='\x1f') || (self.ensure_ascii && c > '\x7e')
    }

    fn open<'s>(&'s self, out: &mut String, open: char, close: char, depth: usize) -> Items<'s> {
        out.push(open);
        Items { style: self, close, depth, empty: true }
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }
}

/// The items of one array or object being written.
struct Items<'s> {
    style: &'s Style,
    close: char,
    depth: usize,
    empty: bool,
}

impl Items<'_> {
    fn next(&mut self, out: &mut String) {
        if !self.empty {
            out.push_str(&self.style.item_separator);
        }
        self.empty = false;
        self.style.new_line(out, self.depth + 1);
    }

    fn close(self, out: &mut String) {
        if !self.empty {
            self.style.new_line(out, self.depth);
        }
        out.push(self.close);
    }
}

fn escape(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        c => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;
    use crate::json::Json;

    /// Renders `{{ x | tojson(args) }}`. The expectations are json.dumps of CPython 3.11.
    fn check(json: &str, args: &str, expected: &str) {
        let x = serde_json::from_str::<Json<'_>>(json).unwrap();
        let mut env = Environment::new();
        env.add_filter("tojson", tojson);
        let source = format!("{{{{ x | tojson({args}) }}}}");
        let context = Value::from_pairs([("x", x.to_value().unwrap())]);
        assert_eq!(env.render_str(&source, context).unwrap(), expected, "{args}");
    }

    #[test]
    fn defaults_are_pythons_without_ascii() {
        check(
            r#"{"b":1,"a":[true,false,null,1.0,-5,"x"]}"#,
            "",
            r#"{"b": 1, "a": [true, false, null, 1.0, -5, "x"]}"#,
        );
        check(
            r#""é<>&'\u2028\u007f\u0001\b\f\n\r\t\"\\/""#,
            "",
            "\"é<>&'\u{2028}\u{7f}\\u0001\\b\\f\\n\\r\\t\\\"\\\\/\"",
        );
        check("[[],{}]", "", "[[], {}]");
    }

    #[test]
    fn options_are_those_of_transformers() {
        check(r#"["é😀\u007f"]"#, "ensure_ascii=true", r#"["\u00e9\ud83d\ude00\u007f"]"#);
        check(r#"["é"]"#, "true", r#"["\u00e9"]"#);
        check(
            r#"{"b":[1,2],"a":{},"c":[]}"#,
            "indent=2",
            "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": {},\n  \"c\": []\n}",
        );
        check("[1,[2]]", "indent='\t'", "[\n\t1,\n\t[\n\t\t2\n\t]\n]");
        check("[1]", "indent=0", "[\n1\n]");
        check(r#"{"b":1,"a":2}"#, "separators=(',', ':')", r#"{"b":1,"a":2}"#);
        check(
            r#"{"b":1,"a":2}"#,
            "separators=[' ; ', '='], indent=1",
            "{\n \"b\"=1 ; \n \"a\"=2\n}",
        );
        check(r#"{"b":1,"B":3,"a":2}"#, "sort_keys=true", r#"{"B": 3, "a": 2, "b": 1}"#);
    }

    #[test]
    fn what_python_cannot_dump_is_an_error() {
        let mut env = Environment::new();
        env.add_filter("tojson", tojson);
        assert!(env.render_str("{{ nothing | tojson }}", ()).is_err());
        assert!(env.render_str("{{ 1 | tojson(bogus=1) }}", ()).is_err());
        assert_eq!(
            env.render_str("{{ {1: 2, none: 3} | tojson }}", ()).unwrap(),
            r#"{"1": 2, "null": 3}"#
        );
    }
}
