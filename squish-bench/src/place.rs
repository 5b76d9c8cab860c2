//! Where samples and row descriptions are written.

use std::path::PathBuf;

/// The folder that criterion writes to: `CRITERION_HOME`, or `criterion` in the target folder that holds the running executable.
///
/// # Panics
///
/// If the executable has no path or does not lie in a target folder.
#[must_use]
pub fn criterion_dir() -> PathBuf {
    if let Some(home) = std::env::var_os("CRITERION_HOME") {
        return PathBuf::from(home);
    }
    let executable = std::env::current_exe().expect("a running bench has a path");
    // <target>/<profile>/deps/<executable>
    let target = executable
        .ancestors()
        .nth(3)
        .expect("cargo puts executables three levels below the target folder");
    target.join("criterion")
}

/// The folder of everything that is not criterion's own: row descriptions and the tables of the trained checkpoint.
#[must_use]
pub fn squish_dir() -> PathBuf {
    criterion_dir().join("squish")
}
