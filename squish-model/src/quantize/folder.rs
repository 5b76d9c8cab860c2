//! A folder that appears when it is whole.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use squish_checkpoint::Error as CheckpointError;

use crate::Error;

/// A folder under another name, which is removed unless it is finished.
#[derive(Debug)]
pub(super) struct PartialFolder {
    path: PathBuf,
    target: PathBuf,
    /// Held as long as this lives, so that another call does not take the folder for that of a dead one.
    _lock: Option<File>,
    is_finished: bool,
}

impl PartialFolder {
    /// A new folder that is going to be `target`; one that a call left which did not come to its end is replaced.
    pub(super) fn create(target: &Path) -> Result<Self, Error> {
        check_free(target)?;
        let Some(name) = target.file_name().and_then(|name| name.to_str()) else {
            let name = target.display().to_string();
            return Err(CheckpointError::FileName { name }.into());
        };
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(error("create", parent))?;
        let path = parent.join(format!(".{name}.squish-partial"));
        if is_taken(&path) {
            let _lock = lock(&path)?;
            fs::remove_dir_all(&path).map_err(error("remove", &path))?;
        }
        fs::create_dir(&path).map_err(error("create", &path))?;
        let lock = lock(&path)?;
        Ok(Self { path, target: target.to_owned(), _lock: lock, is_finished: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file of these bytes, on the disk when this returns.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(error("write", &path))
    }

    /// Copies of what belongs to a checkpoint besides weights and configuration: tokenizer, chat templates, the defaults of generation,
    /// license.
    pub(super) fn copy_texts(&self, from: &Path) -> Result<(), Error> {
        for name in files(from)?.into_iter().filter(|name| is_text(name)) {
            self.copy(&from.join(&name), &name)?;
        }
        let templates = from.join(TEMPLATES);
        if templates.is_dir() {
            let folder = self.path.join(TEMPLATES);
            fs::create_dir(&folder).map_err(error("create", &folder))?;
            for name in files(&templates)?.into_iter().filter(|name| is_text(name)) {
                self.copy(&templates.join(&name), &format!("{TEMPLATES}/{name}"))?;
            }
            sync_folder(&folder)?;
        }
        Ok(())
    }

    /// Gives the folder its name.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        sync_folder(&self.path)?;
        // A folder that is empty would be replaced.
        check_free(&self.target)?;
        fs::rename(&self.path, &self.target).map_err(error("rename", &self.path))?;
        self.is_finished = true;
        sync_folder(parent(&self.target))
    }

    fn copy(&self, from: &Path, name: &str) -> Result<(), Error> {
        let bytes = fs::read(from).map_err(error("read", from))?;
        self.write(name, &bytes)
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        if !self.is_finished {
            // There is nobody to tell if this fails; the next call tries again.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Where transformers has chat templates if there are several.
pub(crate) const TEMPLATES: &str = "additional_chat_templates";

/// Whether a file of this name is copied.
fn is_text(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    let is_license =
        ["LICENSE", "NOTICE", "USE_POLICY"].iter().any(|start| name.starts_with(start));
    match extension {
        _ if name.starts_with('.') || name == "config.json" || name.ends_with(".index.json") => {
            false
        }
        Some("json" | "jinja" | "txt" | "model") => true,
        _ => is_license,
    }
}

/// Names of the files in a folder, links to files among them, sorted. A name that is no text is none of a checkpoint's.
fn files(folder: &Path) -> Result<Vec<String>, Error> {
    let list = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_file()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    };
    list().map_err(error("read", folder))
}

/// The lock of a folder, where there are such locks.
fn lock(path: &Path) -> Result<Option<File>, Error> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let file = File::open(path).map_err(error("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            Err(CheckpointError::Exists { path: path.to_owned() }.into())
        }
        // A file system without locks.
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn check_free(path: &Path) -> Result<(), Error> {
    if is_taken(path) {
        return Err(CheckpointError::Exists { path: path.to_owned() }.into());
    }
    Ok(())
}

/// Whether something is called `path`, be it a link that leads nowhere.
fn is_taken(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Puts the names in a folder onto the disk; systems other than Unix have no call for that.
fn sync_folder(path: &Path) -> Result<(), Error> {
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(path).and_then(|folder| folder.sync_all()).map_err(error("sync", path))
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| CheckpointError::Io { action, path, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_copied_and_weights_are_not() {
        for name in [
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "merges.txt",
            "generation_config.json",
            "LICENSE",
        ] {
            assert!(is_text(name), "{name}");
        }
        for name in [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "pytorch_model.bin",
            ".gitattributes",
            ".x.json",
            "README.md",
        ] {
            assert!(!is_text(name), "{name}");
        }
    }

    #[test]
    fn a_partial_folder_in_use_is_left_alone_and_one_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/target");
        let first = PartialFolder::create(&target).unwrap();
        first.write("x", b"first").unwrap();
        if cfg!(unix) {
            let error = PartialFolder::create(&target).unwrap_err();
            assert!(
                matches!(&error, Error::Checkpoint(CheckpointError::Exists { path }) if *path == first.path)
            );
        }
        assert_eq!(fs::read(first.path.join("x")).unwrap(), b"first");
        let path = first.path.clone();
        drop(first);
        assert!(!path.exists());

        fs::create_dir(&path).unwrap();
        fs::write(path.join("stale"), b"").unwrap();
        let second = PartialFolder::create(&target).unwrap();
        second.write("y", b"second").unwrap();
        second.finish().unwrap();
        assert_eq!(files(&target).unwrap(), ["y"]);
        assert!(!path.exists());
        assert!(PartialFolder::create(&target).is_err());
    }

    #[test]
    fn a_folder_that_appears_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let partial = PartialFolder::create(&target).unwrap();
        fs::create_dir(&target).unwrap();
        assert!(partial.finish().is_err());
        assert!(files(&target).unwrap().is_empty());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
