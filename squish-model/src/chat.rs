//! Conversations to prompts, by the chat template of a checkpoint.
//!
//! A chat template is a program in the language Jinja that a model's authors ship with it: it writes messages, tools and special
//! tokens as the text that the model was trained on. It is run here as `apply_chat_template` of transformers 5.23 runs it:
//!
//! | what a template sees | |
//! |---|---|
//! | `messages` | those given, without fields that are null, reasoning under `reasoning_content` and `thinking` |
//! | `tools`, `documents` | those given, or none |
//! | `add_generation_prompt` | whether the answer begins |
//! | `bos_token`, `eos_token`, … | special tokens of `tokenizer_config.json` |
//! | variables of the caller | for switches that a template has, `enable_thinking` for example |
//! | `raise_exception(message)` | ends with [`Error::ChatRefused`] |
//! | `strftime_now(format)` | the time that the caller gave; an error without, since this crate has no clock |
//! | `tojson(value)` | as Python's `json.dumps` writes it, without escapes beyond those of JSON |
//!
//! Blocks are trimmed (`trim_blocks`, `lstrip_blocks`), loops have `break` and `continue`, and `{% generation %}` marks what a model
//! said, which changes nothing here. The engine is [minijinja](https://docs.rs/minijinja) with Python's methods on strings and
//! maps.
//!
//! Templates are foreign programs. They see what is given and nothing else: no files, no other templates, no clock. Their size, their
//! work with the memory that it takes ([`MAX_FUEL`]) and their recursion are limited. They are parsed and run on threads of their own,
//! with a stack that what they build cannot exhaust.
//!
//! Two holes are left in the engine. Lists that hold themselves twice, some forty times over, make texts without end, and of the steps
//! that write or compare them (`~`, `|string`, `==`, keys of maps) it does not charge all; printing and `tojson` are charged. And
//! constants joined by `~` are folded when a template is read, in a time that grows with the square of their number: half a minute
//! for as many as fit.
//!
//! Where the result differs from Python: numbers of more than 128 bits, floats joined by `~` that Python writes with an
//! exponent; and what is an error: `%` with a text on its left, and methods and filters that minijinja and `minijinja-contrib` lack.

mod environment;
mod files;
mod generation;
mod large_stack;
mod python;
mod repr;
mod time;
mod to_json;

pub use time::LocalTime;

use std::{fmt, path::Path};

use minijinja::{
    Environment, Value,
    value::{Serde, ValueKind},
};
use serde::Serialize;

use crate::{Error, error::clip};

/// A value that templates compute with: messages, tools, or a variable.
///
/// The order of keys is kept, because `tojson` shows it: that of a text, or of the fields of a struct. `serde_json::Value` sorts
/// keys, unless its `preserve_order` is on; for tools that came as JSON use [`from_json`](Self::from_json).
#[derive(Clone, Debug)]
pub struct ChatValue(Value);

impl ChatValue {
    /// The value of a JSON text.
    ///
    /// # Errors
    ///
    /// [`Error::ChatValue`].
    ///
    /// ```
    /// use squish_model::chat::ChatValue;
    ///
    /// assert!(ChatValue::from_json(r#"[{"role": "user", "content": "Hello"}]"#).is_ok());
    /// assert!(ChatValue::from_json("[").is_err());
    /// ```
    pub fn from_json(json: &str) -> Result<Self, Error> {
        let value = serde_json::from_str(json);
        value.map(Self).map_err(|error| Error::ChatValue { reason: clip(&error.to_string()) })
    }

    /// What serde makes of `value`.
    ///
    /// # Errors
    ///
    /// [`Error::ChatValue`].
    pub fn from_serialize<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        let value = Value::from(Serde(value));
        if value.kind() == ValueKind::Invalid {
            return Err(Error::ChatValue { reason: clip(&value.to_string()) });
        }
        Ok(Self(value))
    }
}

impl From<&str> for ChatValue {
    fn from(text: &str) -> Self {
        Self(Value::from(text))
    }
}

impl From<bool> for ChatValue {
    fn from(is_true: bool) -> Self {
        Self(Value::from(is_true))
    }
}

/// What a prompt is made of besides messages. The default is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatOptions<'a> {
    /// The name of a template, where there are several. Without one it is `tool_use`, if tools are given and there is such a template, or
    /// `default`.
    pub template: Option<&'a str>,
    /// A list of tools, each a JSON schema of a function.
    pub tools: Option<&'a ChatValue>,
    /// A list of documents, of `title` and `text`.
    pub documents: Option<&'a ChatValue>,
    /// Whether the prompt ends with the beginning of the model's turn.
    pub add_generation_prompt: bool,
    /// The time that `strftime_now` tells.
    pub now: Option<LocalTime>,
    /// Other variables; they replace special tokens of the same name.
    pub variables: &'a [(&'a str, ChatValue)],
}

/// The chat templates of a checkpoint.
///
/// # Examples
///
/// ```
/// use squish_model::{ChatTemplate, chat::{ChatOptions, ChatValue}};
///
/// let template = ChatTemplate::from_json(br#"{
///     "eos_token": "</s>",
///     "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content.strip() }}{{ eos_token }}\n{% endfor %}"
/// }"#)?;
/// let messages = ChatValue::from_json(r#"[{"role": "user", "content": " Hello "}]"#)?;
/// assert_eq!(template.render(&messages, &ChatOptions::default())?, "user: Hello</s>\n");
/// # Ok::<(), squish_model::Error>(())
/// ```
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    special_tokens: Vec<(String, String)>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("names", &self.names)
            .field("special_tokens", &self.special_tokens)
            .finish_non_exhaustive()
    }
}

/// Bytes of a template at most; the longest of well-known models have some 30,000. The engine counts columns in 16 bits.
pub const MAX_TEMPLATE_LEN: usize = 65_000;

/// Work of a template at most, in steps or in 64 bytes of values that it makes: some tenths of a second, and 64 MB.
pub const MAX_FUEL: u64 = 1_000_000;

impl ChatTemplate {
    /// The templates and special tokens of the checkpoint in `folder`.
    ///
    /// Templates are those of `chat_template.jinja` and `additional_chat_templates/*.jinja`, else of `tokenizer_config.json`, else of
    /// `chat_template.json`; special tokens those of `tokenizer_config.json`, and of `special_tokens_map.json` where it lacks them.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::NoChatTemplate`]; [`Error::InFile`] with those of [`from_json`](Self::from_json).
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let files = files::open(folder.as_ref())?;
        Self::from_sources(files.templates, files.special_tokens)
    }

    /// The templates and special tokens in the bytes of a `tokenizer_config.json`: `chat_template` is a text, or a list of `name` and
    /// `template`; tokens are texts or objects with `content`.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigJson`]; [`Error::NoChatTemplate`]; [`Error::Chat`] of a template that is too long or is none.
    pub fn from_json(tokenizer_config: &[u8]) -> Result<Self, Error> {
        let config = files::TokenizerConfig::from_json(tokenizer_config)?;
        Self::from_sources(config.templates(), config.special_tokens())
    }

    /// A template that stands in no file.
    ///
    /// # Errors
    ///
    /// [`Error::Chat`] of a template that is too long or is none.
    pub fn new(source: &str, special_tokens: &[(&str, &str)]) -> Result<Self, Error> {
        let owned = |&(name, token): &(&str, &str)| (name.to_owned(), token.to_owned());
        let templates = vec![(DEFAULT.to_owned(), source.to_owned())];
        Self::from_sources(templates, special_tokens.iter().map(owned).collect())
    }

    fn from_sources(
        templates: Vec<(String, String)>,
        special_tokens: Vec<(String, String)>,
    ) -> Result<Self, Error> {
        if templates.is_empty() {
            return Err(Error::NoChatTemplate { name: None, available: Vec::new() });
        }
        let mut names = Vec::new();
        for (name, source) in &templates {
            let actual = source.len();
            if actual > MAX_TEMPLATE_LEN {
                let reason = format!("{actual} bytes, expected at most {MAX_TEMPLATE_LEN}");
                return Err(Error::Chat { template: clip(name), reason });
            }
            names.push(name.clone());
        }
        let environment = large_stack::run(|| environment::with(templates))?;
        Ok(Self { environment, names, special_tokens })
    }

    /// Names of the templates.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Special tokens by the names of their variables.
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.special_tokens
    }

    /// The prompt for `messages`, a list of objects with `role`, `content` and what else the template knows.
    ///
    /// # Errors
    ///
    /// [`Error::NoChatTemplate`] by the name of the options; [`Error::ChatValue`] of messages that are no list of objects, or of an
    /// empty one; [`Error::ChatRefused`] with what the template says against them; [`Error::Chat`] of a template that fails.
    pub fn render(&self, messages: &ChatValue, options: &ChatOptions<'_>) -> Result<String, Error> {
        let name = self.name(options)?;
        let template = self
            .environment
            .get_template(name)
            .map_err(|error| environment::error(name, &error))?;
        let tokens = self.special_tokens.iter().map(|(name, token)| (&**name, token.into()));
        let variables = options.variables.iter().map(|(name, value)| (*name, value.0.clone()));
        let given = |value: Option<&ChatValue>| {
            value.map_or_else(|| Value::from(()), |value| value.0.clone())
        };
        let own = [
            ("messages", python::messages(&messages.0)?),
            ("tools", given(options.tools)),
            ("documents", given(options.documents)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("strftime_now", environment::strftime_now(options.now)),
        ];
        let context = Value::from_pairs(tokens.chain(variables).chain(own));
        large_stack::run(|| {
            template.render(context).map_err(|error| environment::error(name, &error))
        })
    }

    fn name<'a>(&'a self, options: &ChatOptions<'a>) -> Result<&'a str, Error> {
        let exists = |name: &&str| self.names.iter().any(|own| own == name);
        let tool_use = options.tools.map(|_| "tool_use").filter(exists);
        let name = options.template.or(tool_use).unwrap_or(DEFAULT);
        if exists(&name) {
            return Ok(name);
        }
        let (name, available) = (Some(name.to_owned()), self.names.clone());
        Err(Error::NoChatTemplate { name, available })
    }
}

/// The name of a template that has none.
const DEFAULT: &str = "default";
