//! `cargo xtask tidy`: the rules of the repository, each a pure function over text or cargo's metadata.

pub(crate) mod budget;
pub(crate) mod floors;
pub(crate) mod links;
pub(crate) mod metadata;
pub(crate) mod sections;
pub(crate) mod skeleton;
pub(crate) mod source;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod tables;
pub(crate) mod text;
pub(crate) mod unsafe_code;

use std::{collections::BTreeMap, path::Path, process::Command};

use crate::{
    failure::{Failure, Outcome, read},
    process::{capture, cargo, root},
};
use metadata::Metadata;

/// The files of the repository that are text, by path from the root with forward slashes.
pub(crate) type Tree = BTreeMap<String, String>;

/// Runs every rule and prints what breaks one.
///
/// # Errors
///
/// If a rule is broken, or the repository cannot be read.
pub(crate) fn run() -> Outcome {
    let metadata = Metadata::load()?;
    let (paths, tree) = load()?;
    let mut faults = floors::check(&metadata);
    faults.extend(skeleton::check(&metadata, &paths, &tree));
    faults.extend(unsafe_code::check(&metadata, &tree));
    faults.extend(text::check(&tree));
    faults.extend(tables::check(&tree));
    faults.extend(status::check(&paths, &tree));
    for (name, most) in table::budgets() {
        if metadata.members().any(|package| package.name == name) {
            let listed = capture(cargo().args(budget::ARGUMENTS).args(["--package", name]))?;
            faults.extend(budget::check(name, most, &listed));
        }
    }
    if faults.is_empty() {
        println!(
            "tidy: {} files and {} crates keep the rules",
            paths.len(),
            metadata.members().count()
        );
        return Ok(());
    }
    faults.sort();
    Err(Failure::new(format!("{}\n{} rules broken", faults.join("\n"), faults.len())))
}

/// All paths that git knows or would add, and the text of those that hold text.
fn load() -> Outcome<(Vec<String>, Tree)> {
    let listed = capture(
        Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root()),
    )?;
    let paths: Vec<String> = listed
        .split('\0')
        .map(str::to_owned)
        .filter(|path| root().join(path).exists())
        .filter(|path| !path.is_empty())
        .collect();
    let is_text =
        |path: &&String| text::EXTENSIONS.iter().any(|extension| has_extension(path, extension));
    let tree = paths
        .iter()
        .filter(is_text)
        .map(|path| Ok((path.clone(), read(&root().join(path))?)))
        .collect::<Outcome<Tree>>()?;
    Ok((paths, tree))
}

/// Whether the path ends with `.{extension}`.
fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// A tree for the tests of the rules.
#[cfg(test)]
pub(crate) fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}
