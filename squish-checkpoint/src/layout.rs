//! Where each tensor of a checkpoint to be written will lie: known before the first byte is.
//!
//! Shards take the tensors in the order given, as the Hugging Face libraries do: a shard ends where the next tensor
//! would make its data exceed the limit, and a tensor above the limit has a shard to itself. Within a shard tensors stand
//! in the order of the official writer, by descending [`Dtype`] and then by name, so that with a header padded to a
//! multiple of 8 bytes each starts aligned for its type. (FP6 and FP4 are not the last of that order; what follows them
//! is `BOOL`, which needs no alignment.) A file written here is byte for byte the official library's,
//! except that metadata of several keys are sorted, where there they stand in the order of a hash map.
//!
//! With [`Alignment::Line`] the header is padded to a multiple of 64 bytes, and tensors whose bytes are one, too, stand
//! before all others, so that each of them starts at one. What follows them is in the official order.

use std::collections::{BTreeMap, BTreeSet};

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::index::{self, STEM};
use crate::json::METADATA_KEY;
use crate::limits::{self, Limits};
use crate::safetensors::{PREFIX, n_bytes};
use crate::{Dtype, Error, TensorInfo};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions in elements, in row-major order.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor called `name`.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Its size in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`], [`Error::PartialByte`].
    pub fn n_bytes(&self) -> Result<usize, Error> {
        n_bytes(&self.name, self.dtype, &self.shape)
    }
}

impl From<&TensorInfo> for TensorSpec {
    fn from(info: &TensorInfo) -> Self {
        Self::new(info.name(), info.dtype(), info.shape())
    }
}

/// What the data of a file are aligned to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// Each tensor to its elements, as the official library does.
    #[default]
    Elements,
    /// Tensors of whole lines of 64 bytes to those, and others to their elements: for bytes that are used where a file is
    /// mapped.
    Line,
}

impl Alignment {
    const fn n_bytes(self) -> usize {
        match self {
            Self::Elements => 8,
            Self::Line => 64,
        }
    }
}

/// How a checkpoint is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// Bytes of tensors, headers aside, above which a file is split. 5 GB by default, as in the Hugging Face hub's
    /// library.
    pub max_shard_bytes: u64,
    /// The texts under `__metadata__` of each file. `format: pt` by default: some versions of transformers refuse a file
    /// without it.
    pub metadata: BTreeMap<String, String>,
    /// What file names start with: `model` by default, `adapter_model` for adapters.
    pub stem: String,
    /// What tensors are aligned to: their elements, by default.
    pub alignment: Alignment,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            max_shard_bytes: 5_000_000_000,
            metadata: BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
            stem: STEM.to_owned(),
            alignment: Alignment::default(),
        }
    }
}

/// The files of a checkpoint.
#[derive(Debug)]
pub(crate) struct Layout {
    /// At least one.
    pub(crate) files: Vec<FileLayout>,
    /// Name and text of the index, if there is more than one file.
    pub(crate) index: Option<(String, String)>,
}

/// One file of tensors.
#[derive(Debug)]
pub(crate) struct FileLayout {
    pub(crate) name: String,
    /// Everything before the data.
    pub(crate) head: Vec<u8>,
    /// In the order of their data, with their bytes.
    pub(crate) tensors: Vec<(TensorSpec, usize)>,
}

/// Lays out `specs`.
pub(crate) fn plan(specs: &[TensorSpec], options: &WriterOptions) -> Result<Layout, Error> {
    index::check_file_name(&options.stem)?;
    let sized = check(specs)?;
    let shards = split(sized, options.max_shard_bytes);
    let n_shards = shards.len();
    let mut files = Vec::with_capacity(n_shards);
    for (shard_idx, mut tensors) in shards.into_iter().enumerate() {
        // Whether a tensor has no whole lines: false comes first.
        let is_ragged = |n_bytes: usize| {
            options.alignment == Alignment::Line
                && !n_bytes.is_multiple_of(Alignment::Line.n_bytes())
        };
        tensors.sort_by(|(a, a_bytes), (b, b_bytes)| {
            let order = is_ragged(*a_bytes).cmp(&is_ragged(*b_bytes));
            order.then_with(|| b.dtype.cmp(&a.dtype)).then_with(|| a.name.cmp(&b.name))
        });
        let name = match n_shards {
            1 => index::single_name(&options.stem),
            _ => index::shard_name(&options.stem, shard_idx, n_shards),
        };
        files.push(FileLayout { name, head: head(&tensors, options)?, tensors });
    }
    let index = (n_shards > 1).then(|| (index::index_name(&options.stem), index_text(&files)));
    Ok(Layout { files, index })
}

/// Each tensor with its bytes, all of which a reader with the default limits accepts.
fn check(specs: &[TensorSpec]) -> Result<Vec<(TensorSpec, usize)>, Error> {
    let limits = Limits::default();
    limits::check("tensors", specs.len() as u64, limits.tensors)?;
    let mut names = BTreeSet::new();
    let mut total = 0u64;
    let mut sized = Vec::with_capacity(specs.len());
    for spec in specs {
        let TensorSpec { name, dtype, shape } = spec;
        limits::check("bytes of a tensor's name", name.len() as u64, limits.name_bytes)?;
        limits::check("dimensions of a tensor", shape.len() as u64, limits.rank)?;
        if name == METADATA_KEY {
            return Err(Error::Reserved { name: name.clone() });
        }
        if !names.insert(name) {
            return Err(Error::DuplicateKey { key: name.clone() });
        }
        let bytes = spec.n_bytes()?;
        // With room for a header, so that no offset below can overflow.
        total = total
            .checked_add(bytes as u64)
            .filter(|total| total.checked_add(1 << 32).is_some())
            .ok_or_else(|| Error::Overflow {
                tensor: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
            })?;
        sized.push((spec.clone(), bytes));
    }
    Ok(sized)
}

/// Cuts `tensors` into runs of at most `max` bytes, or of one tensor; at least one run.
fn split(tensors: Vec<(TensorSpec, usize)>, max: u64) -> Vec<Vec<(TensorSpec, usize)>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for (spec, bytes) in tensors {
        if filled + bytes as u64 > max && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes as u64;
        shards.last_mut().expect("starts with one shard").push((spec, bytes));
    }
    shards
}

/// Length, JSON, and spaces up to a multiple of what data are aligned to.
fn head(tensors: &[(TensorSpec, usize)], options: &WriterOptions) -> Result<Vec<u8>, Error> {
    let metadata = &options.metadata;
    let mut json = serde_json::to_vec(&HeaderJson { tensors, metadata })
        .expect("text and numbers are valid JSON");
    let n_bytes = (PREFIX + json.len()).next_multiple_of(options.alignment.n_bytes());
    json.resize(n_bytes - PREFIX, b' ');
    let limits = Limits::default();
    limits::check("entries of metadata", metadata.len() as u64, limits.tensors)?;
    limits::check("bytes of header", json.len() as u64, limits.header_bytes)?;
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.append(&mut json);
    Ok(head)
}

struct HeaderJson<'a> {
    tensors: &'a [(TensorSpec, usize)],
    metadata: &'a BTreeMap<String, String>,
}

#[derive(serde::Serialize)]
struct EntryJson<'a> {
    dtype: &'a str,
    shape: &'a [usize],
    data_offsets: (u64, u64),
}

impl Serialize for HeaderJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, self.metadata)?;
        }
        let mut start = 0;
        for (TensorSpec { name, dtype, shape }, bytes) in self.tensors {
            let end = start + *bytes as u64;
            map.serialize_entry(
                name,
                &EntryJson { dtype: dtype.name(), shape, data_offsets: (start, end) },
            )?;
            start = end;
        }
        map.end()
    }
}

/// As the Hugging Face libraries write it: sorted, indented by two spaces, with a final newline.
fn index_text(files: &[FileLayout]) -> String {
    #[derive(serde::Serialize)]
    struct IndexJson<'a> {
        metadata: BTreeMap<&'a str, u64>,
        weight_map: BTreeMap<&'a str, &'a str>,
    }
    let tensors =
        || files.iter().flat_map(|file| file.tensors.iter().map(move |tensor| (file, tensor)));
    let total_size = tensors().map(|(_, (_, bytes))| *bytes as u64).sum();
    let index = IndexJson {
        metadata: BTreeMap::from([("total_size", total_size)]),
        weight_map: tensors()
            .map(|(file, (spec, _))| (spec.name.as_str(), file.name.as_str()))
            .collect(),
    };
    serde_json::to_string_pretty(&index).expect("text and numbers are valid JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard_sizes(sizes: &[usize], max: u64) -> Vec<Vec<usize>> {
        let tensors =
            sizes.iter().map(|&n| (TensorSpec::new(n.to_string(), Dtype::U8, [n]), n)).collect();
        split(tensors, max)
            .into_iter()
            .map(|shard| shard.into_iter().map(|(_, n)| n).collect())
            .collect()
    }

    #[test]
    fn shards_are_filled_up_to_the_limit_in_the_order_given() {
        assert_eq!(shard_sizes(&[4, 6, 1, 9, 2], 10), [vec![4, 6], vec![1, 9], vec![2]]);
        assert_eq!(shard_sizes(&[4, 30, 4, 4], 10), [vec![4], vec![30], vec![4, 4]]);
        assert_eq!(shard_sizes(&[0, 0, 5], 0), [vec![0, 0], vec![5]]);
        assert_eq!(shard_sizes(&[], 10), [Vec::<usize>::new()]);
    }
}
