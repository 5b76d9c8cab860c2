//! Starting the bench executables of one launch round.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    Options,
    build::{Executable, Profile},
    samples::{self, Measured},
};
use crate::{
    failure::{Failure, Outcome, read},
    process::{capture, target_dir},
    results::{Probe, Row},
};

/// Runs the probe.
///
/// # Errors
///
/// If it fails or prints something else than its JSON.
pub(crate) fn probe(executable: &Executable, quick: bool) -> Outcome<Probe> {
    let mut command = Command::new(&executable.path);
    command.arg("--bench").args(quick.then_some("--quick")).current_dir(&executable.folder);
    let text = capture(&mut command)?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::new(format!("the probe's output: {error}")))
}

/// One launch round and its folder.
#[derive(Debug)]
pub(crate) struct Round {
    folder: PathBuf,
}

/// What a round left behind.
#[derive(Debug, Default)]
pub(crate) struct RoundResult {
    /// Declared rows with the names and bytes of their variants.
    pub(crate) described: Vec<Described>,
    /// Measured functions.
    pub(crate) measured: Vec<Measured>,
}

/// A row as its bench described it.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Described {
    /// The declaration.
    #[serde(flatten)]
    pub(crate) row: Row,
    /// Variants in order.
    pub(crate) variants: Vec<DescribedVariant>,
}

/// A variant as described.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct DescribedVariant {
    /// Its name.
    pub(crate) name: String,
    /// Bytes that one call moves.
    pub(crate) bytes: u64,
    /// Nanoseconds of a call, sample by sample, where ours and its probe were timed in turn; criterion has no samples of these.
    #[serde(default)]
    pub(crate) ns: Vec<f64>,
}

impl Round {
    /// An empty folder for a round called `name`.
    ///
    /// # Errors
    ///
    /// If it cannot be emptied or made.
    pub(crate) fn new(name: &str) -> Outcome<Self> {
        let folder = target_dir().join("squish-bench").join(name);
        let emptied = if folder.exists() { fs::remove_dir_all(&folder) } else { Ok(()) };
        emptied
            .and_then(|()| fs::create_dir_all(&folder))
            .map_err(|error| Failure::at(&folder, &error))?;
        Ok(Self { folder })
    }

    /// Starts one bench executable; its output goes to a log file, whose end is part of the message if it fails.
    ///
    /// # Errors
    ///
    /// If it does not start or does not succeed.
    pub(crate) fn run(
        &self,
        executable: &Executable,
        options: &Options,
        profile: Profile,
    ) -> Outcome {
        let log_path = self.folder.join(format!("{}.log", executable.name().replace('/', "-")));
        let log = || {
            File::options()
                .create(true)
                .append(true)
                .open(&log_path)
                .map_err(|error| Failure::at(&log_path, &error))
        };
        let mut command = Command::new(&executable.path);
        command.arg("--bench").current_dir(&executable.folder).env("CRITERION_HOME", &self.folder);
        if options.quick {
            command.args(["--warm-up-time", "0.05", "--measurement-time", "0.2"]);
        }
        for variable in [FILTER_VARIABLE, SWEEP_VARIABLE, RELEASE_VARIABLE] {
            // What the caller's shell has set would leave out rows of a run of everything.
            command.env_remove(variable);
        }
        command.envs(variables(options, profile));
        command.stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        let status = command.status().map_err(|error| Failure::at(&executable.path, &error))?;
        if status.success() {
            return Ok(());
        }
        let text = read(&log_path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        Err(Failure::new(format!("{}: {status}\n{end}", executable.name())))
    }

    /// Reads what the benches wrote.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or is not what it should be.
    pub(crate) fn read(&self) -> Outcome<RoundResult> {
        let described_dir = self.folder.join("squish");
        let mut out = RoundResult::default();
        for path in files_below(&self.folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.starts_with(&described_dir)
                && path.extension().is_some_and(|extension| extension == "json")
            {
                out.described.push(parse(&path)?);
            } else if name == "benchmark.json"
                && path.parent().is_some_and(|folder| folder.ends_with("new"))
            {
                let samples = path.with_file_name("sample.json");
                out.measured.push(
                    samples::parse(&read(&path)?, &read(&samples)?)
                        .map_err(|fault| Failure::new(format!("{}: {fault}", path.display())))?,
                );
            }
        }
        Ok(out)
    }
}

/// A bench process runs rows alone whose id contains the value. This and the two below are those of `squish_bench::suite`.
const FILTER_VARIABLE: &str = "SQUISH_BENCH_FILTER";
/// It runs the grids, and nothing else.
const SWEEP_VARIABLE: &str = "SQUISH_BENCH_SWEEP";
/// It runs rows alone that are measured again at the default release profile.
const RELEASE_VARIABLE: &str = "SQUISH_BENCH_RELEASE";

/// How a bench process is told which rows to run.
fn variables(options: &Options, profile: Profile) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    if let Some(filter) = &options.filter {
        out.push((FILTER_VARIABLE, filter.clone()));
    }
    if options.sweep {
        out.push((SWEEP_VARIABLE, "1".to_owned()));
    }
    if profile == Profile::Release {
        out.push((RELEASE_VARIABLE, "1".to_owned()));
    }
    out
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Outcome<T> {
    serde_json::from_str(&read(path)?)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// All files below a folder, in the order of their paths.
fn files_below(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| Failure::at(&folder, &error))? {
            let path = entry.map_err(|error| Failure::at(&folder, &error))?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use squish_bench::suite;

    use super::*;

    #[test]
    fn a_bench_process_is_told_its_selection() {
        let options = Options { filter: Some("fp8".to_owned()), sweep: true, ..Options::default() };
        let names: Vec<_> =
            variables(&options, Profile::Release).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [suite::FILTER_VARIABLE, suite::SWEEP_VARIABLE, suite::RELEASE_VARIABLE]);
        assert!(variables(&Options::default(), Profile::Bench).is_empty());
    }
}
