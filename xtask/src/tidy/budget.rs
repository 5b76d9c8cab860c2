//! Budgets: how many crates a crate brings into a build.

use std::collections::BTreeSet;

/// Arguments for cargo that list the transitive normal dependencies, the package itself first; `--package` follows.
pub(crate) const ARGUMENTS: [&str; 8] = [
    "tree",
    "--edges",
    "normal",
    "--prefix",
    "none",
    "--target",
    "x86_64-unknown-linux-gnu",
    "--no-dedupe",
];

/// What breaks the rule, given what cargo listed.
#[must_use]
pub(crate) fn check(name: &str, most: usize, listed: &str) -> Option<String> {
    // A line reads `half v2.7.1` or `squish-kernels v0.1.0 (/path)`, perhaps with ` (proc-macro)`.
    let version = |line: &str| line.split(' ').take(2).map(ToOwned::to_owned).collect::<Vec<_>>();
    let all: BTreeSet<Vec<String>> =
        listed.lines().filter(|line| !line.trim().is_empty()).map(version).collect();
    let count = all.iter().filter(|words| words.first().is_some_and(|first| first != name)).count();
    (count > most).then(|| format!("{name}: {count} dependencies, the budget is {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_dependencies_are_counted_without_the_crate_itself() {
        let listed = "squish-kernels v0.1.0 (/w)\nhalf v2.7.1\nbytemuck v1.25.2\nhalf v2.7.1\nbytemuck v1.24.0\nthiserror-impl v2.0.1 (proc-macro)\n\n";
        assert_eq!(check("squish-kernels", 4, listed), None);
        assert_eq!(
            check("squish-kernels", 3, listed).unwrap(),
            "squish-kernels: 4 dependencies, the budget is 3"
        );
    }
}
