//! Files of a folder as a store.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use super::BlockStore;
use crate::BlockHash;

/// A folder with a file for each block, `ab/ab12….kv` by the digits of its hash.
///
/// A file is written beside its place, synced and then renamed, so that it is there as a whole or not at all, whoever writes at the same time.
/// Reading a file makes it the latest one that was used: see [`trim`](Self::trim).
#[derive(Clone, Debug)]
pub struct DiskStore {
    folder: PathBuf,
}

/// Names of files that are written now.
const PARTIAL: &str = "partial";
/// Those of whole ones.
const WHOLE: &str = "kv";

/// After so long nobody is writing to a file any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Sets names of this process's files apart.
static N_WRITTEN: AtomicU64 = AtomicU64::new(0);

impl DiskStore {
    /// The blocks of a folder, which is made if there is none.
    ///
    /// # Errors
    ///
    /// If it cannot be.
    pub fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Removes the blocks that were not used for longest until no more than `most_bytes` are left, and what writers left behind that were
    /// stopped an hour ago or earlier. Returns how many bytes are left.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read, or a file that is to go is still there.
    pub fn trim(&self, most_bytes: u64) -> io::Result<u64> {
        let (now, mut files, mut n_bytes) = (SystemTime::now(), Vec::new(), 0);
        for folder in fs::read_dir(&self.folder)? {
            let folder = folder?.path();
            if !folder.is_dir() {
                continue;
            }
            for file in fs::read_dir(folder)? {
                let file = file?;
                // One that is gone meanwhile is no fault.
                let Ok(metadata) = file.metadata() else { continue };
                let (path, used) = (file.path(), metadata.modified()?);
                let has = |name: &str| path.extension().is_some_and(|extension| extension == name);
                if has(WHOLE) {
                    n_bytes += metadata.len();
                    files.push((used, path, metadata.len()));
                } else if has(PARTIAL) && now.duration_since(used).is_ok_and(|age| age > ABANDONED)
                {
                    remove(&path)?;
                }
            }
        }
        files.sort();
        for (_, path, len) in files {
            if n_bytes <= most_bytes {
                break;
            }
            remove(&path)?;
            n_bytes -= len;
        }
        Ok(n_bytes)
    }

    fn path(&self, hash: &BlockHash) -> PathBuf {
        let digits = format!("{hash:?}");
        self.folder.join(&digits[..2]).join(digits).with_extension(WHOLE)
    }
}

impl BlockStore for DiskStore {
    fn contains(&self, hash: &BlockHash) -> io::Result<bool> {
        self.path(hash).try_exists()
    }

    fn load(&self, hash: &BlockHash, out: &mut [u8]) -> io::Result<bool> {
        let path = self.path(hash);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() != out.len() as u64 {
            drop(file);
            remove(&path)?;
            return Ok(false);
        }
        file.read_exact(out)?;
        // Where that is not allowed, the block only goes earlier.
        let _ = file.set_modified(SystemTime::now());
        Ok(true)
    }

    fn store(&self, hash: &BlockHash, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()> {
        let path = self.path(hash);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)?;
        let number = N_WRITTEN.fetch_add(1, Ordering::Relaxed);
        let partial = path.with_extension(format!("{}-{number}.{PARTIAL}", process::id()));
        let written = write(&partial, parts).and_then(|()| fs::rename(&partial, &path));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }

    fn remove(&self, hash: &BlockHash) -> io::Result<()> {
        remove(&self.path(hash))
    }
}

fn write(path: &Path, parts: &mut dyn Iterator<Item = &[u8]>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
