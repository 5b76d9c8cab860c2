//! STATUS.md: what stands behind each module, as links to files that exist.
//!
//! Every table whose first column is `module` is checked. Its columns are those of [`COLUMNS`], in this order. The module's cell links
//! its source file or folder; the cells of `golden`, `fuzz` and `bench` hold links, or one of the words of [`NONE`] where there is
//! nothing to have. All links lead to files or folders of the repository, from its root. Every file below the `src` of a
//! crate of [`IN_STATUS`] is linked, or lies in a folder that is linked or belongs to a linked file (`a.rs` and `a/`); lib.rs and
//! error.rs aside.

use super::{Tree, has_extension, links::local_links, table::IN_STATUS};

/// Columns of the table of modules.
pub(crate) const COLUMNS: [&str; 9] = [
    "module",
    "crate",
    "spec",
    "scalar definition",
    "golden",
    "levels",
    "fuzz",
    "bench",
    "in the runtime",
];

/// Columns whose cells hold a link or say that there is none.
const LINKED: [&str; 3] = ["golden", "fuzz", "bench"];

/// How a cell says that there is nothing.
pub(crate) const NONE: [&str; 2] = ["—", "no"];

/// What breaks the rule.
#[must_use]
pub(crate) fn check(paths: &[String], tree: &Tree) -> Vec<String> {
    let Some(status) = tree.get("STATUS.md") else {
        return vec!["STATUS.md is missing".to_owned()];
    };
    let exists = |target: &str| {
        let folder = format!("{}/", target.trim_end_matches('/'));
        paths.iter().any(|path| path == target || path.starts_with(&folder))
    };
    let mut faults: Vec<String> = local_links(status)
        .into_iter()
        .filter(|target| !exists(target))
        .map(|target| format!("STATUS.md: `{target}` does not exist"))
        .collect();
    let mut modules = Vec::new();
    for row in module_rows(status, &mut faults) {
        for (column, cell) in COLUMNS.iter().zip(&row) {
            let empty_is_fault = LINKED.contains(column)
                && local_links(cell).is_empty()
                && !NONE.contains(&cell.as_str());
            if empty_is_fault || cell.is_empty() {
                faults.push(format!(
                    "STATUS.md: `{column}` of {} is `{cell}`, expected a link or —",
                    row[0]
                ));
            }
        }
        let linked = local_links(&row[0]);
        if linked.is_empty() {
            faults.push(format!("STATUS.md: module {} links no source", row[0]));
        }
        modules.extend(linked);
    }
    let sources = paths.iter().filter(|path| is_module(path));
    faults.extend(
        sources
            .filter(|path| !modules.iter().any(|module| covers(module, path)))
            .map(|path| format!("STATUS.md: {path} is not listed")),
    );
    faults
}

/// The rows of all tables of modules; tables with other columns are faults.
fn module_rows(status: &str, faults: &mut Vec<String>) -> Vec<Vec<String>> {
    let (mut rows, mut inside, mut seen) = (Vec::new(), false, false);
    for line in status.lines() {
        let Some(cells) = cells(line) else {
            inside = false;
            continue;
        };
        if cells.first().is_some_and(|cell| cell == "module") {
            inside = cells == COLUMNS;
            seen |= inside;
            if !inside {
                faults.push(format!(
                    "STATUS.md: columns {}, expected {}",
                    cells.join(", "),
                    COLUMNS.join(", ")
                ));
            }
        } else if inside && cells.len() != COLUMNS.len() {
            faults.push(format!(
                "STATUS.md: {} cells, expected {}: {line}",
                cells.len(),
                COLUMNS.len()
            ));
        } else if inside && !cells.iter().all(|cell| cell.bytes().all(|b| matches!(b, b'-' | b':')))
        {
            rows.push(cells);
        }
    }
    if !seen {
        faults.push(format!("STATUS.md: no table with the columns {}", COLUMNS.join(", ")));
    }
    rows
}

/// The cells of a line of a table.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(|cell| cell.trim().to_owned()).collect())
}

/// Whether the path is a module that STATUS.md must list.
fn is_module(path: &str) -> bool {
    let in_crate = IN_STATUS
        .iter()
        .any(|name| path.strip_prefix(name).is_some_and(|rest| rest.starts_with("/src/")));
    let file = path.rsplit('/').next().unwrap_or("");
    in_crate && has_extension(path, "rs") && file != "lib.rs" && file != "error.rs"
}

/// Whether listing `module` lists `path`: the file itself, or a file below the folder or below the folder of a file's submodules.
fn covers(module: &str, path: &str) -> bool {
    let module = module.trim_end_matches('/');
    let folder =
        module.strip_suffix("/mod.rs").or_else(|| module.strip_suffix(".rs")).unwrap_or(module);
    path == module || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tree;

    const HEAD: &str = "| module | crate | spec | scalar definition | golden | levels | fuzz | bench | in the runtime |\n|---|---|---|---|---|---|---|---|---|\n";
    const ROW: &str = "| [dot](squish-kernels/src/dot.rs) | squish-kernels | IEEE 754 | `dot_scalar` | [ops](squish-kernels/tests/golden/ops.safetensors) | all | — | [dot](squish-kernels/benches/dot.rs) | yes |\n";
    const PATHS: [&str; 6] = [
        "squish-kernels/src/lib.rs",
        "squish-kernels/src/dot.rs",
        "squish-kernels/src/dot/x86.rs",
        "squish-kernels/tests/golden/ops.safetensors",
        "squish-kernels/benches/dot.rs",
        "squish-bench/src/suite.rs",
    ];

    fn faults(status: &str, paths: &[&str]) -> Vec<String> {
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        check(&paths, &tree(&[("STATUS.md", status)]))
    }

    #[test]
    fn a_table_whose_links_exist_and_that_lists_every_module_passes() {
        assert_eq!(
            faults(
                &format!(
                    "# Status\n\n{HEAD}{ROW}\nText.\n\n| crate | most |\n|---|---|\n| a | 24 |\n"
                ),
                &PATHS
            ),
            [""; 0]
        );
    }

    #[test]
    fn each_broken_promise_is_named() {
        let status = format!("{HEAD}{ROW}");
        for (status, paths, what) in [
            (status.clone(), &PATHS[..4], "`squish-kernels/benches/dot.rs` does not exist"),
            (
                status.replace("| — |", "| later |"),
                &PATHS[..],
                "`fuzz` of [dot](squish-kernels/src/dot.rs) is `later`",
            ),
            (status.replace("| all |", "|  |"), &PATHS[..], "`levels` of"),
            (
                status.replace("[dot](squish-kernels/src/dot.rs)", "dot"),
                &PATHS[..],
                "links no source",
            ),
            (status.replace("| yes |", "|"), &PATHS[..], "8 cells, expected 9"),
            (status.replace("| levels", "| isa"), &PATHS[..], "columns module, crate"),
            ("# Status\n".to_owned(), &PATHS[..], "no table with the columns"),
        ] {
            let faults = faults(&status, paths);
            assert!(faults.iter().any(|fault| fault.contains(what)), "{what}: {faults:?}");
        }
    }

    #[test]
    fn a_module_that_is_not_listed_is_a_fault() {
        let mut paths = PATHS.to_vec();
        paths.push("squish-quant/src/mx.rs");
        paths.push("squish-quant/src/error.rs");
        paths.push("squish-model/src/config.rs");
        assert_eq!(
            faults(&format!("{HEAD}{ROW}"), &paths),
            [
                "STATUS.md: squish-quant/src/mx.rs is not listed",
                "STATUS.md: squish-model/src/config.rs is not listed"
            ]
        );
    }

    #[test]
    fn without_the_file_there_is_one_fault() {
        assert_eq!(check(&[], &tree(&[])), ["STATUS.md is missing"]);
    }
}
