//! A chat template compiled with the environment of transformers' `_compile_jinja_template`.

use std::error::Error as StdError;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};

use crate::error::{Refusal, TemplateError};
use crate::{python, tojson};

/// Instructions one rendering may take: some 200 per message for the templates we know, so room
/// for 20,000 messages; about 0.2 s. Less refuses long conversations, more lets a template that
/// does not end hold up a worker.
const FUEL: u64 = 4_000_000;

/// Depth of nested template calls. minijinja counts about 5 for a macro call, so 50 macro calls;
/// its default of 500 is meant for stacks larger than a wasm module's 1 MiB.
const RECURSION_LIMIT: usize = 250;

const NAME: &str = "chat";

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    env: Environment<'static>,
}

impl Template {
    pub(crate) fn compile(source: &str) -> Result<Template, TemplateError> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(TemplateError::Syntax)?;
        env.set_syntax(syntax);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        // Jinja's default Undefined: prints as "", is false, its attributes are errors.
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_unknown_method_callback(python::call_method);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(RECURSION_LIMIT);
        env.add_filter("tojson", tojson::tojson);
        env.add_filter("trim", python::trim);
        env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
            Err(stop(Stop::Raised(message.to_string())))
        });
        env.add_function("strftime_now", |_format: &Value| -> Result<Value, Error> {
            Err(stop(Stop::Clock))
        });
        env.add_template_owned(NAME, without_generation_tags(&unix_newlines(source)))
            .map_err(TemplateError::Syntax)?;
        Ok(Template { env })
    }

    /// Renders with `context`, up to `limit_bytes` of output.
    pub(crate) fn render(&self, context: Value, limit_bytes: usize) -> Result<String, Refusal> {
        let mut out = Bounded { bytes: Vec::new(), limit_bytes, is_over: false };
        let result = self
            .env
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut out).map(drop));
        match result {
            Err(_) if out.is_over => Err(Refusal::OutputTooLarge { limit_bytes }),
            Err(err) => Err(refusal(&err)),
            Ok(()) => String::from_utf8(out.bytes)
                .map_err(|err| Refusal::TemplateFailed { message: err.to_string() }),
        }
    }
}

/// Why a function of ours ended the rendering.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("{0}")]
    Raised(String),
    #[error("the template reads the clock")]
    Clock,
}

fn stop(why: Stop) -> Error {
    Error::new(ErrorKind::InvalidOperation, "stopped").with_source(why)
}

fn refusal(err: &Error) -> Refusal {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(err);
    while let Some(this) = cause {
        match this.downcast_ref::<Stop>() {
            Some(Stop::Clock) => return Refusal::TemplateReadsClock,
            Some(Stop::Raised(message)) => {
                return Refusal::TemplateRaised { message: message.clone() };
            }
            None => {}
        }
        if let Some(err) = this.downcast_ref::<Error>()
            && err.kind() == ErrorKind::OutOfFuel
        {
            return Refusal::OutOfFuel;
        }
        cause = this.source();
    }
    Refusal::TemplateFailed { message: err.to_string() }
}

/// A buffer that refuses to grow beyond its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit_bytes: usize,
    is_over: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(bytes.len()) > self.limit_bytes {
            self.is_over = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
