//! The bytes of one file of a checkpoint, mapped or read on demand.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::limits::Limits;
use crate::safetensors::{Header, PREFIX, json_len};
use crate::{Error, MappedFile, SharedBytes, TensorInfo, TensorView};

/// How the data of a checkpoint get into memory. Opening reads the headers only, with either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Files are mapped; tensors borrow from the mapping, and nothing is copied.
    ///
    /// The files must not be written to or truncated as long as the checkpoint lives: see [`MappedFile`]. Replacing them
    /// by renaming others over them is fine.
    #[default]
    Map,
    /// Files stay open, and each tensor asked for is read into memory of its own, aligned to 8 bytes. A file that is
    /// changed meanwhile gives changed numbers or an error, nothing worse.
    Read,
}

/// An open file of a checkpoint.
#[derive(Debug)]
pub(crate) enum Storage {
    Map(Arc<MappedFile>),
    Read(File),
}

impl Storage {
    /// Opens `path` and reads its header, whose tensors will say that they belong to `shard`.
    pub(crate) fn open(
        path: &Path,
        source: Source,
        shard: usize,
        limits: &Limits,
    ) -> Result<(Self, Header), Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        match source {
            Source::Map => {
                let map = MappedFile::of(&file, path)?;
                let header = Header::of_bytes(&map, shard, limits).map_err(Error::in_file(path))?;
                Ok((Self::Map(Arc::new(map)), header))
            }
            Source::Read => {
                let header =
                    read_header(&file, path, shard, limits).map_err(Error::in_file(path))?;
                Ok((Self::Read(file), header))
            }
        }
    }

    /// The tensor of `info`, which belongs to this file; `path` is for the error.
    pub(crate) fn view<'a>(
        &'a self,
        info: &'a TensorInfo,
        path: &Path,
    ) -> Result<TensorView<'a>, Error> {
        match self {
            Self::Map(map) => Ok(TensorView::borrowed_from(info, &map[info.file_range()])),
            Self::Read(file) => TensorView::read_from(info, read(file, info, path)),
        }
    }

    /// Its bytes alone, for longer.
    pub(crate) fn shared(&self, info: &TensorInfo, path: &Path) -> Result<SharedBytes, Error> {
        match self {
            Self::Map(map) => Ok(SharedBytes::of_map(Arc::clone(map), info.file_range())),
            Self::Read(file) => {
                let words = info.read_words(read(file, info, path))?;
                Ok(SharedBytes::of_words(words, info.n_bytes()))
            }
        }
    }

    /// Fills `buffer` from byte `offset` of the file on, which is known to have so many bytes.
    pub(crate) fn read_into(
        &self,
        offset: u64,
        buffer: &mut [u8],
        path: &Path,
    ) -> Result<(), Error> {
        match self {
            Self::Map(map) => {
                let start = offset as usize;
                buffer.copy_from_slice(&map[start..start + buffer.len()]);
                Ok(())
            }
            Self::Read(file) => {
                read_exact_at(file, buffer, offset).map_err(Error::io("read", path))
            }
        }
    }
}

/// What fills a buffer with the data of a tensor.
fn read(
    file: &File,
    info: &TensorInfo,
    path: &Path,
) -> impl FnOnce(&mut [u8]) -> Result<(), Error> {
    move |buffer| read_exact_at(file, buffer, info.file_offset()).map_err(Error::io("read", path))
}

fn read_header(file: &File, path: &Path, shard: usize, limits: &Limits) -> Result<Header, Error> {
    let file_len = file.metadata().map_err(Error::io("look at", path))?.len();
    if file_len < PREFIX as u64 {
        return Err(Error::TooShort { len: file_len });
    }
    let mut prefix = [0; PREFIX];
    read_exact_at(file, &mut prefix, 0).map_err(Error::io("read", path))?;
    let mut json = vec![0; json_len(prefix, file_len, limits)?];
    read_exact_at(file, &mut json, PREFIX as u64).map_err(Error::io("read", path))?;
    Header::of_json(&json, file_len, shard, limits)
}

/// Positioned, so that threads can read from one file at once.
#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => (buffer, offset) = (&mut buffer[n..], offset + n as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(not(any(unix, windows)))]
fn read_exact_at(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
