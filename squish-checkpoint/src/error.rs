//! What can be wrong with a checkpoint, or with a call.

use std::io;
use std::path::{Path, PathBuf};

use crate::Dtype;

/// Why a checkpoint was refused, or a call was.
///
/// Errors about the content of one file of a folder come inside of [`Error::InFile`]; [`Error::root`] takes it off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{path}`: {source}", path = path.display())]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file `path` is at fault, for the reason in `error`.
    #[error("`{path}`: {error}", path = path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },

    // A header.
    /// The file has no room for the length of its header.
    #[error("file has {len} bytes, fewer than the 8 of the header's length")]
    TooShort {
        /// Bytes of the file.
        len: u64,
    },
    /// The header does not end within the file.
    #[error("header of {header} bytes does not fit into a file of {file} bytes")]
    HeaderPastEnd {
        /// Bytes of the header as the file states them.
        header: u64,
        /// Bytes of the whole file.
        file: u64,
    },
    /// A number is above its bound in [`Limits`](crate::Limits).
    #[error("{actual} {what} are more than the limit of {max}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The number found.
        actual: u64,
        /// The bound.
        max: u64,
    },
    /// Not JSON, or not of the form that the format prescribes.
    #[error("{what} is no JSON of the expected form: {reason}")]
    Json {
        /// `header` or `index`.
        what: &'static str,
        /// The parser's reason, with line and column.
        reason: String,
    },
    /// One JSON object, or one list of tensors to write, has the same name twice.
    #[error("`{key}` occurs twice")]
    DuplicateKey {
        /// The name.
        key: String,
    },
    /// A tensor's element type is not known.
    #[error("`{tensor}` has the unknown dtype `{dtype}`")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// Its type as spelled in the header.
        dtype: String,
    },
    /// The number of elements or of bits does not fit into a machine word.
    #[error("size of `{tensor}` overflows: {dtype} {shape:?}")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape, in elements.
        shape: Vec<usize>,
    },
    /// Elements of fewer than 8 bits that do not fill whole bytes.
    #[error("`{tensor}` has {n_elements} elements of {bits} bits, which do not fill whole bytes")]
    PartialByte {
        /// The tensor.
        tensor: String,
        /// Its number of elements.
        n_elements: usize,
        /// The width of an element.
        bits: usize,
    },
    /// A tensor's data ends before it starts.
    #[error("data of `{tensor}` starts at {start} and ends before, at {end}")]
    Reversed {
        /// The tensor.
        tensor: String,
        /// Start, in bytes from the first byte after the header.
        start: u64,
        /// End, counted likewise.
        end: u64,
    },
    /// The bytes between a tensor's offsets are not those that its type and shape need.
    #[error("`{tensor}` has {actual} bytes, {dtype} {shape:?} needs {expected}")]
    ByteCount {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape, in elements.
        shape: Vec<usize>,
        /// Bytes that type and shape need.
        expected: u64,
        /// Bytes between the offsets.
        actual: u64,
    },
    /// Two tensors share bytes.
    #[error("data of `{tensor}` starts at {start}, inside of `{other}` that ends at {end}")]
    Overlap {
        /// The tensor that starts later.
        tensor: String,
        /// Its start, in bytes from the first byte after the header.
        start: u64,
        /// The tensor before it.
        other: String,
        /// The end of that one.
        end: u64,
    },
    /// Bytes before a tensor belong to none.
    #[error(
        "data of `{tensor}` starts at {start}, the bytes from {expected} on belong to no tensor"
    )]
    Gap {
        /// The tensor after the gap.
        tensor: String,
        /// Its start, in bytes from the first byte after the header.
        start: u64,
        /// Where it had to start.
        expected: u64,
    },
    /// A tensor's data ends past the end of the file.
    #[error("data of `{tensor}` ends at {end}, the file has {len} bytes of data")]
    PastEnd {
        /// The tensor.
        tensor: String,
        /// Its end, in bytes from the first byte after the header.
        end: u64,
        /// Bytes of the file after its header.
        len: u64,
    },
    /// Bytes after the last tensor belong to none.
    #[error("tensors cover {covered} of the file's {len} bytes of data")]
    Trailing {
        /// Bytes that belong to tensors.
        covered: u64,
        /// Bytes of the file after its header.
        len: u64,
    },

    // A folder.
    /// The folder holds neither `model.safetensors` nor its index.
    #[error("`{path}` has neither `model.safetensors` nor `model.safetensors.index.json`", path = path.display())]
    NoCheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// A file name with a separator or a drive, none at all, or one longer than any system's.
    #[error("`{name}` is not the name of a file in the checkpoint's own folder")]
    FileName {
        /// The name.
        name: String,
    },
    /// The index names a file that is not there.
    #[error("shard `{shard}` is missing, the index expects `{tensor}` in it")]
    MissingShard {
        /// The file's name.
        shard: String,
        /// The first tensor that it should hold.
        tensor: String,
    },
    /// A shard does not hold a tensor that the index says it does.
    #[error("`{tensor}` is not in `{shard}`, where the index says that it is")]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The file's name.
        shard: String,
    },
    /// A shard holds a tensor that the index does not name, or places in another file.
    #[error("`{tensor}` of shard `{shard}` is not in the index for that shard")]
    NotInIndex {
        /// The tensor.
        tensor: String,
        /// The file's name.
        shard: String,
    },
    /// Two shards hold a tensor of one name.
    #[error("`{tensor}` is in both `{first}` and `{second}`")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// A shard that holds it.
        first: String,
        /// Another one.
        second: String,
    },

    // A tensor.
    /// No tensor of that name.
    #[error("no tensor `{tensor}` among {n_tensors}")]
    Missing {
        /// The name.
        tensor: String,
        /// The number of tensors that there are.
        n_tensors: usize,
    },
    /// A tensor's shape is not the expected one.
    #[error("`{tensor}` has shape {actual:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape that was asked for.
        expected: Vec<usize>,
        /// The shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor's element type is not the expected one.
    #[error("`{tensor}` is {actual}, expected {expected}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The type that was asked for.
        expected: Dtype,
        /// The type in the file.
        actual: Dtype,
    },
    /// The Rust type asked for has another width than the tensor's elements.
    #[error(
        "`{tensor}` is {dtype} with {bits} bits per element, asked for elements of {size} bytes"
    )]
    ElementSize {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Bits of one element.
        bits: usize,
        /// Bytes of the Rust type.
        size: usize,
    },
    /// The bytes do not start at an address that the Rust type needs.
    #[error("`{tensor}` starts {past} bytes past a multiple of {need}, the alignment asked for")]
    Alignment {
        /// The tensor.
        tensor: String,
        /// The alignment of the Rust type.
        need: usize,
        /// The address modulo `need`.
        past: usize,
    },
    /// A big-endian machine cannot look at little-endian numbers in place.
    #[error("`{tensor}` is little-endian and this machine is not: copy it")]
    ByteOrder {
        /// The tensor.
        tensor: String,
    },
    /// A range that is not inside of the tensor.
    #[error("bytes {offset}..{offset}+{len} are not inside of the {n_bytes} of `{tensor}`")]
    Range {
        /// The tensor.
        tensor: String,
        /// The start of the range, in bytes from the start of the tensor.
        offset: u64,
        /// Its length in bytes.
        len: usize,
        /// Bytes of the tensor.
        n_bytes: usize,
    },
    /// A tensor to be read, or a file to be mapped, is larger than the memory or the address space.
    #[error("no memory for the {n_bytes} bytes of `{what}`")]
    Memory {
        /// The tensor or file.
        what: String,
        /// Its bytes.
        n_bytes: u64,
    },

    // A writer.
    /// The format keeps this name for itself.
    #[error("`{name}` is a reserved name")]
    Reserved {
        /// The name.
        name: String,
    },
    /// A file is in the way.
    #[error("`{path}` exists and is not overwritten", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A tensor was written out of turn.
    #[error("`{tensor}` was written where the layout has `{expected}`")]
    OutOfOrder {
        /// The tensor that was written.
        tensor: String,
        /// The tensor that is next.
        expected: String,
    },
    /// A tensor was written after the last one of the layout.
    #[error("`{tensor}` was written after the last tensor of the layout")]
    Surplus {
        /// The tensor.
        tensor: String,
    },
    /// The bytes given are not the number that the layout has room for.
    #[error("`{tensor}` was given {actual} bytes, its layout has room for {expected}")]
    WrittenLength {
        /// The tensor.
        tensor: String,
        /// Bytes of the tensor that are not written yet.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// The checkpoint was finished before all of its tensors were written.
    #[error("{n_missing} tensors are not written, the first is `{tensor}`")]
    Unfinished {
        /// The next tensor of the layout.
        tensor: String,
        /// How many there are, with it.
        n_missing: usize,
    },
    /// An earlier write failed, so that what is on the disk is not known.
    #[error("an earlier write to the checkpoint in `{path}` failed", path = path.display())]
    Abandoned {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    /// The error itself, without the [`Error::InFile`] around it.
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::InFile { error, .. } => error.root(),
            other => other,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Says which file is at fault, where that is not said already.
    pub(crate) fn in_file(path: &Path) -> impl FnOnce(Self) -> Self {
        move |error| match error {
            Self::Io { .. } | Self::InFile { .. } => error,
            other => Self::InFile { path: path.to_owned(), error: Box::new(other) },
        }
    }

    /// Text of a foreign file, cut to what a message can show: a hostile one has megabytes of it.
    pub(crate) fn clip(text: &str) -> String {
        const MAX: usize = 256;
        match text.char_indices().nth(MAX) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        }
    }
}
