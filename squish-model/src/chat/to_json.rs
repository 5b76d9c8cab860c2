//! `tojson` as transformers defines it: Python's `json.dumps`.
//!
//! ```text
//! tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)
//! ```
//!
//! | | Python |
//! |---|---|
//! | separators | `", "` and `": "`; with `indent` `","` and a line break |
//! | escapes | `\" \\ \n \r \t \b \f`, other controls as `\u001f`; with `ensure_ascii` all beyond `~` as `\uXXXX` of UTF-16 |
//! | floats | the shortest digits, `1e-07`; `NaN`, `Infinity` |
//! | keys | in the order of the value, or sorted; `true`, `null` and numbers as texts |

use std::fmt::Write;

use minijinja::{
    Error as EngineError, ErrorKind, State, Value,
    value::{Kwargs, Rest, ValueKind},
};

use super::repr::float;

/// Values within values at most: as many as JSON that is read may have.
const MAX_DEPTH: usize = 128;

/// The filter; options come by place or by name.
pub(super) fn filter(
    state: &State,
    value: &Value,
    options: Rest<Value>,
    names: Kwargs,
) -> Result<Value, EngineError> {
    let mut given = [const { None }; 4];
    if options.len() > given.len() {
        return Err(EngineError::from(ErrorKind::TooManyArguments));
    }
    for (given, option) in given.iter_mut().zip(options.iter()) {
        *given = Some(option.clone());
    }
    for (given, name) in given.iter_mut().zip(["ensure_ascii", "indent", "separators", "sort_keys"])
    {
        let named: Option<Value> = names.get(name)?;
        *given = named.or(given.take()).filter(|option| !option.is_none());
    }
    names.assert_all_used()?;

    let [ascii, indent, separators, sort_keys] = given;
    let is_true = |option: Option<Value>| option.is_some_and(|option| option.is_true());
    let indent = indent.map(|indent| match indent.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(indent.as_usize().unwrap_or(0).min(MAX_INDENT)),
    });
    let texts =
        |all: Value| Ok::<_, EngineError>(all.try_iter()?.map(|one| one.to_string()).collect());
    let separators: Option<Vec<String>> = separators.map(texts).transpose()?;
    let comma = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.as_deref() {
        None => (comma, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(fault("`separators` are a pair")),
    };
    let (ascii, sort_keys) = (is_true(ascii), is_true(sort_keys));
    let mut out = Writer { state, text: String::new(), item, key, indent, ascii, sort_keys };
    out.value(value, 0)?;
    Ok(Value::from(out.text))
}

/// Spaces of an indent at most.
const MAX_INDENT: usize = 64;

fn fault(reason: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::InvalidOperation, reason.into())
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    text: String,
    item: &'a str,
    key: &'a str,
    indent: Option<String>,
    ascii: bool,
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), EngineError> {
        if depth > MAX_DEPTH {
            return Err(fault(format!("a value of more than {MAX_DEPTH} levels is no JSON")));
        }
        // Paid before it is written: what a template makes here may be large.
        self.state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 64))?;
        match value.kind() {
            ValueKind::String => self.string(value.as_str().expect("a string")),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.all(['[', ']'], &items, depth, |out, item| out.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys = Vec::new();
                for key in value.try_iter()? {
                    keys.push((scalar(&key)?, key));
                }
                if self.sort_keys {
                    keys.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.all(['{', '}'], &keys, depth, |out, (text, key)| {
                    out.string(text);
                    out.text.push_str(out.key);
                    out.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            _ => self.text.push_str(&scalar(value)?),
        }
        Ok(())
    }

    /// What is between brackets.
    fn all<T>(
        &mut self,
        [open, close]: [char; 2],
        items: &[T],
        depth: usize,
        mut write: impl FnMut(&mut Self, &T) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.text.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.text.push_str(self.item);
            }
            self.line_break(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line_break(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line_break(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            for _ in 0..depth {
                self.text.push_str(indent);
            }
        }
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for c in string.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.text, "\\u{unit:04x}");
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }
}

/// A value that has no parts, or a key.
fn scalar(value: &Value) -> Result<String, EngineError> {
    Ok(match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => (if value.is_true() { "true" } else { "false" }).to_owned(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone())? {
            x if x.is_nan() => "NaN".to_owned(),
            x if x.is_infinite() => (if x > 0.0 { "Infinity" } else { "-Infinity" }).to_owned(),
            x => float(x),
        },
        ValueKind::String => value.to_string(),
        kind => return Err(fault(format!("a value of type {kind} is no JSON"))),
    })
}
