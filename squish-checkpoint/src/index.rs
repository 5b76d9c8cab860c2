//! Which files make up a checkpoint: names, and the index of a sharded one.
//!
//! | folder holds | checkpoint |
//! |---|---|
//! | `model.safetensors` | that file |
//! | `model.safetensors.index.json`, `model-00001-of-00003.safetensors`, … | the files that `weight_map` names |
//!
//! The single file wins where both are there, as in transformers. `metadata.total_size` of an index is written and not
//! checked: published checkpoints have wrong ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::limits::{self, Limits};
use crate::{Error, json};

/// The file of an unsharded checkpoint.
pub(crate) fn single_name(stem: &str) -> String {
    format!("{stem}.safetensors")
}

/// File `shard_idx` of `n_shards`, counted from 0 here and from 1 in the name.
pub(crate) fn shard_name(stem: &str, shard_idx: usize, n_shards: usize) -> String {
    format!("{stem}-{:05}-of-{n_shards:05}.safetensors", shard_idx + 1)
}

/// The index of a sharded checkpoint.
pub(crate) fn index_name(stem: &str) -> String {
    format!("{stem}{INDEX_SUFFIX}")
}

const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// The stem of the files that a folder is searched for.
pub(crate) const STEM: &str = "model";

/// What a path stands for.
#[derive(Debug)]
pub(crate) enum Files {
    /// One file.
    Single(PathBuf),
    /// The shards of an index.
    Sharded(Index),
}

/// An index whose file names are plain names.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) path: PathBuf,
    /// Tensor to file name.
    pub(crate) weights: BTreeMap<String, String>,
}

impl Index {
    /// Each shard's name with the first tensor that it should hold, by ascending name.
    pub(crate) fn shards(&self) -> BTreeMap<&str, &str> {
        let mut shards = BTreeMap::new();
        for (tensor, shard) in &self.weights {
            shards.entry(shard.as_str()).or_insert(tensor.as_str());
        }
        shards
    }
}

/// The files of `path`: a folder, an index, or a safetensors file.
pub(crate) fn find(path: &Path, limits: &Limits) -> Result<Files, Error> {
    if !path.is_dir() {
        let is_index =
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX_SUFFIX));
        return if is_index {
            read(path, limits).map(Files::Sharded)
        } else {
            Ok(Files::Single(path.to_owned()))
        };
    }
    let single = path.join(single_name(STEM));
    if exists(&single)? {
        return Ok(Files::Single(single));
    }
    let index = path.join(index_name(STEM));
    if exists(&index)? {
        return read(&index, limits).map(Files::Sharded);
    }
    Err(Error::NoCheckpoint { path: path.to_owned() })
}

/// Refuses a `name` that could lead out of the checkpoint's folder, on this system or another, or is longer than any
/// system's.
pub(crate) fn check_file_name(name: &str) -> Result<(), Error> {
    const MAX: usize = 1024;
    let leads_away = name.contains(['/', '\\', ':', '\0']) || matches!(name, "" | "." | "..");
    if leads_away || name.len() > MAX {
        Err(Error::FileName { name: Error::clip(name) })
    } else {
        Ok(())
    }
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::io("look for", path))
}

fn read(path: &Path, limits: &Limits) -> Result<Index, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut text = Vec::new();
    // One byte past the limit tells a file at the limit from a longer one, whatever its metadata say.
    let n_read = file
        .take(limits.index_bytes.saturating_add(1))
        .read_to_end(&mut text)
        .map_err(Error::io("read", path))?;
    parse(&text, n_read as u64, limits)
        .map(|weights| Index { path: path.to_owned(), weights })
        .map_err(Error::in_file(path))
}

fn parse(text: &[u8], n_read: u64, limits: &Limits) -> Result<BTreeMap<String, String>, Error> {
    limits::check("bytes of index", n_read, limits.index_bytes)?;
    let weights = json::index(text, limits)?;
    for (tensor, shard) in &weights {
        limits::check("bytes of a tensor's name", tensor.len() as u64, limits.name_bytes)?;
        check_file_name(shard)?;
    }
    Ok(weights)
}
