//! Runs the program.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// Folder of the trained checkpoint.
pub(crate) const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tiny/base");

/// A file of held-out texts.
pub(crate) fn held_out(kind: &str) -> PathBuf {
    format!("{}/../fixtures/tiny/heldout/{kind}.jsonl", env!("CARGO_MANIFEST_DIR")).into()
}

/// A run at the machine's own level: lower ones are for the tests of the crates that the program is made of.
pub(crate) fn squish(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_squish"))
        .args(args)
        .env_remove("SQUISH_SIMD")
        .output()
        .unwrap()
}

/// What a run that succeeds prints.
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = squish(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The object that a run with `--json` prints.
pub(crate) fn json(args: &[&str]) -> serde_json::Value {
    let mut args = args.to_vec();
    args.push("--json");
    serde_json::from_str(&stdout(&args)).unwrap()
}

/// The line of a run that fails, which has exit code 2 and prints nothing else.
pub(crate) fn complaint(args: &[&str]) -> String {
    let output = squish(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().to_owned()
}
