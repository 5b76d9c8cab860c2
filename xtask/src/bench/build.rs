//! Building the bench executables, and what the results say about the build.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;

use super::Options;
use crate::{
    failure::{Failure, Outcome},
    process::{capture, cargo, root},
};

/// How the benches are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// The workspace's bench profile.
    Bench,
    /// Cargo's default release profile.
    Release,
}

/// One bench file, built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// Its package.
    pub(crate) package: String,
    /// Its target.
    pub(crate) target: String,
    /// The folder of the package, where cargo would start it.
    pub(crate) folder: PathBuf,
    /// The program.
    pub(crate) path: PathBuf,
}

impl Executable {
    /// `package/target`.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.package, self.target)
    }

    /// Whether it is the machine probe.
    #[must_use]
    pub(crate) fn is_probe(&self) -> bool {
        self.package == "squish-bench" && self.target == "probe"
    }

    /// Whether it times nothing, and is for `cargo xtask evidence`.
    #[must_use]
    pub(crate) fn is_evidence(&self) -> bool {
        self.target == "evidence"
    }
}

/// Builds the benches of the workspace, or of the package asked for, and the probe.
///
/// # Errors
///
/// If they do not build.
pub(crate) fn benches(options: &Options, profile: Profile) -> Outcome<Vec<Executable>> {
    benches_of(&root(), None, options, profile)
}

/// As [`benches`], of the workspace in the folder `tree`, built into `target` or wherever cargo builds it.
///
/// # Errors
///
/// If they do not build.
pub(crate) fn benches_of(
    tree: &Path,
    target: Option<&Path>,
    options: &Options,
    profile: Profile,
) -> Outcome<Vec<Executable>> {
    let mut command = cargo();
    command.current_dir(tree);
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target);
    }
    command.args(["bench", "--no-run", "--benches", "--message-format=json-render-diagnostics"]);
    match &options.package {
        Some(package) => command.args(["--package", package, "--package", "squish-bench"]),
        None => command.arg("--workspace"),
    };
    if profile == Profile::Release {
        command.args(["--profile", "release"]);
    }
    let mut found = parse_messages(&capture(&mut command)?).map_err(Failure::new)?;
    found.retain(|executable| !executable.is_evidence());
    found.sort_by_key(Executable::name);
    Ok(found)
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The bench executables among cargo's messages.
fn parse_messages(text: &str) -> Result<Vec<Executable>, String> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line)
            .map_err(|error| format!("cargo's message: {error}: {line}"))?;
        let (Some(target), Some(path), Some(manifest)) =
            (message.target, message.executable, message.manifest_path)
        else {
            continue;
        };
        if message.reason == "compiler-artifact" && target.kind.iter().any(|kind| kind == "bench") {
            let folder = manifest.parent().unwrap_or(Path::new(".")).to_path_buf();
            // Folders are named as their crates.
            let package = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Executable { package, target: target.name, folder, path });
        }
    }
    Ok(found)
}

/// First line of `rustc --version`.
///
/// # Errors
///
/// If it does not run.
pub(crate) fn rustc_version() -> Outcome<String> {
    Ok(capture(std::process::Command::new("rustc").arg("--version").current_dir(root()))?
        .trim()
        .to_owned())
}

/// The commit, with `+changes` if files that the build sees differ from it; `unknown` outside a git checkout.
#[must_use]
pub(crate) fn commit() -> String {
    let git =
        |args: &[&str]| capture(std::process::Command::new("git").args(args).current_dir(root()));
    let apart = [".", ":!BENCHMARKS.md", ":!EVIDENCE.md", ":!bench/results", ":!bench/charts"];
    let changes = git(&[&["status", "--porcelain", "--"], &apart[..]].concat());
    match (git(&["rev-parse", "--short=12", "HEAD"]), changes) {
        (Ok(commit), Ok(changes)) if changes.is_empty() => commit.trim().to_owned(),
        (Ok(commit), _) => format!("{}+changes", commit.trim()),
        (Err(_), _) => "unknown".to_owned(),
    }
}

/// Today's date, UTC.
#[must_use]
pub(crate) fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date_of_day(seconds / 86_400)
}

/// The date of a day since 1970-01-01 (Hinnant's `civil_from_days` for days that are not negative).
fn date_of_day(days: u64) -> String {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (day, date) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (19_782, "2024-02-29"),
            (20_453, "2025-12-31"),
        ] {
            assert_eq!(date_of_day(day), date);
        }
    }

    #[test]
    fn bench_executables_are_found_among_cargo_s_messages() {
        let text = r#"
{"reason":"compiler-artifact","package_id":"p","manifest_path":"/w/squish-quant/Cargo.toml","target":{"kind":["lib"],"name":"squish_quant"},"executable":null}
{"reason":"compiler-artifact","package_id":"p","manifest_path":"/w/squish-quant/Cargo.toml","target":{"kind":["bench"],"name":"fp8"},"executable":"/t/fp8-1"}
{"reason":"compiler-artifact","package_id":"p","manifest_path":"/w/xtask/Cargo.toml","target":{"kind":["bin"],"name":"xtask"},"executable":"/t/xtask"}
{"reason":"build-finished","success":true}
"#;
        let found = parse_messages(text).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].name().as_str(), found[0].path.to_str()),
            ("squish-quant/fp8", Some("/t/fp8-1"))
        );
        assert!(parse_messages("{").is_err());
    }
}
