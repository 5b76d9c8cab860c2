//! Texts to measure a model on.

use std::{fs, path::Path};

use serde::Deserialize;

use crate::error::Error;

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// The texts of a file, `limit` at most: of a `.jsonl` file the `text` of each line, of another the whole.
pub(crate) fn read(path: &Path, limit: Option<usize>) -> Result<Vec<String>, Error> {
    let content = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let limit = limit.unwrap_or(usize::MAX);
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl")) {
        return Ok([content].into_iter().take(limit).collect());
    }
    let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let text = |(i, line): (usize, &str)| {
        let line: Line = serde_json::from_str(line).map_err(|error| Error::Line {
            path: path.to_owned(),
            line: i + 1,
            reason: error.to_string(),
        })?;
        Ok(line.text)
    };
    lines.take(limit).map(text).collect()
}
