//! `continue_final_message` as transformers does it: a tag goes into the last message, and the
//! prompt ends where the tag comes out.

use std::borrow::Cow;

use crate::error::Refusal;
use crate::messages::{Content, Message};
use crate::python;

const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

fn refused(why: &'static str) -> Refusal {
    Refusal::ContinueFinalMessage { why }
}

/// Marks the last message; returns its text, for [`cut`].
pub(crate) fn mark(conversation: &mut [Message<'_>], template: &str) -> Result<String, Refusal> {
    if !template.contains("content") {
        return Err(refused("template does not read content"));
    }
    let last = conversation.last_mut().ok_or(Refusal::NoPrompt)?;
    let text = match &mut last.content {
        Content::Text(text) => text,
        Content::Parts(parts) => &mut parts.last_mut().ok_or(refused("no text part"))?.text,
    };
    let unmarked = text.to_string();
    *text = Cow::Owned(format!("{unmarked}{TAG}"));
    Ok(unmarked)
}

/// The prompt up to the tag.
pub(crate) fn cut(mut rendered: String, final_text: &str) -> Result<String, Refusal> {
    if !rendered.contains(python::strip(final_text)) {
        return Err(refused("template changes it"));
    }
    let tag = python::strip(TAG);
    let at = rendered.rfind(tag).ok_or(refused("template drops its end"))?;
    let keeps_spacing = rendered.get(at..).is_some_and(|end| end.starts_with(TAG));
    rendered.truncate(at);
    if !keeps_spacing {
        let end = python::rstrip(&rendered).len();
        rendered.truncate(end);
    }
    Ok(rendered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_ends_where_the_tag_comes_out() {
        let check = |rendered: &str, text: &str, expected: Result<&str, &str>| {
            let got = cut(rendered.to_owned(), text);
            let got = got.as_deref().map_err(|refusal| refusal.reason());
            assert_eq!(got, expected, "{rendered}");
        };
        check("a b CONTINUE_FINAL_MESSAGE_TAG <end>", "b ", Ok("a b "));
        check("a b CONTINUE_FINAL_MESSAGE_TAG<end>", "b ", Ok("a b"));
        check("", "", Err("continue_final_message"));
        check("x CONTINUE_FINAL_MESSAGE_TAG ", "b", Err("continue_final_message"));
        check("a\u{e9}CONTINUE_FINAL_MESSAGE_TAG", "", Ok("a\u{e9}"));
    }
}
