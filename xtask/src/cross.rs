//! `cargo xtask cross`: tests of the numeric crates for aarch64 under emulation. It shows that the NEON paths are right, not how fast they are.

use std::process::Command;

use crate::{
    failure::Outcome,
    process::{pass, root},
    tidy::table::NUMERIC,
};

/// Runs `tools/cross.sh` with `args`, or with the tests of all numeric crates.
///
/// # Errors
///
/// If the tree of the foreign machine cannot be made or a test fails.
pub(crate) fn run(args: &[String]) -> Outcome {
    pass(
        Command::new("bash")
            .arg(root().join("tools/cross.sh"))
            .args(arguments(args))
            .current_dir(root()),
    )
}

fn arguments(args: &[String]) -> Vec<String> {
    if !args.is_empty() {
        return args.to_vec();
    }
    let packages = NUMERIC.iter().flat_map(|name| ["--package", name]);
    ["test"].into_iter().chain(packages).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_arguments_all_numeric_crates_are_tested() {
        let all = arguments(&[]).join(" ");
        assert_eq!(
            all,
            "test --package squish-kernels --package squish-checkpoint --package squish-quant \
             --package squish-kv --package squish-attn --package squish-eval"
        );
        assert_eq!(arguments(&["check".to_owned()]), ["check"]);
    }
}
