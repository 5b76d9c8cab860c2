//! Where a template expects Python and the engine is none.

use std::borrow::Cow;

use minijinja::{
    Error as EngineError, ErrorKind, State, Value,
    value::{Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use crate::Error;

/// Messages as transformers hands them to a template: fields that are null are left out, and what a model thought stands under both of
/// the names that templates ask for.
pub(super) fn messages(messages: &Value) -> Result<Value, Error> {
    let fault = |reason: String| Error::ChatValue { reason };
    if !matches!(messages.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(fault(format!("messages are a {}, expected a list", messages.kind())));
    }
    let all = messages.try_iter().map_err(|error| fault(error.to_string()))?;
    let all: Vec<Value> = all.map(|one| message(&one)).collect::<Result<_, _>>()?;
    if all.is_empty() {
        return Err(fault("no messages, expected at least one".to_owned()));
    }
    Ok(Value::from(all))
}

/// Fields that hold reasoning, the one that counts first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

fn message(message: &Value) -> Result<Value, Error> {
    let fault = |reason: String| Error::ChatValue { reason };
    if message.kind() != ValueKind::Map {
        return Err(fault(format!("a message is a {}, expected an object", message.kind())));
    }
    let keys = message.try_iter().map_err(|error| fault(error.to_string()))?;
    let mut fields = Vec::new();
    for key in keys {
        let value = message.get_item(&key).map_err(|error| fault(error.to_string()))?;
        if !value.is_none() {
            fields.push((key.to_string(), value));
        }
    }
    let reasoning = REASONING.iter().find_map(|name| {
        fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    });
    if let Some(reasoning) = reasoning {
        if !fields.iter().any(|(key, _)| key == "thinking") {
            fields.insert(0, ("thinking".to_owned(), reasoning.clone()));
        }
        match fields.iter_mut().find(|(key, _)| key == "reasoning_content") {
            Some((_, value)) => *value = reasoning,
            None => fields.push(("reasoning_content".to_owned(), reasoning)),
        }
    }
    Ok(Value::from_pairs(fields))
}

/// Methods of Python's types: our own where the definition differs or there is none, else those of the engine's authors.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, EngineError> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => match string_method(text, method, args)? {
            Some(result) => Ok(result),
            None => pycompat::unknown_method_callback(state, value, method, args),
        },
        (None, ValueKind::Map) if method == "copy" && args.is_empty() => Ok(value.clone()),
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Methods of `str` that are our own.
fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, EngineError> {
    let one = || from_args::<(&str,)>(args).map(|(argument,)| argument);
    let three = |a: &str, b: &str, c: &str| Value::from(Tuple::from([a, b, c].map(Value::from)));
    Ok(Some(match method {
        "strip" if args.is_empty() => text.trim_matches(is_space).into(),
        "lstrip" if args.is_empty() => text.trim_start_matches(is_space).into(),
        "rstrip" if args.is_empty() => text.trim_end_matches(is_space).into(),
        "split" if args.is_empty() => {
            text.split(is_space).filter(|word| !word.is_empty()).map(Value::from).collect()
        }
        "rsplit" => {
            let (separator, most): (&str, Option<usize>) = from_args(args)?;
            let parts =
                text.rsplitn(most.map_or(usize::MAX, |most| most.saturating_add(1)), separator);
            let mut parts: Vec<Value> = parts.map(Value::from).collect();
            parts.reverse();
            parts.into()
        }
        "splitlines" if args.is_empty() => lines(text).into_iter().map(Value::from).collect(),
        "partition" => match text.split_once(one()?) {
            Some((head, tail)) => three(head, one()?, tail),
            None => three(text, "", ""),
        },
        "rpartition" => match text.rsplit_once(one()?) {
            Some((head, tail)) => three(head, one()?, tail),
            None => three("", "", text),
        },
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        "index" => {
            let Some(at) = text.find(one()?) else {
                let reason = "substring not found";
                return Err(EngineError::new(ErrorKind::InvalidOperation, reason));
            };
            text[..at].chars().count().into()
        }
        _ => return Ok(None),
    }))
}

/// Lines as Python tells them, without their ends.
fn lines(text: &str) -> Vec<&str> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        lines.push(&rest[..end]);
        let after = &rest[end..];
        let len = after.chars().next().map_or(0, char::len_utf8);
        rest = after.strip_prefix("\r\n").unwrap_or(&after[len..]);
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `trim(chars)`: without what Python takes for white space, or without `chars`, at both ends.
pub(super) fn trim(text: Cow<'_, str>, chars: Option<&str>) -> String {
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    }
}

/// `str.isspace` of Python: white space of Unicode, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
