//! `cargo xtask golden`: runs `tools/golden/*.py` into an empty folder and compares the bytes with the committed files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    failure::{Failure, Outcome, write},
    process::{pass, root, target_dir},
    python::python,
};

/// What happens to files that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They are replaced.
    Update,
    /// They are left alone, and the command fails.
    Check,
}

impl Mode {
    /// Reads the arguments after `golden`.
    ///
    /// # Errors
    ///
    /// A sentence about an argument that makes no sense.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        match args {
            [] => Ok(Self::Update),
            [flag] if flag == "--check" => Ok(Self::Check),
            [other, ..] => Err(format!("unknown argument `{other}`")),
        }
    }
}

/// Path below the root and bytes.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Runs the command.
///
/// # Errors
///
/// If a script fails, or in check mode if a file differs.
pub(crate) fn run(mode: Mode) -> Outcome {
    let scripts_dir = root().join("tools/golden");
    let python = python(&scripts_dir.join("requirements.txt"), "golden")?;
    let out = target_dir().join("golden");
    let emptied = if out.exists() { fs::remove_dir_all(&out) } else { Ok(()) };
    emptied.map_err(|error| Failure::at(&out, &error))?;
    for script in scripts(&scripts_dir)? {
        println!("{}", script.file_name().unwrap_or_default().to_string_lossy());
        pass(Command::new(&python).arg(&script).arg("--out").arg(&out))?;
    }
    let made = golden_files(&out)?;
    let differences = compare(&made, &golden_files(&root())?);
    for difference in &differences {
        println!("{difference}");
    }
    println!("{} golden files, {} differ", made.len(), differences.len());
    match mode {
        Mode::Check if !differences.is_empty() => {
            Err(Failure::new("golden files differ from what their scripts write"))
        }
        Mode::Check => Ok(()),
        Mode::Update => {
            for difference in &differences {
                if let Some(bytes) = made.get(&difference.path) {
                    write(&root().join(&difference.path), bytes)?;
                }
            }
            Ok(())
        }
    }
}

/// The scripts, without the module that they share.
fn scripts(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| Failure::at(folder, &error))? {
        let path = entry.map_err(|error| Failure::at(folder, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "py")
            && !path.ends_with("common.py")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// `<crate>/tests/golden/*` below `base`.
fn golden_files(base: &Path) -> Outcome<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(base).map_err(|error| Failure::at(base, &error))? {
        let folder = entry.map_err(|error| Failure::at(base, &error))?.path().join("tests/golden");
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.map_err(|error| Failure::at(&folder, &error))?.path();
            let bytes = fs::read(&path).map_err(|error| Failure::at(&path, &error))?;
            files.insert(path.strip_prefix(base).unwrap_or(&path).to_path_buf(), bytes);
        }
    }
    Ok(files)
}

/// One file that is not what its script writes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    path: PathBuf,
    what: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// All differences between what scripts made and what is committed, by path.
#[must_use]
pub(crate) fn compare(made: &Files, committed: &Files) -> Vec<Difference> {
    let difference = |path: &PathBuf, what: String| Difference { path: path.clone(), what };
    let mut out: Vec<Difference> = made
        .iter()
        .filter_map(|(path, bytes)| match committed.get(path) {
            None => Some(difference(path, "not committed".to_owned())),
            Some(old) if old == bytes => None,
            Some(old) if old.len() != bytes.len() => Some(difference(
                path,
                format!("{} bytes committed, {} made", old.len(), bytes.len()),
            )),
            Some(old) => {
                let count = old.iter().zip(bytes).filter(|(a, b)| a != b).count();
                let first = old.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(0);
                Some(difference(
                    path,
                    format!("{count} of {} bytes differ, first at {first}", bytes.len()),
                ))
            }
        })
        .collect();
    out.extend(
        committed
            .keys()
            .filter(|path| !made.contains_key(*path))
            .map(|path| difference(path, "no script writes it".to_owned())),
    );
    out.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &[u8])]) -> Files {
        list.iter().map(|(path, bytes)| (PathBuf::from(path), bytes.to_vec())).collect()
    }

    #[test]
    fn every_way_to_differ_is_named() {
        let made = files(&[("a", b"same"), ("b", b"new!"), ("c", b"longer"), ("d", b"fresh")]);
        let committed = files(&[("a", b"same"), ("b", b"now?"), ("c", b"long"), ("e", b"orphan")]);
        let shown: Vec<String> =
            compare(&made, &committed).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "b: 2 of 4 bytes differ, first at 1",
                "c: 4 bytes committed, 6 made",
                "d: not committed",
                "e: no script writes it"
            ]
        );
        assert!(compare(&made, &made).is_empty());
    }

    #[test]
    fn the_scripts_of_the_repository_are_found_without_their_shared_module() {
        let names: Vec<_> = scripts(&root().join("tools/golden")).unwrap();
        assert!(!names.is_empty() && names.iter().all(|path| !path.ends_with("common.py")));
    }
}
