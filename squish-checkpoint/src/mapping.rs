//! Memory-mapped files: the one module of this crate with `unsafe`.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::Error;

/// A file of any kind as a slice of bytes, mapped into memory read-only.
///
/// Nothing is read when it is opened; pages are read when they are first touched, shared with other processes that map
/// the same file, and dropped by the system when memory runs short. The slice starts at a page, so an offset in the file
/// has the same alignment in memory.
///
/// # The contract
///
/// **As long as a `MappedFile` lives, nobody may write to the file or truncate it**, this process included. Rust cannot
/// check that. If the file is truncated, touching the lost pages ends the process with a bus error (`SIGBUS`); if it is
/// written to, bytes change under a shared reference, which is undefined behavior. Replacing a file by renaming another
/// one over it, or deleting it, is harmless: the mapping keeps the old file. [`CheckpointWriter`](crate::CheckpointWriter)
/// only ever does the former. Where others may write to the file, use [`Source::Read`](crate::Source::Read), or
/// [`std::fs::read`], which have no such contract.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` of an empty file, which not every system can map.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Memory`] if the file is larger than the address space.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("open", path))?;
        Self::of(&file, path)
    }

    /// Maps `file`, which was opened from `path`.
    pub(crate) fn of(file: &File, path: &Path) -> Result<Self, Error> {
        let n_bytes = file.metadata().map_err(Error::io("look at", path))?.len();
        if n_bytes == 0 {
            return Ok(Self { map: None });
        }
        if isize::try_from(n_bytes).is_err() {
            return Err(Error::Memory { what: path.display().to_string(), n_bytes });
        }
        map(file).map(|map| Self { map: Some(map) }).map_err(Error::io("map", path))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[expect(
    unsafe_code,
    reason = "a file can be mapped in no other way; the rest of the crate reads slices"
)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the memory is valid for as long as the `Mmap` lives, read-only, and no reference outlives it: `Deref`
    // borrows. What cannot be established here is that the file stays as it is; that is the contract which the
    // documentation of `MappedFile` and of `Source::Map` puts on whoever chooses to map. Our own writer keeps to it: it
    // writes to new files only and renames them.
    unsafe { Mmap::map(file) }
}
