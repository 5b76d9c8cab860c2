//! `cargo xtask publish`: the order and versions of the published crates, and a dry run of publishing them.
//!
//! Publishing a workspace is not atomic: the registry limits how many new crates it takes, and a run may stop half-way. Cargo refuses a
//! version that exists, so a second run must leave out what the first one published; `--execute` asks the registry for each crate.

use std::process::Stdio;

use crate::{
    failure::{Failure, Outcome},
    process::{capture, cargo, pass},
    tidy::metadata::{Metadata, Package},
};

/// What to do after printing the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Package and build everything, and upload nothing.
    DryRun,
    /// Upload each crate whose version the registry lacks.
    Execute,
}

impl Mode {
    /// Reads the arguments after `publish`.
    ///
    /// # Errors
    ///
    /// A sentence about an argument that makes no sense.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        match args {
            [] => Ok(Self::DryRun),
            [flag] if flag == "--execute" => Ok(Self::Execute),
            [other, ..] => Err(format!("unknown argument `{other}`")),
        }
    }
}

/// Runs the command.
///
/// # Errors
///
/// If the crates depend on each other in a circle, do not package, or cannot be uploaded.
pub(crate) fn run(mode: Mode) -> Outcome {
    let metadata = Metadata::load()?;
    let packages = order(&metadata).map_err(Failure::new)?;
    for package in &packages {
        println!("{} {}", package.name, package.version);
    }
    match mode {
        Mode::DryRun => pass(cargo().args(["publish", "--workspace", "--dry-run"])),
        Mode::Execute => {
            for package in packages {
                if is_in_registry(package) {
                    println!("{} {} is published already", package.name, package.version);
                } else {
                    pass(cargo().args(["publish", "--package", &package.name]))?;
                }
            }
            Ok(())
        }
    }
}

/// Published members, each after those that it depends on; dependencies of tests alone do not count.
///
/// # Errors
///
/// If there is a circle; it is named.
pub(crate) fn order(metadata: &Metadata) -> Result<Vec<&Package>, String> {
    let mut waiting: Vec<&Package> =
        metadata.members().filter(|package| package.is_published()).collect();
    waiting.sort_by(|a, b| a.name.cmp(&b.name));
    let mut ordered: Vec<&Package> = Vec::new();
    while !waiting.is_empty() {
        let is_ready = |package: &Package| {
            package.depends_on().all(|name| !waiting.iter().any(|other| other.name == name))
        };
        let Some(next) = waiting.iter().position(|package| is_ready(package)) else {
            let names: Vec<&str> = waiting.iter().map(|package| package.name.as_str()).collect();
            return Err(format!(
                "these crates depend on each other in a circle: {}",
                names.join(", ")
            ));
        };
        ordered.push(waiting.remove(next));
    }
    Ok(ordered)
}

/// Whether the registry has this version.
fn is_in_registry(package: &Package) -> bool {
    let spec = format!("{}@{}", package.name, package.version);
    capture(
        cargo().args(["info", "--quiet", "--registry", "crates-io", &spec]).stdin(Stdio::null()),
    )
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::metadata::tests::{dependency, metadata, package};

    fn names(metadata: &Metadata) -> Result<Vec<&str>, String> {
        Ok(order(metadata)?.into_iter().map(|package| package.name.as_str()).collect())
    }

    #[test]
    fn a_crate_comes_after_what_it_depends_on_and_test_dependencies_do_not_count() {
        let metadata = metadata(vec![
            package("squish-llm", vec![dependency("squish-quant", None)]),
            package(
                "squish-quant",
                vec![dependency("squish-kernels", None), dependency("squish-llm", Some("dev"))],
            ),
            package("squish-kernels", vec![dependency("half", None)]),
        ]);
        assert_eq!(names(&metadata).unwrap(), ["squish-kernels", "squish-quant", "squish-llm"]);
    }

    #[test]
    fn unpublished_crates_are_left_out_and_a_circle_is_named() {
        let mut private = package("xtask", vec![]);
        private.publish = Some(Vec::new());
        let circle = metadata(vec![
            private,
            package("squish-a", vec![dependency("squish-b", None)]),
            package("squish-b", vec![dependency("squish-a", None)]),
        ]);
        assert_eq!(
            names(&circle).unwrap_err(),
            "these crates depend on each other in a circle: squish-a, squish-b"
        );
    }
}
