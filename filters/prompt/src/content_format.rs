//! Whether a template wants message contents as strings or as lists of parts.
//!
//! vLLM decides on Jinja's syntax tree (`renderers/hf.py`, `_detect_content_format`): a template
//! with a loop over `message.content` wants parts ("openai"), any other a string. `message` is the
//! variable of a loop over `messages`, or over a variable or namespace member assigned from it; a
//! macro's parameter that is given `message.content`, and a variable called `content`, count as
//! such contents. minijinja's tree is not public, so the same rules run here on the text of the
//! tags. They differ from vLLM's only for tags with a quoted `%}`.

/// The form of `message.content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentFormat {
    /// Text parts are joined.
    String,
    /// A list of `{"type": "text", "text": ...}`.
    OpenAi,
}

/// The format `template` wants.
pub(crate) fn detect(template: &str) -> ContentFormat {
    let template = without_comments(template);
    let template = template.as_str();
    let source = Source::read(template);
    let lists = source.message_lists();
    let mut messages = Vec::new();
    for found in &source.loops {
        if lists.iter().any(|name| accesses(found.iterated, name, None)) {
            if !is_name(found.target) {
                // vLLM's search ends with an exception.
                return ContentFormat::String;
            }
            messages.push(found.target);
        }
    }
    let is_content =
        |value: &str| messages.iter().any(|name| accesses(value, name, Some("content")));
    for found in &source.loops {
        let over_parts = is_content(found.iterated)
            || match found.in_macro.and_then(|at| source.macros.get(at)) {
                None => found.iterated == "content",
                Some(defined) => {
                    is_name(found.iterated)
                        && defined.is_given(found.iterated, template, is_content)
                }
            };
        if over_parts {
            let is_plain = is_name(found.target);
            return if is_plain { ContentFormat::OpenAi } else { ContentFormat::String };
        }
    }
    ContentFormat::String
}

/// What of a template matters here.
#[derive(Default)]
struct Source<'t> {
    assignments: Vec<(&'t str, &'t str)>,
    loops: Vec<Loop<'t>>,
    macros: Vec<Macro<'t>>,
}

struct Loop<'t> {
    target: &'t str,
    iterated: &'t str,
    /// Index of the innermost macro around it.
    in_macro: Option<usize>,
}

struct Macro<'t> {
    name: &'t str,
    parameters: Vec<&'t str>,
}

impl<'t> Source<'t> {
    fn read(template: &'t str) -> Source<'t> {
        let mut source = Source::default();
        let mut open_macros = Vec::new();
        for tag in tags(template) {
            if let Some(rest) = keyword(tag, "set")
                && let Some((target, value)) = rest.split_once('=')
            {
                source.assignments.push((target.trim(), value.trim()));
            } else if let Some(rest) = keyword(tag, "for")
                && let Some((target, iterated)) = rest.split_once(" in ")
            {
                let end = [" if ", " recursive"];
                let end = end.iter().filter_map(|word| iterated.find(word)).min();
                let iterated = iterated.get(..end.unwrap_or(iterated.len())).unwrap_or_default();
                source.loops.push(Loop {
                    target: target.trim(),
                    iterated: without_parentheses(iterated.trim()),
                    in_macro: open_macros.last().copied(),
                });
            } else if let Some(rest) = keyword(tag, "macro") {
                let (name, after) = rest.trim_start().split_at(name_end(rest.trim_start()));
                let inside =
                    bracketed(after.trim_start(), '(', ')').map_or("", |(inside, _)| inside);
                let parameters = arguments(inside).map(|(key, value)| key.unwrap_or(value));
                open_macros.push(source.macros.len());
                source.macros.push(Macro { name, parameters: parameters.collect() });
            } else if tag.starts_with("endmacro") {
                open_macros.pop();
            }
        }
        source
    }

    /// `messages` and what is assigned from it, breadth first; each name is looked at once.
    fn message_lists(&self) -> Vec<String> {
        let mut lists = vec!["messages".to_owned()];
        let mut next = 0;
        while let Some(name) = lists.get(next).cloned() {
            next += 1;
            for &(target, value) in &self.assignments {
                let mut found = Vec::new();
                if accesses(value, &name, None) {
                    found.push(target.to_owned());
                } else if let Some(rest) = value.strip_prefix("namespace")
                    && let Some((inside, _)) = bracketed(rest.trim_start(), '(', ')')
                {
                    let members = arguments(inside).filter_map(|(key, value)| {
                        accesses(value, &name, None).then_some(key).flatten()
                    });
                    found.extend(members.map(|member| format!("{target}.{member}")));
                }
                for alias in found {
                    let is_alias = alias.split('.').all(is_name);
                    if is_alias && !lists.contains(&alias) {
                        lists.push(alias);
                    }
                }
            }
        }
        lists
    }
}

impl Macro<'_> {
    /// Whether some call of the macro gives `parameter` a value that `is_content`.
    fn is_given(&self, parameter: &str, template: &str, is_content: impl Fn(&str) -> bool) -> bool {
        let Some(position) = self.parameters.iter().position(|name| *name == parameter) else {
            return false;
        };
        template.match_indices(self.name).any(|(at, name)| {
            let (before, after) = (template.get(..at), template.get(at + name.len()..));
            let is_inside = before.is_some_and(|b| {
                b.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.')
            });
            let call = after.and_then(|after| bracketed(after.trim_start(), '(', ')'));
            let Some((inside, _)) = call.filter(|_| !is_inside) else { return false };
            arguments(inside).enumerate().any(|(index, (key, value))| {
                let is_this = match key {
                    Some(key) => key == parameter,
                    None => index == position,
                };
                is_this && is_content(value)
            })
        })
    }
}

/// The insides of all `{% ... %}`, without white-space marks.
fn tags(template: &str) -> impl Iterator<Item = &str> {
    template.split("{%").skip(1).filter_map(|rest| {
        let (inside, _) = rest.split_once("%}")?;
        Some(inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+'))
    })
}

fn without_comments(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, comment)) = rest.split_once("{#") {
        out.push_str(before);
        rest = comment.split_once("#}").map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out
}

fn without_parentheses(expression: &str) -> &str {
    match bracketed(expression, '(', ')') {
        Some((inside, "")) => without_parentheses(inside.trim()),
        _ => expression,
    }
}

/// The arguments of a call: name and value, split at commas outside brackets and quotes.
fn arguments(inside: &str) -> impl Iterator<Item = (Option<&str>, &str)> {
    let mut rest = Some(inside);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut depth, mut quote) = (0_usize, None);
        let end = text.char_indices().find(|&(_, c)| {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), _) => {}
                (None, '\'' | '"') => quote = Some(c),
                (None, '(' | '[' | '{') => depth += 1,
                (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
                (None, ',') => return depth == 0,
                _ => {}
            }
            false
        });
        let at = end.map_or(text.len(), |(at, _)| at);
        rest = end.and_then(|_| text.get(at + 1..));
        let argument = text.get(..at)?.trim();
        Some(match argument.split_once('=') {
            Some((key, value)) if is_name(key.trim()) && !value.starts_with('=') => {
                (Some(key.trim()), value.trim())
            }
            _ => (None, argument),
        })
    })
}

fn keyword<'t>(tag: &'t str, word: &str) -> Option<&'t str> {
    tag.strip_prefix(word).filter(|rest| rest.starts_with(char::is_whitespace))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && name_end(text) == text.len()
}

fn name_end(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// Whether `expression` is `name`, or `name.key` with a key, or slices, filters or tests of it.
fn accesses(expression: &str, name: &str, key: Option<&str>) -> bool {
    let Some(mut rest) = without_parentheses(expression).strip_prefix(name) else {
        return false;
    };
    if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
        return false;
    }
    if let Some(key) = key {
        let Some(after) = strip_key(rest.trim_start(), key) else {
            return false;
        };
        rest = after;
    }
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return true;
        }
        let after = if rest.starts_with('[') {
            match bracketed(rest, '[', ']') {
                Some((inside, after)) if inside.contains(':') => Some(after),
                _ => None,
            }
        } else if let Some(filter) = rest.strip_prefix('|') {
            strip_call(filter.trim_start())
        } else {
            rest.strip_prefix("is ").and_then(|test| strip_call(test.trim_start()))
        };
        match after {
            Some(after) => rest = after,
            None => return false,
        }
    }
}

/// What follows `.key`, `['key']` or `["key"]`.
fn strip_key<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    if let Some(attribute) = text.strip_prefix('.') {
        let (name, after) = attribute.split_at(name_end(attribute));
        return (name == key).then_some(after);
    }
    let (inside, after) = bracketed(text, '[', ']')?;
    let inside = inside.trim();
    let quoted = ['\'', '"'].iter().any(|&quote| {
        let inside = inside.strip_prefix(quote).and_then(|s| s.strip_suffix(quote));
        inside == Some(key)
    });
    quoted.then_some(after)
}

/// What follows `name` or `name(...)`.
fn strip_call(text: &str) -> Option<&str> {
    let (name, after) = text.split_at(name_end(text));
    if name.is_empty() || name == "not" {
        return None;
    }
    match bracketed(after, '(', ')') {
        Some((_, after)) => Some(after),
        None => Some(after),
    }
}

/// The inside of the bracket that `text` starts with, and what follows it.
fn bracketed(text: &str, open: char, close: char) -> Option<(&str, &str)> {
    let inside = text.strip_prefix(open)?;
    let mut depth = 1_usize;
    for (at, c) in inside.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth -= 1;
            if depth == 0 {
                return Some((inside.get(..at)?, inside.get(at + close.len_utf8()..)?));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expectations are `_detect_content_format` of vLLM's `renderers/hf.py`.
    fn check(template: &str, expected: ContentFormat) {
        assert_eq!(detect(template), expected, "{template}");
    }

    #[test]
    fn a_loop_over_content_means_parts() {
        use ContentFormat::{OpenAi, String};
        let looped = |iterated: &str| {
            format!(
                "{{% for m in messages %}}{{%- for part in {iterated} -%}}{{% endfor %}}{{% endfor %}}"
            )
        };
        check(&looped("m.content"), OpenAi);
        check(&looped("m['content']"), OpenAi);
        check(&looped("m[\"content\"] | list"), OpenAi);
        check(&looped("m.content[1:] if part.type == 'text'"), OpenAi);
        check(&looped("m.content | selectattr('type', 'equalto', 'text')"), OpenAi);
        check(&looped("m.contents"), String);
        check(&looped("m.content.parts"), String);
        check(&looped("m.content[0]"), String);
        check(&looped("m.content + []"), String);
        check(&looped("n.content"), String);
        check("{% for m in messages %}{{ m.content }}{% endfor %}", String);
    }

    #[test]
    fn contents_are_followed_into_macros_and_by_name() {
        use ContentFormat::{OpenAi, String};
        let in_macro = |call: &str| {
            format!(
                "{{% macro show(role, parts='x', n=1) %}}{{% for p in parts %}}{{{{ p }}}}{{% endfor %}}{{% endmacro %}}{{% for m in messages %}}{{{{ {call} }}}}{{% endfor %}}"
            )
        };
        check(&in_macro("show(m.role, m.content)"), OpenAi);
        check(&in_macro("show(m.role, parts=m['content'])"), OpenAi);
        check(&in_macro("show(f(1, ','), m.content | trim)"), OpenAi);
        check(&in_macro("show(m.content)"), String);
        check(&in_macro("reshow(m.role, m.content)"), String);
        check("{% for x in content %}{% endfor %}", OpenAi);
        check("{% macro f(content) %}{% for x in content %}{% endfor %}{% endmacro %}", String);
        check("{# {% for x in content %} #}{% for x in contents %}{% endfor %}", String);
        check("{% for k, v in content %}{% endfor %}", String);
    }

    #[test]
    fn messages_are_followed_through_assignments() {
        let check = |set: &str, list: &str, expected| {
            let template = format!(
                "{{%- {set} %}}{{% for m in {list} %}}{{% for p in m.content %}}{{% endfor %}}{{% endfor %}}"
            );
            check(&template, expected);
        };
        check("set rest = messages[1:]", "rest", ContentFormat::OpenAi);
        check("set rest = messages[1:]", "rest | reverse", ContentFormat::OpenAi);
        check("set x = messages %}{% set y = x[2:]", "y", ContentFormat::OpenAi);
        check("set rest = messages[0]", "rest", ContentFormat::String);
        check("set ns.rest = messages", "ns.rest", ContentFormat::OpenAi);
        check("set ns.rest = messages", "ns.other", ContentFormat::String);
        check("set ns = namespace(n=1, rest=messages[1:])", "ns.rest", ContentFormat::OpenAi);
        check("set a, b = messages, 1", "a", ContentFormat::String);
        check("set a = messages %}{% set messages = a", "a", ContentFormat::OpenAi);
    }
}
