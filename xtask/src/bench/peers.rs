//! What a user would pick instead, measured in the same minutes: a Rust package outside the workspace, two Python scripts, and a C++
//! program over a build of ggml that the caller has.
//!
//! Each prints one JSON line per figure, after asserting that their answer equals the definition. A program that cannot be built or run
//! drops its columns, with a line saying why.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Options, whole_model};
use crate::{
    failure::{Failure, Outcome},
    process::{capture, cargo, pass, root, target_dir},
    python::{PYTHON_VARIABLE, python},
    results::PeerResult,
};

/// Names ggml's source tree, built in its folder `build`.
const GGML_VARIABLE: &str = "SQUISH_GGML";

/// The peer programs of a run and what they printed so far.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    programs: Vec<Program>,
    lines: Vec<PeerResult>,
    /// One line per program that did not run.
    pub(crate) missing: Vec<String>,
}

/// A program that prints figures.
#[derive(Debug)]
struct Program {
    name: &'static str,
    command: Command,
    often: Often,
}

/// In which rounds a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Often {
    Always,
    /// In the first alone: it takes minutes.
    Once,
}

/// No programs, with a line that says how to have them.
#[must_use]
pub(crate) fn none_asked() -> Peers {
    Peers {
        missing: vec!["peers outside the process; `--peers` measures them".to_owned()],
        ..Peers::default()
    }
}

/// Builds the Rust peers, finds a Python for its libraries, and builds the program that times ggml; then those of a whole model.
pub(crate) fn prepare(options: &Options, say: &mut dyn FnMut(&str)) -> Peers {
    let mut peers = Peers::default();
    say("building the Rust peers");
    let rust_peers = rust_peers();
    let on_model = rust_peers.as_ref().ok().cloned();
    let rust_peers = rust_peers.map(Command::new);
    peers.add("Rust peers (squish-bench/peers)", Often::Always, rust_peers);
    say("looking for the Python peers");
    peers.add("Python peers (peers.py)", Often::Always, python_peers().map_err(with_hint));
    say("building the peer ggml");
    let ggml = ggml_peer(env::var_os(GGML_VARIABLE).as_deref());
    peers.add("ggml (squish-bench/peers/ggml)", Often::Always, ggml);
    if whole_model::is_wanted(options) {
        say("preparing a whole model for its peers");
        match whole_model::checkpoint() {
            Ok(checkpoint) => {
                let python = whole_model::python_peers(&checkpoint).map_err(with_hint);
                peers.add("Python peers (model.py)", Often::Once, python);
                if let Some(program) = on_model {
                    let candle = whole_model::candle(&program, &checkpoint);
                    peers.add("candle on a whole model", Often::Once, Ok(candle));
                }
            }
            Err(failure) => peers.missing.push(format!("peers of a whole model: {failure}")),
        }
    }
    for program in &mut peers.programs {
        program.command.args(arguments(options));
    }
    peers
}

fn with_hint(failure: Failure) -> Failure {
    Failure::new(format!("{failure}; `{PYTHON_VARIABLE}` may name an interpreter"))
}

/// What every program understands.
fn arguments(options: &Options) -> Vec<&str> {
    let filter = options.filter.iter().flat_map(|filter| ["--filter", filter.as_str()]);
    filter.chain(options.quick.then_some("--quick")).collect()
}

fn rust_peers() -> Outcome<PathBuf> {
    let target = target_dir().join("peers");
    let manifest = root().join("squish-bench/peers/Cargo.toml");
    pass(
        cargo()
            .args(["build", "--release", "--quiet", "--locked", "--manifest-path"])
            .arg(manifest)
            .arg("--target-dir")
            .arg(&target),
    )?;
    Ok(target.join("release/squish-peers"))
}

fn python_peers() -> Outcome<Command> {
    let folder = root().join("squish-bench/peers");
    let mut command = Command::new(python(&folder.join("requirements.txt"), "peers")?);
    command.arg(folder.join("peers.py"));
    Ok(command)
}

/// The C++ program, linked with the shared libraries below the source tree that `named` names.
fn ggml_peer(named: Option<&OsStr>) -> Outcome<Command> {
    let named = named.map(Path::new).ok_or_else(|| {
        Failure::new(format!("`{GGML_VARIABLE}` names no source tree with a build of it"))
    })?;
    let ggml = named.canonicalize().map_err(|error| Failure::at(named, &error))?;
    let libraries = ggml.join("build/src");
    let folder = target_dir().join("peers");
    fs::create_dir_all(&folder).map_err(|error| Failure::at(&folder, &error))?;
    let program = folder.join("ggml-peer");
    pass(
        Command::new(env::var_os("CXX").unwrap_or_else(|| "c++".into()))
            .args(["-std=c++17", "-O2", "-o"])
            .arg(&program)
            .arg(root().join("squish-bench/peers/ggml/main.cpp"))
            .arg(prefixed("-I", ggml.join("include")))
            .arg(prefixed("-L", libraries.clone()))
            .arg(prefixed("-Wl,-rpath,", libraries))
            .args(["-lggml-cpu", "-lggml-base"]),
    )?;
    Ok(Command::new(program))
}

/// A compiler's flag and its folder in one argument.
fn prefixed(flag: &str, folder: PathBuf) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(folder);
    argument
}

impl Peers {
    /// A program, or a line that says why there is none.
    fn add(&mut self, name: &'static str, often: Often, command: Outcome<Command>) {
        match command {
            Ok(command) => self.programs.push(Program { name, command, often }),
            Err(failure) => self.missing.push(format!("{name}: {failure}")),
        }
    }

    /// Runs the programs of a round. One that fails is not run again, and what it printed in earlier rounds stays.
    pub(crate) fn run(&mut self, say: &mut dyn FnMut(&str)) {
        let mut failed = Vec::new();
        for Program { name, command, .. } in &mut self.programs {
            say(name);
            let outcome = capture(command)
                .map_err(|failure| failure.to_string())
                .and_then(|text| parse(&text));
            match outcome {
                Ok(lines) => self.lines.extend(lines),
                Err(fault) => failed.push((*name, fault)),
            }
        }
        for (name, fault) in failed {
            self.missing.push(format!("{name}: {fault}"));
            self.programs.retain(|program| program.name != name);
        }
        self.programs.retain(|program| program.often == Often::Always);
    }

    /// One result per row, shape, peer and number of threads: the minimum of the minima, and the median of the medians.
    #[must_use]
    pub(crate) fn merged(&self) -> Vec<PeerResult> {
        let mut sorted = self.lines.clone();
        let key = |p: &PeerResult| (p.row.clone(), p.shape.clone(), p.peer.clone(), p.threads);
        sorted.sort_by_key(key);
        sorted
            .chunk_by(|a, b| key(a) == key(b))
            .map(|same| {
                let mut medians: Vec<f64> = same.iter().map(|p| p.ns_median).collect();
                medians.sort_by(f64::total_cmp);
                let ns_min = same.iter().map(|p| p.ns_min).fold(f64::INFINITY, f64::min);
                PeerResult { ns_min, ns_median: medians[medians.len() / 2], ..same[0].clone() }
            })
            .collect()
    }
}

/// The JSON lines of a peer program.
fn parse(text: &str) -> Result<Vec<PeerResult>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| serde_json::from_str(line).map_err(|error| format!("`{line}`: {error}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(peer: &str, min: f64, median: f64) -> String {
        format!(
            r#"{{"row":"fp8/decode","peer":"{peer}","shape":"128x128","ns_min":{min},"ns_median":{median},"threads":1}}"#
        )
    }

    #[test]
    fn launches_of_one_peer_are_merged_and_other_versions_kept_apart() {
        let text = [
            line("torch 2", 10.0, 11.0),
            line("half 2", 5.0, 6.0),
            line("torch 2", 9.0, 12.0),
            line("torch 2", 12.0, 14.0),
        ]
        .join("\n");
        let peers = Peers { lines: parse(&text).unwrap(), ..Peers::default() };
        let merged: Vec<_> =
            peers.merged().into_iter().map(|p| (p.peer, p.ns_min, p.ns_median)).collect();
        assert_eq!(merged, [("half 2".to_owned(), 5.0, 6.0), ("torch 2".to_owned(), 9.0, 12.0)]);
    }

    #[test]
    fn a_partial_run_asks_the_peers_for_its_part() {
        let options = Options { filter: Some("fp8".to_owned()), quick: true, ..Options::default() };
        assert_eq!(arguments(&options), ["--filter", "fp8", "--quick"]);
        assert!(arguments(&Options::default()).is_empty());
    }

    #[test]
    fn a_line_that_is_no_result_is_shown() {
        assert!(parse("warning: slow\n").unwrap_err().starts_with("`warning: slow`"));
        assert!(parse("\n").unwrap().is_empty());
    }

    #[test]
    fn without_a_ggml_or_with_a_wrong_one_its_columns_are_dropped() {
        let why = |named: Option<&str>| ggml_peer(named.map(OsStr::new)).unwrap_err().to_string();
        assert!(why(None).contains("`SQUISH_GGML` names no source tree"));
        assert!(why(Some("no-such-folder")).contains("no-such-folder"));
    }

    #[test]
    fn a_program_that_fails_drops_its_column_with_a_line() {
        let mut peers = Peers::default();
        peers.add("none", Often::Always, Ok(Command::new("no-such-program-of-this-name")));
        peers.run(&mut |_| {});
        assert!(peers.programs.is_empty() && peers.merged().is_empty());
        assert_eq!(peers.missing.len(), 1);
    }

    #[test]
    fn what_takes_minutes_runs_in_the_first_round_alone() {
        let mut peers = Peers::default();
        for (name, often) in [("always", Often::Always), ("once", Often::Once)] {
            let mut command = Command::new("echo");
            command.arg(line(name, 1.0, 1.0));
            peers.add(name, often, Ok(command));
        }
        for _ in 0..3 {
            peers.run(&mut |_| {});
        }
        let ran = |name: &str| peers.lines.iter().filter(|line| line.peer == name).count();
        assert_eq!((ran("always"), ran("once"), peers.missing.len()), (3, 1, 0));
    }
}
