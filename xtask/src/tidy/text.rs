//! Text files: no trailing spaces, a final line break, no paths of a machine.

use super::{Tree, has_extension};

/// Files that the rules read.
pub(crate) const EXTENSIONS: [&str; 7] = ["rs", "md", "toml", "py", "sh", "json", "csv"];

/// Files that may not name a machine's folders.
const PLACELESS: [&str; 4] = ["rs", "md", "toml", "py"];

/// Folders of a machine; written in two parts, so that this file keeps the rule.
const FOLDERS: [&str; 5] = [
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/tm", "p/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
];

/// Folders with files that are kept as they came.
const FOREIGN: [&str; 2] = ["fixtures/", "bench/seed/"];

/// What breaks the rule.
#[must_use]
pub(crate) fn check(tree: &Tree) -> Vec<String> {
    let ours =
        tree.iter().filter(|(path, _)| !FOREIGN.iter().any(|folder| path.starts_with(folder)));
    ours.flat_map(|(path, text)| check_file(path, text)).collect()
}

fn check_file(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.is_empty() && !text.ends_with('\n') {
        faults.push(format!("{path}: no line break at the end"));
    }
    let placeless = PLACELESS.iter().any(|extension| has_extension(path, extension));
    for (i, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            faults.push(format!("{path}:{}: trailing space", i + 1));
        }
        if let Some(folder) = FOLDERS.iter().find(|folder| placeless && line.contains(*folder)) {
            faults.push(format!("{path}:{}: `{folder}` is a folder of some machine", i + 1));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tree;

    #[test]
    fn trailing_spaces_missing_line_breaks_and_machine_paths_are_named() {
        let folder = FOLDERS[1];
        let path_line = format!("see {folder}me/x\n");
        let tree = tree(&[
            ("a.md", "fine\n"),
            ("b.rs", "let a = 1; \n"),
            ("c.toml", "x = 1"),
            ("d.py", &path_line),
            ("e.json", &path_line),
            ("empty.md", ""),
            ("fixtures/f.json", "{} "),
        ]);
        assert_eq!(
            check(&tree),
            [
                "b.rs:1: trailing space".to_owned(),
                "c.toml: no line break at the end".to_owned(),
                format!("d.py:1: `{folder}` is a folder of some machine"),
            ]
        );
    }
}
