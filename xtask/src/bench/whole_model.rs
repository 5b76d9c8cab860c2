//! Peers that time a whole model: candle, and llama.cpp and transformers from Python.
//!
//! All read one checkpoint of random weights, of some seven gigabytes with its GGUF files, which is made on first use. It holds the logits
//! that are expected of it, so that figures are right even if it is older than the code that wrote it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Options;
use crate::{
    failure::{Failure, Outcome},
    process::{cargo, pass, root, target_dir},
    python::python,
};

/// The rows that have such peers.
const ROWS: [&str; 2] = ["runtime/decode", "runtime/prefill"];

/// What candle takes the number of its threads from, and the rows' number.
const THREADS: (&str, &str) = ("RAYON_NUM_THREADS", "2");

/// The program that writes the checkpoint.
const EXAMPLE: &str = "random_checkpoint";

/// Whether a run covers any of the rows: otherwise no checkpoint is made.
#[must_use]
pub(crate) fn is_wanted(options: &Options) -> bool {
    !options.sweep
        && options.package.as_ref().is_none_or(|package| package == "squish-model")
        && options.filter.as_ref().is_none_or(|part| ROWS.iter().any(|row| row.contains(part)))
}

/// The program that times llama.cpp and transformers. The GGUF files are there afterwards.
///
/// # Errors
///
/// If a library cannot be installed or a file not be converted.
pub(crate) fn python_peers(checkpoint: &Path) -> Outcome<Command> {
    let folder = root().join("squish-bench/peers");
    let interpreter = python(&folder.join("requirements-model.txt"), "model")?;
    let program = || {
        let mut command = Command::new(&interpreter);
        command.arg(folder.join("model.py")).arg(checkpoint);
        command
    };
    pass(program().arg("--prepare"))?;
    Ok(program())
}

/// The Rust peers, told to time candle on the whole model.
pub(crate) fn candle(rust_peers: &Path, checkpoint: &Path) -> Command {
    let mut command = Command::new(rust_peers);
    command.arg("--model").arg(checkpoint).env(THREADS.0, THREADS.1);
    command
}

/// The folder of the checkpoint, which is there only when it is whole.
///
/// # Errors
///
/// If it cannot be written.
pub(crate) fn checkpoint() -> Outcome<PathBuf> {
    let parent = target_dir().join("squish-bench");
    let (folder, partial) = (parent.join("random-1b"), parent.join("random-1b.partial"));
    if folder.exists() {
        return Ok(folder);
    }
    let emptied = if partial.exists() { fs::remove_dir_all(&partial) } else { Ok(()) };
    emptied.map_err(|error| Failure::at(&partial, &error))?;
    // Of the whole workspace, as the benches are: alone its dependencies would have other features, and be built anew for minutes.
    let example = ["--workspace", "--example", EXAMPLE];
    pass(cargo().args(["build", "--quiet", "--profile", "bench"]).args(example))?;
    let program = target_dir().join("release/examples").join(EXAMPLE);
    pass(Command::new(program.with_extension(std::env::consts::EXE_EXTENSION)).arg(&partial))?;
    fs::rename(&partial, &folder).map_err(|error| Failure::at(&folder, &error))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoint_is_for_runs_of_its_rows() {
        let wanted = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            is_wanted(&Options::parse(&args).unwrap())
        };
        assert!(wanted(&[]) && wanted(&["--filter", "runtime"]) && wanted(&["--filter", "code"]));
        assert!(wanted(&["--crate", "squish-model", "--quick"]));
        assert!(!wanted(&["--filter", "product"]) && !wanted(&["--crate", "squish-attn"]));
        assert!(!wanted(&["--sweep"]));
    }
}
