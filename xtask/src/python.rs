//! A Python with the libraries of a `requirements.txt`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    failure::{Outcome, read, write},
    process::{pass, target_dir},
};

/// Names an interpreter that already has the libraries.
pub(crate) const PYTHON_VARIABLE: &str = "SQUISH_PYTHON";

/// The interpreter that `SQUISH_PYTHON` names, or one in a virtual environment `target/venv-{name}`, made on first use and again when the
/// requirements change.
///
/// # Errors
///
/// If the environment cannot be made or a library cannot be installed.
pub(crate) fn python(requirements: &Path, name: &str) -> Outcome<PathBuf> {
    if let Some(named) = std::env::var_os(PYTHON_VARIABLE) {
        return Ok(PathBuf::from(named));
    }
    let venv = target_dir().join(format!("venv-{name}"));
    let interpreter = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    // Written last, so that a broken installation is tried again.
    let installed = venv.join("installed-requirements.txt");
    let wanted = read(requirements)?;
    if read(&installed).is_ok_and(|text| text == wanted) && interpreter.exists() {
        return Ok(interpreter);
    }
    pass(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    pass(
        Command::new(&interpreter)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements),
    )?;
    write(&installed, wanted)?;
    Ok(interpreter)
}
