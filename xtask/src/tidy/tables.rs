//! BENCHMARKS.md is what its results render to.

use super::{Tree, has_extension};
use crate::{render::render, results::Results};

/// What breaks the rule. Without results there is nothing to check, and nothing may be published.
#[must_use]
pub(crate) fn check(tree: &Tree) -> Vec<String> {
    let results: Vec<(&String, &String)> = tree
        .iter()
        .filter(|(path, _)| path.starts_with("bench/results/") && has_extension(path, "json"))
        .collect();
    let mut faults = Vec::new();
    let mut rendered = Vec::new();
    for (path, text) in results {
        match serde_json::from_str::<Results>(text) {
            Ok(results) => rendered.push(render(&results)),
            Err(error) => faults.push(format!("{path}: {error}")),
        }
    }
    if let Some(published) =
        tree.get("BENCHMARKS.md").filter(|published| !rendered.contains(published))
    {
        faults.push(format!(
            "BENCHMARKS.md ({} bytes) is not what a file in bench/results renders to",
            published.len()
        ));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tree;

    const RESULTS: &str = include_str!("../../tests/results.json");

    #[test]
    fn an_edited_table_or_one_without_results_is_a_fault() {
        let text = render(&serde_json::from_str(RESULTS).unwrap());
        let file = "bench/results/m.json";
        assert!(check(&tree(&[(file, RESULTS), ("BENCHMARKS.md", &text)])).is_empty());
        assert!(check(&tree(&[])).is_empty());
        let edited = text.replace("met", "MET");
        assert_eq!(check(&tree(&[(file, RESULTS), ("BENCHMARKS.md", &edited)])).len(), 1);
        assert_eq!(check(&tree(&[("BENCHMARKS.md", &text)])).len(), 1);
        assert_eq!(check(&tree(&[(file, "{}")])).len(), 1);
    }
}
