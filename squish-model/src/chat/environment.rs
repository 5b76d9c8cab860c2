//! The engine, set up as transformers sets up its own.

use std::{error, fmt};

use minijinja::{
    AutoEscape, Environment, Error as EngineError, ErrorKind, State, UndefinedBehavior, Value,
    escape_formatter, syntax::SyntaxConfig, value::ValueKind,
};
use minijinja_contrib::globals;

use super::{LocalTime, MAX_FUEL, generation, python, repr, time::strftime, to_json};
use crate::{Error, error::clip};

/// The environment with these templates, by name.
pub(super) fn with(templates: Vec<(String, String)>) -> Result<Environment<'static>, Error> {
    let mut environment = new();
    environment.set_fuel(Some(MAX_FUEL));
    for (name, source) in templates {
        environment
            .add_template_owned(name.clone(), generation::without_tags(&source))
            .map_err(|e| error(&name, &e))?;
    }
    Ok(environment)
}

/// An environment without templates.
fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters of Jinja"));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            let mut text = String::new();
            repr::append(state, value, &mut text, 0)?;
            out.write_str(&text).map_err(EngineError::from)
        }
        _ => escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", to_json::filter);
    environment.add_filter("trim", python::trim);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("joiner", globals::joiner);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment
}

/// Macros within macros and loops within loops at most.
const MAX_DEPTH: usize = 100;

/// The function of that name, for a time.
pub(super) fn strftime_now(now: Option<LocalTime>) -> Value {
    Value::from_function(move |format: &str| -> Result<String, EngineError> {
        let Some(now) = now else {
            let reason = "the template asks for the time, and none was given";
            return Err(EngineError::new(ErrorKind::InvalidOperation, reason));
        };
        strftime(&now, format)
            .map_err(|reason| EngineError::new(ErrorKind::InvalidOperation, reason))
    })
}

/// What a template says against its messages.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for Refused {}

fn raise_exception(state: &State, message: &Value) -> Result<Value, EngineError> {
    let mut text = String::new();
    match message.as_str() {
        Some(message) => text.push_str(message),
        None => repr::append(state, message, &mut text, 0)?,
    }
    let refused = Refused(text);
    Err(EngineError::new(ErrorKind::InvalidOperation, "refused").with_source(refused))
}

/// The engine's error as one of this crate.
pub(super) fn error(template: &str, error: &EngineError) -> Error {
    let mut source: Option<&(dyn error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(Refused(message)) = error.downcast_ref() {
            return Error::ChatRefused { message: clip(message) };
        }
        source = error.source();
    }
    let reason = error.detail().map_or_else(|| error.kind().to_string(), clip);
    let reason = match error.line() {
        Some(line) => format!("{reason} (line {line})"),
        None => reason,
    };
    Error::Chat { template: clip(template), reason }
}
