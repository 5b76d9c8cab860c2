//! Blocks that outlive the process: a file for each, found again by its tokens.
//!
//! ```text
//! save    the whole blocks of a sequence that can be found by others, as far as the store has not got them
//! create  a sequence that starts with what the cache has of a prompt, and then with what the store has
//! ```
//!
//! A block is stored under its [`BlockHash`], which stands for its tokens, for all before them and for the [`Scope`](crate::Scope) of its
//! sequence; of a salt, as of everything in a scope, only the hash is stored. The name alone is never believed. What is stored is
//!
//! | part | bytes |
//! |---|---|
//! | magic and version | `SQKVBLK1` |
//! | order of bytes | `0x0102` as the machine writes it |
//! | type | name, behind its length as one byte |
//! | scales | `0`: none were given; `1` and those of keys and values in each layer, as `f32` |
//! | shape | `n_layers`, `n_heads`, `key_dim`, `value_dim`, tokens of a block, as `u64` |
//! | hash of the block before; hash of this one | 32 each |
//! | tokens | as `u32` |
//! | keys and values | of each layer keys `[n_heads, tokens, key_dim]` and the scales of rows, if each has its own, then values likewise |
//! | SHA-256 of all that | 32 |
//!
//! in the order of bytes of the machine. A reader knows all of it but keys, values and their scales beforehand, so nothing of it is
//! interpreted: bytes of another length, another beginning or another sum are no hit, and are removed. Numbers are the bits that the cache had.
//!
//! # Examples
//!
//! ```
//! use squish_kv::{KvShape, PagedKvCache, Retention, Salt, Scaling, Scope, disk::DiskStore, ndarray::Array3};
//!
//! let folder = tempfile::tempdir()?;
//! let store = DiskStore::open(folder.path())?;
//! let key = Scope { model: b"llama-3-8b", adapter: None, layer_group: 0, salt: Salt::Shared }.key();
//! let prompt: Vec<u32> = (0..10).collect();
//! let new_cache = || PagedKvCache::<f32>::new(KvShape::new(1, 2, 64), 16, 4, Scaling::Dynamic);
//!
//! let mut cache = new_cache()?;
//! let (id, n_cached) = cache.create_with_prefix(&key, &prompt, Retention::All)?;
//! let mut step = cache.begin(&[(id, 10 - n_cached)])?;
//! step.write(0, id, Array3::ones([10, 2, 64]).view(), Array3::zeros([10, 2, 64]).view())?;
//! step.record(id, &prompt)?;
//! step.commit()?;
//! assert_eq!(cache.save_blocks(id, &store)?, 2);
//!
//! // Another process.
//! let mut cache = new_cache()?;
//! let (_, n_cached) = cache.create_with_stored_prefix(&key, &prompt, Retention::All, &store)?;
//! assert_eq!(n_cached, 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;

use crate::{BlockHash, Error};

mod cache;
mod format;
mod store;

pub use store::DiskStore;

/// Where blocks are kept: bytes by the hash of a block. What it gives back need not be what was stored; whoever reads checks it.
pub trait BlockStore {
    /// Whether there are bytes under a hash.
    ///
    /// # Errors
    ///
    /// If that cannot be said.
    fn contains(&self, hash: &BlockHash) -> io::Result<bool>;

    /// Reads the bytes under a hash into `out`, which is as long as they should be. `false` if there are none, or not as many.
    ///
    /// # Errors
    ///
    /// If they are there and cannot be read.
    fn load(&self, hash: &BlockHash, out: &mut [u8]) -> io::Result<bool>;

    /// Keeps the bytes of `parts`, one behind the other, under a hash: all of them or none. What was there is replaced.
    ///
    /// # Errors
    ///
    /// If they are not kept.
    fn store(&self, hash: &BlockHash, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()>;

    /// Forgets what is under a hash, if there is anything.
    ///
    /// # Errors
    ///
    /// If it is still there.
    fn remove(&self, hash: &BlockHash) -> io::Result<()>;
}

/// Why blocks were not saved or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] Error),
    /// The store failed.
    #[error("block {hash:?}: {error}")]
    Store {
        /// The block.
        hash: BlockHash,
        /// What the store says.
        error: io::Error,
    },
}

impl DiskError {
    fn of(hash: BlockHash) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Store { hash, error }
    }
}
