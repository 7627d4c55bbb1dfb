//! A template's source made ready for minijinja: what Jinja and transformers' extensions read
//! otherwise is rewritten to what renders the same.

/// The method that slices are rewritten to; `python::call_method` answers it.
pub(crate) const SLICE_METHOD: &str = "__slice__";

/// The source as [`crate::template`] compiles it.
pub(crate) fn for_minijinja(source: &str) -> String {
    with_slice_calls(&without_generation_tags(&unix_newlines(source)))
}

/// The same without transformers' `{% generation %}`, which plain Jinja does not know.
pub(crate) fn for_plain_jinja(source: &str) -> String {
    with_slice_calls(&unix_newlines(source))
}

/// Jinja reads every kind of line end in a template as `\n`.
fn unix_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Replaces transformers' `{% generation %}` blocks, which mark what the assistant wrote and
/// render as their body, by blocks with the same scope and the same white-space control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |at| at + "%}".len());
        let (tag, after) = tag.split_at(end);
        let inside = tag.trim_start_matches("{%").trim_end_matches("%}");
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replacen(word, "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Replaces `x[a:b:c]` by a method call: minijinja panics at `''[::-1]`, takes `[3:0:-1]` for
/// `[3::-1]`, and slices values that are undefined.
fn with_slice_calls(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) =
        rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min()
    {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        if let Some(end) = raw_end(tag) {
            let (raw, after) = tag.split_at(end);
            out.push_str(raw);
            rest = after;
            continue;
        }
        let close = match tag.get(..2) {
            Some("{{") => "}}",
            Some("{%") => "%}",
            _ => "#}",
        };
        let (tag, after) = tag.split_at(end_of_tag(tag, close));
        let inside = tag.get(2..).and_then(|inside| inside.strip_suffix(close));
        match inside {
            Some(inside) if close != "#}" => {
                out.push_str(tag.get(..2).unwrap_or_default());
                push_expression(inside, &mut out);
                out.push_str(close);
            }
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Behind `{% raw %}...{% endraw %}`, if `tag` starts with it.
fn raw_end(tag: &str) -> Option<usize> {
    let inside = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
    let after_word = inside.strip_prefix("raw")?;
    after_word.starts_with([' ', '-', '%']).then_some(())?;
    let end = tag.find("endraw")?;
    Some(end + tag.get(end..)?.find("%}")? + "%}".len())
}

/// Where the tag ends that `text` starts with; a close inside quotes does not count.
fn end_of_tag(text: &str, close: &str) -> usize {
    if close == "#}" {
        return text.find(close).map_or(text.len(), |at| at + close.len());
    }
    let mut scan = Scan::default();
    for (at, c) in text.char_indices() {
        let is_close =
            scan.is_plain() && text.get(at..).is_some_and(|rest| rest.starts_with(close));
        // A dictionary may end right before the close.
        if is_close && scan.braces == 0 && at >= 2 {
            return at + close.len();
        }
        if at >= 2 {
            scan.step(c);
        }
    }
    text.len()
}

/// Whether a character is inside quotes, and how many braces are open.
#[derive(Default)]
struct Scan {
    quote: Option<char>,
    is_escaped: bool,
    braces: usize,
}

impl Scan {
    fn is_plain(&self) -> bool {
        self.quote.is_none()
    }

    fn step(&mut self, c: char) {
        match self.quote {
            Some(_) if self.is_escaped => self.is_escaped = false,
            Some(_) if c == '\\' => self.is_escaped = true,
            Some(open) if c == open => self.quote = None,
            Some(_) => {}
            None => match c {
                '\'' | '"' => self.quote = Some(c),
                '{' => self.braces += 1,
                '}' => self.braces = self.braces.saturating_sub(1),
                _ => {}
            },
        }
    }
}

/// Writes an expression with its slices replaced, inner ones too: those in an open bracket wait
/// on a stack, of which each entry is what stands between two brackets or colons.
fn push_expression(text: &str, out: &mut String) {
    struct Open {
        kind: char,
        parts: Vec<String>,
    }
    let mut stack: Vec<Open> = Vec::new();
    let mut scan = Scan::default();
    fn last<'s>(stack: &'s mut [Open], out: &'s mut String) -> &'s mut String {
        stack.last_mut().and_then(|open| open.parts.last_mut()).unwrap_or(out)
    }
    for c in text.chars() {
        let is_plain = scan.is_plain();
        scan.step(c);
        let kind = stack.last().map(|open| open.kind);
        match c {
            _ if !is_plain => last(&mut stack, out).push(c),
            '(' | '[' | '{' => {
                stack.push(Open { kind: c, parts: vec![String::new()] });
            }
            ':' if kind == Some('[') => {
                if let Some(open) = stack.last_mut() {
                    open.parts.push(String::new());
                }
            }
            ')' | ']' | '}' if kind == opening(c) => {
                let Some(open) = stack.pop() else { continue };
                let target = last(&mut stack, out);
                if let [only] = open.parts.as_slice() {
                    target.push(open.kind);
                    target.push_str(only);
                    target.push(c);
                } else {
                    push_slice(&open.parts, target);
                }
            }
            c => last(&mut stack, out).push(c),
        }
    }
    // A bracket that is never closed is the parser's to complain about.
    let mut unclosed = String::new();
    for open in stack {
        unclosed.push(open.kind);
        unclosed.push_str(&open.parts.join(":"));
    }
    out.push_str(&unclosed);
}

fn opening(close: char) -> Option<char> {
    match close {
        ')' => Some('('),
        ']' => Some('['),
        '}' => Some('{'),
        _ => None,
    }
}

fn push_slice(parts: &[String], out: &mut String) {
    out.push('.');
    out.push_str(SLICE_METHOD);
    out.push('(');
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        let part = part.trim();
        out.push_str(if part.is_empty() { "none" } else { part });
    }
    out.push(')');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_become_calls_and_nothing_else_does() {
        let check = |source: &str, expected: &str| {
            assert_eq!(with_slice_calls(source), expected);
        };
        let same = |source: &str| check(source, source);
        check("{{ x[1:] }}", "{{ x.__slice__(1, none) }}");
        check("{%- for m in ms[::-1] %}", "{%- for m in ms.__slice__(none, none, -1) %}");
        check(
            "{{ x['a[1:]'][:n[1:][0] + 1] }}",
            "{{ x['a[1:]'].__slice__(none, n.__slice__(1, none)[0] + 1) }}",
        );
        check("{{ f({'a': b[:2]}) }}", "{{ f({'a': b.__slice__(none, 2)}) }}");
        check(
            "{{ {'a': [1, {'b': 2}]}['a'][0:1] }}",
            "{{ {'a': [1, {'b': 2}]}['a'].__slice__(0, 1) }}",
        );
        check("{{ '}}' ~ x[:1] }}", "{{ '}}' ~ x.__slice__(none, 1) }}");
        check("{{ '\\'' ~ x[:1] }}", "{{ '\\'' ~ x.__slice__(none, 1) }}");
        same("a[1:2] {# {{ x[1:2] }} #} {{ x[0] }}");
        same("{% raw %}{{ x[1:2] }}{% endraw %}");
        same("{{ {'a': 1} }}{% set x = [1, 2] %}");
        same("{{ x[1:2");
        same("{% if %}");
        same("{{ ) ] } }}");
    }
}
