//! How much a file may ask of its reader before it is refused.

use crate::Error;

/// Upper bounds on what a header or an index may hold; a file beyond them is refused with [`Error::Limit`].
///
/// They bound the memory that a hostile file can make its reader allocate. The defaults admit every published
/// checkpoint that we know of with a wide margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the JSON header of a file. The official reader's bound is the default.
    pub header_bytes: u64,
    /// Bytes of `model.safetensors.index.json`.
    pub index_bytes: u64,
    /// Tensors of a checkpoint, over all of its shards; entries of a file's metadata.
    pub tensors: u64,
    /// Dimensions of a tensor.
    pub rank: u64,
    /// Bytes of a tensor's name.
    pub name_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 100_000_000,
            index_bytes: 100_000_000,
            tensors: 1 << 20,
            rank: 64,
            name_bytes: 4096,
        }
    }
}

/// Refuses `actual` above `max`.
pub(crate) fn check(what: &'static str, actual: u64, max: u64) -> Result<(), Error> {
    if actual > max { Err(Error::Limit { what, actual, max }) } else { Ok(()) }
}
