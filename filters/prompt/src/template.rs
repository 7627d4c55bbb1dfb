//! A chat template compiled with the environment of transformers' `_compile_jinja_template`.

use std::error::Error as StdError;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};

use crate::error::{Refusal, TemplateError};
use crate::{python, source, tojson};

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
        let mut env = environment(source::for_minijinja(source))?;
        env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
            Err(stop(Stop::Raised(message.to_string())))
        });
        env.add_function("strftime_now", |_format: &Value| -> Result<Value, Error> {
            Err(stop(Stop::Clock))
        });
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

/// An environment with the template in it and no function that Jinja itself does not have.
fn environment(source: String) -> Result<Environment<'static>, TemplateError> {
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
    python::add_filters(&mut env);
    python::add_tests(&mut env);
    env.add_template_owned(NAME, source).map_err(TemplateError::Syntax)?;
    Ok(env)
}

/// Whether a template takes system messages inside a conversation, as vLLM asks it for
/// `/v1/messages`: it renders in plain Jinja, where transformers' functions and tag are missing
/// (`entrypoints/anthropic/serving.py`, `_detect_merge_inline_system`).
pub(crate) fn takes_system(source: &str) -> bool {
    let Ok(env) = environment(source::for_plain_jinja(source)) else { return false };
    let messages: Value = ["system", "user", "system", "user"]
        .iter()
        .map(|role| Value::from_pairs([("role", *role), ("content", "t")]))
        .collect();
    let context =
        Value::from_pairs([("messages", messages), ("add_generation_prompt", Value::from(false))]);
    let mut out = Bounded { bytes: Vec::new(), limit_bytes: 1 << 20, is_over: false };
    let template = env.get_template(NAME);
    template.and_then(|template| template.render_captured_to(context, &mut out).map(drop)).is_ok()
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

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
