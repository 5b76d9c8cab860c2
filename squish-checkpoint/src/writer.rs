//! Writing a checkpoint: streamed, tensor by tensor, visible only when it is whole.
//!
//! 1. [`CheckpointWriter::create`] lays out all files from names, types and shapes alone. The partial file of the name
//!    that readers look for (`model.safetensors`, or the index of several files) reserves the stem: a second writer meets it,
//!    however many files it has.
//! 2. Tensors are written in the order of that layout, to `<file>.partial`. A file is synced to disk when it is full.
//! 3. [`CheckpointWriter::finish`] gives the files their names, the index last.
//!
//! A reader finds a folder by `model.safetensors` or by the index, so that it sees either the whole checkpoint or none. A
//! writer that is dropped before, or fails, removes its files, and no others.
//!
//! A name is given by a hard link, whose partial name is then removed: unlike a rename it fails if the name is taken, in one
//! step with taking it. Where the file system has no hard links, the name is looked for and then the file is renamed; what
//! appears in between would be replaced.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::mem;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::index;
use crate::layout::{self, Layout, TensorSpec, WriterOptions};

/// Writes a checkpoint into a folder.
///
/// # Examples
///
/// ```
/// use squish_checkpoint::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
///
/// let folder = tempfile::tempdir()?;
/// let specs = [TensorSpec::new("bias", Dtype::F32, [1]), TensorSpec::new("codes", Dtype::U8, [6])];
/// let mut writer = CheckpointWriter::create(folder.path(), &specs, &WriterOptions::default())?;
/// writer.write("bias", &1.0f32.to_le_bytes())?;
/// for piece in [[1, 2, 3], [4, 5, 6]] {
///     writer.write_part("codes", &piece)?;
/// }
/// writer.finish()?;
/// assert_eq!(Checkpoint::open(folder.path())?.tensor("codes")?.bytes(), [1, 2, 3, 4, 5, 6]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CheckpointWriter {
    folder: PathBuf,
    stem: String,
    layout: Layout,
    /// The file and the tensor in it that are next; past the last file when all tensors are written.
    file_idx: usize,
    tensor_idx: usize,
    /// Bytes of that tensor that are written.
    filled: usize,
    /// The partial file of `file_idx`.
    out: Option<BufWriter<File>>,
    /// Files that this writer made, which must vanish unless the checkpoint is finished.
    unfinished: Vec<PathBuf>,
    /// Whether a write failed, so that what is on the disk is not known.
    failed: bool,
}

impl CheckpointWriter {
    /// A writer of the tensors `specs` into `folder`, which is created if need be.
    ///
    /// Tensors are distributed over files in the order of `specs`, and written in that of [`layout`](Self::layout). One
    /// file is called `model.safetensors`, several `model-00001-of-00003.safetensors` and so on.
    ///
    /// # Errors
    ///
    /// Of `specs` and `options`: [`Error::DuplicateKey`], [`Error::Reserved`], [`Error::Limit`], [`Error::Overflow`],
    /// [`Error::PartialByte`], [`Error::FileName`] of a stem that is none. Of the folder: [`Error::Exists`] if a file of that
    /// name, a partial one of another writer, or a checkpoint of the same stem is there; [`Error::Io`]. No file is left.
    pub fn create(
        folder: impl AsRef<Path>,
        specs: &[TensorSpec],
        options: &WriterOptions,
    ) -> Result<Self, Error> {
        let folder = folder.as_ref().to_owned();
        let layout = layout::plan(specs, options)?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut writer = Self {
            folder,
            stem: options.stem.clone(),
            layout,
            file_idx: 0,
            tensor_idx: 0,
            filled: 0,
            out: None,
            unfinished: Vec::new(),
            failed: false,
        };
        // The look at other names comes after the reservation: of two writers that start at once, one file and several,
        // each then sees the other.
        if let Some((name, text)) = writer.layout.index.take() {
            let out = writer.create_partial(&name, text.as_bytes())?;
            sync(out).map_err(Error::io("write", &partial_path(&writer.folder, &name)))?;
            writer.check_names_are_free()?;
            writer.open_file()?;
        } else {
            writer.open_file()?;
            writer.check_names_are_free()?;
        }
        Ok(writer)
    }

    /// The tensors in the order in which they are to be written.
    pub fn layout(&self) -> impl Iterator<Item = &TensorSpec> {
        self.layout.files.iter().flat_map(|file| &file.tensors).map(|(spec, _)| spec)
    }

    /// The tensor to be written next, or to be continued; `None` when all are written.
    pub fn next_tensor(&self) -> Option<&TensorSpec> {
        self.current().map(|(spec, _)| spec)
    }

    /// Writes the next tensor: `bytes` are its elements in row-major order, little-endian.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfOrder`], [`Error::Surplus`], [`Error::WrittenLength`]: nothing is written, and the right call can
    /// follow. [`Error::Io`], [`Error::Exists`] of a partial file of another writer where the next one has to start, and
    /// after either [`Error::Abandoned`]: the checkpoint cannot be finished.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let remaining = self.remaining(name)?;
        if bytes.len() != remaining {
            return Err(Error::WrittenLength {
                tensor: name.to_owned(),
                expected: remaining,
                actual: bytes.len(),
            });
        }
        self.append(bytes, remaining)
    }

    /// Writes a further piece of the next tensor, which is complete when its pieces are. A tensor without elements is
    /// complete after one empty piece.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write); [`Error::WrittenLength`] of a piece that is longer than what is left.
    pub fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let remaining = self.remaining(name)?;
        if bytes.len() > remaining {
            return Err(Error::WrittenLength {
                tensor: name.to_owned(),
                expected: remaining,
                actual: bytes.len(),
            });
        }
        self.append(bytes, remaining)
    }

    /// Makes the checkpoint visible, once all tensors are written.
    ///
    /// # Errors
    ///
    /// [`Error::Unfinished`]; [`Error::Abandoned`]; [`Error::Exists`] of a file that has taken a name since
    /// [`create`](Self::create), and is left as it is; [`Error::Io`]. Then no file of this writer is left.
    pub fn finish(mut self) -> Result<(), Error> {
        self.check_usable()?;
        if let Some(next) = self.next_tensor() {
            let written = self.tensor_idx
                + self.layout.files[..self.file_idx].iter().map(|f| f.tensors.len()).sum::<usize>();
            return Err(Error::Unfinished {
                tensor: next.name.clone(),
                n_missing: self.layout().count() - written,
            });
        }
        self.check_names_are_free()?;
        let mut names: Vec<String> =
            self.layout.files.iter().map(|file| file.name.clone()).collect();
        if names.len() > 1 {
            names.push(index::index_name(&self.stem));
        }
        for name in &names {
            self.give_name(name)?;
        }
        sync_folder(&self.folder).map_err(Error::io("sync", &self.folder))?;
        self.unfinished.clear();
        Ok(())
    }

    fn current(&self) -> Option<&(TensorSpec, usize)> {
        self.layout.files.get(self.file_idx)?.tensors.get(self.tensor_idx)
    }

    fn check_usable(&self) -> Result<(), Error> {
        if self.failed { Err(Error::Abandoned { path: self.folder.clone() }) } else { Ok(()) }
    }

    /// Bytes that the tensor called `name` has to come, if it is its turn.
    fn remaining(&self, name: &str) -> Result<usize, Error> {
        self.check_usable()?;
        match self.current() {
            None => Err(Error::Surplus { tensor: name.to_owned() }),
            Some((spec, _)) if spec.name != name => {
                Err(Error::OutOfOrder { tensor: name.to_owned(), expected: spec.name.clone() })
            }
            Some((_, n_bytes)) => Ok(n_bytes - self.filled),
        }
    }

    /// Writes `bytes` of the current tensor, of which `remaining` are to come. The one place where a writer is given up.
    fn append(&mut self, bytes: &[u8], remaining: usize) -> Result<(), Error> {
        let result = self.try_append(bytes, remaining);
        self.failed = result.is_err();
        result
    }

    fn try_append(&mut self, bytes: &[u8], remaining: usize) -> Result<(), Error> {
        let out = self.out.as_mut().expect("the file of the current tensor is open");
        let path = partial_path(&self.folder, &self.layout.files[self.file_idx].name);
        out.write_all(bytes).map_err(Error::io("write", &path))?;
        self.filled += bytes.len();
        if bytes.len() == remaining {
            self.tensor_idx += 1;
            self.filled = 0;
            self.close_full_file()?;
        }
        Ok(())
    }

    /// Starts the file `file_idx`.
    fn open_file(&mut self) -> Result<(), Error> {
        let file = &mut self.layout.files[self.file_idx];
        let (name, head) = (file.name.clone(), mem::take(&mut file.head));
        self.out = Some(self.create_partial(&name, &head)?);
        self.close_full_file()
    }

    /// Goes on to the next file if this one has all of its tensors.
    fn close_full_file(&mut self) -> Result<(), Error> {
        let file = &self.layout.files[self.file_idx];
        if self.tensor_idx < file.tensors.len() {
            return Ok(());
        }
        let path = partial_path(&self.folder, &file.name);
        if let Some(out) = self.out.take() {
            sync(out).map_err(Error::io("write", &path))?;
        }
        self.file_idx += 1;
        self.tensor_idx = 0;
        if self.file_idx < self.layout.files.len() { self.open_file() } else { Ok(()) }
    }

    /// The partial file of `name`, new, with `head` in it.
    fn create_partial(&mut self, name: &str, head: &[u8]) -> Result<BufWriter<File>, Error> {
        let path = partial_path(&self.folder, name);
        // Never a file that is there: a reader may have it mapped, or another writer be at work.
        let file =
            File::options().write(true).create_new(true).open(&path).map_err(
                |error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Error::Exists { path: path.clone() },
                    _ => Error::io("create", &path)(error),
                },
            )?;
        self.unfinished.push(path.clone());
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(head).map_err(Error::io("write", &path))?;
        Ok(out)
    }

    /// Whether nobody else has a file of this checkpoint, or of another with its stem.
    fn check_names_are_free(&self) -> Result<(), Error> {
        // The first two would be read in place of the new checkpoint, or as a part of it. Partial files are looked for,
        // too, because to meet one after hours of writing would be late.
        let (single, index) = (index::single_name(&self.stem), index::index_name(&self.stem));
        let files = self.layout.files.iter().map(|file| &file.name);
        for name in [&single, &index].into_iter().chain(files) {
            for path in [self.folder.join(name), partial_path(&self.folder, name)] {
                if is_taken(&path) && !self.unfinished.contains(&path) {
                    return Err(Error::Exists { path });
                }
            }
        }
        Ok(())
    }

    /// Turns the partial file of `name` into the file of that name, which must not exist.
    fn give_name(&mut self, name: &str) -> Result<(), Error> {
        let (partial, whole) = (partial_path(&self.folder, name), self.folder.join(name));
        match fs::hard_link(&partial, &whole) {
            Ok(()) => {
                self.unfinished.push(whole);
                fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
            }
            Err(_) if is_taken(&whole) => return Err(Error::Exists { path: whole }),
            // Systems name the lack of hard links differently. If it is another trouble, a rename has it, too.
            Err(_) => {
                fs::rename(&partial, &whole).map_err(Error::io("rename", &partial))?;
                self.unfinished.push(whole);
            }
        }
        self.unfinished.retain(|path| *path != partial);
        Ok(())
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        // Some systems do not delete open files.
        self.out = None;
        for path in &self.unfinished {
            // There is nobody to tell if this fails; a partial file has a name that no reader looks for.
            let _ = fs::remove_file(path);
        }
    }
}

/// Where a file is until the checkpoint is whole.
fn partial_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.partial"))
}

/// Whether something is called `path`. Unlike `exists`, this finds a link that leads nowhere.
fn is_taken(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Puts everything written onto the disk.
fn sync(out: BufWriter<File>) -> io::Result<()> {
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Puts the names of new files onto the disk; other systems have no call for that.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    fn a_name_taken_after_the_last_look_is_not_replaced_and_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let specs = ["a", "b"].map(|name| TensorSpec::new(name, Dtype::U8, [1]));
        let options = WriterOptions { max_shard_bytes: 1, ..WriterOptions::default() };
        let mut writer = CheckpointWriter::create(folder.path(), &specs, &options).unwrap();
        writer.write("a", &[1]).unwrap();
        writer.write("b", &[2]).unwrap();
        let [first, second] = ["1", "2"].map(|n| format!("model-0000{n}-of-00002.safetensors"));
        writer.give_name(&first).unwrap();
        fs::write(folder.path().join(&second), b"precious").unwrap();
        let error = writer.give_name(&second).unwrap_err();
        assert!(matches!(error, Error::Exists { path } if path.ends_with(&second)));
        drop(writer);
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [folder.path().join(&second)]);
        assert_eq!(fs::read(&left[0]).unwrap(), b"precious");
    }
}
