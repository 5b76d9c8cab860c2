//! BENCHMARKS.md and EVIDENCE.md are what their results render to.

use super::{Tree, has_extension};
use crate::{evidence, render::render, results::Results};

/// What breaks the rule. Without results there is nothing to check, and nothing may be published.
#[must_use]
pub(crate) fn check(tree: &Tree) -> Vec<String> {
    let mut faults = benchmarks(tree);
    faults.extend(evidence(tree));
    faults
}

fn benchmarks(tree: &Tree) -> Vec<String> {
    let is_results = |path: &str| {
        path.starts_with("bench/results/")
            && has_extension(path, "json")
            && path != evidence::RESULTS
    };
    let mut faults = Vec::new();
    let mut rendered = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| is_results(path)) {
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

fn evidence(tree: &Tree) -> Option<String> {
    let (results, rendered) = (evidence::RESULTS, evidence::RENDERED);
    let published = tree.get(rendered);
    let fault =
        format!("{rendered} is not what {results} renders to (`cargo xtask evidence --render`)");
    match tree.get(results).map(|text| evidence::parse(text)) {
        None => published.map(|_| format!("{rendered} has no {results}")),
        Some(Err(failure)) => Some(failure.to_string()),
        Some(Ok(results)) => (published != Some(&evidence::render(&results))).then_some(fault),
    }
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

    #[test]
    fn evidence_goes_with_its_results() {
        let results = evidence::tests::results();
        let (json, text) = (serde_json::to_string(&results).unwrap(), evidence::render(&results));
        let files = |json: &str, text: &str| {
            check(&tree(&[(evidence::RESULTS, json), (evidence::RENDERED, text)]))
        };
        assert!(files(&json, &text).is_empty());
        assert_eq!(files(&json, &text.replace("fp8", "fp4")).len(), 1);
        assert_eq!(files("{}", &text).len(), 1);
        assert_eq!(check(&tree(&[(evidence::RESULTS, &json)])).len(), 1);
        assert_eq!(check(&tree(&[(evidence::RENDERED, &text)])).len(), 1);
    }
}
