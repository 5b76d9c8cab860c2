//! A checkpoint: the tensors of one file, or of the shards of a folder, as one map.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use crate::index::{self, Files, Index};
use crate::limits::{self, Limits};
use crate::safetensors::Header;
use crate::source::{Source, Storage};
use crate::tensor::TensorTable;
use crate::{Error, SharedBytes, TensorInfo, TensorView};

/// How a checkpoint is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How data get into memory.
    pub source: Source,
    /// What headers and index may hold.
    pub limits: Limits,
}

/// The tensors of a checkpoint, by name.
///
/// The order of [`iter`](Self::iter) and [`names`](Self::names) is that of the data: shards by file name, then offsets,
/// so that a walk over all tensors reads each file once from start to end. [`tensor`](Self::tensor) finds one by name in
/// logarithmic time. A checkpoint can be shared by threads.
#[derive(Debug)]
pub struct Checkpoint {
    table: TensorTable,
    shards: Vec<Storage>,
    paths: Vec<PathBuf>,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// The checkpoint at `path`, memory-mapped: see the contract of [`Source::Map`].
    ///
    /// `path` is a folder that holds `model.safetensors` or `model.safetensors.index.json` (the former wins), a
    /// `*.safetensors.index.json`, or one safetensors file of any name. Reads headers and index only.
    ///
    /// # Errors
    ///
    /// As [`open_with`](Self::open_with).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, Options::default())
    }

    /// The checkpoint at `path`, opened as `options` say.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NoCheckpoint`], [`Error::Memory`]; within [`Error::InFile`] those of
    /// [`SafeTensors::parse_with`](crate::SafeTensors::parse_with), and of an index [`Error::Json`],
    /// [`Error::DuplicateKey`], [`Error::Limit`], [`Error::FileName`], [`Error::MissingShard`], [`Error::NotInShard`],
    /// [`Error::NotInIndex`], [`Error::DuplicateTensor`].
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        match index::find(path.as_ref(), &options.limits)? {
            Files::Single(file) => {
                let (storage, Header { tensors, metadata }) =
                    Storage::open(&file, options.source, 0, &options.limits)?;
                Ok(Self {
                    table: TensorTable::new(tensors),
                    shards: vec![storage],
                    paths: vec![file],
                    metadata,
                })
            }
            Files::Sharded(index) => {
                Self::open_shards(&index, options).map_err(Error::in_file(&index.path))
            }
        }
    }

    fn open_shards(index: &Index, Options { source, limits }: Options) -> Result<Self, Error> {
        let folder = index.path.parent().unwrap_or(Path::new(""));
        let names = index.shards();
        let (mut shards, mut paths) = (Vec::new(), Vec::new());
        let (mut tensors, mut metadata) = (Vec::new(), BTreeMap::new());
        for (shard_idx, (&shard, &first)) in names.iter().enumerate() {
            let path = folder.join(shard);
            let (storage, header) =
                Storage::open(&path, source, shard_idx, &limits).map_err(|error| match error {
                    Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                        Error::MissingShard { shard: shard.to_owned(), tensor: first.to_owned() }
                    }
                    other => other,
                })?;
            tensors.extend(header.tensors);
            limits::check("tensors", tensors.len() as u64, limits.tensors)?;
            for (key, text) in header.metadata {
                metadata.entry(key).or_insert(text);
            }
            shards.push(storage);
            paths.push(path);
        }
        check_against_index(&tensors, index, &names.keys().copied().collect::<Vec<_>>())?;
        Ok(Self { table: TensorTable::new(tensors), shards, paths, metadata })
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.table.infos().len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.table.infos().is_empty()
    }

    /// All tensors without their data, in the order of their data. Reads nothing.
    pub fn iter(&self) -> std::slice::Iter<'_, TensorInfo> {
        self.table.infos().iter()
    }

    /// The names of all tensors, in the order of their data.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.iter().map(TensorInfo::name)
    }

    /// The tensor called `name` without its data, if there is one. Reads nothing.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find_opt(name)
    }

    /// The tensor called `name`: borrowed from the mapping, or read into memory of its own, as [`Source`] says.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`]; with [`Source::Read`] also [`Error::Io`] and [`Error::Memory`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        let info = self.table.find(name)?;
        self.shards[info.shard()].view(info, &self.paths[info.shard()])
    }

    /// The bytes of the tensor called `name`, for whoever keeps them longer than the checkpoint: a share of the mapping, or memory that
    /// they are read into.
    ///
    /// # Errors
    ///
    /// As [`tensor`](Self::tensor).
    pub fn shared(&self, name: &str) -> Result<SharedBytes, Error> {
        let info = self.table.find(name)?;
        self.shards[info.shard()].shared(info, &self.paths[info.shard()])
    }

    /// Fills `buffer` with the bytes of the tensor called `name` from its byte `offset` on: a tensor too large for the
    /// memory, piece by piece.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Range`]; with [`Source::Read`] also [`Error::Io`].
    pub fn read_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let info = self.table.find(name)?;
        let (len, n_bytes) = (buffer.len(), info.n_bytes());
        if offset.checked_add(len as u64).is_none_or(|end| end > n_bytes as u64) {
            return Err(Error::Range { tensor: info.name().to_owned(), offset, len, n_bytes });
        }
        self.shards[info.shard()].read_into(
            info.file_offset() + offset,
            buffer,
            &self.paths[info.shard()],
        )
    }

    /// The files, in the order that [`TensorInfo::shard`] counts.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The texts under `__metadata__` of the files; where two files have one key, the first file's text.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl<'a> IntoIterator for &'a Checkpoint {
    type Item = &'a TensorInfo;
    type IntoIter = std::slice::Iter<'a, TensorInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Checks that the shards called `names` hold the tensors that the index says, each once, and no other.
fn check_against_index(tensors: &[TensorInfo], index: &Index, names: &[&str]) -> Result<(), Error> {
    let mut found: HashMap<&str, &str> = HashMap::with_capacity(tensors.len());
    for info in tensors {
        let shard = names[info.shard()];
        if let Some(first) = found.insert(info.name(), shard) {
            let (tensor, first, second) =
                (info.name().to_owned(), first.to_owned(), shard.to_owned());
            return Err(Error::DuplicateTensor { tensor, first, second });
        }
    }
    for info in tensors {
        let shard = names[info.shard()];
        if index.weights.get(info.name()).is_none_or(|indexed| indexed != shard) {
            return Err(Error::NotInIndex {
                tensor: info.name().to_owned(),
                shard: shard.to_owned(),
            });
        }
    }
    for (tensor, shard) in &index.weights {
        if found.get(tensor.as_str()) != Some(&shard.as_str()) {
            return Err(Error::NotInShard { tensor: tensor.clone(), shard: shard.clone() });
        }
    }
    Ok(())
}
