//! Where a checkpoint keeps its templates and the names of its special tokens.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::DEFAULT;
use crate::{
    Error,
    error::{clip, read},
    quantize::TEMPLATES,
};

/// Names of templates and their texts; variables and their texts.
pub(super) struct Files {
    pub(super) templates: Vec<(String, String)>,
    pub(super) special_tokens: Vec<(String, String)>,
}

/// What a folder has.
pub(super) fn open(folder: &Path) -> Result<Files, Error> {
    let json = |name: &str| {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(TokenizerConfig::default());
        }
        TokenizerConfig::from_json(&read(&path)?).map_err(Error::in_file(&path))
    };
    let config = json("tokenizer_config.json")?;
    let mut templates = jinja_files(folder)?;
    if templates.is_empty() {
        templates = config.templates();
    }
    if templates.is_empty() {
        templates = json("chat_template.json")?.templates();
    }
    let mut special_tokens = config.special_tokens();
    for (name, token) in json("special_tokens_map.json")?.special_tokens() {
        if !special_tokens.iter().any(|(own, _)| *own == name) {
            special_tokens.push((name, token));
        }
    }
    Ok(Files { templates, special_tokens })
}

/// `chat_template.jinja`, by the name of the default, and `additional_chat_templates/*.jinja` by theirs.
fn jinja_files(folder: &Path) -> Result<Vec<(String, String)>, Error> {
    let mut paths = vec![(DEFAULT.to_owned(), folder.join("chat_template.jinja"))];
    paths.retain(|(_, path)| path.exists());
    if let Ok(entries) = fs::read_dir(folder.join(TEMPLATES)) {
        let named = |path: PathBuf| {
            let is_template = path.extension().is_some_and(|extension| extension == "jinja");
            let name = path.file_stem().filter(|_| is_template)?.to_str()?.to_owned();
            Some((name, path))
        };
        paths.extend(entries.flatten().filter_map(|entry| named(entry.path())));
    }
    paths.sort();
    let text = |(name, path): (String, PathBuf)| {
        let text = String::from_utf8(read(&path)?).map_err(|error| Error::InFile {
            error: Box::new(Error::Chat { template: name.clone(), reason: error.to_string() }),
            path,
        })?;
        Ok((name, text))
    };
    paths.into_iter().map(text).collect()
}

/// The fields of a `tokenizer_config.json`.
#[derive(Default)]
pub(super) struct TokenizerConfig(Map<String, Value>);

/// Variables that transformers names tokens by.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TokenizerConfig {
    pub(super) fn from_json(json: &[u8]) -> Result<Self, Error> {
        let map = serde_json::from_slice(json);
        map.map(Self).map_err(|error| Error::ConfigJson { reason: clip(&error.to_string()) })
    }

    /// `chat_template`: a text, or a list of `name` and `template`.
    pub(super) fn templates(&self) -> Vec<(String, String)> {
        let named = |entry: &Value| {
            let field = |name: &str| entry.get(name)?.as_str().map(str::to_owned);
            Some((field("name")?, field("template")?))
        };
        match self.0.get("chat_template") {
            Some(Value::String(template)) => vec![(DEFAULT.to_owned(), template.clone())],
            Some(Value::Array(entries)) => entries.iter().filter_map(named).collect(),
            _ => Vec::new(),
        }
    }

    /// Tokens by their well-known names, and those of `extra_special_tokens`.
    pub(super) fn special_tokens(&self) -> Vec<(String, String)> {
        let extra = self.0.get("extra_special_tokens").and_then(Value::as_object);
        let known = TOKENS.iter().filter_map(|&name| Some((name, self.0.get(name)?)));
        let extra = extra.into_iter().flatten().map(|(name, token)| (name.as_str(), token));
        let text = |(name, token): (&str, &Value)| {
            let token = token.get("content").unwrap_or(token);
            Some((name.to_owned(), token.as_str()?.to_owned()))
        };
        known.chain(extra).filter_map(text).collect()
    }
}
