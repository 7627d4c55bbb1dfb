//! Whether a template wants message contents as strings or as lists of parts.
//!
//! vLLM decides on Jinja's syntax tree (`renderers/hf.py`, `_detect_content_format`): a template
//! with a loop over `message.content`, where `message` is the variable of a loop over `messages`
//! or a variable assigned from it, wants parts ("openai"); any other wants a string. minijinja's
//! tree is not public, so the same rule runs here on the text of the `for` and `set` tags. It
//! differs from vLLM only for expressions in parentheses or tags with quoted `%}`, where the
//! answer is "string".

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
    let mut assignments = Vec::new();
    let mut loops = Vec::new();
    for tag in tags(template) {
        if let Some(rest) = keyword(tag, "set")
            && let Some((target, value)) = rest.split_once('=')
        {
            assignments.push((target.trim(), value.trim()));
        } else if let Some(rest) = keyword(tag, "for")
            && let Some((target, iterated)) = rest.split_once(" in ")
        {
            let end = [" if ", " recursive"];
            let end = end.iter().filter_map(|word| iterated.find(word)).min();
            let iterated = iterated.get(..end.unwrap_or(iterated.len()));
            loops.push((target.trim(), iterated.unwrap_or_default().trim()));
        }
    }

    // Breadth first, as vLLM does; each name is looked at once.
    let mut message_lists = vec!["messages"];
    let mut next = 0;
    while let Some(&name) = message_lists.get(next) {
        next += 1;
        for &(target, value) in &assignments {
            if accesses(value, name, None) {
                if !is_name(target) {
                    // An assignment to an attribute ends vLLM's search with an exception.
                    return ContentFormat::String;
                }
                if !message_lists.contains(&target) {
                    message_lists.push(target);
                }
            }
        }
    }
    let mut message_names = Vec::new();
    for &(target, iterated) in &loops {
        if message_lists.iter().any(|name| accesses(iterated, name, None)) {
            if !is_name(target) {
                return ContentFormat::String;
            }
            message_names.push(target);
        }
    }
    let over_content = loops.iter().any(|(_, iterated)| {
        message_names.iter().any(|name| accesses(iterated, name, Some("content")))
    });
    if over_content { ContentFormat::OpenAi } else { ContentFormat::String }
}

/// The insides of all `{% ... %}`, without white-space marks.
fn tags(template: &str) -> impl Iterator<Item = &str> {
    template.split("{%").skip(1).filter_map(|rest| {
        let (inside, _) = rest.split_once("%}")?;
        Some(inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+'))
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
    let Some(mut rest) = expression.strip_prefix(name) else {
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
        check("set ns.rest = messages", "messages", ContentFormat::String);
        check("set a = messages %}{% set messages = a", "a", ContentFormat::OpenAi);
    }
}
